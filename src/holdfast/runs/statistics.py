"""What several seeds say: mean, confidence interval, and the paired comparison of two settings over the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the half-width of its confidence interval (None for one value), over so many values."""

    mean: float
    half: float | None
    runs: int


class Paired(NamedTuple):
    """The difference of two settings over the seeds that both have.

    Attributes:
        difference: mean of first minus second.
        half: half-width of its confidence interval.
        p: two-sided, of Student's paired t-test.
        seeds: how many.
    """

    difference: float
    half: float
    p: float
    seeds: int


def interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Mean and Student's confidence interval: `mean ± t(n-1) s / sqrt(n)`.

    Example:
        >>> interval([1.0, 2.0, 3.0]).half.__round__(4)
        2.4841
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    mean = sum(known) / len(known)
    if len(known) == 1:
        return Interval(mean, None, 1)
    return Interval(mean, _quantile(len(known) - 1, level) * _error(known, mean), len(known))


def paired(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> Paired | None:
    """Compare two settings seed by seed; None where they share fewer than two seeds.

    Args:
        first: seed -> value.
        second: seed -> value.
        level: of the interval.

    Example:
        >>> paired({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5}).difference.__round__(4)
        0.15
    """
    shared = sorted(set(first) & set(second))
    if len(shared) < 2:
        return None
    differences = [first[seed] - second[seed] for seed in shared]
    mean = sum(differences) / len(differences)
    error = _error(differences, mean)
    from scipy import special  # type: ignore[import-untyped]

    if error == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = float(2 * special.stdtr(len(shared) - 1, -abs(mean / error)))
    return Paired(mean, _quantile(len(shared) - 1, level) * error, p, len(shared))


def _error(values: Sequence[float], mean: float) -> float:
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _quantile(freedom: int, level: float) -> float:
    from scipy import special  # scipy.stats takes half a second to import

    return float(special.stdtrit(freedom, 0.5 + level / 2))
