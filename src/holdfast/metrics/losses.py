"""The measures of runs without classes: losses, errors of numbers, answers to several labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from holdfast.metrics.continual import average_accuracy, backward_transfer
from holdfast.metrics.table import metric


@metric("down", "loss at the end, mean over experiences")
def average_loss(losses: np.ndarray, seen: int | None = None) -> float:
    """Mean over experiences of the loss at the end: `1/T sum_j L[l, j]`.

    Args:
        losses: `[T, T]`, NaN where not evaluated.
        seen: how many experiences count; None counts those learned so far (l + 1).

    Returns:
        At least 0 for the usual losses, or NaN.

    Example:
        >>> average_loss(np.array([[0.5, np.nan], [1.0, 0.5]]))
        0.75
    """
    return average_accuracy(losses, seen)


@metric("down", "loss gained between learning an experience and the end, mean over all but the last")
def loss_increase(losses: np.ndarray) -> float:
    """How far the loss rose since each experience was learned: `1/(T-1) sum_{j<l} (L[l, j] - L[j, j])`.

    Args:
        losses: `[T, T]`, NaN where not evaluated.

    Returns:
        Below 0 where it fell, NaN where only one experience was learned.

    Example:
        >>> loss_increase(np.array([[0.5, 2.0], [1.0, 0.5]]))
        0.5
    """
    return backward_transfer(losses)


@metric("down", "mean distance to targets that are numbers at the end, mean over experiences")
def average_absolute_error(values: Callable[[str], np.ndarray], seen: int | None = None) -> float:
    """Mean over experiences of the mean absolute error at the end, for targets that are numbers.

    Args:
        values: gives the `[T, T]` matrix of a number in evaluations by its key.
        seen: how many experiences count; None counts those learned so far.
    """
    return average_accuracy(values("absolute_error"), seen)


@metric("up", "explained variance (R2) of such targets at the end, mean over experiences")
def average_explained_variance(values: Callable[[str], np.ndarray], seen: int | None = None) -> float:
    """Mean over experiences of the explained variance (R2) at the end, for targets that are numbers.

    Args:
        values: gives the `[T, T]` matrix of a number in evaluations by its key.
        seen: how many experiences count; None counts those learned so far.
    """
    return average_accuracy(values("explained_variance"), seen)


@metric("up", "share of right yes or no answers at the end where a row has several labels")
def average_labels_right(values: Callable[[str], np.ndarray], seen: int | None = None) -> float:
    """Mean over experiences of the share of right yes or no answers at the end, where a row has several labels.

    Args:
        values: gives the `[T, T]` matrix of a number in evaluations by its key.
        seen: how many experiences count; None counts those learned so far.
    """
    return average_accuracy(values("labels_right"), seen)
