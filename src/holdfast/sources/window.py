"""Sources over another one: its newest rows again and again, and all its rows but some that are held out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Batch
from holdfast.core.source import Source
from holdfast.core.tree import tree_cat, tree_map
from holdfast.sources.queue import Queued
from holdfast.sources.reservoir import joined


class Window(Source):
    """The newest rows of a source, trained on again and again until newer ones come: a "now" beside a memory's "past".

    A step draws `batch_size` rows at random from the window. A batch that arrives enters it after at least `min_steps`
    steps since the last one that did (at once while the window is not full), and pushes out the oldest rows; after
    `max_steps` steps without one, the training waits. So a source that is slow or fast gets as many steps for each
    arrival as the two numbers allow. Rows are `fresh` in the first batch that holds them: those alone enter a method's
    memory, and count as predicted before they were trained on. (The train-batch buffer of the streaming learner of
    InSituML; its reservoir of older rows is the memory of the method.) A row that left before it was drawn was never
    trained on; `counts` has them as `passed_over`.

    Args:
        source: what arrives; a `Queued` one is asked without waiting, any other always has something.
        rows: of the window, at least: it holds whole batches as they arrived.
        batch_size: rows of a step.
        min_steps: steps between two arrivals, at least.
        max_steps: steps after an arrival without a newer one, at most.
        after_end: further steps on the window after the source ended.
        seed: of the draws; the n-th depends on it and n alone, so that a seekable source resumes exactly.

    Raises:
        ConfigError: for numbers that do not go together.

    Example:
        >>> from holdfast.core.source import Arrays
        >>> arriving = Arrays(torch.arange(8.0).unsqueeze(1), torch.arange(8), batch_size=2)
        >>> window = Window(arriving, rows=4, batch_size=4, min_steps=2, max_steps=2)
        >>> [sorted(batch.targets.tolist()) for batch in window.batches()]
        [[0, 1, 2, 3], [0, 1, 2, 3], [2, 3, 4, 5], [2, 3, 4, 5], [4, 5, 6, 7], [4, 5, 6, 7]]
    """

    def __init__(
        self,
        source: Source,
        rows: int = 256,
        batch_size: int = 32,
        min_steps: int = 1,
        max_steps: int = 3,
        after_end: int = 0,
        seed: int = 0,
    ) -> None:
        if not 1 <= batch_size <= rows or not 1 <= min_steps <= max_steps or after_end < 0:
            raise ConfigError(
                f"a window got rows={rows}, batch_size={batch_size}, min_steps={min_steps}, max_steps={max_steps} and"
                f" after_end={after_end}. Give rows of at least batch_size, and max_steps of at least min_steps, from 1"
                " up."
            )
        self.source = source
        self.rows = rows
        self.batch_size = batch_size
        self.min_steps = min_steps
        self.max_steps = max_steps
        self.after_end = after_end
        self.seed = seed
        self.seekable = source.seekable and not (isinstance(source, Queued) and source.policy == "reservoir")
        self._held: deque[list[Any]] = deque()
        self._before = source.position()
        self._served = self._unchanged = self._late = self._passed = self._arrived = 0
        self._apart: list[Batch] = []
        self._incoming: Iterator[Batch] | None = None
        self._ended = self._halted = False

    def batches(self) -> Iterator[Batch]:
        """Rows of the window, from the current position on."""
        while not self._halted:
            self._arrive()
            if not self._held or self._halted:
                return
            if self._ended and self._unchanged >= self.max_steps:
                if self._late >= self.after_end:
                    return
                self._late += 1
            self._served += 1
            self._unchanged += 1
            yield self._draw()

    def _arrive(self) -> None:
        """The state machine: let batches in, or wait for one, or do neither."""
        while not self._ended:
            size = sum(len(batch.targets) for batch, *_ in self._held)
            full = size >= self.rows
            if full and self._unchanged < self.min_steps:
                return
            must = size < self.batch_size or self._unchanged >= self.max_steps
            batch = self._next(must)
            if batch is None:
                return
            self._enter(batch)
            if full:
                return

    def _next(self, must: bool) -> Batch | None:
        """What has arrived; waits for it where it `must`."""
        if isinstance(self.source, Queued) and not must:
            batch = self.source.poll()
            self._ended = batch is None and self.source.over
            return batch
        if self._incoming is None:
            self._incoming = self.source.batches()
        batch = next(self._incoming, None)
        self._ended = batch is None and not self._halted
        return batch

    def _enter(self, batch: Batch) -> None:
        rows = len(batch.targets)
        after = self.source.position()
        fresh = torch.ones(rows, dtype=torch.bool)
        self._held.append([batch, fresh, self._before, self._arrived])
        self._before, self._unchanged = after, 0
        self._arrived += rows
        if batch.held_out is not None:
            self._apart.append(batch.held_out)
        rows_in = sum(len(one.targets) for one, *_ in self._held)
        while rows_in - len(self._held[0][0].targets) >= self.rows:
            gone, unseen, *_ = self._held.popleft()
            rows_in -= len(gone.targets)
            self._passed += int(unseen.sum())

    def _draw(self) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._served)
        count = sum(len(batch.targets) for batch, *_ in self._held)
        chosen = torch.randperm(count, generator=generator)[: self.batch_size]
        inputs = tree_cat([batch.inputs for batch, *_ in self._held])
        targets = torch.cat([batch.targets for batch, *_ in self._held])
        flags = torch.cat([fresh for _, fresh, *_ in self._held])
        drawn = flags[chosen]
        flags[chosen] = False
        for entry, part in zip(self._held, flags.split([len(batch.targets) for batch, *_ in self._held])):
            entry[1] = part.clone()
        apart, self._apart = joined(self._apart), []
        return Batch(tree_map(lambda leaf: leaf[chosen], inputs), targets[chosen], fresh=drawn, held_out=apart)

    def halt(self) -> None:
        """Let a wait for the source end at once."""
        self._halted = True
        self.source.halt()

    def counts(self) -> dict[str, int]:
        """Those of the source, and the rows that left the window without being drawn, or were left in it at the end."""
        left = sum(int(fresh.sum()) for _, fresh, *_ in self._held) if self._ended else 0
        return {"arrived": self._arrived, **self.source.counts(), "passed_over": self._passed + left}

    def position(self) -> dict[str, Any]:
        """Steps given, and what builds the window again: where its oldest batch begins, and how far it was drawn."""
        first = self._held[0][2] if self._held else self._before
        unseen = [fresh.nonzero().flatten().tolist() for _, fresh, *_ in self._held]
        return {
            "batches": self._served,
            "source": dict(first),
            "unseen": unseen,
            "unchanged": self._unchanged,
            "after_end": self._late,
            "ended": self._ended,
            "passed_over": self._passed,
            "arrived": self._held[0][3] if self._held else self._arrived,
        }

    def seek(self, position: Mapping[str, Any]) -> None:
        """Fill the window again from the source, and go on from there.

        Raises:
            DataError: where the source cannot go back, or gives fewer batches than it did.
        """
        if not self.seekable:
            super().seek(position)
        self.source.seek(position["source"])
        self._held.clear()
        self._incoming = self.source.batches()
        self._before, self._arrived = dict(position["source"]), int(position["arrived"])
        for rows in position["unseen"]:
            batch = next(self._incoming, None)
            if batch is None:
                raise DataError("the source gives less than it did, so the window cannot be filled again. Begin anew.")
            fresh = torch.zeros(len(batch.targets), dtype=torch.bool)
            fresh[torch.tensor(rows, dtype=torch.int64)] = True
            self._held.append([batch, fresh, self._before, self._arrived])
            self._before = self.source.position()
            self._arrived += len(batch.targets)
        self._served, self._unchanged = int(position["batches"]), int(position["unchanged"])
        self._late, self._ended = int(position["after_end"]), bool(position["ended"])
        self._passed = int(position["passed_over"])

    def close(self) -> None:
        """Close the source."""
        self.source.close()


STRIDE = 0.6180339887498949
"""The golden ratio's fraction: multiples of it fill the numbers from 0 to 1 evenly, whatever the period of the data."""


