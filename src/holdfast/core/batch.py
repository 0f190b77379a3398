"""Samples that go through the model together, and the rows that operations add to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.core.tree import Tree, tree_cat, tree_rows

Extras = dict[str, Any]
"""Side results of a forward (masks, chosen prompts, outputs of appended rows), by the name of the operation."""


def task_column(task: int | Tensor, rows: int, device: torch.device) -> Tensor:
    """The task label of each of `rows` samples, `[rows]` int64."""
    return task if isinstance(task, Tensor) else torch.full((rows,), task, dtype=torch.int64, device=device)


@dataclass(slots=True)
class Batch:
    """Samples that go through the model together.

    Attributes:
        inputs: raw inputs, `[rows, ...]`; images are usually uint8 and become floats in `Learner.prepare`.
        targets: `[rows]` class indices (int64), or `[rows, ...]` floats for regression and multi-label targets. None
            before the forward of a loop that is not ours; who looks at them there declares the need `targets`.
        task: the task label of all rows, `[rows]` labels where tasks are mixed, or None where there are none.
        appended: rows that operations want to go through the *same* forward, by operation name; each a
            mapping with at least `inputs` and `targets`. Their outputs reach the operation in `step.extras`.
        fresh: `[rows]` bool, which rows are trained on for the first time, where a source gives some again; those alone
            are remembered, and count as predicted before they were trained on. None: all of them.
        held_out: rows that arrived with these and are not to be trained on (see `holdfast.sources.HoldOut`).
    """

    inputs: Tree
    targets: Tensor
    task: int | Tensor | None = None
    appended: dict[str, dict[str, Any]] | None = None
    fresh: Tensor | None = None
    held_out: Batch | None = None

    def append(self, name: str, rows: dict[str, Any]) -> Batch:
        """This batch with `rows` (at least `inputs` and `targets`) joined to its forward, under `name`."""
        return Batch(self.inputs, self.targets, self.task, {**(self.appended or {}), name: rows}, self.fresh)

    def joined(self, device: torch.device) -> tuple[Tree, int | Tensor | None]:
        """Inputs and tasks of the current and the appended rows, for one forward on `device`."""
        appended = self.appended or {}
        inputs = tree_cat([self.inputs, *[rows["inputs"] for rows in appended.values()]])
        if self.task is None or not all("task" in rows for rows in appended.values()):
            return inputs, self.task
        current = task_column(self.task, tree_rows(self.inputs), device)
        return inputs, torch.cat([current, *(rows["task"] for rows in appended.values())])

    def parted(self, outputs: Tensor) -> tuple[Tensor, Extras]:
        """Outputs of the current rows, and each operation's appended rows with their `outputs`."""
        appended = self.appended or {}
        sizes = [tree_rows(self.inputs)]
        for rows in appended.values():  # loops, and not comprehensions: this is done at every step
            sizes.append(tree_rows(rows["inputs"]))
        parts = torch.split_with_sizes(outputs, sizes)
        extras: Extras = {}
        for name, part in zip(appended, parts[1:]):
            extras[name] = {**appended[name], "outputs": part}
        return parts[0], extras
