"""Every measure of a run at once: the table of measures, and the plain values that `metrics.json` holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from holdfast.metrics import continual
from holdfast.metrics.classes import per_class, wamica, worst_class
from holdfast.metrics.cost import costs
from holdfast.metrics.log import Event, is_finished, read_log, start_event
from holdfast.metrics.matrix import accuracy_matrix, before, loss_matrix, sample_counts, value_matrix
from holdfast.metrics.repetition import class_group_accuracy


@dataclass(frozen=True)
class Record:
    """What the measures read: the events, and the matrices made of them once.

    Attributes:
        events: those that count.
        split: the data evaluated on.
        accuracy: `[T, T]`, class-incremental.
        aware: `[T, T]`, task-aware.
        loss: `[T, T]`.
        before: `[T]` accuracy before any training.
        before_aware: `[T]`, the same, task-aware.
        samples: `[T]` evaluated samples of each experience.
        seen: how many experiences the final measures average over.
        joint: whether it was trained on everything at once, so that nothing was learned one after the other.
        costs: of `metrics.cost`.
    """

    events: list[Event]
    split: str
    accuracy: np.ndarray
    aware: np.ndarray
    loss: np.ndarray
    before: np.ndarray
    before_aware: np.ndarray
    samples: np.ndarray
    seen: int
    joint: bool
    costs: dict[str, float | None]


class Metric(NamedTuple):
    """One measure: how it is computed from a record, whether more is better, and what it says in one line."""

    function: Callable[[Record], float | None]
    direction: Literal["up", "down"]
    description: str


def record(events: Iterable[Event], split: str | None = None) -> Record:
    """Read a log once for all measures.

    A finished run with a single evaluated row was trained on everything at once (joint training): its row stands for
    the last one, and it is measured on every experience.

    Args:
        events: the log.
        split: `"test"` or `"validation"`; None takes test data where any was evaluated, else validation data.

    Returns:
        The record.
    """
    log = read_log(events)
    if split is None:
        splits = {event.get("split", "test") for event in log if event["event"] == "evaluate"}
        split = "test" if "test" in splits or not splits else "validation"
    loss = loss_matrix(log, split)
    accuracy, aware = accuracy_matrix(log, split=split), accuracy_matrix(log, aware=True, split=split)
    seen = max(map(continual.last_row, (accuracy, aware, loss))) + 1
    rows = np.isfinite([accuracy, aware, loss]).any(axis=(0, 2))
    joint = is_finished(log) and len(loss) > 1 and int(rows.sum()) == 1
    if joint:
        accuracy, aware, loss = (_as_last(matrix, seen - 1) for matrix in (accuracy, aware, loss))
    if is_finished(log):
        seen = len(loss)
    return Record(
        events=log,
        split=split,
        accuracy=accuracy,
        aware=aware,
        loss=loss,
        before=before(log, split=split),
        before_aware=before(log, aware=True, split=split),
        samples=sample_counts(log, split),
        seen=seen,
        joint=joint,
        costs=costs(log),
    )


def compute(events: Iterable[Event], split: str | None = None) -> dict[str, Any]:
    """Everything `metrics.json` holds, as plain JSON values (null where there is nothing to measure).

    Keys: every name in `METRICS` (the class-incremental measures, the same task-aware under `task_aware_<name>`,
    losses and costs); and `split`, `finished`, `learned` (experiences evaluated so far), `experiences`, `seed`,
    `method`, `stream`, `paradigm`, `headline` (`""` or `"task_aware_"`: the family of names that counts for this
    paradigm), `accuracy_matrix`, `task_aware_accuracy_matrix`, `loss_matrix`, `accuracy_before`,
    `task_aware_accuracy_before`, `samples` and `classes` (of `per_class`).

    Args:
        events: the log.
        split: `"test"` or `"validation"`; None takes test data where any was evaluated, else validation data.

    Returns:
        A dictionary for `json.dump`.

    Example:
        >>> found = compute([{"event": "evaluate", "after": 0, "experience": 0, "split": "test",
        ...                   "samples": 4, "correct": 3, "loss": 0.5}])
        >>> found["average_accuracy"], found["forgetting_max"], found["finished"]
        (0.75, None, False)
    """
    data = record(events, split)
    start = start_event(data.events)
    stream = start.get("stream") or {}
    learned = max(map(continual.last_row, (data.accuracy, data.aware, data.loss))) + 1
    found: dict[str, Any] = {name: metric.function(data) for name, metric in METRICS.items()}
    found |= {
        "split": data.split,
        "finished": is_finished(data.events),
        "learned": learned,
        "experiences": len(data.loss),
        "seed": start.get("seed"),
        "method": start.get("method"),
        "stream": stream.get("name"),
        "paradigm": stream.get("paradigm"),
        "headline": "task_aware_" if stream.get("paradigm") == "task" else "",
        "accuracy_matrix": data.accuracy,
        "task_aware_accuracy_matrix": data.aware,
        "loss_matrix": data.loss,
        "accuracy_before": data.before,
        "task_aware_accuracy_before": data.before_aware,
        "samples": data.samples,
        "classes": per_class(data.events, None, data.split, data.seen),
    }
    return {key: plain(value) for key, value in found.items()}


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays become lists, numpy numbers Python's, NaN and infinities None."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_last(matrix: np.ndarray, row: int) -> np.ndarray:
    moved = np.full_like(matrix, np.nan)
    moved[-1] = matrix[row]
    return moved


def _final_loss(data: Record) -> float:
    return continual.average_accuracy(data.loss, data.seen)


def _final(key: str) -> Callable[[Record], float | None]:
    """The mean over experiences, at the end, of a number that evaluations hold."""

    def final(data: Record) -> float:
        values = value_matrix(data.events, key, data.split)
        if data.joint:
            values = _as_last(values, max(0, continual.last_row(values)))
        return continual.average_accuracy(values, data.seen)

    return final


def _of_classes(which: Literal["seen", "missing"]) -> Callable[[Record], float]:
    """The recall of a group of classes at the end; NaN where the log does not say which classes came when."""

    def final(data: Record) -> float:
        if not (start_event(data.events).get("stream") or {}).get("experience_classes") or data.joint:
            return continual.NAN
        values = class_group_accuracy(data.events, which, data.split)
        row = max(0, continual.last_row(data.accuracy))
        return float(values[row]) if row < len(values) else continual.NAN

    return final


def _cost(name: str) -> Callable[[Record], float | None]:
    return lambda data: data.costs[name]


def _family(aware: bool) -> dict[str, Metric]:
    """The measures of one accuracy matrix, under their names for this way to evaluate."""
    prefix = "task_aware_" if aware else ""
    note = "; answers among the classes of the experience only" if aware else ""

    def table(data: Record) -> np.ndarray:
        return data.aware if aware else data.accuracy

    def start(data: Record) -> np.ndarray:
        return data.before_aware if aware else data.before

    def entry(
        name: str, function: Callable[[Record], float], direction: Literal["up", "down"], description: str
    ) -> tuple[str, Metric]:
        return prefix + name, Metric(function, direction, description + note)

    return dict(
        [
            entry(
                "average_accuracy",
                lambda data: continual.average_accuracy(table(data), data.seen),
                "up",
                "accuracy at the end, mean over experiences",
            ),
            entry(
                "sample_accuracy",
                lambda data: continual.sample_accuracy(table(data), data.samples, data.seen),
                "up",
                "accuracy at the end over all samples",
            ),
            entry(
                "average_incremental_accuracy",
                lambda data: continual.average_incremental_accuracy(table(data)),
                "up",
                "accuracy on what was learned so far, mean over experiences and over time",
            ),
            entry(
                "sample_incremental_accuracy",
                lambda data: continual.sample_incremental_accuracy(table(data), data.samples),
                "up",
                "accuracy over all samples of what was learned so far, mean over time",
            ),
            entry(
                "plasticity",
                lambda data: continual.NAN if data.joint else continual.plasticity(table(data)),
                "up",
                "accuracy on each experience right after learning it, mean",
            ),
            entry(
                "forgetting_first",
                lambda data: continual.forgetting_first(table(data)),
                "down",
                "accuracy lost between learning an experience and the end, mean over all but the last",
            ),
            entry(
                "forgetting_max",
                lambda data: continual.forgetting_max(table(data)),
                "down",
                "accuracy lost between an experience's best moment and the end, mean over all but the last",
            ),
            entry(
                "backward_transfer",
                lambda data: continual.backward_transfer(table(data)),
                "up",
                "what later learning did to earlier experiences",
            ),
            entry(
                "forward_transfer",
                lambda data: continual.forward_transfer(table(data), start(data)),
                "up",
                "what earlier learning did for experiences yet to come, against the untrained model",
            ),
            entry(
                "waacc",
                lambda data: continual.waacc(table(data)),
                "up",
                "accuracy so far, mean over time, less its swing (CLMixer)",
            ),
        ]
    )


METRICS: dict[str, Metric] = {
    **_family(aware=False),
    "worst_class": Metric(
        lambda data: worst_class(data.events, None, data.split, data.seen),
        "up",
        "recall of the worst class at the end",
    ),
    "wamica": Metric(
        lambda data: wamica(data.events, data.split),
        "up",
        "worst recall so far, mean over time, less its swing (CLMixer)",
    ),
    "seen_class_accuracy": Metric(_of_classes("seen"), "up", "recall at the end, mean over all classes seen"),
    "missing_class_accuracy": Metric(
        _of_classes("missing"), "up", "recall at the end, mean over classes seen that the last experience had not"
    ),
    **_family(aware=True),
    "average_loss": Metric(_final_loss, "down", "loss at the end, mean over experiences"),
    "loss_increase": Metric(
        lambda data: continual.backward_transfer(data.loss),
        "down",
        "loss gained between learning an experience and the end, mean over all but the last",
    ),
    "average_absolute_error": Metric(
        _final("absolute_error"), "down", "mean distance to targets that are numbers at the end, mean over experiences"
    ),
    "average_explained_variance": Metric(
        _final("explained_variance"), "up", "explained variance (R2) of such targets at the end, mean over experiences"
    ),
    "average_labels_right": Metric(
        _final("labels_right"), "up", "share of right yes or no answers at the end where a row has several labels"
    ),
    "steps": Metric(_cost("steps"), "down", "optimisation steps"),
    "train_seconds": Metric(_cost("train_seconds"), "down", "seconds of training"),
    "evaluation_seconds": Metric(_cost("evaluation_seconds"), "down", "seconds of evaluation"),
    "total_seconds": Metric(_cost("total_seconds"), "down", "seconds of the whole run"),
    "steps_per_second": Metric(_cost("steps_per_second"), "up", "optimisation steps per second of training"),
    "parameters_start": Metric(_cost("parameters_start"), "down", "parameters of the model at the start"),
    "parameters": Metric(_cost("parameters"), "down", "parameters of the model at the end"),
    "memory_items": Metric(_cost("memory_items"), "down", "samples remembered at the end"),
    "memory_bytes": Metric(_cost("memory_bytes"), "down", "bytes remembered at the end"),
    "memory_bytes_peak": Metric(_cost("memory_bytes_peak"), "down", "most bytes remembered after any experience"),
}
"""Every measure by name: a function of a `Record`, its good direction, and one line that says what it is."""
