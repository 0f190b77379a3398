"""The simplest policies of insertion: keep the latest items, or the first ones."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.memory.insertion import Insertion, Placement


class Ring(Insertion):
    """First in, first out: item number t goes to slot t mod capacity, so the latest `capacity` items are held.

    Example:
        >>> Ring().plan(rows=2, seen=3, capacity=4)
        Placement(incoming=tensor([0, 1]), slots=tensor([3, 0]))
    """

    __slots__ = ()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`; `targets` are not looked at."""
        if rows == 0:
            return None
        skipped = max(0, rows - capacity)  # rows that later ones of this batch would overwrite
        first = (seen + skipped) % capacity
        count = rows - skipped
        if first + count <= capacity:
            return Placement(slice(skipped, rows), slice(first, first + count))
        return Placement(torch.arange(skipped, rows), torch.arange(first, first + count) % capacity)


class First(Insertion):
    """Fill, then stop: the first `capacity` items are held for ever.

    Example:
        >>> First().plan(rows=3, seen=3, capacity=4)
        Placement(incoming=slice(0, 1, None), slots=slice(3, 4, None))
    """

    __slots__ = ()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`; `targets` are not looked at."""
        stop = min(seen + rows, capacity)
        return Placement(slice(0, stop - seen), slice(seen, stop)) if stop > seen else None
