"""Base of the operations that bring their own loss: one function of outputs and targets, for all data alike."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from holdfast.core.criteria import Sum, by_row
from holdfast.core.experience import Tree
from holdfast.core.operation import Operation
from holdfast.core.ranges import NonNegative
from holdfast.core.services import Services
from holdfast.models.heads import MASKED


class OwnCriterion(Operation):
    """A loss in place of the learner's criterion, for current data, replayed data and evaluation alike.

    Several of them in one method add, each with its weight and a line of its own in the log; beside an operation that
    owns the criterion, such as `MaskedCrossEntropy`, they add to that.

    Args:
        weight: factor of the loss.
    """

    role = "knowledge incorporation"
    needs = frozenset({"criterion"})
    adds = True

    def __init__(self, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def setup(self, learner: Services) -> None:
        """Put this loss in the learner's place, or add it to those that are there, for replay and evaluation too."""
        others = learner.criterion.terms if isinstance(learner.criterion, Sum) else ()
        learner.criterion = Sum(*others, (self.weighted, self.weighted_rows))

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The mean loss of the current rows, with its weight."""
        return self.weighted(outputs, targets)

    def weighted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`measure` with its weight."""
        loss = self.measure(outputs, targets)
        return loss if self.weight == 1.0 else self.weight * loss

    def weighted_rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`by_row` with its weight."""
        losses = self.by_row(outputs, targets)
        return losses if self.weight == 1.0 else self.weight * losses

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of `outputs` `[rows, ...]` under `targets` `[rows, ...]`, a scalar."""

    def by_row(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`; a subclass without one of its own measures row by row."""
        return by_row(self.measure, outputs, targets)


def inside(outputs: Tensor) -> Tensor:
    """`[rows, width]` bool: which outputs belong to the row's task; all of them without a head per task."""
    return outputs != MASKED
