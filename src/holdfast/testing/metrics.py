"""What every metric must offer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from holdfast.metrics import Metric, record
from holdfast.testing.checking import expect


def evaluations(matrix: list[list[float]], **more: Any) -> list[dict[str, Any]]:
    """The log of a run with this accuracy matrix: a row after each experience, the first before any training."""
    events: list[dict[str, Any]] = [{"event": "start", "seed": 0, "method": "er", "stream": {"paradigm": "class"}}]
    for after, row in enumerate(matrix, start=-1):
        for experience, accuracy in enumerate(row):
            events.append(
                {
                    "event": "evaluate",
                    "after": after,
                    "experience": experience,
                    "split": "test",
                    "samples": 20,
                    "correct": round(20 * accuracy),
                    "loss": 1.5 - accuracy,
                    **more,
                }
            )
        if after >= 0:
            events.append({"event": "experience", "experience": after, "seconds": 1.0, "steps": 5})
    return events


END = {"event": "end", "seconds": 3.0}
LOGS: dict[str, list[dict[str, Any]]] = {
    "an empty log": [],
    "a log with nothing evaluated": [{"event": "start"}, {"event": "train", "step": 1, "loss": 0.5}],
    "one experience": [*evaluations([[0.5], [0.9]]), END],
    "three experiences": [*evaluations([[0.3, 0.3, 0.4], [0.9, 0.3, 0.3], [0.6, 0.8, 0.4], [0.5, 0.6, 0.9]]), END],
    "a run that goes on": evaluations([[0.3, 0.3, 0.4], [0.9, 0.3, 0.3]]),
    "joint training": [*evaluations([[0.3, 0.3, 0.4]]), *evaluations([[], [], [], [0.9, 0.8, 0.9]])[1:], END],
    "targets that are no classes": [
        {key: value for key, value in event.items() if key != "correct"}
        for event in [*evaluations([[0.3, 0.3], [0.9, 0.3], [0.5, 0.6]]), END]
    ],
}
"""Logs that every metric must take."""


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
    for name, log in LOGS.items():
        try:
            value = metric.function(record(log))
        except Exception as error:
            expect(
                False, f"on {name} it raises {type(error).__name__}: {error}. Return None where nothing is to measure."
            )
        plain = value is None or isinstance(value, float | int | np.floating | np.integer)
        expect(plain and not isinstance(value, bool), f"on {name} it gives {value!r:.60}. Return a number, or None.")
    values = [metric.function(record(log)) for name, log in LOGS.items() if name != "an empty log"]
    expect(
        any(value is not None and value == value for value in values), "on none of the logs does it give any number."
    )


def metric_pure(metric: Metric) -> None:
    """It changes nothing of what it reads, and gives the same again."""
    for name, log in LOGS.items():
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
