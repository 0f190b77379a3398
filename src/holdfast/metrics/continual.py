"""The measures of continual learning, as pure functions of an accuracy matrix.

Everywhere `A[i, j]` is the accuracy on experience j after learning experience i (0..1), `l` is the last evaluated row,
and NaN marks what was not evaluated: it is left out of every mean, and a measure with nothing to measure is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.metrics.matrix import last_row
from holdfast.metrics.table import metric

NAN = float("nan")


def mean(values: Iterable[float] | np.ndarray) -> float:
    """The mean of what is not NaN; NaN, without a warning, where nothing is left.

    Example:
        >>> mean([0.5, float("nan"), 1.0])
        0.75
    """
    finite = _known(values)
    return float(finite.mean()) if finite.size else NAN


@metric("up", "accuracy at the end, mean over experiences")
def average_accuracy(matrix: np.ndarray, seen: int | None = None) -> float:
    """Mean over experiences of the accuracy at the end: `1/T sum_j A[l, j]`.

    Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", Eq. 2 (ACC). Every experience counts alike, however many
    samples it has; `sample_accuracy` weights them.

    Args:
        matrix: `[T, T]` accuracies.
        seen: how many experiences count; None counts those learned so far (l + 1).

    Returns:
        0..1, or NaN.

    Example:
        >>> average_accuracy(np.array([[1.0, 0.0], [0.5, 1.0]]))
        0.75
    """
    row = last_row(matrix)
    return mean(matrix[row, : row + 1 if seen is None else seen]) if row >= 0 else NAN


@metric("up", "accuracy at the end over all samples")
def sample_accuracy(matrix: np.ndarray, samples: np.ndarray, seen: int | None = None) -> float:
    """Share of right answers over all samples at the end: `sum_j n_j A[l, j] / sum_j n_j`.

    Args:
        matrix: `[T, T]` accuracies.
        samples: `[T]` number of samples `n_j` of each experience.
        seen: how many experiences count; None counts those learned so far (l + 1).

    Returns:
        0..1, or NaN.

    Example:
        >>> sample_accuracy(np.array([[1.0, 0.0], [0.5, 1.0]]), np.array([30, 10]))
        0.625
    """
    row = last_row(matrix)
    return _weighted(matrix[row], samples, row + 1 if seen is None else seen) if row >= 0 else NAN


@metric("up", "accuracy on what was learned so far, mean over experiences and over time", over_time=True)
def average_incremental_accuracy(matrix: np.ndarray) -> float:
    """Mean over time of the accuracy on what was learned so far: `1/T sum_i 1/(i+1) sum_{j<=i} A[i, j]`.

    Rebuffi et al. 2017, "iCaRL", benchmark protocol, there over samples (`sample_incremental_accuracy`); the two are
    equal when all experiences have equally many samples.

    Args:
        matrix: `[T, T]` accuracies.

    Returns:
        0..1, or NaN.

    Example:
        >>> average_incremental_accuracy(np.array([[1.0, 0.0], [0.5, 1.0]]))
        0.875
    """
    return mean(accuracy_so_far(matrix))


@metric("up", "accuracy over all samples of what was learned so far, mean over time", over_time=True)
def sample_incremental_accuracy(matrix: np.ndarray, samples: np.ndarray) -> float:
    """Mean over time of the share of right answers on what was learned so far.

    Rebuffi et al. 2017, "iCaRL", benchmark protocol: `1/T sum_i (sum_{j<=i} n_j A[i, j] / sum_{j<=i} n_j)`.

    Args:
        matrix: `[T, T]` accuracies.
        samples: `[T]` number of samples `n_j` of each experience.

    Returns:
        0..1, or NaN.

    Example:
        >>> sample_incremental_accuracy(np.array([[1.0, 0.0], [0.5, 1.0]]), np.array([30, 10]))
        0.8125
    """
    return mean([_weighted(row, samples, index + 1) for index, row in enumerate(matrix)])


def accuracy_so_far(matrix: np.ndarray) -> np.ndarray:
    """`[T]`: after each experience i, the mean over experiences `j <= i` of `A[i, j]`.

    Args:
        matrix: `[T, T]` accuracies.

    Example:
        >>> accuracy_so_far(np.array([[1.0, 0.0], [0.5, 1.0]])).tolist()
        [1.0, 0.75]
    """
    return np.array([mean(row[: index + 1]) for index, row in enumerate(matrix)])


@metric("down", "accuracy lost between an experience's best moment and the end, mean over all but the last")
def forgetting_max(matrix: np.ndarray) -> float:
    """How far accuracy fell from its best: `1/(T-1) sum_{j<l} (max_{i<l} A[i, j] - A[l, j])`.

    Chaudhry et al. 2018, "Riemannian Walk", the forgetting measure `f_j^k` and its mean `F_k`. The maximum is over
    every row before the last, rows before j was learned included. Negative when accuracy still rose.

    Args:
        matrix: `[T, T]` accuracies.

    Returns:
        -1..1, or NaN where only one experience was learned.

    Example:
        >>> forgetting_max(np.array([[0.8, 0.0, 0.0], [0.9, 0.7, 0.0], [0.5, 0.6, 1.0]]))
        0.25
    """
    last = last_row(matrix)
    return mean([max(_known(matrix[:last, j]), default=NAN) - matrix[last, j] for j in range(max(last, 0))])


@metric("down", "accuracy lost between learning an experience and the end, mean over all but the last")
def forgetting_first(matrix: np.ndarray) -> float:
    """How far accuracy fell since each experience was learned: `1/(T-1) sum_{j<l} (A[j, j] - A[l, j])`.

    The negative of backward transfer; at most `forgetting_max`, since it does not look for the best moment.

    Args:
        matrix: `[T, T]` accuracies.

    Returns:
        -1..1, or NaN where only one experience was learned.

    Example:
        >>> forgetting_first(np.array([[0.75, 0.0, 0.0], [1.0, 0.75, 0.0], [0.5, 0.5, 1.0]]))
        0.25
    """
    last = last_row(matrix)
    return mean([matrix[j, j] - matrix[last, j] for j in range(max(last, 0))])


@metric("up", "what later learning did to earlier experiences")
def backward_transfer(matrix: np.ndarray) -> float:
    """What later learning did to earlier experiences: `1/(T-1) sum_{j<l} (A[l, j] - A[j, j])`.

    Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", Eq. 3 (BWT).

    Args:
        matrix: `[T, T]` accuracies.

    Returns:
        -1..1, below 0 where it forgot; NaN where only one experience was learned.

    Example:
        >>> backward_transfer(np.array([[1.0, 0.0], [0.5, 1.0]]))
        -0.5
    """
    return 0.0 - forgetting_first(matrix)


@metric("up", "what earlier learning did for experiences yet to come, against the untrained model")
def forward_transfer(matrix: np.ndarray, before: np.ndarray) -> float:
    """What earlier learning did for later experiences: `1/(T-1) sum_{j>=1} (A[j-1, j] - b[j])`.

    Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", Eq. 4 (FWT).

    Args:
        matrix: `[T, T]` accuracies.
        before: `[T]` accuracies `b` before any training.

    Returns:
        -1..1, or NaN where later experiences were not evaluated beforehand.

    Example:
        >>> forward_transfer(np.array([[1.0, 0.75], [0.5, 1.0]]), np.array([0.5, 0.5]))
        0.25
    """
    return mean([matrix[j - 1, j] - before[j] for j in range(1, len(matrix))])


@metric("up", "accuracy on each experience right after learning it, mean", joint=False, over_time=True)
def plasticity(matrix: np.ndarray) -> float:
    """How well each experience was learned when it came: `1/T sum_j A[j, j]`.

    The learning accuracy of Riemer et al. 2019, "Meta-Experience Replay".

    Args:
        matrix: `[T, T]` accuracies.

    Returns:
        0..1, or NaN.

    Example:
        >>> plasticity(np.array([[1.0, 0.0], [0.5, 0.5]]))
        0.75
    """
    return mean(np.diagonal(matrix))


def stability_weighted(values: Iterable[float] | np.ndarray) -> float:
    """A mean that a swing makes smaller: `mean(v) * (1 - (max(v) - min(v)))`.

    The objective of CLMixer: over the mean recall of the classes after each experience it is that library's `waacc`,
    over the worst class's its `wamica`.

    Args:
        values: one number per moment, 0..1.

    Returns:
        0..1, or NaN.

    Example:
        >>> stability_weighted([1.0, 0.5])
        0.375
    """
    finite = _known(values)
    return float(finite.mean() * (1 - (finite.max() - finite.min()))) if finite.size else NAN


def _known(values: Iterable[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    return array[np.isfinite(array)]


def _weighted(row: np.ndarray, samples: np.ndarray, seen: int) -> float:
    row, weights = row[:seen], np.asarray(samples, dtype=np.float64)[:seen]
    use = np.isfinite(row) & (weights > 0)
    return float(row[use] @ weights[use] / weights[use].sum()) if use.any() else NAN
