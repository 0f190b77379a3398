"""Class-balanced reservoir sampling: rare classes keep all they have, frequent ones a uniform sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.memory.generators import on_cpu
from holdfast.memory.insertion import Insertion, Placement

BLOCK = 1024
"""Items whose uniforms are drawn at once, two each."""


class BalancedReservoir(Insertion):
    """CBRS (Chrysakis and Moens 2020, "Online continual learning from imbalanced data", algorithm 1).

    A class is *full* once it has been the largest in a full memory. An item of a class that is not full replaces a
    random item of the largest class. An item of a full class c replaces a random item of c with probability
    m_c / n_c (m_c held, n_c seen, this one included), which is reservoir sampling within c.

    Difference from the paper: of several largest classes one is taken at random, where the paper leaves ties open.
    Each decision depends on the one before, so this policy walks over the targets on the host (from a GPU that is
    a synchronisation per insertion). Like `Reservoir`, it does not depend on how items were batched.

    Args:
        generator: CPU generator the draws come from.
    """

    __slots__ = ("_full", "_held", "_largest", "_position", "_seen", "_start", "_uniforms", "generator")

    _held: dict[int, list[int]]  # slots by class
    _seen: dict[int, int]
    _full: set[int]
    _largest: list[int]
    _uniforms: list[list[float]]
    _start: Tensor | None  # the generator's state before the block was drawn
    _position: int

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = on_cpu(generator)
        self.reset()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`.

        Raises:
            DataError: `targets` are not one class index per row.
        """
        if targets is None or targets.ndim != 1 or targets.is_floating_point():
            raise DataError(
                "a class-balanced memory needs one integer class per row in the field 'targets'. "
                "Use Reservoir where targets are not classes."
            )
        places: dict[int, int] = {}
        for row, label in enumerate(targets.tolist()):
            slot = self._place(label, seen + row, capacity)
            if slot is not None:
                places[slot] = row
        return Placement.of(places) if places else None

    def _place(self, label: int, number: int, capacity: int) -> int | None:
        """The slot for one item, or None; keeps the books."""
        self._seen[label] = self._seen.get(label, 0) + 1
        held = self._held.setdefault(label, [])
        if number < capacity:
            held.append(number)
            if number == capacity - 1:
                self._mark_largest()
            return number
        accept, which = self._uniform()
        if label in self._full:
            if accept * self._seen[label] >= len(held):
                return None
            return held[int(which * len(held))]
        choice = int(which * len(self._largest) * len(self._held[self._largest[0]]))
        victim = self._held[self._largest[choice % len(self._largest)]]
        place = choice // len(self._largest)
        slot, victim[place] = victim[place], victim[-1]
        victim.pop()
        held.append(slot)
        self._mark_largest()
        return slot

    def _mark_largest(self) -> None:
        most = max(map(len, self._held.values()))
        self._largest = [label for label, slots in self._held.items() if len(slots) == most]
        self._full.update(self._largest)

    def _uniform(self) -> list[float]:
        if self._position == len(self._uniforms):
            self._start = self.generator.get_state()
            self._uniforms = torch.rand(BLOCK, 2, generator=self.generator, dtype=torch.float64).tolist()
            self._position = 0
        self._position += 1
        return self._uniforms[self._position - 1]

    def reset(self) -> None:
        """Forget all items; the rest of the block is not used."""
        self._held = {}
        self._seen = {}
        self._full = set()
        self._largest = []
        self._uniforms = []
        self._start = None
        self._position = 0

    def state(self) -> dict[str, Any]:
        """Slots and counts by class, the generator's state at the block's start and now, and the position in it."""
        return {
            "held": {label: list(slots) for label, slots in self._held.items()},
            "seen": dict(self._seen),
            "full": sorted(self._full),
            "largest": list(self._largest),
            "position": self._position,
            "start": self._start,
            "generator": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Draw the block again and go on inside it.

        Args:
            state: what `state` returned.
        """
        self.reset()
        self._held = {label: list(slots) for label, slots in state["held"].items()}
        self._seen, self._full, self._largest = dict(state["seen"]), set(state["full"]), list(state["largest"])
        if state["start"] is not None:
            self.generator.set_state(state["start"].cpu())
            self._uniform()
        self._position = state["position"]
        self.generator.set_state(state["generator"].cpu())
