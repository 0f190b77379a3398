"""What every metric must offer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F

from holdfast.core.experience import Stream
from holdfast.methods import er
from holdfast.metrics import Metric, record
from holdfast.testing import toys
from holdfast.testing.checking import expect

START = {"event": "start", "seed": 0, "method": "er", "parameters": 100, "stream": {"paradigm": "class"}}
END = {"event": "end", "seconds": 3.0}


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
