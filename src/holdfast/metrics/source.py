"""The measures of a training on a source: rows held out of it, what was seen and lost, waiting, and found drifts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from holdfast.metrics.log import Event, Log, read_log
from holdfast.metrics.table import metric


def _shares(log: Log, part: str | None = None) -> np.ndarray:
    """`[looks]` share of the rows held out that were answered right, NaN if there are no classes."""
    shares = []
    for event in log.of("held_out"):
        counts: Any = event if part is None else event.get(part) or {}
        right, rows = counts.get("correct"), counts.get("rows")
        shares.append(right / rows if right is not None and rows else np.nan)
    return np.array(shares, dtype=np.float64)


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else float("nan")


@metric("up", "of a source: share of the rows held out of all that arrived that is answered right at the end")
def held_out_accuracy(events: Iterable[Event]) -> float:
    """Accuracy at the end on rows of the whole stream that were never trained on.

    Args:
        events: the log.

    Returns:
        0..1, or NaN without rows held out.

    Example:
        >>> held_out_accuracy([{"event": "held_out", "rows": 10, "correct": 4, "loss": 1.0}])
        0.4
    """
    return _last(_shares(read_log(events)))


@metric("up", "of a source: the same on the older half of what arrived, which the stream has moved on from")
def old_accuracy(events: Iterable[Event]) -> float:
    """Accuracy at the end on rows held out of the older half of the stream.

    Args:
        events: the log.

    Returns:
        0..1, or NaN without rows held out.
    """
    return _last(_shares(read_log(events), "old"))


@metric("down", "of a source: mean loss on rows held out of the older half of what arrived, at the end")
def old_loss(events: Iterable[Event]) -> float:
    """Loss at the end on rows held out of the older half of the stream.

    Args:
        events: the log.

    Returns:
        A mean loss, or NaN without rows held out.
    """
    looks = read_log(events).of("held_out")
    values = [(event.get("old") or {}).get("loss") for event in looks]
    return _last(np.array([np.nan if value is None else value for value in values], dtype=np.float64))


@metric("up", "of a source: accuracy on rows held out of what had arrived, mean over all looks")
def anytime_held_out_accuracy(events: Iterable[Event]) -> float:
    """How well what had arrived was known at any time: the mean over looks of the accuracy on rows held out.

    Caccia et al. 2020, "Online fast adaptation and knowledge accumulation", average anytime accuracy.

    Args:
        events: the log.

    Returns:
        0..1, or NaN without rows held out.
    """
    shares = _shares(read_log(events))
    return float(np.nanmean(shares)) if np.isfinite(shares).any() else float("nan")


def _counts(log: Log) -> Event:
    return (log.of("source") or [{}])[-1]


@metric("up", "of a source: share of the rows that arrived that were trained on at least once")
def share_seen(events: Iterable[Event]) -> float:
    """Rows trained on as a share of those that arrived, without those that wait in a queue.

    Args:
        events: the log.

    Returns:
        0..1, or NaN where no source was learned.

    Example:
        >>> share_seen([{"event": "source", "samples": 80, "arrived": 110, "dropped": 20, "waiting": 10}])
        0.8
    """
    counts = _counts(read_log(events))
    if "samples" not in counts:
        return float("nan")
    arrived = counts.get("arrived", counts["samples"]) - counts.get("waiting", 0)
    return min(1.0, counts["samples"] / arrived) if arrived > 0 else float("nan")


@metric("down", "of a source: rows that were dropped because training was slower")
def rows_dropped(events: Iterable[Event]) -> float:
    """Rows that a queue dropped while it was full, and those that left a window without having been drawn.

    Args:
        events: the log.

    Returns:
        A number, or NaN where nothing is counted.
    """
    counts = _counts(read_log(events))
    lost = [counts[key] for key in ("dropped", "passed_over") if key in counts]
    return float(sum(lost)) if lost else float("nan")


@metric("down", "of a source: share of the time that was spent on waiting for data")
def share_idle(events: Iterable[Event]) -> float:
    """Seconds of waiting for the source's batches as a share of the whole training.

    Args:
        events: the log.

    Returns:
        0..1, or NaN where no source was learned.
    """
    counts = _counts(read_log(events))
    seconds = counts.get("seconds")
    return counts["idle_seconds"] / seconds if seconds else float("nan")


class Detections(NamedTuple):
    """Which of the known changes were found.

    Attributes:
        delays: rows from each change that was found to the first alarm after it.
        missed: changes without an alarm before the next change.
        false: alarms that are not the first after a change.
    """

    delays: list[int]
    missed: int
    false: int


def detections(events: Iterable[Event]) -> Detections | None:
    """Compare the boundaries that a detector found with the changes that the source knows of; None where it knows none.

    Args:
        events: the log.

    Example:
        >>> detections([{"event": "start", "source": {"drifts": [100, 200, 300]}},
        ...             {"event": "boundary", "samples": 90}, {"event": "boundary", "samples": 130},
        ...             {"event": "boundary", "samples": 150}, {"event": "boundary", "samples": 310}])
        Detections(delays=[30, 10], missed=1, false=2)
    """
    log = read_log(events)
    about = log.start.get("source") or {}
    drifts, alarms = list(about.get("drifts") or []), [int(event["samples"]) for event in log.of("boundary")]
    if not drifts or about.get("boundary", "") is None or about.get("boundary") == "every":
        return None
    trained = max((int(event.get("samples") or 0) for event in log.of("train")), default=drifts[-1] + 1)
    drifts = [drift for drift in drifts if drift < trained or not log.of("train")]
    delays, missed, true = [], 0, 0
    for number, drift in enumerate(drifts):
        end = drifts[number + 1] if number + 1 < len(drifts) else float("inf")
        first = next((alarm for alarm in alarms if drift < alarm <= end), None)
        if first is None:
            missed += 1
        else:
            true += 1
            delays.append(first - drift)
    return Detections(delays, missed, len(alarms) - true)


@metric("down", "of a source with known changes: rows from a change to its detection, mean")
def detection_delay(events: Iterable[Event]) -> float:
    """Mean number of rows between a known change and the first boundary after it, over the changes that were found.

    Args:
        events: the log.

    Returns:
        Rows, or NaN where none was found or none is known.
    """
    detected = detections(events)
    return float(np.mean(detected.delays)) if detected is not None and detected.delays else float("nan")


@metric("down", "of a source with known changes: changes without a boundary before the next one")
def missed_drifts(events: Iterable[Event]) -> float:
    """Known changes that no boundary followed before the next change.

    Args:
        events: the log.

    Returns:
        A number, or NaN where no change is known.
    """
    detected = detections(events)
    return float("nan") if detected is None else float(detected.missed)


@metric("down", "of a source with known changes: boundaries that are not the first after a change")
def false_alarms(events: Iterable[Event]) -> float:
    """Boundaries that are not the first after a known change.

    Args:
        events: the log.

    Returns:
        A number, or NaN where no change is known.
    """
    detected = detections(events)
    return float("nan") if detected is None else float(detected.false)
