"""The measures of one pass over a stream that may never end: each sample is predicted before it is trained on.

They read the `train` events, whose accuracy is that of the forward a batch is trained with: over the log's windows,
each weighted by its samples. A run of several epochs has none of them, since a sample seen before is no test.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from holdfast.metrics.log import Event, read_log
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
    samples = np.where(total > before, total - before, total)  # samples are counted anew in each experience
    known = np.isfinite(samples) & np.isfinite(accuracy) & (samples > 0)
    return Passed(samples[known], accuracy[known])


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
