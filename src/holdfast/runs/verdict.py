"""What a check says: what was kept and lost of each part of the past, whether inputs shifted, whether that will do."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.core.errors import ConfigError
from holdfast.metrics.statistics import difference_interval

MAX_DROP = 0.03
"""Accuracy that an experience may lose, by default."""

SAME_ROWS = "experiences that were asked on the same rows count once in the whole and in its classes"

MOST = 12
"""Classes that are told, those that lost most first."""


@dataclass(frozen=True)
class Kept:
    """What is left of one experience, class or data set.

    Attributes:
        name: of it.
        rows: that were asked.
        before: accuracy 0..1 when it was learned (or of the model before an update); mean absolute error of numbers.
        now: the same now.
        drop: what is lost: `before - now`; of an error its relative growth, `now / before - 1`.
        low, high: 95 % interval of the drop (Newcombe's); None for errors.
        error: whether `before` and `now` are errors.
    """

    name: str
    rows: int
    before: float
    now: float
    drop: float
    low: float | None = None
    high: float | None = None
    error: bool = False

    @classmethod
    def counted(cls, name: str, before: tuple[int, int], now: tuple[int, int], both: int | None = None) -> Kept:
        """Of right answers and rows, before and now; `both` counts those right twice, of the same rows."""
        low, high = difference_interval(before, now, both)
        first, second = before[0] / before[1], now[0] / now[1]
        return cls(name, now[1], first, second, first - second, low, high)

    @classmethod
    def of_errors(cls, name: str, rows: int, before: float, now: float) -> Kept:
        """Of mean absolute errors."""
        return cls(name, rows, before, now, now / before - 1 if before > 0 else float(now > 0), error=True)

    def sentence(self, since: str = "when it was learned") -> str:
        """In words."""
        if self.error:
            change = f"{abs(100 * self.drop):.1f} % {'more' if self.drop > 0 else 'less'}"
            return f"{self.name}: error {self.before:.4g} {since}, {self.now:.4g} now ({change}), on {self.rows} rows"
        text = f"{self.name}: {100 * self.before:.1f} % right {since}, {100 * self.now:.1f} % now, on {self.rows} rows"
        word = "lost" if self.drop > 0 else "gained"
        edges = sorted(100 * (edge if self.drop > 0 else -edge) for edge in (self.low or 0.0, self.high or 0.0))
        points = f"{abs(100 * self.drop):.1f} points {word}" if self.drop else "nothing lost"
        return f"{text}: {points} (95 % interval {edges[0]:.1f} to {edges[1]:.1f})"


@dataclass(frozen=True)
class Shift:
    """Whether new inputs come from the same distribution as old ones (see `holdfast.boundaries.MMD`).

    Attributes:
        score: the squared MMD, unbiased.
        p_value: of the permutation test.
        against: what the old inputs are.
        drifted: whether that is improbable where nothing changed ...
        level: ... which is so of a p-value of at most this.
    """

    score: float
    p_value: float
    against: str
    drifted: bool
    level: float

    @property
    def sentence(self) -> str:
        """In words."""
        verdict = "the new inputs differ from the old" if self.drifted else "no shift of the inputs was found"
        test = f"kernel two-sample test against {self.against}, at the level of {self.level:g}"
        return f"{verdict} ({test}: MMD² {self.score:.3g}, p {self.p_value:.3g})"


@dataclass
class Verdict:
    """What a model has kept and lost, and whether that will do.

    Attributes:
        where: the run, or the checkpoint.
        max_drop: what may be lost.
        experiences: everything learned before, each against when it was learned (after an update: against the model
            before it).
        classes: the same class by class.
        whole: all of `experiences` together; None where there is nothing before.
        new: the newest data, which nothing could be lost of yet; of `check --data` the new data, against test data.
        new_classes: the new data class by class.
        max_class_drop: what each class may lose; None for anything.
        since: what `before` means, in words.
        new_since: the same of `new`.
        shift: of new inputs; None where nothing was compared.
        notes: what else is to be known, in sentences.
        version: of the run that was asked, and after an update the one that was made.
        seeds: the verdicts of a run of several seeds, by folder.
    """

    where: str
    max_drop: float = MAX_DROP
    experiences: list[Kept] = field(default_factory=list)
    classes: list[Kept] = field(default_factory=list)
    whole: Kept | None = None
    new: Kept | None = None
    new_classes: list[Kept] = field(default_factory=list)
    max_class_drop: float | None = None
    since: str = "when it was learned"
    new_since: str = "on its test data"
    shift: Shift | None = None
    notes: list[str] = field(default_factory=list)
    version: int = 0
    seeds: dict[str, Verdict] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """Why it does not pass, in sentences; empty where it does."""
        reasons = [f"{where}: {line}" for where, one in self.seeds.items() for line in one.failures]
        parts = [*self.experiences, *([self.new] if self.new is not None else [])]
        reasons += [_too_much(one, self.max_drop) for one in parts if one.drop > self.max_drop]
        if self.max_class_drop is not None:
            classes = [*self.classes, *self.new_classes]
            reasons += [_too_much(one, self.max_class_drop) for one in classes if one.drop > self.max_class_drop]
        return reasons

    @property
    def passed(self) -> bool:
        """Whether nothing lost more than it may."""
        return not self.failures

    def lines(self) -> list[str]:
        """Everything in words, the verdict last."""
        told = [line for where, one in self.seeds.items() for line in (f"{where}:", *one.lines()[:-1])]
        told += [f"  {one.sentence(self.since)}" for one in self.experiences]
        if self.whole is not None and len(self.experiences) > 1:
            told.append(f"  {self.whole.sentence(self.since)}")
        told += _of_classes(self.classes, self.since)
        if self.new is not None:
            told.append(f"  {self.new.sentence(self.new_since)}")
        told += _of_classes(self.new_classes, self.new_since)
        told += [f"  {self.shift.sentence}"] if self.shift is not None else []
        told += [f"  {note}" for note in self.notes]
        share = f"{100 * self.max_drop:g} {'% more error' if any(one.error for one in self.experiences) else 'points'}"
        end = f"passed: nothing lost more than {share}" if self.passed else f"failed: {'; '.join(self.failures)}"
        return [*told, end]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = dataclasses.asdict(self)
        values["seeds"] = {where: one.as_dict() for where, one in self.seeds.items()}
        return {"passed": self.passed, "failures": self.failures, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """What `as_dict` gave."""
        arguments = {one.name: values[one.name] for one in dataclasses.fields(cls) if one.name in values}
        for name in ("experiences", "classes", "new_classes"):
            arguments[name] = [Kept(**one) for one in arguments.get(name) or []]
        for name, kind in (("whole", Kept), ("new", Kept), ("shift", Shift)):
            arguments[name] = None if arguments.get(name) is None else kind(**arguments[name])  # type: ignore[operator]
        arguments["seeds"] = {where: cls.from_dict(one) for where, one in (arguments.get("seeds") or {}).items()}
        return cls(**arguments)


def _of_classes(classes: Sequence[Kept], since: str) -> list[str]:
    """Those that lost something, in words, the worst first."""
    lost = sorted((one for one in classes if one.drop > 0), key=lambda one: -one.drop)
    more = [f"    and {len(lost) - MOST} more that lost less"] if len(lost) > MOST else []
    told = [f"    {one.sentence(since)}" for one in lost[:MOST]]
    return ["  by class, those that lost something:", *told, *more] if lost else []


def _too_much(one: Kept, limit: float) -> str:
    if one.error:
        return f"the error of {one.name} grew by {100 * one.drop:.1f} %, more than {100 * limit:g} %"
    surely = "" if one.low is None or one.low > limit else ", which may be chance"
    return f"{one.name} lost {100 * one.drop:.1f} points, more than {100 * limit:g}{surely}"


def check_limits(max_drop: float, max_class_drop: float | None) -> None:
    """Refuse a drop outside 0..1.

    Raises:
        ConfigError: for one.
    """
    for name, value in (("max_drop", max_drop), ("max_class_drop", max_class_drop)):
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}. Give a share of 0 to 1, for instance 0.03 for three points.")


def whole(parts: Sequence[Kept], name: str, rows_of: Sequence[Hashable] = ()) -> Kept | None:
    """Several as one; None without any. The interval takes them as rows of their own.

    Args:
        parts: of the past.
        name: of the whole.
        rows_of: for each part what tells its rows from others'. Parts that were asked on the same rows are averaged,
            so that these rows count once; empty where all have rows of their own.
    """
    if not parts:
        return None
    asked: dict[Hashable, list[Kept]] = {}
    for number, one in enumerate(parts):
        asked.setdefault(rows_of[number] if rows_of else number, []).append(one)
    rows = sum(same[0].rows for same in asked.values())
    shares = [(same[0].rows / rows / len(same), one) for same in asked.values() for one in same]
    before, now = (sum(share * getattr(one, key) for share, one in shares) for key in ("before", "now"))
    if parts[0].error:
        return Kept.of_errors(name, rows, before, now)
    # Drops on rows of their own vary each by itself; on the same rows they vary together, so that half widths add.
    below, above = (
        sum(
            sum(abs(edge - one.drop) for one in same if (edge := getattr(one, side)) is not None) ** 2
            * (same[0].rows / rows / len(same)) ** 2
            for same in asked.values()
        )
        ** 0.5
        for side in ("low", "high")
    )
    drop = before - now
    return Kept(name, rows, before, now, drop, drop - below, drop + above)
