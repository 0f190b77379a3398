"""What several seeds say: mean and interval, the paired comparison of two settings, corrections for many of them.

One statistic everywhere, in reports, `holdfast show` and sweeps: each seed counts once; the mean, with the half-width
of Student's 95 % confidence interval from three seeds on. Two seeds are told by their two values, since the interval of
two (12.7 standard errors to each side) says nothing; one by its value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

LEVEL = 0.95
NORMAL = 1.959963984540054
"""Its quantile of the normal distribution."""

FEWEST = 3
"""Seeds from which on an interval is told."""


class Spread(NamedTuple):
    """Several values of one measure.

    Attributes:
        mean: of the values.
        half: half-width of Student's 95 % confidence interval of the mean; None below three values.
        runs: how many values.
        low: the smallest value.
        high: the largest value.
    """

    mean: float
    half: float | None
    runs: int
    low: float
    high: float


class Paired(NamedTuple):
    """The difference of two settings over the seeds that both have.

    Attributes:
        difference: mean of first minus second.
        half: half-width of its 95 % confidence interval; None below three seeds.
        p: two-sided, of Student's paired t-test; None below three seeds.
        seeds: how many.
        corrected: `p` after Holm's correction for all comparisons beside it; `p` itself where it stands alone.
    """

    difference: float
    half: float | None
    p: float | None
    seeds: int
    corrected: float | None = None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, interval and range of the values that are there; None if there are none.

    Args:
        values: one for each seed.

    Example:
        >>> one = spread([1.0, 2.0, 3.0, None])
        >>> one.mean, round(one.half, 4), one.runs
        (2.0, 2.4841, 3)
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, half=None, runs=2, low=1.0, high=3.0)
    """
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not there:
        return None
    mean = sum(there) / len(there)
    half = None if len(there) < FEWEST else _quantile(len(there) - 1) * _error(there, mean)
    return Spread(mean, half, len(there), min(there), max(there))


def share_interval(right: int, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, `right / samples` (Wilson 1927); 0 to 1 without samples.

    Example:
        >>> [round(edge, 4) for edge in share_interval(8, 10)]
        [0.4902, 0.9433]
    """
    if not samples:
        return 0.0, 1.0
    share, square = right / samples, NORMAL**2
    middle = share + square / (2 * samples)
    half = NORMAL * math.sqrt(share * (1 - share) / samples + square / (4 * samples**2))
    return (middle - half) / (1 + square / samples), (middle + half) / (1 + square / samples)


def mean_share_interval(shares: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The 95 % interval of the mean of several shares, each `(right, samples)`, from Wilson's of each.

    The distances of the edges from the shares are added up as independent errors (Zou and Donner 2008, "Construction
    of confidence limits about effect measures", the method of variance estimates recovery). Shares without samples do
    not count.

    Example:
        >>> [round(edge, 4) for edge in mean_share_interval([(8, 10)])]
        [0.4902, 0.9433]
    """
    there = [(right / samples, *share_interval(right, samples)) for right, samples in shares if samples]
    if not there:
        return 0.0, 1.0
    mean = sum(share for share, _, _ in there) / len(there)
    below = math.sqrt(sum((share - low) ** 2 for share, low, _ in there)) / len(there)
    above = math.sqrt(sum((high - share) ** 2 for share, _, high in there)) / len(there)
    return mean - below, mean + above


def difference_interval(
    first: tuple[int, int], second: tuple[int, int], both: int | None = None
) -> tuple[float, float]:
    """Newcombe's 95 % interval of the difference of two shares, first minus second.

    The hybrid score interval of Newcombe 1998, "Interval estimation for the difference between independent
    proportions", Statistics in Medicine 17:873, method 10; where the same rows were asked twice, that of "Improved
    confidence intervals for the difference between binomial proportions based on paired data", 17:2635, method 10.

    Args:
        first: right answers, and rows.
        second: the same.
        both: rows of the same ones that were right twice; None if unknown, which widens the interval of rows
            that were asked twice.

    Example:
        >>> [round(edge, 4) for edge in difference_interval((56, 70), (48, 80))]
        [0.0524, 0.3339]
        >>> [round(edge, 4) for edge in difference_interval((2, 21), (8, 21), both=1)]
        [-0.5069, -0.0256]
    """
    (right, rows), (other, others) = first, second
    p, q = right / max(1, rows), other / max(1, others)
    (low, high), (lower, higher) = share_interval(right, rows), share_interval(other, others)
    phi = 0.0 if both is None else _correlation(both, right - both, other - both, rows)
    below = (p - low) ** 2 - 2 * phi * (p - low) * (higher - q) + (higher - q) ** 2
    above = (high - p) ** 2 - 2 * phi * (high - p) * (q - lower) + (q - lower) ** 2
    return p - q - math.sqrt(max(0.0, below)), p - q + math.sqrt(max(0.0, above))


def _correlation(both: int, first: int, second: int, rows: int) -> float:
    """Phi of a table of pairs, with Newcombe's correction for continuity where it is positive."""
    neither = rows - both - first - second
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not margins:
        return 0.0
    product = both * neither - first * second
    return (max(product - rows / 2, 0.0) if product > 0 else product) / math.sqrt(margins)


def named(count: int) -> str:
    """What the numbers of so many seeds are, for the head of a table.

    Example:
        >>> named(5), named(2), named(1)
        ('mean ± 95 % t interval over 5 seeds', 'mean (and both values) of 2 seeds', 'one seed')
    """
    if count < 2:
        return "one seed"
    return f"mean ± 95 % t interval over {count} seeds" if count >= FEWEST else "mean (and both values) of 2 seeds"


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Compare two settings seed by seed; None where they share fewer than two seeds.

    Args:
        first: seed -> value.
        second: seed -> value.

    Example:
        >>> one = paired({0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.5, 2: 0.8, 7: 0.0})
        >>> round(one.difference, 4), round(one.p, 4), one.seeds
        (0.1333, 0.0572, 3)
    """
    shared = sorted(set(first) & set(second))
    if len(shared) < 2:
        return None
    differences = [first[seed] - second[seed] for seed in shared]
    mean = sum(differences) / len(differences)
    if len(shared) < FEWEST:
        return Paired(mean, None, None, len(shared))
    error = _error(differences, mean)
    if error == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        from scipy import special  # type: ignore[import-untyped]

        p = float(2 * special.stdtr(len(shared) - 1, -abs(mean / error)))
    return Paired(mean, _quantile(len(shared) - 1) * error, p, len(shared), p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: what each of several p-values is worth when all of them are looked at.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the k-th smallest of m is multiplied by
    m - k + 1, and none is smaller than one before it.

    Args:
        p: uncorrected, in any order.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    corrected = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, p[index] * (len(p) - rank)))
        corrected[index] = highest
    return corrected


def side_by_side(comparisons: Sequence[Paired]) -> list[Paired]:
    """The comparisons of one table, each with its p-value corrected for all of them.

    Args:
        comparisons: in any order; those of two seeds have no p-value and do not count.
    """
    tested = [one.p for one in comparisons if one.p is not None]
    corrected = iter(holm(tested))
    return [one if one.p is None else one._replace(corrected=next(corrected)) for one in comparisons]


def _error(values: Sequence[float], mean: float) -> float:
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _quantile(freedom: int) -> float:
    from scipy import special  # scipy.stats takes half a second to import

    return float(special.stdtrit(freedom, 0.5 + LEVEL / 2))
