"""Policies of insertion that look at classes: all held evenly, or more of those that come seldom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.decide import on_host
from holdfast.core.errors import DataError
from holdfast.core.randomness import on_cpu
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
        for row, label in enumerate(on_host(targets).tolist()):
            slot = self._place(label, seen + row, capacity)
            if slot is not None:
                places[slot] = row
        return Placement.of(places) if places else None

    def _place(self, label: int, number: int, capacity: int) -> int | None:
        """The slot for one item, or None; keeps the books."""
        self._seen[label] = self._seen.get(label, 0) + 1
        slots = self._held.setdefault(label, [])
        if number < capacity:
            slots.append(number)
            if number == capacity - 1:
                self._mark_largest()
            return number
        accept, which = self._uniform()
        if label in self._full:
            if accept * self._seen[label] >= len(slots):
                return None
            return slots[int(which * len(slots))]
        choice = int(which * len(self._largest) * len(self._held[self._largest[0]]))
        victim = self._held[self._largest[choice % len(self._largest)]]
        position = choice // len(self._largest)
        slot, victim[position] = victim[position], victim[-1]
        victim.pop()
        slots.append(slot)
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


def frequency_quotas(experiences: Mapping[int, int], capacity: int) -> dict[int, int]:
    """Slots of each class: in proportion to 1 / (number of experiences it was seen in), rounded up, then trimmed.

    What rounding up gives away too much is taken from the classes seen most often, a share at a time.
    "Class-incremental learning with repetition" (Hemati et al., CoLLAs 2023), section 5.

    Args:
        experiences: how many experiences each class was seen in.
        capacity: slots in all.

    Example:
        >>> frequency_quotas({0: 1, 1: 1, 2: 2}, 10)
        {0: 4, 1: 4, 2: 2}
    """
    total = sum(1 / count for count in experiences.values())
    shares = {label: 1 / (count * total) for label, count in experiences.items()}
    quotas = {label: math.ceil(share * capacity - 1e-9) for label, share in shares.items()}
    extra = left = sum(quotas.values()) - capacity
    for label in sorted(shares, key=shares.__getitem__):
        taken = min(left, math.ceil(shares[label] * extra), quotas[label])
        quotas[label] -= taken
        left -= taken
    return quotas


class FrequencyAware(Insertion):
    """Classes that were in few experiences get more slots than classes that come back often.

    Each class has its quota (`frequency_quotas`), taken anew when an experience begins and when a class is seen for the
    first time in one. While the memory has empty slots every row is kept. After that a row of a class below its quota
    takes the place of a random row of the class that is furthest above its own; in a class at its quota each row seen
    so far is kept with equal probability. The frequency-aware buffer of "Class-incremental learning with repetition"
    (Hemati et al., CoLLAs 2023). Differences: there the memory is filled at the end of an experience, with all of
    its data, and slots that a class loses stay empty until another class comes; here they keep their rows until then.

    Call `next_experience` whenever an experience begins. It walks over the targets on the host.

    Args:
        generator: CPU generator the draws come from.

    Example:
        >>> from holdfast.memory import Memory
        >>> policy = FrequencyAware(torch.Generator().manual_seed(0))
        >>> memory = Memory(12, insertion=policy)
        >>> for labels in ([0, 1], [0, 2], [0, 3]):
        ...     policy.next_experience()
        ...     memory.add({"targets": torch.tensor(labels).repeat(50)})
        >>> torch.bincount(memory.column("targets")).tolist()
        [1, 3, 4, 4]
    """

    __slots__ = ("_counted", "_experiences", "_held", "_quotas", "_seen", "generator")

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = on_cpu(generator)
        self._counted: set[int] = set()
        self._quotas: dict[int, int] = {}
        self.reset()

    def next_experience(self) -> None:
        """From now on rows belong to another experience."""
        self._counted = set()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`.

        Raises:
            DataError: `targets` are not one class index per row.
        """
        if targets is None or targets.ndim != 1 or targets.is_floating_point():
            raise DataError(
                "a frequency-aware memory needs one integer class per row in the field 'targets'. "
                "Use Reservoir where targets are not classes."
            )
        places: dict[int, int] = {}
        labels = on_host(targets).tolist()
        self._count(labels, capacity)
        for row, label in enumerate(labels):
            slot = self._slot(label, seen + row, capacity)
            if slot is not None:
                places[slot] = row
        return Placement.of(places) if places else None

    def _count(self, labels: list[int], capacity: int) -> None:
        """Note the classes that come for the first time in this experience."""
        new = set(labels) - self._counted
        if new:
            self._counted |= new
            for label in sorted(new):
                self._experiences[label] = self._experiences.get(label, 0) + 1
            self._quotas = frequency_quotas(self._experiences, capacity)

    def _slot(self, label: int, number: int, capacity: int) -> int | None:
        """The slot for one row, or None; keeps the books."""
        self._seen[label] = self._seen.get(label, 0) + 1
        own_slots = self._held.setdefault(label, [])
        if number < capacity:
            own_slots.append(number)
            return number
        if len(own_slots) < self._quotas[label]:
            excess = {other: len(slots) - self._quotas[other] for other, slots in self._held.items() if other != label}
            victim = self._held[max(excess, key=excess.__getitem__)]
            position = self._draw(len(victim))
            slot, victim[position] = victim[position], victim[-1]
            victim.pop()
            own_slots.append(slot)
            return slot
        drawn = self._draw(self._seen[label])
        return own_slots[drawn] if drawn < len(own_slots) else None

    def _draw(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def reset(self) -> None:
        """Forget all items and experiences."""
        self._held: dict[int, list[int]] = {}  # slots by class
        self._seen: dict[int, int] = {}
        self._experiences: dict[int, int] = {}
        self._counted = set()
        self._quotas = {}

    def state(self) -> dict[str, Any]:
        """Slots and counts by class, and the generator's state."""
        return {
            "held": {label: list(slots) for label, slots in self._held.items()},
            "seen": dict(self._seen),
            "experiences": dict(self._experiences),
            "counted": sorted(self._counted),
            "quotas": dict(self._quotas),
            "generator": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """
        self._held = {label: list(slots) for label, slots in state["held"].items()}
        self._seen, self._experiences = dict(state["seen"]), dict(state["experiences"])
        self._counted, self._quotas = set(state["counted"]), dict(state["quotas"])
        self.generator.set_state(state["generator"].cpu())