class HoldOut(Source):
    """Another source, of which a share of the rows is never trained on, but kept to ask the model about later.

    Which rows these are depends on their numbers alone, so that a resumed training holds out the same; they travel with
    the batch that they arrived in, and a `StreamTrainer(observe_every=...)` keeps some of them. Put it directly around
    what is read, inside `Queued` and `Window`.

    Args:
        source: what arrives.
        share: of the rows that is held out.

    Raises:
        ConfigError: for a share that is not between 0 and 1.

    Example:
        >>> from holdfast.core.source import Arrays
        >>> source = HoldOut(Arrays(torch.arange(8.0).unsqueeze(1), torch.arange(8), batch_size=4), share=0.25)
        >>> [(batch.targets.tolist(), batch.held_out.targets.tolist()) for batch in source.batches()]
        [([1, 3], [0, 2]), ([4, 6, 7], [5])]
    """

    def __init__(self, source: Source, share: float = 0.05) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"a share of {share} cannot be held out. Give a number between 0 and 1.")
        self.source = source
        self.share = share
        self.seekable, self.live = source.seekable, source.live
        self.input_shape, self.classes, self.prepare = source.input_shape, source.classes, source.prepare
        self.drifts = [round(rows * (1 - share)) for rows in source.drifts]
        self._served = self._rows = 0

    def batches(self) -> Iterator[Batch]:
        """Batches without the rows that are held out."""
        apart: list[Batch] = []
        for batch in self.source.batches():
            rows = len(batch.targets)
            numbers = torch.arange(self._rows, self._rows + rows, dtype=torch.float64)
            self._rows += rows
            chosen = (numbers * STRIDE) % 1 < self.share
            if bool(chosen.any()):
                apart.append(_part(batch, chosen))
            if bool(chosen.all()):
                continue
            kept = _part(batch, ~chosen) if bool(chosen.any()) else batch
            kept.held_out, apart = joined(apart), []
            self._served += 1
            yield kept

    def position(self) -> dict[str, Any]:
        """Batches given, rows that arrived, and where the source is."""
        return {"batches": self._served, "rows": self._rows, "source": self.source.position()}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a batch; see `Source.seek`."""
        self.source.seek(position["source"])
        self._served, self._rows = int(position["batches"]), int(position["rows"])

    def halt(self) -> None:
        """Let a wait for the source end at once."""
        self.source.halt()

    def counts(self) -> dict[str, int]:
        """Those of the source."""
        return self.source.counts()

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def _part(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some rows of a batch."""
    task = batch.task[rows] if isinstance(batch.task, torch.Tensor) else batch.task
    return Batch(tree_map(lambda leaf: leaf[rows], batch.inputs), batch.targets[rows], task)
