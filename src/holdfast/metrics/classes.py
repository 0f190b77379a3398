"""How well each class is recognised, and what it is taken for: recall and confusions from the counts in the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from holdfast.metrics.continual import accuracy_so_far, stability_weighted
from holdfast.metrics.log import Event, Log, read_log
from holdfast.metrics.table import metric


def per_class(
    events: Iterable[Event], after: int | None = None, split: str = "test", seen: int | None = None
) -> list[dict[str, Any]]:
    """Recall of every class among the experiences learned so far: right answers / samples of that class.

    Args:
        events: the log.
        after: the experience learned last; None takes the last one evaluated.
        split: `"test"` or `"validation"`.
        seen: how many experiences to evaluate on; None counts those learned so far (`after + 1`).

    Returns:
        One `{"class": c, "name": name, "samples": n, "correct": k, "recall": k / n}` per class with samples, by index;
        empty where the log has no counts per class.

    Example:
        >>> per_class([{"event": "evaluate", "after": 0, "experience": 0, "split": "test", "samples": 4,
        ...             "class_samples": {"0": 4}, "class_correct": {"0": 3}}])
        [{'class': 0, 'name': '0', 'samples': 4, 'correct': 3, 'recall': 0.75}]
    """
    log = read_log(events)
    row, latest = _evaluated(log, after, split)
    samples, correct = _counts(latest.get(row, {}), row + 1 if seen is None else seen)
    names = log.class_names
    return [
        {
            "class": index,
            "name": names[index] if index < len(names) else str(index),
            "samples": samples[index],
            "correct": correct.get(index, 0),
            "recall": correct.get(index, 0) / samples[index],
        }
        for index in sorted(samples)
        if samples[index] > 0
    ]


@metric("up", "recall of the worst class at the end")
def worst_class(
    events: Iterable[Event], after: int | None = None, split: str = "test", seen: int | None = None
) -> float:
    """The recall of the class that is recognised worst after the last experience: `min_c k_c / n_c`.

    CLMixer's MICA (minimum class accuracy), with recall where that library divides by the predictions.

    Args:
        events: the log.
        after: the experience learned last; None takes the last one evaluated.
        split: `"test"` or `"validation"`.
        seen: how many experiences to evaluate on; None counts those learned so far.

    Returns:
        0..1, or NaN where the log has no counts per class.

    Example:
        >>> worst_class([{"event": "evaluate", "after": 0, "experience": 0, "split": "test", "samples": 4,
        ...               "class_samples": {"0": 2, "1": 2}, "class_correct": {"0": 2, "1": 1}}])
        0.5
    """
    return min((row["recall"] for row in per_class(events, after, split, seen)), default=float("nan"))


def recall_over_time(events: Iterable[Event], split: str = "test") -> tuple[list[int], np.ndarray]:
    """Recall of each class after each experience, on the experiences learned by then: which class was forgotten when.

    Args:
        events: the log.
        split: `"test"` or `"validation"`.

    Returns:
        The classes in ascending order, and `[T, classes]` recalls (row i after experience i), NaN where a class had no
        samples.

    Example:
        >>> recall_over_time([{"event": "evaluate", "after": 0, "experience": 0, "class_samples": {"3": 4},
        ...                    "class_correct": {"3": 3}}])
        ([3], array([[0.75]]))
    """
    log = read_log(events)
    _, latest = _evaluated(log, None, split)
    counted = {row: _counts(evaluations, row + 1) for row, evaluations in latest.items() if row >= 0}
    classes = sorted({index for samples, _ in counted.values() for index, count in samples.items() if count})
    column_of = {index: column for column, index in enumerate(classes)}
    table = np.full((log.experiences, len(classes)), np.nan)
    for row, (samples, correct) in counted.items():
        for index, count in samples.items():
            if count:
                table[row, column_of[index]] = correct.get(index, 0) / count
    return classes, table


def worst_class_so_far(events: Iterable[Event], split: str = "test") -> np.ndarray:
    """After each evaluated experience, the recall of the worst class learned by then (shape `[moments]`).

    Args:
        events: the log.
        split: `"test"` or `"validation"`.
    """
    log = read_log(events)
    rows = np.unique(log.values("evaluate", "after", split).astype(np.int64))
    _, table = recall_over_time(log, split)
    worst = np.where(np.isfinite(table), table, np.inf).min(axis=1, initial=np.inf)
    return np.where(np.isfinite(worst), worst, np.nan)[rows[rows >= 0]]


@metric("up", "accuracy so far, mean over classes and over time, less its swing (CLMixer)", over_time=True)
def waacc(matrix: np.ndarray, events: Iterable[Event] = (), split: str = "test", aware: bool = False) -> float:
    """CLMixer's `waacc`: `stability_weighted` over the mean recall of the classes learned so far.

    A class counts once, however many experiences bring it and however many samples it has. Where the log has no counts
    per class, and for answers among the classes of the experience, which have none, it is the mean accuracy over the
    experiences learned so far; the two agree where every experience brings equally many classes of its own, with
    equally many samples. CLMixer divides by the predictions of a class where we divide by its samples.

    Args:
        matrix: `[T, T]` accuracies.
        events: the log.
        split: `"test"` or `"validation"`.
        aware: whether the matrix is of answers among the classes of the experience.

    Returns:
        0..1, or NaN.

    Example:
        >>> waacc(np.array([[1.0, 0.0], [0.0, 1.0]]))
        0.375
    """
    _, table = recall_over_time(events, split)
    if aware or not np.isfinite(table).any():
        return stability_weighted(accuracy_so_far(matrix))
    moments = table[np.isfinite(table).any(axis=1)]
    return stability_weighted(np.nanmean(moments, axis=1))


@metric("up", "worst recall so far, mean over time, less its swing (CLMixer)", over_time=True)
def wamica(events: Iterable[Event], split: str = "test") -> float:
    """CLMixer's `wamica`: `stability_weighted` over the worst class's recall after each experience.

    Args:
        events: the log.
        split: `"test"` or `"validation"`.

    Returns:
        0..1, or NaN.

    Example:
        >>> wamica([{"event": "evaluate", "after": 0, "experience": 0, "split": "test", "samples": 4,
        ...          "class_samples": {"0": 2, "1": 2}, "class_correct": {"0": 2, "1": 1}}])
        0.5
    """
    return stability_weighted(worst_class_so_far(events, split))


def confusion(
    events: Iterable[Event],
    after: int | None = None,
    split: str = "test",
    seen: int | None = None,
    experience: int | None = None,
) -> tuple[list[int], np.ndarray]:
    """How often each class was taken for each: `C[i, j]` samples of class i were answered with class j.

    Args:
        events: the log.
        after: the experience learned last; None takes the last one evaluated.
        split: `"test"` or `"validation"`.
        seen: how many experiences to count; None counts those learned so far (`after + 1`).
        experience: count this one only.

    Returns:
        The classes that were seen or answered, in ascending order (-1 stands for no answer), and `[classes, classes]`
        int64 counts; empty where the log has no predictions.

    Example:
        >>> confusion([{"event": "evaluate", "after": 0, "experience": 0, "confusion": {"0": {"0": 3, "1": 1}}}])
        ([0, 1], array([[3, 1],
               [0, 0]]))
    """
    row, latest = _evaluated(read_log(events), after, split)
    pairs: dict[tuple[int, int], int] = {}
    for index, event in latest.get(row, {}).items():
        if (index < (row + 1 if seen is None else seen)) if experience is None else index == experience:
            for target, answers in (event.get("confusion") or {}).items():
                for answer, count in answers.items():
                    pair = int(target), int(answer)
                    pairs[pair] = pairs.get(pair, 0) + count
    classes = sorted({index for pair in pairs for index in pair})
    column_of = {index: column for column, index in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for (target, answer), count in pairs.items():
        counts[column_of[target], column_of[answer]] = count
    return classes, counts


def _evaluated(log: Log, after: int | None, split: str) -> tuple[int, dict[int, dict[int, Event]]]:
    """The moment asked for (the last one by default), and of each moment the latest evaluation of each experience."""
    latest: dict[int, dict[int, Event]] = {}
    for event in log.of("evaluate", split):
        latest.setdefault(event["after"], {})[event["experience"]] = event
    return (max(latest, default=-1) if after is None else after), latest


def _counts(evaluations: dict[int, Event], seen: int) -> tuple[dict[int, int], dict[int, int]]:
    """Samples and right answers by class, over the experiences before `seen`."""
    samples: dict[int, int] = {}
    correct: dict[int, int] = {}
    for experience, event in evaluations.items():
        if experience < seen:
            for counts, key in ((samples, "class_samples"), (correct, "class_correct")):
                for index, count in (event.get(key) or {}).items():
                    counts[int(index)] = counts.get(int(index), 0) + count
    return samples, correct
