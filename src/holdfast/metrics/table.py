"""The table of measures, `METRICS`, the decorator that enters one, and the record of a run that they read."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from holdfast.core.errors import ConfigError, unknown
from holdfast.metrics.cost import COSTS, costs
from holdfast.metrics.log import Event, Log
from holdfast.metrics.matrix import accuracy_matrix, before, last_row, sample_counts, value_matrix

Direction = Literal["up", "down"]
Function = TypeVar("Function", bound=Callable[..., Any])
TASK_AWARE = "task_aware_"


class Record:
    """What the measures read of one run, each part computed once, when it is first asked for.

    Args:
        log: of the run.
        split: the data evaluated on, `"test"` or `"validation"`; None takes test data where any was evaluated, else
            validation data.

    Attributes:
        log: the events that count.
        split: the data evaluated on.
        joint: whether everything was learned at once, so that nothing was learned one after the other: a finished run
            with a single evaluated row, and not several experiences learned. That row then stands for the last one, and
            every experience counts.
        gaps: whether some experience was learned after which nothing was evaluated, so that nothing can be said of the
            time between: a run that evaluated at its end only.
        seen: how many experiences the measures at the end average over.
        learned: how many experiences were evaluated after they were learned.
        accuracy: `[T, T]`, class-incremental.
        aware: `[T, T]`, task-aware.
        loss: `[T, T]`.
    """

    def __init__(self, log: Log, split: str | None = None) -> None:
        if split is None:
            splits = {event.get("split", "test") for event in log.of("evaluate")}
            split = "test" if "test" in splits or not splits else "validation"
        self.log, self.split = log, split
        whole = accuracy_matrix(log, split=split), accuracy_matrix(log, aware=True, split=split), self._values("loss")
        self.learned = max(map(last_row, whole)) + 1
        rows = np.asarray(np.isfinite(whole).any(axis=(0, 2)))
        self.joint = log.finished and log.experiences > 1 and int(rows.sum()) == 1 and len(log.of("experience")) < 2
        self.gaps = not self.joint and not bool(np.atleast_1d(rows)[: self.learned].all())
        self.seen = log.experiences if log.finished else self.learned
        self.accuracy, self.aware, self.loss = map(self._as_last, whole)

    def _values(self, key: str) -> np.ndarray:
        return value_matrix(self.log, key, self.split)

    def _as_last(self, matrix: np.ndarray) -> np.ndarray:
        if not self.joint:
            return matrix
        moved = np.full_like(matrix, np.nan)
        moved[-1] = matrix[max(0, last_row(matrix))]
        return moved

    def values(self, key: str) -> np.ndarray:
        """Any number that evaluations hold, `[T, T]`, NaN if there is none."""
        return self._as_last(self._values(key))

    @property
    def events(self) -> list[Event]:
        """The events that count."""
        return list(self.log)

    @functools.cached_property
    def before(self) -> np.ndarray:
        """`[T]` accuracy before any training, class-incremental."""
        return before(self.log, False, self.split)

    @functools.cached_property
    def before_aware(self) -> np.ndarray:
        """`[T]` accuracy before any training, task-aware."""
        return before(self.log, True, self.split)

    @functools.cached_property
    def costs(self) -> dict[str, float | None]:
        """Of `metrics.costs`."""
        return costs(self.log)

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """`[T]` evaluated samples of each experience."""
        return sample_counts(self.log, self.split)


class Metric(NamedTuple):
    """One measure: how it is computed from a record, whether more is better, and what it says in one line."""

    function: Callable[[Record], float | None]
    direction: Direction
    description: str


METRICS: dict[str, Metric] = {}
"""Every measure by name; `@metric` enters one."""

PARTS: dict[str, Callable[[Record, bool], Any]] = {
    "matrix": lambda record, aware: record.aware if aware else record.accuracy,
    "before": lambda record, aware: record.before_aware if aware else record.before,
    "samples": lambda record, aware: record.samples,
    "losses": lambda record, aware: record.loss,
    "seen": lambda record, aware: record.seen,
    "events": lambda record, aware: record.log,
    "split": lambda record, aware: record.split,
    "values": lambda record, aware: record.values,
    "aware": lambda record, aware: aware,
}
"""What a measure may ask for by the name of its parameter."""


def metric(
    direction: Direction, description: str = "", *, joint: bool = True, over_time: bool = False, name: str = ""
) -> Callable[[Function], Function]:
    """Enter a function into `METRICS`, and so into `metrics.json`, `holdfast show`, reports, sweeps and searches.

    The function asks for what it is computed from by the names of its parameters: `matrix` (`[T, T]` accuracies, row i
    after learning experience i), `before` (`[T]` accuracies before any training), `samples` (`[T]`), `losses`
    (`[T, T]`), `seen` (how many experiences count), `events` (the `Log`), `split`, and `values` (`values(key)` ->
    `[T, T]` of any number in evaluations). Parameters with other names keep their defaults. A function of `matrix` is
    entered twice: with answers among all classes, and as `task_aware_<name>` with answers among the classes of the
    sample's experience; where it asks for `aware`, it is told which.

    Args:
        direction: `"up"` where more is better, else `"down"`.
        description: one line; default: the first line of the docstring.
        joint: whether it means something for a run that learned everything at once.
        over_time: whether it needs an evaluation after each experience; without one it is not given.
        name: default: the function's.

    Raises:
        ConfigError: for a parameter without a default that is not one of these.

    Example:
        >>> @metric("down", "spread of the accuracies at the end")
        ... def unevenness(matrix):
        ...     return float(np.nanstd(matrix[-1]))
        >>> METRICS["unevenness"].direction, "task_aware_unevenness" in METRICS
        ('down', True)
        >>> _ = METRICS.pop("unevenness"), METRICS.pop("task_aware_unevenness")
    """

    def enter(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        wanted = [key for key in parameters if key in PARTS]
        for key, parameter in parameters.items():
            if key not in PARTS and parameter.default is parameter.empty:
                raise ConfigError(unknown(f"part of a record, asked for by {function.__name__},", key, PARTS))
        metric_name = name or function.__name__
        summary = description or (inspect.getdoc(function) or metric_name).splitlines()[0].rstrip(".")
        for aware in [False, True] if "matrix" in wanted else [False]:
            note = "; answers among the classes of the experience only" if aware else ""
            METRICS[(TASK_AWARE if aware else "") + metric_name] = Metric(
                _computed(function, wanted, aware, joint, over_time), direction, summary + note
            )
        return function

    return enter


def _computed(
    function: Callable[..., Any], wanted: list[str], aware: bool, joint: bool, over_time: bool
) -> Callable[[Record], float | None]:
    def value(record: Record) -> float | None:
        if (record.joint and not joint) or (record.gaps and over_time):
            return None
        measured = function(**{key: PARTS[key](record, aware) for key in wanted})
        return None if measured is None or not math.isfinite(measured) else measured

    return value


def _cost(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.costs[name]


METRICS.update({name: Metric(_cost(name), *about) for name, about in COSTS.items()})
