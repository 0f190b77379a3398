"""Distillation: on today's inputs the model keeps the old classes' outputs it gave before."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term, require
from holdfast.core.ranges import NonNegative, Positive
from holdfast.core.services import Services
from holdfast.core.snapshot import Snapshot
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Average, mix
from holdfast.operations._parts.rows import class_dim


class Distillation(Operation):
    r"""Cross-entropy between softened outputs of the model before this experience and of the model today.

    $$ L = L(x, y) + w \, s \Big( - \sum_{c \in \text{old}} p_c \log q_c \Big), \qquad
       p = \operatorname{softmax}(z^{\text{old}} / T), \; q = \operatorname{softmax}(z / T), \;
       s = T^2 \text{ if scaled, else } 1 $$

    Both softmaxes run over the classes seen before this experience only; with `over="all"` over all outputs of each
    model, where outputs that the old model did not have yet get no probability. With one head per task the loss is
    the mean of this over the old tasks, each over its own classes; with a class at each position (segmentation,
    language models) it is the mean over positions.

    Args:
        temperature: the paper's T.
        weight: the paper's lambda_o, under `average="none"`.
        average: `none` adds the two losses; `experiences` weighs the current data by 1/c and this by 1 - 1/c
            after c experiences, as van de Ven et al. 2022 do.
        scaled: multiply by T^2, so that gradients do not shrink as T grows; van de Ven et al. 2022 do not.
        over: `old` compares the old classes among themselves; `all` takes each softmax over all outputs, as van de Ven
            et al. 2022 do.
        adaptive: whether to multiply by the number of old classes over the number of classes in the current data, what
            is replayed with them included, as CLMixer does.
        form: `cross_entropy`, or `divergence` (Kullback-Leibler): the same less the teacher's entropy, with the same
            gradient.

    Source: Li and Hoiem 2017, "Learning without forgetting", eq. 2 and 3; Hinton et al. 2015 for T^2.
    Differences: no warm-up of the new head alone; probabilities softened by dividing logits by T.
    """

    positions = True
    asks = "loss"
    role = "knowledge retention"
    needs = frozenset({"boundaries", "classes"})
    state = ("teacher", "old", "tasks")

    def __init__(
        self,
        temperature: Positive = 2.0,
        weight: NonNegative = 1.0,
        average: Average = "none",
        scaled: bool = True,
        over: Literal["old", "all"] = "old",
        adaptive: bool = False,
        form: Literal["cross_entropy", "divergence"] = "cross_entropy",
    ) -> None:
        super().__init__()
        require(
            average != "rows",
            "distillation",
            "got average='rows', but it has no rows of its own. Use none or experiences.",
        )
        self.temperature = temperature
        self.weight = weight
        self.average = average
        self.scaled = scaled
        self.over = over
        self.adaptive = adaptive
        self.form = form
        self.teacher: Snapshot | None = None
        self.old: list[int] = []
        self.tasks: list[list[int]] = []

    def begin(self, experience: Experience, learner: Services) -> None:
        """Take the teacher, and note which classes it knows, before the head grows."""
        if learner.experience >= 0:
            self.teacher = learner.snapshot()
            self.old = sorted({c for members in learner.members for c in members})
            self.tasks = [list(members) for members in learner.members]

    def loss(self, step: Step, learner: Services) -> Term | None:
        """The distillation loss, once there is a teacher."""
        if self.teacher is None or step.outputs is None:
            return None
        if learner.multi_head:
            taught = self.teacher(step.inputs, "all")
            every = step.extras.get("unmasked")
            if every is None:  # each task has more than a head of its own, so another forward
                every = learner(step.inputs, "all")
            terms = [self._between(taught[:, members], every[:, members]) for members in self.tasks]
            term = torch.stack(terms).mean()
        else:
            taught, student = self.teacher(step.inputs), step.outputs
            if student.dim() > 2:  # a class at each position: the loss is the mean over positions
                dim = class_dim(learner.criterion, student, step.targets)
                taught, student = (values.movedim(dim, -1).flatten(0, -2) for values in (taught, student))
            if self.over == "old" and not len(self.old) == taught.shape[1] == student.shape[1]:
                taught, student = taught[:, self.old], student[:, self.old]
            term = self._between(taught, student)
        weight = self.weight
        if self.adaptive:
            weight *= len(self.old) / max(1, len(learner.members[-1]))
        return mix(term, step, learner, self.average, weight)

    def _between(self, taught: Tensor, student: Tensor) -> Tensor:
        soft = F.softmax(taught / self.temperature, dim=1)
        if soft.shape != student.shape:  # outputs that came since
            soft = F.pad(soft, (0, student.shape[1] - soft.shape[1]))
        between = F.cross_entropy(student / self.temperature, soft)
        if self.form == "divergence":
            between = between + torch.xlogy(soft, soft).sum(1).mean()
        return self.temperature**2 * between if self.scaled else between
