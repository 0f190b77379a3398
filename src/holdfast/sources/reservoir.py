"""The buffer of a queue that gives seen rows again while nothing new has come, and loses no unseen one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.experience import Batch
from holdfast.core.tree import Tree, tree_cat, tree_map


class Reservoir:
    """Rows in a buffer, each marked once it was drawn.

    Args:
        capacity: rows.
        batch_size: rows of a draw; None for those of the first batch.
        watermark: rows that must be there before the first draw; None for one draw.
        seed: of the draws; the n-th draw depends on it and n alone.
    """

    def __init__(self, capacity: int, batch_size: int | None, watermark: int | None, seed: int) -> None:
        self.capacity = capacity
        self.batch_size = batch_size
        self.watermark = watermark
        self.seed = seed
        self.unseen = 0
        self.position: dict[str, Any] | None = None
        self._inputs: Tree | None = None
        self._targets: Tensor
        self._fresh = torch.zeros(capacity, dtype=torch.bool)
        self._origin: list[tuple[int, int]] = []
        self._count = self._arrived = 0
        self._marks: deque[tuple[int, dict[str, Any], dict[str, Any]]] = deque()
        self._wanted: dict[int, set[int]] = {}
        self._last = 0
        self._apart: list[Batch] = []
        self._row = 0

    def parts(self, batch: Batch) -> list[Batch]:
        """`batch` in parts that fit."""
        rows = len(batch.targets)
        if self.batch_size is None:
            self.batch_size = min(rows, self.capacity)
        if rows <= self.capacity:
            return [batch]
        pieces = range(0, rows, self.capacity)
        cut = lambda leaf, start: leaf[start : start + self.capacity]  # noqa: E731
        return [Batch(tree_map(lambda x: cut(x, s), batch.inputs), cut(batch.targets, s)) for s in pieces]  # noqa: B023

    def room(self, rows: int) -> bool:
        """Whether so many rows can come without an unseen one being lost."""
        return self.capacity - self.unseen >= rows

    def add(self, batch: Batch, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Put a batch in, in the room of rows that were seen."""
        if not self._marks or self._marks[-1][1] is not before:
            self._arrived += 1
            self._row = 0
            self._marks.append((self._arrived, before, after))
        number, start = self._arrived, self._row
        if batch.held_out is not None and number > self._last:
            self._apart.append(batch.held_out)
        rows = len(batch.targets)
        self._row += rows
        chosen = list(range(rows))
        if number <= self._last:  # read again after a resume: only rows that were not trained on yet
            chosen = [row for row in chosen if start + row in self._wanted.get(number, ())]
        if not chosen:
            return
        if self._inputs is None:
            self._inputs = tree_map(lambda leaf: leaf.new_empty((self.capacity, *leaf.shape[1:])), batch.inputs)
            self._targets = batch.targets.new_empty((self.capacity, *batch.targets.shape[1:]))
            self._origin = [(0, 0)] * self.capacity
        new = list(range(self._count, min(self.capacity, self._count + len(chosen))))
        old = len(chosen) - len(new)
        if old:
            seen = (~self._fresh[: self._count]).nonzero().flatten()
            generator = torch.Generator().manual_seed(self.seed * 7_919 + self._arrived)
            new += seen[torch.randperm(len(seen), generator=generator)[:old]].tolist()
        slots, rows_ = torch.tensor(new), torch.tensor(chosen)
        _write(self._inputs, batch.inputs, slots, rows_)
        self._targets[slots] = batch.targets[rows_]
        self._fresh[slots] = True
        for slot, row in zip(new, chosen):
            self._origin[slot] = (number, start + row)
        self._count = max(self._count, max(new) + 1)
        self.unseen += len(chosen)

    def ready(self, over: bool) -> bool:
        """Whether a batch can be drawn: at the end while a row is unseen, before that above the watermark."""
        if over:
            return self.unseen > 0
        return self._count >= (self.watermark or self.batch_size or 1)

    def example(self) -> Batch:
        """One row, for its shape."""
        assert self._inputs is not None
        return Batch(tree_map(lambda leaf: leaf[:1], self._inputs), self._targets[:1])

    def draw(self, number: int, over: bool) -> Batch:
        """Draw the `number`-th batch; rows that were not seen before are `fresh` in it."""
        assert self._inputs is not None and self.batch_size is not None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        among = self._fresh[: self._count].nonzero().flatten() if over else torch.arange(self._count)
        slots = among[torch.randperm(len(among), generator=generator)[: self.batch_size]]
        fresh = self._fresh[slots].clone()
        self._fresh[slots] = False
        self.unseen -= int(fresh.sum())
        batch = Batch(tree_map(lambda leaf: leaf[slots], self._inputs), self._targets[slots], fresh=fresh)
        batch.held_out, self._apart = joined(self._apart), []
        self._forget()
        return batch

    def _forget(self) -> None:
        """Move the position past the batches of which every row was seen."""
        waiting = {self._origin[slot][0] for slot in self._fresh[: self._count].nonzero().flatten().tolist()}
        oldest = min(waiting, default=self._arrived + 1)
        while self._marks and self._marks[0][0] < oldest:
            self.position = self._marks.popleft()[2]
        if self._marks:
            self.position = self._marks[0][1]

    def pending(self) -> dict[str, Any]:
        """The rows that were not seen, by batch counted from the position on, and how many batches had come."""
        first = self._marks[0][0] if self._marks else self._arrived + 1
        rows: dict[str, list[int]] = {}
        for slot in self._fresh[: self._count].nonzero().flatten().tolist():
            number, row = self._origin[slot]
            rows.setdefault(str(number - first + 1), []).append(row)
        return {"batches": self._arrived - first + 1, "rows": {key: sorted(one) for key, one in sorted(rows.items())}}

    def expect(self, pending: Mapping[str, Any], position: dict[str, Any]) -> None:
        """Take only what `pending` says of the next batches."""
        self._last = int(pending["batches"])
        self._wanted = {int(number): set(rows) for number, rows in pending["rows"].items()}
        self.position = position


def _write(into: Tree, rows: Tree, slots: Tensor, chosen: Tensor) -> None:
    """Copy some rows of a tree into slots of another."""
    if isinstance(into, Tensor):
        into[slots] = rows[chosen]  # type: ignore[index]
    elif isinstance(into, Mapping):
        for key, value in into.items():
            value[slots] = rows[key][chosen]  # type: ignore[call-overload, index]
    else:
        for value, row in zip(into, rows):  # type: ignore[arg-type]
            value[slots] = row[chosen]


def joined(batches: list[Batch]) -> Batch | None:
    """Batches as one; None for no batches."""
    if len(batches) < 2:
        return batches[0] if batches else None
    inputs = tree_cat([batch.inputs for batch in batches])
    return Batch(inputs, torch.cat([batch.targets for batch in batches]))
