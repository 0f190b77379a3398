"""What operations share about rows: those to be remembered, some of a draw, a loss for each, a loss of one's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.criteria import Sum, by_row, ignored_label, likelihood, or_zero
from holdfast.core.decide import on_host
from holdfast.core.errors import UsageError
from holdfast.core.experience import Batch, Tree, task_column, tree_map, tree_rows
from holdfast.core.memory import Rows
from holdfast.core.operation import Operation, require
from holdfast.core.ranges import NonNegative
from holdfast.core.services import Criterion, Services
from holdfast.core.step import Step
from holdfast.models.heads import MASKED
from holdfast.models.losses import PackedLoss

HALF = (torch.bfloat16, torch.float16)
"""What autocast makes of outputs; they are remembered in full precision, as the rest of the state is kept."""


def require_outputs(step: Step) -> Tensor:
    """The step's outputs.

    Raises:
        ConfigError: if the loop captured none.
    """
    require(step.outputs is not None, "remember", "needs the model's outputs, and this step has none. Pass outputs=...")
    assert step.outputs is not None
    return step.outputs


def row_count(step: Step, learner: Services) -> int:
    """How many current rows the step's gradient is the mean over: those of all ranks, which have as many each."""
    return tree_rows(step.inputs) * learner.share.ranks


def rows_of(step: Step, learner: Services) -> dict[str, Any]:
    """The step's current rows with every field that the method wants remembered (`learner.fields`).

    Args:
        step: after its losses were computed.
        learner: knows the fields.

    Returns:
        `inputs`, `targets` and the other fields, as `Memory.add` takes them.
    """
    rows: dict[str, Any] = {"inputs": step.inputs, "targets": step.targets}
    for field in learner.fields:
        if field == "logits":
            outputs = require_outputs(step).detach()
            rows[field] = outputs.float() if outputs.dtype in HALF else outputs
        elif field == "task":
            if step.task is not None:
                rows[field] = step.task
        else:
            rows[field] = step.extras[field]
    return rows if step.fresh is None else _fresh(rows, step.fresh)


def _fresh(rows: dict[str, Any], fresh: Tensor) -> dict[str, Any]:
    """The rows that are trained on for the first time; the others were remembered then."""
    keep, every = fresh.to(rows["targets"].device), len(fresh)

    def chosen(leaf: Tensor) -> Tensor:
        return leaf[keep] if leaf.dim() and len(leaf) == every else leaf

    return {name: value if isinstance(value, int) else tree_map(chosen, value) for name, value in rows.items()}


def loss_of(learner: Services, outputs: Tensor, targets: Tensor) -> Tensor:
    """The criterion's mean loss of outputs on remembered samples; 0 where none of their labels counts."""
    return (or_zero(learner.criterion) if learner.ignores else learner.criterion)(outputs, targets)


def with_classes(rows: dict[str, Any], learner: Services) -> dict[str, Any]:
    """The rows without those whose label counts for nothing, for memories that go by classes."""
    targets, ignored = rows["targets"], ignored_label(learner.criterion)
    if learner.counts_all:  # to look at each batch anew would wait for the device
        return rows
    if targets.dim() != 1 or learner.decide(lambda: bool((on_host(targets) != ignored).all())):
        return rows
    return _fresh(rows, targets != ignored)


def rows_of_batch(batch: Batch, learner: Services) -> dict[str, Any]:
    """A batch of an experience's data on the learner's device, with every field that the method wants remembered.

    Args:
        batch: as the data gives it; without a task label it is of the current task.
        learner: its model, in its current mode, gives `logits` where they are wanted.
    """
    inputs = tree_map(lambda leaf: leaf.to(learner.device), batch.inputs)
    targets = batch.targets.to(learner.device)
    rows: dict[str, Any] = {"inputs": inputs, "targets": targets}
    task = learner.task if batch.task is None else batch.task
    if "logits" in learner.fields:
        with torch.no_grad():
            outputs = learner(inputs, task)
        rows["logits"] = outputs.float() if outputs.dtype in HALF else outputs
    if "task" in learner.fields and task is not None:
        rows["task"] = task_column(task, targets.shape[0], learner.device)
    return rows


