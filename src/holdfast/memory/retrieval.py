"""Policies of retrieval: which held rows are replayed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.randomness import on_cpu

CPU = torch.device("cpu")


class Held(Protocol):
    """What a policy may look at: the rows a memory holds, in slot order."""

    @property
    def device(self) -> torch.device | None:
        """Where the rows lie, and where indices are wanted."""

    @property
    def arrivals(self) -> Tensor:
        """`[n]` the number each held row had in the stream, int64."""

    def column(self, name: str) -> Tensor:
        """`[n, ...]` one column of the held rows."""


class Retrieval(ABC):
    """Chooses rows of a memory, never one twice in a call. It is independent of the policy of insertion."""

    __slots__ = ()

    @abstractmethod
    def indices(self, n: int, size: int, held: Held | None = None) -> Tensor:
        """Choose `size` distinct slots out of the first `n`.

        Args:
            n: how many rows are held.
            size: how many to choose, at most `n`.
            held: the memory, for policies that look at what is held; its device receives the indices (else the CPU).

        Returns:
            `[size]` int64.
        """

    def several(self, n: int, size: int, calls: int) -> Tensor | None:
        """Choose for several calls at once, as `indices` would one after another.

        Args:
            n: how many rows are held.
            size: how many to choose in each call.
            calls: how many; none to ask whether this policy has such a way.

        Returns:
            `[calls, size]` int64, on the CPU; None, with nothing drawn, where there is no way but call by call.
        """
        return None

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on exactly here, as tensors and plain values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """


def check_size(n: int, size: int) -> None:
    """Refuse to choose none, or more than there are.

    Raises:
        ConfigError: not `1 <= size <= n`.
    """
    if not 1 <= size <= n:
        raise ConfigError(f"cannot choose {size} different rows out of {n}. Give a size from 1 to {n}.")


def needs_held(policy: Retrieval, held: Held | None) -> Held:
    """`held`, for a policy that cannot do without.

    Raises:
        ConfigError: it is None.
    """
    if held is None:
        raise ConfigError(
            f"{type(policy).__name__} chooses by what is held and was given no memory. "
            "Call memory.draw(size, retrieval), or pass the memory as `held`."
        )
    return held


BLOCK = 64
"""Calls drawn for at once, at most."""

FEW = 64
"""Numbers of a row that are quicker compared in Python than by tensors, at most."""


