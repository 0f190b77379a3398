"""Insertion that keeps more of the classes that come seldom: quotas by the number of experiences a class was in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.memory.generators import on_cpu
from holdfast.memory.insertion import Insertion, Placement


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
        labels = targets.tolist()
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
        held = self._held.setdefault(label, [])
        if number < capacity:
            held.append(number)
            return number
        if len(held) < self._quotas[label]:
            excess = {other: len(slots) - self._quotas[other] for other, slots in self._held.items() if other != label}
            victim = self._held[max(excess, key=excess.__getitem__)]
            place = self._draw(len(victim))
            slot, victim[place] = victim[place], victim[-1]
            victim.pop()
            held.append(slot)
            return slot
        drawn = self._draw(self._seen[label])
        return held[drawn] if drawn < len(held) else None

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
