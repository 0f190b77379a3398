"""Task inference: without a task label, each sample is answered by the part of the model that is surest of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience, Tree
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.models import MASKED


class InferTask(Operation):
    r"""The task of a sample is the one whose outputs have the lowest entropy.

    $$ \hat t(x) = \arg\min_t \; H\big( p(\cdot \mid x, t) \big), \qquad
       z_c(x) = \log p(c \mid x, t_c) - (1 + \log C) \, [t_c \ne \hat t(x)] $$

    with the softmax of each task over its own classes, and C the most classes of a task. The largest output of all is
    then the answer of the inferred task, so accuracy is class-incremental; the largest among the classes of one task is
    still the answer of that task, so the task-aware accuracy of the same run is that with the task given. Works with
    any model or method that has a part for each task: hypernetworks, task heads, masks, gates, separate networks.
    Evaluation takes one forward for each task seen.

    Source: von Oswald et al. 2020, "Continual learning with hypernetworks", HNET+ENT; CL3 of Henning et al. 2021,
    "Posterior meta-replay for continual learning".

    Example:
        >>> InferTask()
        InferTask()
    """

    role = "uncertainty reduction"
    needs = frozenset({"task", "classes"})
    once = "infer the task"
    state = ("classes",)

    def __init__(self) -> None:
        super().__init__()
        self.classes: dict[int, list[int]] = {}

    def begin(self, experience: Experience, learner: Services) -> None:
        """Note the classes of the task."""
        if experience.task is not None:
            labels = set(self.classes.get(experience.task, []))
            self.classes[experience.task] = sorted(labels | set(experience.classes))

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """Logarithms of probabilities within each task, lower for tasks that are not the inferred one."""
        if not self.classes:
            return outputs
        answers = {
            task: F.log_softmax(learner(inputs, task)[:, classes].float(), dim=1)
            for task, classes in self.classes.items()
        }
        surest = torch.stack([entropies(log_p) for log_p in answers.values()]).argmin(0)
        below = 1 + math.log(max(map(len, self.classes.values())))  # further than the best of C answers can be from 0
        result = outputs.new_full(outputs.shape, MASKED, dtype=torch.float32)
        for position, (task, log_p) in enumerate(answers.items()):
            values = log_p - below * (surest != position)[:, None]
            columns = self.classes[task]
            result[:, columns] = torch.maximum(result[:, columns], values)  # tasks may share classes
        return result


def entropies(log_probabilities: Tensor) -> Tensor:
    """Entropy of each row, `[rows]`, in nats.

    Example:
        >>> [abs(round(value, 4)) for value in entropies(torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()).tolist()]
        [0.6931, 0.0]
    """
    return -(log_probabilities.exp() * log_probabilities.clamp_min(torch.finfo(log_probabilities.dtype).min)).sum(1)


def inference(wanted: bool) -> tuple[InferTask, ...]:
    """The operation where it is wanted, else nothing: for methods that have a part for each task."""
    return (InferTask(),) if wanted else ()
