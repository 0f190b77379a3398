"""Base of the operations that bring their own loss: one function of outputs and targets, for all data alike."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from holdfast.core.experience import Tree
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.models.heads import MASKED


class OwnCriterion(Operation):
    """A loss in place of the learner's criterion: for current data, replayed data and evaluation alike."""

    role = "knowledge incorporation"
    needs = frozenset({"criterion"})

    def setup(self, learner: Services) -> None:
        """Put this loss in the learner's place, so that replay and evaluation take it too."""
        learner.criterion = self.measure

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The mean loss of the current rows."""
        return self.measure(outputs, targets)

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of `outputs` `[rows, ...]` under `targets` `[rows, ...]`, a scalar."""


def inside(outputs: Tensor) -> Tensor:
    """`[rows, width]` bool: which outputs belong to the row's task; all of them without a head per task."""
    return outputs != MASKED
