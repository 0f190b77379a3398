"""How well each class is recognised: recall per class from the counts in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from holdfast.metrics.continual import stability_weighted
from holdfast.metrics.log import Event, read_log, start_event


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
    events = read_log(events)
    latest: dict[tuple[int, int], Event] = {}
    for event in events:
        if event["event"] == "evaluate" and event.get("split", "test") == split:
            latest[event["after"], event["experience"]] = event
    if after is None:
        after = max((row for row, _ in latest), default=-1)
    seen = after + 1 if seen is None else seen
    samples: Counter[int] = Counter()
    correct: Counter[int] = Counter()
    for (row, experience), event in latest.items():
        if row == after and experience < seen:
            samples.update({int(key): count for key, count in (event.get("class_samples") or {}).items()})
            correct.update({int(key): count for key, count in (event.get("class_correct") or {}).items()})
    names = (start_event(events).get("stream") or {}).get("class_names") or []
    return [
        {
            "class": index,
            "name": str(names[index]) if index < len(names) else str(index),
            "samples": samples[index],
            "correct": correct[index],
            "recall": correct[index] / samples[index],
        }
        for index in sorted(samples)
        if samples[index] > 0
    ]


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


def worst_class_so_far(events: Iterable[Event], split: str = "test") -> np.ndarray:
    """After each evaluated experience, the recall of the worst class learned by then (shape `[moments]`).

    Args:
        events: the log.
        split: `"test"` or `"validation"`.
    """
    events = read_log(events)
    rows = {event["after"] for event in events if event["event"] == "evaluate" and event.get("split", "test") == split}
    return np.array([worst_class(events, row, split) for row in sorted(rows) if row >= 0])


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
