"""What operations share about rows: those of a step that are to be remembered, some of a draw, a loss for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Batch, Tree, task_column, tree_map
from holdfast.core.learner import Criterion, Learner
from holdfast.core.operation import require
from holdfast.core.step import Step


def require_outputs(step: Step) -> Tensor:
    """The step's outputs.

    Raises:
        ConfigError: if the loop captured none.
    """
    require(step.outputs is not None, "remember", "needs the model's outputs, and this step has none. Pass outputs=...")
    assert step.outputs is not None
    return step.outputs


def rows_of(step: Step, learner: Learner) -> dict[str, Any]:
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
            rows[field] = require_outputs(step).detach()
        elif field == "task":
            if step.task is not None:
                rows[field] = step.task
        else:
            rows[field] = step.extras[field]
    return rows


def rows_of_batch(batch: Batch, learner: Learner) -> dict[str, Any]:
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
            rows["logits"] = learner(inputs, task)
    if "task" in learner.fields and task is not None:
        rows["task"] = task_column(task, targets.shape[0], learner.device)
    return rows


def take(rows: Mapping[str, Tree], index: Tensor) -> dict[str, Tree]:
    """The rows at `index`, of every field.

    Example:
        >>> take({"targets": torch.tensor([4, 5, 6])}, torch.tensor([2, 0]))
        {'targets': tensor([6, 4])}
    """
    return {field: tree_map(lambda leaf: leaf.index_select(0, index), tree) for field, tree in rows.items()}


def row_losses(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row on its own, `[rows]`; one call a row for any criterion but cross-entropy.

    Example:
        >>> row_losses(torch.nn.functional.mse_loss, torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
        tensor([1., 9.])
    """
    if criterion is F.cross_entropy:
        return F.cross_entropy(outputs, targets, reduction="none")
    return torch.stack([criterion(outputs[row : row + 1], targets[row : row + 1]) for row in range(outputs.shape[0])])
