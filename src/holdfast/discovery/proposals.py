"""What a search tries next: what is known from papers, new compositions, and better numbers for those that lead."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from holdfast.core.errors import ConfigError
from holdfast.discovery.axes import WHOLE_FACTOR, Trial, same
from holdfast.discovery.neighbours import Neighbour, Params, Within, inert
from holdfast.discovery.rungs import dominates
from holdfast.discovery.study import Book, distribution, library, quiet
from holdfast.discovery.trial import Entry

ENOUGH = 10
"""Compositions on a prefix from which on it is what proposals follow."""

FEW = 6
"""Settings of one composition from which on its numbers are proposed by a model of them."""

PARENTS, MOST_ASKED = 4, 100
"""How many compositions lead; proposals refused in a row before the search is at its end."""

LITERATURE, LEAST_LITERATURE, MOST_LITERATURE, EVERY = 0.25, 4, 0.5, 4
"""The part of all trials that published methods have to themselves, at least so many; then every fourth, up to half."""

NUMBERS, EXPLORED = (0.3, 0.9), 0.2
"""The part of the neighbours that differ in numbers alone, at the start and the end; of proposals from everywhere."""

CALMER = 5.0
"""By how much the learning rate of what diverged is divided, once."""

RATE = "optimizer.lr"

SMALLER = 3
"""How often what is best but beyond a limit is tried with another choice or smaller numbers."""

Proposed = tuple[dict[str, Any], str, dict[str, Any]]
"""A composition as it is stored, its key, and what the sampler wrote down."""

Accept = Callable[[dict[str, Any]], str]
"""Gives the key of a composition, or raises `ConfigError` where it cannot be trained or was tried."""


class Proposals:
    """New compositions for a search, one after the other.

    With one objective and the sampler `auto`, a proposal is a neighbour of one of the leaders: a slot is filled,
    emptied or filled by another operation (mutation as in regularised evolution, Real et al. 2019), or only numbers
    move. At the start most change an operation, towards the end most change numbers; once a composition was tried with
    `FEW` settings, its numbers come from TPE over these alone (the tree of all compositions, with its many rarely used
    branches, is more than a model of so few trials learns). What made no difference to a leader stays (`inert`). What
    diverged is tried once more with a smaller learning rate; what is best but beyond a limit, with another choice of
    its operations or a smaller whole number. A shrinking part is drawn by TPE from the whole space. A sweep, which has
    no operations to change, draws its numbers near the best and by TPE in turn.

    Any model sees the trials of one prefix alone, whose numbers can be compared: the longest on which there are enough
    (as in BOHB, Falkner et al. 2018), those that diverged as the worst of them.

    Args:
        book: the study.
    """

    def __init__(self, book: Book) -> None:
        self.book, self.settings, self.space = book, book.settings, book.space

    def next(self, accept: Accept, entries: Sequence[Entry], progress: float = 0.0) -> Proposed | None:
        """A new composition; None where nothing new comes.

        Args:
            accept: whether it can be trained and is new.
            entries: every trial.
            progress: how much of the budget is used, from 0 to 1.
        """
        draw = random.Random(f"{self.settings.seed}/{len(entries)}")
        drawn = len({one.key for one in entries if one.origin == "sampler"})
        explored = EXPLORED * (1 - progress) if self.space.slots else drawn % 2
        if self.settings.mixed and draw.random() >= explored:
            near = self._calmer(accept, entries) or self._smaller(accept, entries, draw)
            near = near or self._near(accept, entries, draw, progress)
            if near is not None:
                return near
        return self._modelled(accept, entries, list(self._seen(entries)))

    # Near the leaders ----------------------------------------------------------------------------------

    def _calmer(self, accept: Accept, entries: Sequence[Entry]) -> Proposed | None:
        """What diverged before any setting of its operations went well, with a smaller learning rate, once."""
        axis = next((one for one in self.space.common if one.name == RATE and not one.choices), None)
        for one in entries if axis is not None and self.space.slots else ():
            kin = [other for other in entries if self.alike(one.params) == self.alike(other.params)]
            if one.state != "diverged" or len({other.key for other in kin}) > 1 or RATE not in one.params:
                continue
            params = {**one.params, RATE: axis.nearest(one.params[RATE] / CALMER)}  # type: ignore[union-attr]
            try:
                return params, accept(params), {}
            except ConfigError:
                continue
        return None

    def _smaller(self, accept: Accept, entries: Sequence[Entry], draw: random.Random) -> Proposed | None:
        """What is better than all within the limits but beyond one of them, with another choice or smaller numbers."""
        leaders, levels = self.leaders(entries), self.book.levels(entries)
        slots, defaults = list(self.space.slots), self.space.defaults()
        for one in entries if leaders and self.space.slots else ():
            values = self.book.objectives(one) if one.state == "done" and one.seed == 0 else None
            level = levels.get(one.length, {})
            if values is None or not level or self.book.within(one) or len(self._kin(one.params, entries)) > SMALLER:
                continue
            if any(dominates(other, self.settings.turned(values)) for other in level.values()):
                continue
            for change in self._smaller_numbers(one.params):
                try:
                    changed = Neighbour({**one.params, **change}, slots, defaults, draw, stay=self.space.axes())
                    params = self.space.suggest(changed)
                    return params, accept(params), {}
                except ConfigError:
                    continue
        return None

    def _smaller_numbers(self, params: Params) -> Iterator[dict[str, Any]]:
        """Each choice of the operations of a composition changed, then each whole number at a part of what it is."""
        axes = [
            axis for name in self._operations(params) for axis in self.space.operations[name] if axis.name in params
        ]
        for axis in axes:
            yield from ({axis.name: label} for label in axis.labels if not same(label, params[axis.name]))
        for axis in axes:
            if axis.whole and not axis.choices:
                yield {axis.name: axis.nearest(params[axis.name] // WHOLE_FACTOR)}

    def _operations(self, params: Params) -> list[str]:
        """The operations of a composition, and what fills its memory."""
        return [*self.space.chosen(params), *([params["memory"]] if "memory" in params else [])]

    def _kin(self, params: Params, entries: Sequence[Entry]) -> set[str]:
        """The keys of the compositions of the same operations."""
        alike = self.alike(params)
        return {one.key for one in entries if self.alike(one.params) == alike}

    def _near(self, accept: Accept, entries: Sequence[Entry], draw: random.Random, progress: float) -> Proposed | None:
        """A neighbour of one of the leaders; None where none can be trained."""
        leaders = self.leaders(entries)
        defaults, slots = self.space.defaults(), list(self.space.slots)
        tried = collections.Counter(name for params in {one.key: one.params for one in entries}.values()
                                    for name in self._operations(params))  # fmt: skip
        still = [inert(parent, entries, slots) for parent in leaders]
        exhausted: set[int] = set()
        least, most = NUMBERS
        for _ in range(MOST_ASKED if leaders else 0):
            [rank] = draw.choices(range(len(leaders)), [0.5**rank for rank in range(len(leaders))])
            parent, stay = leaders[rank], still[rank]
            open_slots = [slot for slot in slots if slot not in stay]
            numbers = not open_slots or draw.random() < least + (most - least) * progress
            if numbers:
                if rank in exhausted or not {*parent} - {*self._fixed(), *stay}:
                    continue
                kin = [one for one in entries if self.alike(one.params) == self.alike(parent)]
                seen = list(self._seen(kin, FEW))
                if len(seen) >= FEW:
                    proposed = self._modelled(accept, entries, seen, parent, stay)
                    if proposed is not None:
                        return proposed
                    exhausted.add(rank)
            slot = "" if numbers else draw.choice(open_slots)
            try:
                params = self.space.suggest(Neighbour(parent, slots, defaults, draw, slot, stay, tried))
                return params, accept(params), {}
            except ConfigError:
                continue
        return None

    def leaders(self, entries: Sequence[Entry]) -> list[Params]:
        """The best settings of each of the `PARENTS` best compositions, the best first."""
        params_of = {one.key: one.params for one in entries}
        best_settings: dict[object, Params] = {}
        for key in self.book.best(entries, len(params_of)):
            best_settings.setdefault(self.alike(params_of[key]), params_of[key])
        return list(best_settings.values())[:PARENTS]

    def alike(self, params: Params) -> object:
        """What two settings of one composition have in common: its operations; nothing where only numbers vary."""
        if not self.space.slots:
            return tuple(sorted((name, str(value)) for name, value in params.items()))
        return frozenset(self.space.chosen(params)), params.get("memory")

    def nearest(self, points: Sequence[Params], entries: Sequence[Entry]) -> int:
        """The place of the published method that shares most operations with the leader; the first where none leads."""
        leaders = self.leaders(entries)

        first = {*self._operations(leaders[0])} if leaders else set()
        shared = [len(first & {*self._operations(params)}) for params in points]
        return shared.index(max(shared))

    # By a model ----------------------------------------------------------------------------------------

    def _modelled(
        self,
        accept: Accept,
        entries: Sequence[Entry],
        seen: Sequence[Any],
        parent: Params | None = None,
        stay: Collection[str] = (),
    ) -> Proposed | None:
        """What the sampler draws after the trials in `seen`; of the composition `parent` alone, where there is one."""
        optuna = library()
        with quiet():
            sampler = self._sampler(len(entries), parent is not None)
            view = optuna.create_study(directions=self.book.study.directions, sampler=sampler)
            for one in seen:
                view.add_trial(one)
            for _ in range(MOST_ASKED):
                trial = view.ask()
                try:
                    asked: Trial = trial if parent is None else Within(parent, {*self._fixed(), *stay}, trial)
                    params = self.space.suggest(asked)
                    key = accept(params)
                except ConfigError:
                    view.tell(trial, state=optuna.trial.TrialState.FAIL)
                    continue
                return params, key, dict(view.trials[trial.number].system_attrs)
        return None

    def _fixed(self) -> set[str]:
        """The parameters that say which operations a composition has."""
        return {*self.space.slots, *(f"{slot}.used" for slot in self.space.slots), "memory"}

    def _sampler(self, seen: int, within: bool = False) -> Any:
        samplers, seed = library().samplers, 1000 * self.settings.seed + seen
        if within:
            return samplers.TPESampler(n_startup_trials=0, multivariate=True, seed=seed)
        if self.settings.chosen_sampler == "nsga2":
            return samplers.NSGAIISampler(population_size=self.population, seed=seed)
        if self.settings.chosen_sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(n_startup_trials=ENOUGH, seed=seed)

    @property
    def population(self) -> int:
        """How many compositions make a generation."""
        return max(8, min(50, (self.settings.trials or 80) // 4))

    def _seen(self, entries: Sequence[Entry], enough: int = ENOUGH) -> Iterator[Any]:
        """The trials as a sampler sees them.

        Args:
            entries: those that it may see.
            enough: how many of them a prefix needs.
        """
        optuna = library()
        measured = [one for one in entries if one.state in ("done", "diverged") and one.seed == 0]
        lengths = sorted({one.length for one in measured})
        full = [n for n in lengths if len({one.key for one in measured if one.length == n}) >= enough]
        shortest = min(lengths, default=0)
        length = full[-1] if full and self.settings.chosen_sampler == "tpe" else shortest
        axes, book = self.space.axes(), self.book
        objectives = [
            values for one in measured if one.length == length and (values := book.objectives(one)) is not None
        ]
        worst = [max(column) for column in zip(*map(self.settings.turned, objectives))] if objectives else []
        at_work = {one.key for one in entries if one.state in ("waiting", "running")}
        shown: set[str] = set()
        for one in entries:
            pending = one.key in at_work and one.state in ("waiting", "running") and one.length == shortest
            if one.key in shown or not (pending or (one in measured and one.length == length)):
                continue
            ranges = {name: distribution(axes[name]) for name in one.params if name in axes}
            params = {name: value for name, value in one.params.items() if name in ranges}
            about: dict[str, Any] = {"params": params, "distributions": ranges, "system_attrs": dict(one.extra)}
            values = book.objectives(one) if one.state == "done" else None
            if pending:
                about["state"] = optuna.trial.TrialState.RUNNING
            elif values is not None or worst:
                about["values"] = list(values if values is not None else self.settings.turned(worst))
                limits = book.over(one) if one.values else {}
                about |= {"constraints": limits} if limits else {}
            else:
                continue
            try:
                frozen = optuna.trial.create_trial(**about)
            except ValueError:  # outside of the space as it is now: an earlier search's
                continue
            shown.add(one.key)
            yield frozen


def alone(trials: int | None) -> int:
    """How many published methods are tried before anything else; `trials` as in `literature_is_next`."""
    return 2 * LEAST_LITERATURE if trials is None else max(LEAST_LITERATURE, int(LITERATURE * trials))


def literature_is_next(tried: int, published: int, trials: int | None) -> bool:
    """Whether the next composition is a published method, as long as there are any.

    Args:
        tried: compositions so far.
        published: those of them that were published methods, or what earlier searches had found.
        trials: of the whole search; None where only its time is limited.

    Example:
        >>> turns = []
        >>> for tried in range(24):
        ...     turns.append(literature_is_next(tried, sum(turns), 24))
        >>> [place for place, turn in enumerate(turns) if turn]
        [0, 1, 2, 3, 4, 5, 8, 12, 16, 20]
    """
    if published < alone(trials):
        return True
    return tried % EVERY == 0 and (trials is None or published < MOST_LITERATURE * trials)
