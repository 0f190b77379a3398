"""The measures of a stream whose classes come back, and of one pass over a stream that may never end."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

import numpy as np

from holdfast.core.errors import DataError
from holdfast.metrics.continual import mean
from holdfast.metrics.log import Event, Log, read_log
from holdfast.metrics.table import metric

WINDOW = 1000
"""Samples over which accuracy is called recent."""


class Passed(NamedTuple):
    """The windows of a log in order: `samples` in each and their `accuracy`, both `[windows]`."""

    samples: np.ndarray
    accuracy: np.ndarray


def passed(events: Iterable[Event]) -> Passed:
    """The windows of a single pass; empty where data was seen more than once, or no window tells its accuracy.

    Args:
        events: the log.

    Example:
        >>> passed([{"event": "train", "samples": 10, "accuracy": 0.5},
        ...         {"event": "train", "samples": 30, "accuracy": 1.0}])
        Passed(samples=array([10., 20.]), accuracy=array([0.5, 1. ]))
    """
    log = read_log(events)
    total, accuracy = log.values("train", "samples"), log.values("train", "accuracy")
    if np.nanmax(log.values("train", "epoch"), initial=0.0) > 0:
        return Passed(np.zeros(0), np.zeros(0))
    before = np.concatenate([[0.0], total[:-1]])
    samples = total - before
    if not log.start.get("source"):  # where samples are counted anew in each experience
        samples = np.where(total > before, samples, total)
    counted = np.isfinite(samples) & np.isfinite(accuracy) & (samples > 0)
    return Passed(samples[counted], accuracy[counted])


def accuracy_so_far(events: Iterable[Event]) -> np.ndarray:
    """After each window, the share of all samples so far that were predicted right before they were trained on.

    Gama, Sebastiao and Rodrigues 2013, "On evaluating stream learning algorithms", the prequential accuracy.

    Args:
        events: the log.

    Returns:
        `[windows]`, 0..1.
    """
    samples, accuracy = passed(events)
    return np.cumsum(samples * accuracy) / np.cumsum(samples)


@metric("up", "share of all samples that were predicted right before they were trained on, in one pass")
def prequential_accuracy(events: Iterable[Event]) -> float:
    """The prequential accuracy at the end: `sum_t n_t a_t / sum_t n_t`, predicted before trained on.

    Gama, Sebastiao and Rodrigues 2013, "On evaluating stream learning algorithms"; Cai, Sener and Koltun 2021, "Online
    continual learning with natural distribution shifts", there the average online accuracy.

    Args:
        events: the log.

    Returns:
        0..1, or NaN for a run of several epochs.

    Example:
        >>> prequential_accuracy([{"event": "train", "samples": 10, "accuracy": 0.5},
        ...                       {"event": "train", "samples": 20, "accuracy": 1.0}])
        0.75
    """
    values = accuracy_so_far(events)
    return float(values[-1]) if values.size else float("nan")


@metric("up", "the same over about the last 1,000 samples")
def windowed_accuracy(events: Iterable[Event], window: int = WINDOW) -> float:
    """The prequential accuracy over the last samples: over the fewest of the log's windows that hold `window` samples.

    Args:
        events: the log.
        window: samples.

    Returns:
        0..1, or NaN for a run of several epochs.

    Example:
        >>> windowed_accuracy([{"event": "train", "samples": 10, "accuracy": 0.0},
        ...                    {"event": "train", "samples": 20, "accuracy": 1.0}], window=5)
        1.0
    """
    samples, accuracy = passed(events)
    if not samples.size:
        return float("nan")
    later = np.cumsum(samples[::-1])[::-1] - samples  # samples after each window
    recent = later < window
    return float(samples[recent] @ accuracy[recent] / samples[recent].sum())


@metric("up", "the same so far, mean over all moments of the pass")
def anytime_accuracy(events: Iterable[Event]) -> float:
    """How good the model was at any time: the mean over the pass of the prequential accuracy so far.

    Each window counts by its samples. Caccia et al. 2020, "Online fast adaptation and knowledge accumulation", measure
    the same idea on held-out data (average anytime accuracy).

    Args:
        events: the log.

    Returns:
        0..1, or NaN for a run of several epochs.

    Example:
        >>> anytime_accuracy([{"event": "train", "samples": 10, "accuracy": 0.5},
        ...                   {"event": "train", "samples": 20, "accuracy": 1.0}])
        0.625
    """
    samples, _ = passed(events)
    return float(accuracy_so_far(events) @ samples / samples.sum()) if samples.size else float("nan")


Which = Literal["seen", "missing", "present"]


def class_group_accuracy(events: Iterable[Event], which: Which, split: str = "test") -> np.ndarray:
    """After each experience, the mean recall of the classes of one group.

    "seen" are the classes that had training data up to and with the experience, "present" those that have some in it,
    and "missing" the seen ones that have none: what they lose shows how much a stream with repetition forgets between
    two appearances. All data evaluated after the experience count, whichever experience they belong to. "Class-
    incremental learning with repetition" (Hemati et al., CoLLAs 2023), section 4.

    Args:
        events: the log, with the classes of each experience in its `start` event.
        which: "seen", "missing" or "present".
        split: `"test"` or `"validation"`.

    Returns:
        `[experiences]`, 0..1; NaN where nothing was evaluated or the group is empty.

    Raises:
        DataError: if the log does not say which classes each experience has.

    Example:
        >>> counts = {"class_samples": {"0": 4, "1": 4}, "class_correct": {"0": 1, "1": 4}}
        >>> log = [{"event": "start", "stream": {"experience_classes": [[0], [1]]}},
        ...        {"event": "evaluate", "after": 0, "experience": 0, "split": "test", **counts},
        ...        {"event": "evaluate", "after": 1, "experience": 0, "split": "test", **counts}]
        >>> class_group_accuracy(log, "seen").tolist(), class_group_accuracy(log, "missing").tolist()
        ([0.25, 0.625], [nan, 0.25])
    """
    log = read_log(events)
    classes = log.stream.get("experience_classes")
    if classes is None:
        raise DataError("the log does not say which classes each experience has. Give the log of a run folder.")
    recalls = _recalls(log, split)
    seen: set[int] = set()
    values = []
    for after, present in enumerate(classes):
        seen |= set(present)
        group: Collection[int] = {"seen": seen, "missing": seen - set(present), "present": present}[which]
        values.append(mean([recall for label, recall in recalls.get(after, {}).items() if label in group]))
    return np.array(values)


@metric("up", "recall at the end, mean over all classes seen", joint=False)
def seen_class_accuracy(events: Iterable[Event], split: str = "test") -> float:
    """The last value of `class_group_accuracy` over the classes seen.

    Args:
        events: the log.
        split: `"test"` or `"validation"`.

    Returns:
        0..1, or NaN where the log does not say which classes came when.
    """
    return _at_the_end(events, "seen", split)


@metric("up", "recall at the end, mean over classes seen that the last experience had not", joint=False)
def missing_class_accuracy(events: Iterable[Event], split: str = "test") -> float:
    """The last value of `class_group_accuracy` over the classes missing from the last experience.

    Args:
        events: the log.
        split: `"test"` or `"validation"`.

    Returns:
        0..1, or NaN where the log does not say which classes came when, or none is missing.
    """
    return _at_the_end(events, "missing", split)


def _at_the_end(events: Iterable[Event], which: Which, split: str) -> float:
    log = read_log(events)
    learned = [int(event["after"]) for event in log.of("evaluate", split) if event["after"] >= 0]
    if not log.stream.get("experience_classes") or not learned:
        return float("nan")
    values, last = class_group_accuracy(log, which, split), max(learned)
    return float(values[last]) if last < len(values) else float("nan")


def _recalls(log: Log, split: str) -> dict[int, dict[int, float]]:
    """Right answers / samples of each class, over all data evaluated after each experience."""
    latest = {(event["after"], event["experience"]): event for event in log.of("evaluate", split)}
    counts: dict[int, dict[int, list[int]]] = {}
    for (after, _), event in latest.items():
        right = event.get("class_correct") or {}
        for label, samples in (event.get("class_samples") or {}).items():
            total = counts.setdefault(after, {}).setdefault(int(label), [0, 0])
            total[0] += right.get(label, 0)
            total[1] += samples
    return {
        after: {label: hits / samples for label, (hits, samples) in of_class.items() if samples}
        for after, of_class in counts.items()
    }