def distinct(rows: int, size: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw `rows` times `size` distinct numbers below `n`, each ordered tuple with equal probability.

    All are drawn with replacement; in each row the first occurrence of a number stays and later ones are drawn again,
    until none repeats. This treats all numbers alike, so renaming them by any permutation leaves the distribution of
    the result unchanged; some permutation takes any tuple of distinct numbers to any other, so all are equally likely.

    Args:
        rows: independent draws.
        size: numbers in each.
        n: they lie in 0..n-1; the expected number of rounds is small while `4 * size <= n`.
        generator: CPU generator.

    Returns:
        `[rows, size]` int64.
    """
    drawn = torch.randint(n, (rows, size), generator=generator)
    if rows == 1 and size <= FEW:
        return _apart(drawn[0].tolist(), n, generator)
    values = drawn.numpy()  # which sorts few numbers in a fifth of the time
    left = np.arange(rows)  # the rows in which numbers may repeat
    while True:
        ordered = np.sort(values[left], axis=1)
        left = left[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
        if not len(left):
            return drawn
        some = values[left]
        origin = np.argsort(some, axis=1, kind="stable")
        ordered = np.take_along_axis(some, origin, axis=1)
        row, column = (ordered[:, 1:] == ordered[:, :-1]).nonzero()
        values[left[row], origin[row, column + 1]] = torch.randint(n, (len(row),), generator=generator).numpy()


def _apart(drawn: list[int], n: int, generator: torch.Generator) -> Tensor:
    """The rounds of `distinct` for a single row: the same numbers, without tensors, which cost more than these."""
    while len(set(drawn)) < len(drawn):
        order = sorted(range(len(drawn)), key=drawn.__getitem__)
        again = [later for one, later in pairwise(order) if drawn[one] == drawn[later]]
        for slot, number in zip(again, torch.randint(n, (len(again),), generator=generator).tolist()):
            drawn[slot] = number
    return torch.tensor([drawn])


class Uniform(Retrieval):
    """Every set of `size` held rows with equal probability, in random order.

    While more than a quarter of the rows is wanted, a call draws a random permutation (n < 4 * size entries).
    Otherwise indices are drawn for a block of calls that ask for the same size out of the same number of rows: for 1,
    then 2, 4 ... 64 calls at once, and for 1 again when either changes (a memory that is still filling). Use one
    object for each size that is drawn in turn.

    Args:
        generator: CPU generator the draws come from.

    Example:
        >>> uniform = Uniform(torch.Generator().manual_seed(0))
        >>> len(set(uniform.indices(n=1000, size=10).tolist()))
        10
    """

    __slots__ = ("_block", "_device", "_n", "_rest", "_rows", "_size", "_start", "generator")

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = on_cpu(generator)
        self._n = self._size = self._rows = 0  # what the block was drawn for, and how many rows it had
        self._block: list[Tensor] = []  # what is left of it, next last, on `_device`; ...
        self._rest: Tensor | None = None  # ... or, where nobody asked for a single row of it yet, `[left, size]`
        self._device: torch.device | None = CPU
        self._start: Tensor | None = None  # the generator's state before the block was drawn

    def indices(self, n: int, size: int, held: Held | None = None) -> Tensor:
        """See `Retrieval.indices`; of `held` only the device is looked at."""
        device = CPU if held is None else held.device
        if not self._block or device != self._device or n != self._n or size != self._size:
            rest = self._left(n, size)
            self._block, self._rest, self._device = (
                list(rest.to(device, non_blocking=True).unbind(0))[::-1],
                None,
                device,
            )
        return self._block.pop()

    def several(self, n: int, size: int, calls: int) -> Tensor | None:
        """See `Retrieval.several`."""
        parts: list[Tensor] = [torch.empty(0, size, dtype=torch.int64)]
        while calls:
            rest = self._left(n, size)
            parts.append(rest[:calls])
            calls -= len(parts[-1])
            self._block, self._rest = [], rest[len(parts[-1]) :]
        return torch.cat(parts)

    def state(self) -> dict[str, Any]:
        """The generator's state at the start of the block and now, and the position in the block."""
        return {
            "n": self._n,
            "size": self._size,
            "rows": self._rows,
            "left": len(self._block) if self._rest is None else len(self._rest),
            "start": self._start,
            "generator": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Draw the block again and go on inside it.

        Args:
            state: what `state` returned.
        """
        self._n, self._size, self._rows, self._start = state["n"], state["size"], state["rows"], state["start"]
        self._block, self._rest = [], None
        if state["left"]:
            self.generator.set_state(state["start"].cpu())
            self._rest = self._draw(self._n, self._size, self._rows)[-state["left"] :]
        self.generator.set_state(state["generator"].cpu())

    def _left(self, n: int, size: int) -> Tensor:
        """`[left, size]` what is left of the block, on the CPU; of a new one where nothing is, or it does not fit."""
        alike = n == self._n and size == self._size
        if alike and self._block:
            return torch.stack(self._block[::-1]).cpu()
        if alike and self._rest is not None and len(self._rest):
            return self._rest
        check_size(n, size)
        return self._draw(n, size, min(BLOCK, 2 * self._rows) if alike and 4 * size <= n else 1)

    def _draw(self, n: int, size: int, rows: int) -> Tensor:
        self._start = self.generator.get_state()
        self._n, self._size, self._rows = n, size, rows
        if 4 * size > n:
            return torch.randperm(n, generator=self.generator)[:size].unsqueeze(0)
        return distinct(rows, size, n, self.generator)


class BalancedUniform(Retrieval):
    """As equal a number of rows of each class as is held, uniform without replacement within a class.

    Rows are dealt in rounds, one random row per class and round, until `size` are chosen; the classes of the last,
    incomplete round are chosen at random. A class of which fewer rows are held leaves its share to the others.
    Every call sorts the held targets: O(n log n), without a host synchronisation.

    Args:
        generator: CPU generator the draws come from.
        column: the integer column to balance by.
    """

    __slots__ = ("column", "generator")

    def __init__(self, generator: torch.Generator, column: str = "targets") -> None:
        self.generator = on_cpu(generator)
        self.column = column

    def indices(self, n: int, size: int, held: Held | None = None) -> Tensor:
        """See `Retrieval.indices`.

        Raises:
            DataError: the column is not one integer per row.
        """
        check_size(n, size)
        labels = needs_held(self, held).column(self.column)
        if labels.ndim != 1 or labels.is_floating_point():
            raise DataError(
                f"column {self.column!r} has shape {tuple(labels.shape)} and dtype {labels.dtype}, not one class per "
                "row. Use Uniform where targets are not classes."
            )
        shuffled, tie = (torch.randperm(n, generator=self.generator).to(labels.device) for _ in range(2))
        ordered, origin = labels[shuffled].sort(stable=True)
        position = torch.arange(n, device=labels.device)
        begins = torch.ones_like(position, dtype=torch.bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        turn = position - torch.where(begins, position, 0).cummax(0).values  # the round in which a row is dealt
        return shuffled[origin[(turn * n + tie).argsort()[:size]]]

    def state(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """
        self.generator.set_state(state["generator"].cpu())


class Recent(Retrieval):
    """The `size` held rows that arrived last, the latest first; nothing is random. Every call looks at all n rows.

    Example:
        >>> import torch
        >>> from holdfast.memory import Memory, Ring
        >>> memory = Memory(capacity=3, insertion=Ring())
        >>> memory.add({"targets": torch.arange(5)})
        >>> memory.draw(2, Recent())["targets"]
        tensor([4, 3])
    """

    __slots__ = ()

    def indices(self, n: int, size: int, held: Held | None = None) -> Tensor:
        """See `Retrieval.indices`."""
        check_size(n, size)
        return needs_held(self, held).arrivals.topk(size).indices
