"""Trials that lie near a composition that was measured, and in what it may change without changing what it does."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from holdfast.discovery.axes import Trial, same
from holdfast.discovery.trial import Entry

STEP = 0.15
"""How far a neighbour's number lies from its own, as a standard deviation in parts of the range."""

RARER = 0.5
"""By how much less likely an operation becomes with each composition that it was in."""

Params = Mapping[str, Any]


def inert(params: Params, entries: Sequence[Entry], slots: Sequence[str]) -> set[str]:
    """The slots and parameters of a composition that change nothing of what it does.

    These are the ones in which others differ from it that measured the very same, in all but what it cost: what a
    closed form predicts does not depend on the learning rate, nor on what is replayed. Slots of one role are alike.

    Args:
        params: of the composition, as they are stored.
        entries: every trial.
        slots: names of the slots.
    """
    mine = {(one.length, one.outcome) for one in entries if one.outcome and one.seed == 0 and one.params == params}
    names: set[str] = set()
    for one in entries:
        if one.seed == 0 and (one.length, one.outcome) in mine:
            names |= {
                name
                for name in {*params, *one.params}
                if (name in params) != (name in one.params) or not same(params[name], one.params[name])
            }
    roles = {slot.split(".")[0] for slot in slots if {slot, f"{slot}.used"} & names}
    return names | {slot for slot in slots if slot.split(".")[0] in roles}


class Within:
    """A trial of one composition: its operations are those of `params`, and only numbers and choices are asked for.

    Args:
        params: of the composition.
        fixed: names of the parameters that stay.
        trial: gets all other questions.
    """

    def __init__(self, params: Params, fixed: Collection[str], trial: Trial) -> None:
        self.params, self.fixed, self.trial = params, fixed, trial

    def _stays(self, name: str) -> bool:
        return name in self.fixed and name in self.params

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """The composition's own where that stays, else the trial's."""
        return self.params[name] if self._stays(name) else self.trial.suggest_categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """The composition's own where that stays, else the trial's."""
        return self.params[name] if self._stays(name) else self.trial.suggest_int(name, low, high, log=log)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The composition's own where that stays, else the trial's."""
        return self.params[name] if self._stays(name) else self.trial.suggest_float(name, low, high, log=log)


class Neighbour:
    """A trial near a composition that was measured: one part of it is another, or some of its numbers are.

    Mutation as in regularised evolution (Real et al. 2019, "Regularized evolution for image classifier architecture
    search"): one slot is filled, emptied or filled by another operation, or numbers move by a normal step; numbers of
    an operation that is new start at their defaults.

    Args:
        params: of the composition, as they are stored.
        slots: names of the slots.
        defaults: of numbers, by axis.
        draw: where chance comes from.
        slot: what changes; empty for numbers alone.
        stay: names of numbers and choices that do not move.
        tried: operation -> how many compositions it was in; the more, the less likely it comes anew.
    """

    def __init__(
        self,
        params: Params,
        slots: Sequence[str],
        defaults: Params,
        draw: random.Random,
        slot: str = "",
        stay: Collection[str] = (),
        tried: Mapping[str, int] | None = None,
    ) -> None:
        self.params, self.slots, self.defaults, self.draw, self.slot = params, slots, defaults, draw, slot
        self.stay, self.tried = stay, tried or {}
        self.other = draw.random() < 0.5
        self.rate = 0.2 if slot else 0.6

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """The composition's own choice, or another one where this is what changes."""
        mine = self.params.get(name, self.defaults.get(name))
        if name == f"{self.slot}.used":
            return mine if mine and self.other else not mine
        if name.endswith(".used"):
            return mine
        rest = [one for one in choices if not same(one, mine)]
        if name == self.slot or len(rest) == len(choices):
            options = rest or list(choices)
            return self.draw.choices(options, [RARER ** self.tried.get(one, 0) for one in options])[0]
        moves = name not in self.slots and name not in self.stay and rest and self.draw.random() < self.rate / 2
        return self.draw.choice(rest) if moves else mine

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number near the composition's own."""
        return min(high, max(low, round(self.suggest_float(name, low, high, log=log))))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number near the composition's own."""
        mine = min(high, max(low, self.params.get(name, self.defaults.get(name, low))))
        if name in self.stay or self.draw.random() >= self.rate:
            return mine
        ends = (math.log(low), math.log(high)) if log else (low, high)
        step = self.draw.gauss(0, STEP) * (ends[1] - ends[0])
        moved = mine * math.exp(step) if log else mine + step
        return min(high, max(low, moved))
