"""A memory of fixed size: storage, a policy of insertion, and retrieval by any policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.decide import decide, recording
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Tree
from holdfast.core.ranks import Share
from holdfast.core.tree import Fill, flatten, restore, row_count
from holdfast.memory.insertion import Insertion, Placement, integers, numbers
from holdfast.memory.retrieval import Retrieval
from holdfast.memory.storage import Array, Storage

ARRIVAL_BYTES = 8
"""Bytes a slot takes beside its row: the number its row had in the stream."""


class Memory:
    """Rows of an unbounded stream, at most `capacity` of them.

    Args:
        capacity: size in items; or
        bytes: size in bytes, turned into items by the bytes of a row at the first insertion (a float column that
            widens later takes more).
        insertion: decides what is kept.
        device: where rows are kept; None takes the device of the first rows.
        share: this process's part of the room, where several ranks keep a memory between them.
        fill: what rows of different lengths are padded with; None refuses them.
        gives: the device that rows are drawn to; None leaves them where they are kept.

    Raises:
        ConfigError: not exactly one of `capacity` and `bytes`, or one too small to hold a row.

    Example:
        >>> from holdfast.memory import Ring, Uniform
        >>> memory = Memory(capacity=3, insertion=Ring())
        >>> memory.add({"inputs": torch.arange(5.0), "targets": torch.arange(5)})
        >>> len(memory), memory.seen, sorted(memory.all()["targets"].tolist())
        (3, 5, [2, 3, 4])
        >>> memory.draw(2, Uniform(torch.Generator().manual_seed(0)))["inputs"].shape
        torch.Size([2])
    """

    __slots__ = (
        *("_arrivals", "_arrived", "_count", "_device", "_fill", "_gives", "_size", "_storage"),
        *("bytes", "capacity", "insertion", "seen"),
    )

    def __init__(
        self,
        capacity: int | None = None,
        *,
        bytes: int | None = None,
        insertion: Insertion,
        device: torch.device | str | None = None,
        share: Share | None = None,
        fill: Fill | None = None,
        gives: torch.device | None = None,
    ) -> None:
        if (capacity is None) == (bytes is None):
            raise ConfigError(
                f"a memory got capacity={capacity} and bytes={bytes}. Give one of them, for instance capacity=500."
            )
        if (capacity or bytes or 0) < 1:
            raise ConfigError(f"a memory of size {capacity or bytes or 0} can hold nothing. Give a size of 1 or more.")
        part = Share() if share is None else share
        self.capacity = self._size = None if capacity is None else part(capacity)
        self.bytes = None if bytes is None else part(bytes)
        self.insertion = insertion
        self._device = None if device is None else torch.device(device)
        self._fill = fill
        self._gives = None if gives == self._device else gives
        self._storage: Storage | None = None
        self._arrivals: Tensor | None = None
        self._arrived: Array | None = None  # the same, as numpy sees it
        self._count = 0
        self.seen = 0

    def add(self, rows: Mapping[str, Tree | int]) -> None:
        """Offer a batch; the policy of insertion decides which rows are kept.

        Args:
            rows: fields by name (`inputs`, `targets`, `logits`, ...), each with one row per sample in its first
                dimension. A plain int (a task) stands for that value in every row. What is kept is copied.

        Raises:
            DataError: fields, shapes or dtypes differ from those of the first batch. It is raised for rows that are
                kept; others are not looked at.
        """
        targets = rows.get("targets")
        count = targets.size(0) if isinstance(targets, Tensor) else row_count(flatten(_trees(rows))[0])
        seen = self.seen
        capacity = self.capacity
        if capacity is None:
            if count == 0:
                return
            capacity = self._fix_capacity(rows)
        if recording() and self._add_in_place(rows, count, capacity):
            return
        placement = self.insertion.plan(count, seen, capacity, targets)  # type: ignore[arg-type]
        if placement is not None:
            self._write(placement, rows, count, capacity)
        self.seen = seen + count

    def draw(self, size: int, retrieval: Retrieval) -> dict[str, Tree] | None:
        """Rows to replay.

        Args:
            size: how many; if fewer are held, all of them.
            retrieval: chooses which.

        Returns:
            The fields that were added, `[min(size, len(self)), ...]` each, or None if the memory is empty.
        """
        storage = self._storage
        if storage is None:
            return None
        if not recording():
            count = self._count
            chosen = retrieval.indices(count, size if size < count else count, self) if count else None
        else:
            chosen = decide(
                lambda: self._chosen(size, retrieval), many=lambda steps: self._chosen_by_many(size, retrieval, steps)
            )
        return None if chosen is None else storage.read(chosen)

    def all(self) -> dict[str, Tree]:
        """A copy of all held rows in slot order; empty if nothing was ever kept."""
        return {} if self._storage is None else self._storage.read(slice(0, self._count))

    def __len__(self) -> int:
        return self._count

    @property
    def ragged(self) -> bool:
        """Whether rows of different lengths were padded."""
        return self._storage is not None and self._storage.ragged

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the device, empty slots included."""
        if self._storage is None or self._arrivals is None:
            return 0
        return self._storage.nbytes + self._arrivals[: self.capacity].nbytes

    @property
    def device(self) -> torch.device | None:
        """Where rows are kept; None until known."""
        return self._device

    @property
    def arrivals(self) -> Tensor:
        """`[len(self)]` the number each held row had in the stream, from 0; a view."""
        return torch.empty(0, dtype=torch.int64) if self._arrivals is None else self._arrivals[: self._count]

    def column(self, name: str) -> Tensor:
        """`[len(self), ...]` one column of the held rows (`targets`, `inputs.0`); a view, to look at only.

        Raises:
            DataError: no such column.
        """
        columns = {} if self._storage is None else self._storage.columns
        if name not in columns:
            raise DataError(
                f"the memory holds no column {name!r}. It holds {', '.join(sorted(columns)) or 'nothing yet'}."
            )
        return columns[name][: self._count]

    def clear(self) -> None:
        """Release all rows and forget how many were seen; randomness goes on."""
        self._storage = self._arrivals = self._arrived = None
        self._count = self.seen = 0
        self.capacity = self._size
        self.insertion.reset()

    def to(self, device: torch.device | str) -> Memory:
        """Move the held rows to `device`, in place; returns itself."""
        self._device = torch.device(device)
        if self._storage is not None and self._arrivals is not None:
            self._storage.to(self._device)
            self._arrivals = self._arrivals.to(self._device)
        return self

    def state(self) -> dict[str, Any]:
        """A copy of all that `load` needs to go on exactly here, as tensors and plain values."""
        return {
            "capacity": self.capacity,
            "seen": self.seen,
            "storage": None if self._storage is None else self._storage.state(self._count),
            "arrivals": self.arrivals.clone(),
            "insertion": self.insertion.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on this memory's device.

        Args:
            state: what `state` returned.

        Raises:
            ConfigError: this memory has another capacity.
        """
        if self._size is not None and state["capacity"] != self._size:
            raise ConfigError(
                f"a saved memory of {state['capacity']} items does not fit one of {self._size}. "
                f"Build the memory with capacity={state['capacity']}."
            )
        self.clear()
        if state["storage"] is not None:
            storage, arrivals = self._allocate(state["capacity"], state["arrivals"].device)
            storage.load(state["storage"])
            self._count = len(state["arrivals"])
            arrivals[: self._count] = state["arrivals"].to(self._device)
        self.capacity, self.seen = state["capacity"], state["seen"]
        self.insertion.load(state["insertion"])

    def _write(self, placement: Placement, rows: Mapping[str, Tree | int], count: int, capacity: int) -> None:
        storage, arrivals = self._storage, self._arrivals
        if storage is not None and arrivals is not None and self._quickly(storage, arrivals, placement, rows, count):
            if self._count < capacity:
                self._count = max(self._count, max(numbers(placement.slots)) + 1)
            return
        incoming, slots = placement.tensors()
        columns, structure = flatten(_trees(rows))
        if row_count(columns) != count:
            raise DataError(f"{row_count(columns)} rows with {count} targets. Give every field one row per sample.")
        number = torch.arange(self.seen, self.seen + count)[incoming]
        if isinstance(incoming, slice):
            chosen = {name: value[incoming] for name, value in columns.items()}
        else:
            chosen = {name: value.index_select(0, incoming.to(value.device)) for name, value in columns.items()}
        kept = restore(chosen, structure)
        kept.update({name: torch.full_like(number, value) for name, value in rows.items() if isinstance(value, int)})
        if storage is None or arrivals is None:
            storage, arrivals = self._allocate(capacity, next(iter(columns.values())).device)
        storage.write(slots, kept)
        arrivals[slots if isinstance(slots, slice) else slots.to(self._device)] = number.to(self._device)
        if self._count < capacity:
            last = slots.stop if isinstance(slots, slice) else int(slots.max()) + 1
            self._count = max(self._count, last)

    def _chosen(self, size: int, retrieval: Retrieval) -> Tensor | None:
        count = self._count
        return retrieval.indices(count, size if size < count else count, self) if count else None

    def _chosen_by_many(self, size: int, retrieval: Retrieval, steps: int) -> Tensor | None:
        """`[steps, size]` what as many calls of `_chosen` would return, while the memory stays full."""
        full = self._count > 0 and self._count == self.capacity
        return retrieval.several(self._count, min(size, self._count), steps) if full else None

    def _places_by_many(self, count: int, capacity: int, steps: int) -> Tensor | None:
        """`[steps, 2, count]` what as many calls of `_places` would return, while the memory stays full."""
        slots = self.insertion.several(count, self.seen, capacity, steps) if self._count == capacity else None
        if slots is None:
            return None
        numbers = torch.arange(self.seen, self.seen + steps * count).view(steps, count)
        self.seen += steps * count
        return torch.stack((slots, numbers), 1)

    def _add_in_place(self, rows: Mapping[str, Tree | int], count: int, capacity: int) -> bool:
        """As `add`, by the same calls at every step: rows that are not kept go to a spare slot behind the others.

        Returns:
            False, with nothing done, where rows are not like those before.
        """
        storage, arrivals, targets = self._storage, self._arrivals, rows.get("targets")
        if storage is None or arrivals is None or not storage.with_spare(rows, count):
            return False
        if len(arrivals) == capacity:
            arrivals = self._arrivals = torch.cat((arrivals, arrivals.new_zeros(1)))
        looked_at = targets if isinstance(targets, Tensor) else None
        places = decide(
            lambda: self._places(count, capacity, looked_at),
            self._device,
            lambda steps: self._places_by_many(count, capacity, steps),
        )
        storage.write_spare(places[0], rows)
        arrivals.index_copy_(0, places[0], places[1])
        return True

    def _places(self, count: int, capacity: int, targets: Tensor | None) -> Tensor:
        """`[2, count]`: the slot of each row, the spare one for rows that are not kept, and the rows' numbers."""
        slots = [capacity] * count
        placement = self.insertion.plan(count, self.seen, capacity, targets)
        if placement is not None:
            chosen = numbers(placement.slots)
            for row, slot in zip(numbers(placement.incoming), chosen):
                slots[row] = slot
            self._count = max(self._count, max(chosen) + 1)
        places = integers([*slots, *range(self.seen, self.seen + count)], 2)
        self.seen += count
        return places

    def _quickly(
        self, storage: Storage, arrivals: Tensor, placement: Placement, rows: Mapping[str, Tree | int], count: int
    ) -> bool:
        """Write rows that are like those before; False, with nothing written, where a closer look is needed."""
        for value in rows.values():
            if isinstance(value, Tensor) and value.size(0) != count:
                return False
        incoming, slots = placement
        if isinstance(slots, list) and isinstance(incoming, list) and storage.write_few(incoming, slots, rows):
            if self._arrived is None or self._arrived.tensor is not arrivals:
                self._arrived = Array(arrivals)
            for row, slot in zip(incoming, slots):
                self._arrived.array[slot] = self.seen + row
            return True
        incoming, slots = placement.tensors()
        if not storage.write_same(incoming, slots, rows):
            return False
        if isinstance(slots, slice) or isinstance(incoming, slice):
            arrivals[slots] = torch.arange(self.seen, self.seen + count)[incoming].to(self._device)
        else:
            arrivals.index_copy_(0, slots.to(self._device), (incoming + self.seen).to(self._device))
        return True

    def _allocate(self, capacity: int, device: torch.device) -> tuple[Storage, Tensor]:
        self._device = self._device or device
        self._storage = Storage(capacity, self._device, self._fill, self._gives)
        self._arrivals = torch.zeros(capacity, dtype=torch.int64, device=self._device)
        return self._storage, self._arrivals

    def _fix_capacity(self, rows: Mapping[str, Tree | int]) -> int:
        """The capacity that `bytes` stand for, from the bytes of one row."""
        columns = flatten(_trees(rows))[0]
        row = ARRIVAL_BYTES * (1 + len(rows) - len(_trees(rows)))
        row += sum(value.nbytes for value in columns.values()) // row_count(columns)
        size = self.bytes or 0
        if size < row:
            raise ConfigError(f"a memory of {size} bytes cannot hold a row of {row}. Give bytes={row} or more.")
        self.capacity = size // row
        return self.capacity


def _trees(rows: Mapping[str, Tree | int]) -> dict[str, Tree]:
    """The fields that have a row per sample."""
    return {name: value for name, value in rows.items() if not isinstance(value, int)}
