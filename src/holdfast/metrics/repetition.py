"""Accuracy by whether a class was seen, and whether it is missing from the present experience."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np

from holdfast.core.errors import DataError
from holdfast.metrics.continual import mean
from holdfast.metrics.log import Event, Log, read_log
from holdfast.metrics.table import metric

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
    return float(class_group_accuracy(log, which, split)[max(learned)])


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
