"""Measures of what happens to old knowledge while an experience is learned, from the `during` events of a log."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.metrics.log import Event, Log, read_log
from holdfast.metrics.matrix import accuracy_matrix, last_row
from holdfast.metrics.table import metric


def inside(events: Iterable[Event], experience: int, key: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The moments inside an experience, and the accuracy on each older one at each of them.

    Args:
        events: the log.
        experience: its index.
        key: "" for answers among all classes, "task" among those of the sample's own experience; None of both chooses
            by the paradigm.

    Returns:
        Steps `[moments]`, and `[moments, experience]` accuracies 0..1, NaN where nothing was measured.

    Example:
        >>> log = [{"event": "during", "experience": 1, "step": 0, "old": [0], "samples": [4], "correct": [3]}]
        >>> inside(log, 1)
        (array([0.]), array([[0.75]]))
    """
    moments = [event for event in _log(events).of("during") if event["experience"] == experience]
    name = f"correct_{key}" if key else "correct"
    table = np.full((len(moments), experience), np.nan)
    for row, event in enumerate(moments):
        for old, right, samples in zip(event["old"], event[name], event["samples"]):
            table[row, old] = right / samples
    return np.array([event["step"] for event in moments], dtype=np.float64), table


def _log(events: Iterable[Event]) -> Log:
    return read_log(events)


def _key(log: Log) -> str:
    return "task" if log.stream.get("paradigm") == "task" else ""


def _tables(events: Iterable[Event]) -> list[np.ndarray]:
    log = _log(events)
    tables = [inside(log, index, _key(log))[1] for index in range(1, log.experiences)]
    return [table for table in tables if table.size]


@metric("up", "lowest accuracy on an old experience while later ones were learned, mean over old experiences")
def minimum_accuracy(events: Iterable[Event]) -> float:
    """The mean over old experiences of the lowest accuracy at any moment after they were learned.

    "Continual evaluation for lifelong learning: Identifying the stability gap" (De Lange, van de Ven and Tuytelaars,
    ICLR 2023), equation 3, on the moments and the samples that were measured.

    Args:
        events: the log.

    Returns:
        0..1, NaN where nothing was measured inside an experience.
    """
    lowest: dict[int, float] = {}
    for table in _tables(events):
        for old in range(table.shape[1]):
            values = table[:, old][np.isfinite(table[:, old])]
            if values.size:
                lowest[old] = min(lowest.get(old, 1.0), float(values.min()))
    return float(np.mean(list(lowest.values()))) if lowest else float("nan")


@metric("down", "accuracy on old experiences that is lost for a while when a new one begins, mean over experiences")
def stability_gap(events: Iterable[Event]) -> float:
    """The mean fall of accuracy on old experiences from before a new one to the lowest moment inside it.

    De Lange, van de Ven and Tuytelaars (ICLR 2023) show this fall and name it; the number is ours: for each experience
    and each older one, accuracy before the first step minus the lowest accuracy until the last.

    Args:
        events: the log.

    Returns:
        0..1, NaN where nothing was measured inside an experience.
    """
    falls = [table[0] - np.nanmin(table, axis=0) for table in _tables(events) if np.isfinite(table[0]).all()]
    return float(np.mean(np.concatenate(falls))) if falls else float("nan")


@metric("up", "accuracy on the newest experience at the end, and the lowest on old ones, weighted by their numbers")
def worst_case_accuracy(events: Iterable[Event], split: str = "test") -> float:
    """What is left at least: `1/k` of the accuracy on the newest experience, `(k-1)/k` of the minimum accuracy.

    De Lange, van de Ven and Tuytelaars (ICLR 2023), equation 5, at the end of the stream.

    Args:
        events: the log.
        split: of the evaluation of the newest experience.

    Returns:
        0..1, NaN where nothing was measured inside an experience.
    """
    log = _log(events)
    lowest = minimum_accuracy(log)
    matrix = accuracy_matrix(log, aware=bool(_key(log)), split=split)
    last = last_row(matrix)
    if not np.isfinite(lowest) or last < 1:
        return float("nan")
    return float(matrix[last, last] / (last + 1) + lowest * last / (last + 1))


@metric("up", "accuracy on old experiences, mean over the moments while later ones were learned")
def accuracy_inside(events: Iterable[Event]) -> float:
    """The mean over all moments inside experiences of the mean accuracy on the older ones.

    Caccia et al. 2020, "Online fast adaptation and knowledge accumulation": average anytime accuracy, here of the old
    experiences, each moment counting alike.

    Args:
        events: the log.

    Returns:
        0..1, NaN where nothing was measured inside an experience.
    """
    means = [np.nanmean(table, axis=1) for table in _tables(events)]
    return float(np.mean(np.concatenate(means))) if means else float("nan")
