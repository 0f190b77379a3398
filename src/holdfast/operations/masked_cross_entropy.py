"""Masked cross-entropy (the labels trick): only some classes compete, the others are left alone."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Tree
from holdfast.core.operation import Operation
from holdfast.core.services import Services

Over = Literal["experience", "batch", "seen"]


class MaskedCrossEntropy(Operation):
    r"""Cross-entropy over some of the classes; outputs of the others get no gradient.

    $$ L(x, y) = - \log \frac{e^{z_y}}{\sum_{k \in A} e^{z_k}}, \qquad
       A = \text{classes of the experience, of the batch, or seen so far} $$

    Plain cross-entropy pushes old classes' outputs down in every step on new ones, which is most of the forgetting in
    class-incremental learning. Over the experience or the batch it pushes none of them. Over the classes seen it leaves
    alone those that are still to come: what a growing head does, with a head that has all its outputs from the start.
    Replayed samples keep the learner's own criterion, over all classes.

    Args:
        over: the classes that compete: of the `experience`, of the `batch`, or `seen` so far.

    Source: Zeno et al. 2018, "Task agnostic continual learning using online variational Bayes", section 5 (the labels
    trick); van de Ven, Li and Tolias 2021, "Class-incremental learning with generative classifiers" (by experience).
    Differences: none.

    Example:
        >>> sorted(MaskedCrossEntropy(over="batch").needs)
        ['classes', 'criterion']
    """

    role = "bias mitigation"
    needs = frozenset({"boundaries", "classes", "criterion"})
    scratch = ("_mask",)

    def __init__(self, over: Over = "experience") -> None:
        super().__init__()
        self.over = over
        if over == "batch":
            self.needs = self.needs - {"boundaries"}
        self._mask: tuple[tuple[int, int], Tensor] | None = None

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """Mean cross-entropy over the classes that compete."""
        width = outputs.shape[1]
        if self.over == "batch":
            mask = torch.zeros(width, dtype=torch.bool, device=outputs.device).index_fill_(0, targets, True)
        elif self.over == "seen":
            mask = F.pad(learner.classes, (0, width - learner.classes.shape[0]))
        else:
            mask = self._of_experience(width, outputs.device, learner)
        return F.cross_entropy(outputs.masked_fill(~mask, -torch.inf), targets)

    def _of_experience(self, width: int, device: torch.device, learner: Services) -> Tensor:
        key = (learner.experience, width)
        if self._mask is None or self._mask[0] != key or self._mask[1].device != device:
            mask = torch.zeros(width, dtype=torch.bool, device=device)
            mask[list(learner.members[-1])] = True
            self._mask = key, mask
        return self._mask[1]