def take(rows: Mapping[str, Tree], index: Tensor) -> Rows:
    """The rows at `index`, of every field.

    Example:
        >>> take({"targets": torch.tensor([4, 5, 6])}, torch.tensor([2, 0]))
        {'targets': tensor([6, 4])}
    """
    return {field: tree_map(lambda leaf: leaf.index_select(0, index), tree) for field, tree in rows.items()}


_BY_ROW = (
    *(F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss),
    *(F.binary_cross_entropy, F.binary_cross_entropy_with_logits),
)
"""Torch's criteria that are the mean of a value for each row, or for each row and output."""


def row_losses(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row on its own, `[rows]`; one call for torch's functions, one call a row for any other.

    Example:
        >>> row_losses(torch.nn.functional.mse_loss, torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
        tensor([1., 9.])
    """
    if isinstance(criterion, Sum | PackedLoss):
        return criterion.by_row(outputs, targets)
    if criterion in _BY_ROW:
        losses: Tensor = criterion(outputs, targets, reduction="none")  # type: ignore[call-arg]
        return losses if losses.dim() == 1 else losses.flatten(1).mean(1)
    return by_row(criterion, outputs, targets)


def counted(order: Tensor, targets: Tensor, criterion: Callable[..., Tensor]) -> Tensor:
    """The samples of `order` that have a label which counts.

    Args:
        order: indices of samples.
        targets: of all samples, `[samples, ...]`; numbers all count.
        criterion: says which label is ignored.
    """
    if targets.is_floating_point() or targets.is_complex():
        return order
    ignored = targets == ignored_label(criterion)
    ignored = ignored.flatten(1).all(1) if targets.dim() > 1 else ignored
    return order[~ignored[order]] if bool(ignored.any()) else order


def class_dim(criterion: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> int:
    """Which dimension of the outputs has a value per class: 1, or the last one where a class stands at each position.

    Args:
        criterion: where both would do, the one is taken whose cross-entropy is this criterion's.
        outputs: `[rows, classes]`, `[rows, classes, ...]` or `[rows, ..., classes]`; or `[rows * positions, classes]`.
        targets: class indices `[rows, ...]`, or numbers, of which nothing is asked.

    Raises:
        UsageError: if the outputs have no value per class for each target.
    """
    if targets.is_floating_point() or outputs.dim() == 2:
        return 1
    second = outputs.dim() == targets.dim() + 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    last = outputs.dim() == targets.dim() + 1 and outputs.shape[:-1] == targets.shape
    if not second and not last:
        raise UsageError(
            f"outputs of shape {tuple(outputs.shape)} have no value per class for targets of shape"
            f" {tuple(targets.shape)}. Return a value per class for each target: [rows, classes, ...]."
        )
    if second and last:
        with torch.no_grad():
            losses = [F.cross_entropy(outputs.movedim(dim, 1), targets) for dim in (1, -1)]
            loss = criterion(outputs, targets)
        return 1 if bool((losses[0] - loss).abs() <= (losses[1] - loss).abs()) else -1
    return 1 if second else -1


def by_position(criterion: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs `[n, classes]` and targets `[n]`: of each row, or of each position where a class stands at each.

    Args:
        criterion: decides between two readings of the outputs, as for `class_dim`.
        outputs: `[rows, classes]`, `[rows, classes, ...]` or `[rows, ..., classes]`.
        targets: class indices `[rows, ...]`.
    """
    if outputs.dim() == 2 and targets.dim() == 1:
        return outputs, targets
    return outputs.movedim(class_dim(criterion, outputs, targets), -1).flatten(0, -2), targets.flatten()


def sum_of_rows(criterion: Callable[..., Tensor], outputs: Tensor, labels: Tensor) -> Tensor:
    """The sum over rows of `criterion` on each row alone, a scalar.

    A mean over rows is called once; anything else (a sum, class weights, ignored labels) once for each row.

    Example:
        >>> sum_of_rows(torch.nn.MSELoss(reduction="sum"), torch.ones(3, 2), torch.zeros(3, 2))
        tensor(6.)
    """
    rows = len(labels)
    if rows == 1:
        return criterion(outputs, labels)
    whole = criterion(outputs, labels) * rows
    if likelihood(criterion) is not None and (labels.dim() == 1 or labels.is_floating_point()):
        return whole
    total = torch.stack([criterion(outputs[row : row + 1], labels[row : row + 1]) for row in range(rows)]).sum()
    return whole if bool(torch.isclose(whole, total, rtol=1e-4)) else total


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
