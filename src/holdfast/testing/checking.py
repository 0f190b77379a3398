"""How checks are run and how what fails is told; and what every metric must offer."""

from __future__ import annotations

import copy
import functools
import inspect
import linecache
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch.nn.functional as F

from holdfast.core.errors import ConfigError, HoldfastError, unknown
from holdfast.core.experience import Stream
from holdfast.methods import er
from holdfast.metrics import Metric, record
from holdfast.testing import toys

S = TypeVar("S")
Checks = Mapping[str, Callable[[S], None]]
"""The checks of one kind of thing, by name; the first line of a check's docstring says what must hold."""

OURS = (str(Path(__file__).resolve().parents[1]),)
"""Folders whose code is not the user's."""


class CheckError(HoldfastError, AssertionError):
    """What was checked does not keep the promises of its kind.

    Attributes:
        failures: the name of each check that failed, and what it saw.
    """

    def __init__(self, message: str, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})


class DoesNotApply(Exception):  # noqa: N818
    """A check that has nothing to say of what is checked; the reason stands in the result."""


def expect(condition: object, sentence: str) -> None:
    """Fail the check that runs, unless `condition` holds.

    Args:
        condition: what must be true.
        sentence: what was seen instead, and where to look.

    Raises:
        CheckError: if it does not hold.
    """
    if not condition:
        raise CheckError(sentence)


def run_checks(
    what: str, subject: S, checks: Checks[S], only: Iterable[str] | None = None, skip: Iterable[str] = ()
) -> dict[str, str]:
    """Run every check, and raise one error that tells all that failed.

    Args:
        what: what is checked, as a message calls it.
        subject: what the checks are given.
        checks: name -> check.
        only: the names of those to run; default: all.
        skip: the names of those to leave out.

    Returns:
        For each check that ran `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where.
        ConfigError: if there is no check of a name in `only` or `skip`.
    """
    left_out = set(skip)
    for name in {*left_out, *(only or ())}:
        if name not in checks:
            raise ConfigError(unknown("check", name, checks))
    results: dict[str, str] = {}
    failures: dict[str, str] = {}
    for name, check in checks.items():
        if name in left_out or (only is not None and name not in set(only)):
            continue
        try:
            check(subject)
        except DoesNotApply as reason:
            results[name] = f"does not apply: {reason}"
        except Exception as error:
            failures[name] = told(error)
        else:
            results[name] = "passed"
    if failures:
        ran = len(results) + len(failures)
        lines = [f"  {name} ({about(checks[name])}): {sentence}" for name, sentence in failures.items()]
        raise CheckError(f"{what} fails {len(failures)} of {ran} checks.\n" + "\n".join(lines), failures)
    return results


