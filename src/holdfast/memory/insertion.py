"""Policies of insertion: which incoming rows go to which slots of a memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.core.randomness import on_cpu
from holdfast.memory.storage import Slots


class Placement(NamedTuple):
    """Which rows of a batch are kept, and where: row `incoming[i]` goes to slot `slots[i]`; slots are distinct."""

    incoming: Slots | list[int]
    slots: Slots | list[int]

    @classmethod
    def of(cls, places: Mapping[int, int]) -> Placement:
        """From a mapping of slot to incoming row."""
        return cls(list(places.values()), list(places))

    def tensors(self) -> tuple[Slots, Slots]:
        """The same, numbers as int64 vectors."""
        incoming, slots = self
        if isinstance(incoming, list) or isinstance(slots, list):
            return integers(numbers(incoming), 1)[0], integers(numbers(slots), 1)[0]
        return incoming, slots


def numbers(rows: Slots | list[int]) -> list[int]:
    """Rows or slots as a list.

    Example:
        >>> numbers(slice(2, 4)), numbers(torch.tensor([5]))
        ([2, 3], [5])
    """
    if isinstance(rows, slice):
        return list(range(rows.start, rows.stop))
    return rows.tolist() if isinstance(rows, Tensor) else rows


def integers(numbers: Iterable[int], rows: int) -> Tensor:
    """`[rows, ...]` the numbers as int64: `torch.tensor` takes twice as long for lists as short as a batch."""
    values = array("q", numbers)
    return torch.frombuffer(values, dtype=torch.int64).view(rows, -1) if values else torch.zeros(rows, 0).long()


class Insertion(ABC):
    """Decides, row by row of an unbounded stream, what a memory of fixed capacity keeps.

    A policy belongs to one memory and never sees the rows, only how many there are and their targets. Empty slots are
    filled from slot 0 upwards without gaps.
    """

    __slots__ = ()

    @abstractmethod
    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """Place the next `rows` rows.

        Args:
            rows: how many arrive; they are the items number `seen`, `seen + 1` and so on.
            seen: how many arrived before.
            capacity: number of slots.
            targets: `[rows, ...]` their targets, on any device, or None if there are none.

        Returns:
            What is kept and where, or None if nothing is.
        """

    def several(self, rows: int, seen: int, capacity: int, steps: int) -> Tensor | None:
        """Place the rows of several batches at once, as `plan` would one after another; the memory is full.

        Args:
            rows: of each batch.
            seen: how many arrived before the first.
            capacity: number of slots.
            steps: batches; none to ask whether this policy has such a way.

        Returns:
            `[steps, rows]` the slot of each row, `capacity` for one that is not kept, int64; None, with nothing
            planned, where there is no way but batch by batch.
        """
        return None

    def reset(self) -> None:  # noqa: B027
        """Forget all items: the next one is number 0. Randomness goes on, it does not start again."""

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on exactly here, as tensors and plain values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """


BLOCK = 4096
"""Items decided at once."""


class Reservoir(Insertion):
    """Algorithm R (Vitter 1985, "Random sampling with a reservoir", section 2).

    Item number t (from 0) goes to slot t while t < capacity. After that a number j is drawn uniformly from 0..t, and
    the item replaces slot j if j < capacity. Each of the t+1 items seen is then held with probability
    capacity / (t+1), and slot 0 is replaced as often as any other.

    Draws are made for 4096 items at once, `j = min(floor(u * (t+1)), t)` with u a float64 uniform: what is kept
    depends on the generator and an item's number, never on how items were batched, and a batch of which nothing is
    kept costs one comparison.

    Args:
        generator: CPU generator the draws come from.

    Example:
        >>> reservoir = Reservoir(torch.Generator().manual_seed(0))
        >>> reservoir.plan(rows=3, seen=0, capacity=5)
        Placement(incoming=slice(0, 3, None), slots=slice(0, 3, None))
    """

    __slots__ = ("_block", "_capacity", "_end", "_items", "_next", "_position", "_slots", "_start", "generator")

    _block: int | None  # number of the block's first item
    _start: Tensor | None  # the generator's state before the block was drawn
    _capacity: int
    _items: list[int]  # numbers of the items in the block that are kept ...
    _slots: list[int]  # ... and their slots
    _position: int  # how many of those are placed
    _end: int  # number of the first item after the block
    _next: int  # no item before this number is kept

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = on_cpu(generator)
        self.reset()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`; `targets` are not looked at."""
        stop = seen + rows
        if stop <= self._next:
            return None
        if stop <= capacity:
            return Placement(slice(0, rows), slice(seen, stop))
        places = dict(zip(range(seen, capacity), range(rows))) if seen < capacity else {}
        if self._block is None:
            self._draw(capacity, capacity)
        while True:  # once, unless the batch reaches into another block
            items, slots, last = self._items, self._slots, self._position
            # Items come in order, so of several for one slot the last wins.
            while last < len(items) and items[last] < stop:
                places[slots[last]] = items[last] - seen
                last += 1
            self._position = last
            if stop <= self._end:
                break
            self._draw(self._end, capacity)
        self._next = items[last] if last < len(items) else self._end
        return Placement.of(places) if places else None

    def several(self, rows: int, seen: int, capacity: int, steps: int) -> Tensor | None:
        """See `Insertion.several`."""
        if seen < capacity:
            return None
        if not steps:
            return torch.empty(0, rows, dtype=torch.int64)
        stop, places = seen + steps * rows, dict[tuple[int, int], int]()
        if self._block is None:
            self._draw(capacity, capacity)
        while stop > self._next:
            first, last = self._position, bisect_left(self._items, stop, self._position)
            for item, slot in zip(self._items[first:last], self._slots[first:last]):
                places[(item - seen) // rows, slot] = item - seen  # of several for one slot in a batch the last wins
            self._position = last
            self._next = self._items[last] if last < len(self._items) else self._end
            if stop <= self._end:
                break
            self._draw(self._end, capacity)
        slots = torch.full((steps * rows,), capacity)
        if places:
            kept, chosen = integers([*places.values(), *(slot for _, slot in places)], 2)
            slots[kept] = chosen
        return slots.view(steps, rows)

    def reset(self) -> None:
        """Forget all items; the rest of the block is not used."""
        self._block = self._start = None
        self._items, self._slots = [], []
        self._capacity = self._position = self._end = self._next = 0

    def state(self) -> dict[str, Any]:
        """The generator's state at the start of the block and now, and the position in the block."""
        return {
            "block": self._block,
            "capacity": self._capacity,
            "position": self._position,
            "next": self._next,
            "start": self._start,
            "generator": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Draw the block again and go on inside it.

        Args:
            state: what `state` returned.
        """
        self.reset()
        if state["block"] is not None:
            self.generator.set_state(state["start"].cpu())
            self._draw(state["block"], state["capacity"])
        self._position, self._next = state["position"], state["next"]
        self.generator.set_state(state["generator"].cpu())

    def _draw(self, block: int, capacity: int) -> None:
        self._start = self.generator.get_state()
        number = torch.arange(block, block + BLOCK)
        uniform = torch.rand(BLOCK, generator=self.generator, dtype=torch.float64)
        slot = torch.minimum((uniform * (number + 1)).long(), number)
        kept = slot < capacity
        self._items, self._slots = number[kept].tolist(), slot[kept].tolist()
        self._block, self._end, self._capacity, self._position = block, block + BLOCK, capacity, 0


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
