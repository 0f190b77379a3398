"""What a policy of insertion is: it says which incoming rows go to which slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.memory.storage import Slots


class Placement(NamedTuple):
    """Which rows of a batch are kept, and where: row `incoming[i]` goes to slot `slots[i]`; slots are distinct."""

    incoming: Slots
    slots: Slots

    @classmethod
    def of(cls, places: Mapping[int, int]) -> Placement:
        """From a mapping of slot to incoming row."""
        incoming, slots = torch.tensor([list(places.values()), list(places)]).unbind()
        return cls(incoming, slots)


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
            targets: `[rows, ...]` their targets, on any device, or None where there are none.

        Returns:
            What is kept and where, or None if nothing is.
        """

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
