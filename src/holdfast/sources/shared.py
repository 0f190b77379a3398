"""A source that several processes learn from together: each its share of the rows, all in step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Batch
from holdfast.core.ranks import rank_count, rank_number
from holdfast.core.source import Source
from holdfast.core.tree import Plain, Tree, tree_cat, tree_map


class InStep(Source):
    """A source as one of several processes sees it, giving as many batches of as many rows on each of them.

    `DistributedDataParallel` exchanges gradients at every step, so that a process with one batch more would wait for
    ever, and one with fewer rows would count for too much. So all processes give as many rows as the one that has
    fewest, and keep the others for the next batch; where one has none left, what the others have is dealt out anew to
    all. Every row is given once, by one process (the last few, where there are fewer than processes, by all of them).

    In one process it gives what the source gives.

    Args:
        source: that reads this process's part, such as `OpenPMD(..., rank=rank, ranks=ranks)`; or everything.
        batch_size: rows of a batch on each process.
        split: whether the source gives everything on every process, of which row i of a batch is for process i modulo
            their number; False for a source that reads a part of its own.

    Raises:
        ConfigError: for a batch size below 1.

    Example:
        >>> from holdfast.core.source import Arrays
        >>> source = InStep(Arrays(torch.zeros(5, 2), torch.arange(5), batch_size=5), batch_size=2)
        >>> [batch.targets.tolist() for batch in source.batches()]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(self, source: Source, batch_size: int, split: bool = False) -> None:
        if batch_size < 1:
            raise ConfigError(f"InStep got batch_size={batch_size}. Give at least 1.")
        self.source = source
        self.batch_size = batch_size
        self.split = split
        self.live = source.live
        self.input_shape, self.classes, self.prepare = source.input_shape, source.classes, source.prepare
        self._served = 0
        self._rows: list[tuple[Tree, torch.Tensor]] = []
        self._arriving: Iterator[Batch] | None = None

    def batches(self) -> Iterator[Batch]:
        """Batches in step with the other processes."""
        if self._arriving is None:
            self._arriving = self.source.batches()
        while True:
            self._fill(self._arriving)
            counts = _everywhere(min(self._waiting, self.batch_size))
            if not any(counts):
                return
            if min(counts):
                inputs, targets = self._take(min(counts))
            else:
                inputs, targets = self._dealt(self._take(min(self._waiting, self.batch_size)))
            self._served += 1
            yield Batch(inputs, targets)

    @property
    def _waiting(self) -> int:
        return sum(len(targets) for _, targets in self._rows)

    def _fill(self, arriving: Iterator[Batch]) -> None:
        """Read until there is a whole batch, or no more."""
        while self._waiting < self.batch_size and (batch := next(arriving, None)) is not None:
            rows = slice(rank_number(), None, rank_count()) if self.split else slice(None)
            targets = batch.targets[rows]
            if len(targets):
                self._rows.append((tree_map(lambda leaf: leaf[rows], batch.inputs), targets))  # noqa: B023

    def _take(self, count: int) -> Any:
        """The first rows that wait; None for none."""
        if not count:
            return None
        inputs, targets = tree_cat([one for one, _ in self._rows]), torch.cat([one for _, one in self._rows])
        self._rows = [(tree_map(lambda leaf: leaf[count:], inputs), targets[count:])] if count < len(targets) else []
        return tree_map(lambda leaf: leaf[:count], inputs), targets[:count]

    def _dealt(self, mine: Any) -> tuple[Tree, torch.Tensor]:
        """This process's part of what all of them took; what does not divide waits on the first one."""
        every: list[Any] = [None] * rank_count()
        dist.all_gather_object(every, mine)
        parts = [part for part in every if part is not None]
        inputs, targets = tree_cat([one for one, _ in parts]), torch.cat([one for _, one in parts])
        number, count = rank_number(), rank_count()
        if len(targets) < count:
            return inputs, targets
        whole = len(targets) // count * count
        if number == 0 and whole < len(targets):
            self._rows.insert(0, (tree_map(lambda leaf: leaf[whole:], inputs), targets[whole:]))
        return tree_map(lambda leaf: leaf[number:whole:count], inputs), targets[number:whole:count]

    def position(self) -> Plain:
        """Batches given; rows that wait are not in it, so that nobody can go back to it."""
        return {"batches": self._served}

    def counts(self) -> dict[str, int]:
        """What the source counts."""
        return self.source.counts()

    def halt(self) -> None:
        """End a wait at once."""
        self.source.halt()

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def _everywhere(count: int) -> list[int]:
    """A number of each process, by its number; of this one alone outside of a distributed run."""
    if rank_count() == 1:
        return [count]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mine = torch.tensor([count], device=device)
    every = [torch.empty_like(mine) for _ in range(rank_count())]
    dist.all_gather(every, mine)
    return [int(one) for one in every]
