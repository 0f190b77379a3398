"""Meta-replay: batches of old and new samples are learned one after the other, and only a part of the way is gone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.experience import Batch, tree_map
from holdfast.core.operation import Term
from holdfast.core.ranges import Count, UpToOne
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.core.tree import tree_rows
from holdfast.operations._parts.draws import mix
from holdfast.operations._parts.rows import loss_of
from holdfast.operations.joined_replay import JoinedReplay
from holdfast.operations.lookahead import step_on


class MetaReplay(JoinedReplay):
    r"""Reptile over batches that hold the current samples and old ones: the gradients of all of them come to agree.

    From the weights theta_0 that a step begins with, for each of s batches b = 1 ... s, each of the current samples and
    a draw of its own from the memory:

    $$ \theta_{b} = \theta_{b-1} + \beta \, (\theta_{b-1}^{(k)} - \theta_{b-1}), \qquad
       \theta \leftarrow \theta_0 + \gamma \, (\theta_s - \theta_0) $$

    with theta^(k) the weights after k steps: one step of the mean loss over the batch with `together`, otherwise one
    for each sample alone, the current ones first.

    The loop makes the first of these steps, with its optimiser, and with the terms and gradient edits of other
    operations; those that follow are plain gradient descent, with the same learning rate, on the loss alone. With one
    batch, `together`, and beta = gamma = 1 it is `JoinedReplay`.

    Args:
        size: old samples in each batch, the paper's k - 1.
        batches: in each step, the paper's s.
        within: beta, the part of the way through a batch that is gone.
        across: gamma, the part of the way through a step that is gone.
        together: one step for each batch, as Buzzega et al. 2020 run it, or the paper's one for each sample.

    Source: Riemer et al. 2019, "Learning to learn without forgetting by maximizing transfer and minimizing
    interference", algorithm 1. Differences: the current samples come first in a batch, and may be several, where the
    paper has one; a memory that is smaller than `size` makes smaller batches.

    Example:
        >>> MetaReplay(size=10, within=0.3).batches
        1
    """

    role = "knowledge retention"
    needs = frozenset({"batch", "update"})
    scratch = ("_start", "_later")
    check_arguments = {"size": 3, "batches": 2, "within": 0.5}

    def __init__(
        self,
        size: Count = 10,
        batches: Count = 1,
        within: UpToOne = 1.0,
        across: UpToOne = 1.0,
        together: bool = True,
    ) -> None:
        super().__init__(size, average="rows")
        self.batches = batches
        self.within = within
        self.across = across
        self.together = together
        self._start: list[Tensor] | None = None
        self._later: list[dict[str, Any]] = []

    def batch(self, batch: Batch, learner: Services) -> Batch:
        """Note where the step begins, draw all its batches, and append the first where they are learned together."""
        if self._start is None:
            self._start = _copied(learner.parameters())
        drawn = [self.drawn(learner) for _ in range(self.batches)]
        self._later = [rows for rows in drawn if rows is not None]
        if not self.together or not self._later:
            return batch
        return batch.append(self.name, self._later.pop(0))

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean loss on the appended samples, averaged with the current ones over all rows."""
        rows = step.extras.get(self.name)
        if rows is None:
            return None
        term = loss_of(learner, rows["outputs"], rows["targets"])
        return mix(term, step, learner, "rows", 1.0, rows["targets"].shape[0])

    def update(self, step: Step, learner: Services) -> None:
        """Learn what is left of the batches, and go back a part of the way."""
        start, later = self._start, self._later
        self._start, self._later = None, []
        if start is None or len(start) != len(learner.parameters()):
            return  # outputs came in the middle of it
        begin = start
        if not self.together and later:
            self._one_by_one(later.pop(0), learner)
        _part_of_the_way(learner.parameters(), begin, self.within)
        for rows in later:
            begin = _copied(learner.parameters())
            if self.together:
                self._joined(step, rows, learner)
            else:
                self._one_by_one(_current(step), learner)
                self._one_by_one(rows, learner)
            _part_of_the_way(learner.parameters(), begin, self.within)
        _part_of_the_way(learner.parameters(), start, self.across)

    def _joined(self, step: Step, rows: dict[str, Any], learner: Services) -> None:
        batch = Batch(step.inputs, step.targets, step.task, {self.name: rows})
        inputs, task = batch.joined(learner.device)
        step_on(learner.loss_on(inputs, torch.cat([step.targets, rows["targets"]]), task), learner, self.name)

    def _one_by_one(self, rows: dict[str, Any], learner: Services) -> None:
        for row in range(tree_rows(rows["inputs"])):
            inputs = tree_map(lambda leaf, row=row: leaf[row : row + 1], rows["inputs"])  # type: ignore[misc]
            task = rows.get("task")
            task = task[row : row + 1] if isinstance(task, Tensor) else task
            step_on(learner.loss_on(inputs, rows["targets"][row : row + 1], task), learner, self.name)


def _current(step: Step) -> dict[str, Any]:
    return {"inputs": step.inputs, "targets": step.targets, "task": step.task}


def _copied(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _part_of_the_way(parameters: list[nn.Parameter], begin: list[Tensor], share: float) -> None:
    """`parameters <- begin + share * (parameters - begin)`; nothing where the share is all of it."""
    if share == 1.0:
        return
    with torch.no_grad():
        torch._foreach_lerp_([*parameters], begin, 1 - share)