def about(check: Callable[..., None]) -> str:
    """What must hold, in the words of a check's docstring."""
    line = (inspect.getdoc(check) or "").split("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def told(error: Exception) -> str:
    """What a check saw: its sentence, or the error that came up and the line of the user's code where it did."""
    if isinstance(error, CheckError):
        return str(error)
    if isinstance(error, HoldfastError):
        return f"{error}{where(error.__traceback__, theirs=True)}"
    return f"it raised {type(error).__name__}: {error}{where(error.__traceback__)}"


def where(trace: TracebackType | None, theirs: bool = False) -> str:
    """The last line of a traceback that is the user's code; else, unless only theirs will do, the last one."""
    frames = list(traceback.extract_tb(trace))
    users = [one for one in frames if not one.filename.startswith(OURS) and "site-packages" not in one.filename]
    last = (users or ([] if theirs else frames))[-1:]
    if not last:
        return ""
    line = linecache.getline(last[0].filename, last[0].lineno or 0).strip()
    return f" (at {last[0].filename}:{last[0].lineno}" + (f", `{line}`)" if line else ")")


def arguments_of(value: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to check something with: those it names itself in `check_arguments`, then those given."""
    return {**getattr(value, "check_arguments", {}), **arguments}


START = {"event": "start", "seed": 0, "method": "er", "parameters": 100, "stream": {"paradigm": "class"}}
END = {"event": "end", "seconds": 3.0}
DURING = [
    {"event": "during", "experience": 1, "step": step, "old": [0], "samples": [10], "correct": [right]}
    for step, right in enumerate((9, 4, 7))
]
"""What is measured on an older experience inside one."""

ARRIVED: list[dict[str, Any]] = [
    {"event": "train", "step": 9, "samples": 300, "loss": 0.5, "right": 200},
    {"event": "boundary", "samples": 130},
    {"event": "boundary", "samples": 150},
    {"event": "held_out", "rows": 10, "correct": 4, "loss": 1.0, "old": {"rows": 5, "correct": 3, "loss": 0.8}},
    {
        "event": "source",
        "samples": 300,
        "arrived": 320,
        "dropped": 20,
        "waiting": 0,
        "idle_seconds": 1.0,
        "seconds": 4.0,
    },
]
"""What a run on a source writes."""


def evaluations(matrix: list[list[float]]) -> list[dict[str, Any]]:
    """The log of a run with this accuracy matrix: a row after each experience, the first before any training."""
    return [
        {
            "event": "evaluate",
            "after": after,
            "experience": experience,
            "split": "test",
            "samples": 20,
            "correct": round(20 * accuracy),
            "loss": 1.5 - accuracy,
        }
        for after, row in enumerate(matrix, start=-1)
        for experience, accuracy in enumerate(row)
    ]


def trained(of: Stream, **settings: Any) -> list[dict[str, Any]]:
    """The log of a run of replay."""
    net = toys.model(of, "task" if of.paradigm == "task" else "fixed", classes=of.outputs)
    events = toys.train(er(capacity=20, size=4), net, of, evaluate="test", log_every=1, **settings).events
    stream = {"paradigm": of.paradigm, "experience_classes": [list(experience.classes) for experience in of]}
    return [{**START, "stream": stream}, *events, END]


@functools.cache
def logs() -> dict[str, list[dict[str, Any]]]:
    """Logs that every metric must take, by what they are of."""
    runs = {
        kind: trained(toys.numbers(kind), criterion=criterion)
        for kind, criterion in (("numbers", F.mse_loss), ("labels", F.binary_cross_entropy_with_logits))
    }
    return {
        "an empty log": [],
        "a log with nothing evaluated": [START, {"event": "train", "step": 1, "loss": 0.5}],
        "one experience": [START, *evaluations([[0.5], [0.9]]), END],
        "a run that goes on": [START, *evaluations([[0.3, 0.3, 0.4], [0.9, 0.3, 0.3]])],
        "joint training": [START, *evaluations([[0.3, 0.3, 0.4], [], [], [0.9, 0.8, 0.9]]), END],
        "a class-incremental run": trained(toys.stream()),
        "a run measured while it learns": [START, *DURING, *evaluations([[0.3, 0.3], [0.9, 0.3], [0.8, 0.9]]), END],
        "a run on a source": [{**START, "source": {"drifts": [100, 200]}}, *ARRIVED, END],
        "a task-incremental run": trained(toys.stream("task")),
        "a run on numbers": runs["numbers"],
        "a run on several labels a row": runs["labels"],
    }


def metric_documented(metric: Metric) -> None:
    """It is a function with a good direction and one line that says what it is."""
    expect(
        isinstance(metric, Metric), f"it is {metric!r:.80}. Write Metric(function, 'up', 'what it is, in one line')."
    )
    expect(callable(metric.function), f"its function is {metric.function!r}. Give a function of a `Record`.")
    expect(metric.direction in ("up", "down"), f"its direction is {metric.direction!r}. Write 'up' or 'down'.")
    line = metric.description
    expect(len(line) > 10 and "\n" not in line, f"it says {line!r} of itself. Write one line of what it measures.")


def metric_total(metric: Metric) -> None:
    """It takes every log, also one of a run that has just begun, and gives a number or nothing."""
    for name, log in logs().items():
        try:
            value = metric.function(record(log))
        except Exception as error:
            expect(
                False, f"on {name} it raises {type(error).__name__}: {error}. Return None where nothing is to measure."
            )
        plain = value is None or isinstance(value, float | int | np.floating | np.integer)
        expect(plain and not isinstance(value, bool), f"on {name} it gives {value!r:.60}. Return a number, or None.")
    values = [metric.function(record(log)) for name, log in logs().items() if name != "an empty log"]
    expect(
        any(value is not None and value == value for value in values), "on none of the logs does it give any number."
    )


def metric_pure(metric: Metric) -> None:
    """It changes nothing of what it reads, and gives the same again."""
    for name, log in logs().items():
        data = record(log)
        events = copy.deepcopy(data.events)
        arrays = {key: value.copy() for key, value in vars(data).items() if isinstance(value, np.ndarray)}
        first, second = metric.function(data), metric.function(data)
        expect(first == second or (first != first and second != second), f"on {name} it gives {first}, then {second}.")
        expect(data.events == events, f"on {name} it changes the events.")
        changed = [
            key for key, value in arrays.items() if not np.array_equal(value, getattr(data, key), equal_nan=True)
        ]
        expect(not changed, f"on {name} it changes {', '.join(changed)}. Work on a copy.")


METRIC_CHECKS: dict[str, Callable[[Metric], None]] = {
    "documented": metric_documented,
    "total": metric_total,
    "pure": metric_pure,
}
