"""Prefixes of a stream as rungs: who is promoted to a longer one, and how long a prefix has to be; plain numbers only.

Values are turned so that smaller is better. Promotion is that of successive halving in its asynchronous form (Li et al.
2020, "A system for massively parallel hyperparameter tuning"): the best part of those on a rung goes on, whenever
somebody is free. Rungs are added as in PASHA (Bohdal et al. 2023, "PASHA: efficient HPO and NAS with progressive
resource allocation"): only while the ranking of the two longest prefixes differs by more than noise. Over several
objectives the ranks are those of non-dominated sorting (Deb et al. 2002, "NSGA-II").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

KEEP = 1 / 3
"""Part of those on a rung that goes on."""

Values = tuple[float, ...]
Level = Mapping[str, Values]
"""Key of a composition -> its values after so many experiences."""


def lengths(first: int, most: int) -> list[int]:
    """The prefixes: each twice as long as the one before, the last the whole.

    Example:
        >>> lengths(2, 10), lengths(2, 2), lengths(2, 3)
        ([2, 4, 8, 10], [2], [2, 3])
    """
    prefixes, length = [], min(first, most)
    while length < most:
        prefixes.append(length)
        length *= 2
    return [*prefixes, most]


def dominates(one: Values, other: Values, noise: Values = ()) -> bool:
    """Whether `one` is at least as good in everything and better in something, by more than `noise`.

    Example:
        >>> dominates((1.0, 2.0), (1.0, 3.0)), dominates((1.0, 2.0), (1.0, 3.0), (0.0, 1.5))
        (True, False)
    """
    margins = noise or (0.0,) * len(one)
    if any(a > b for a, b in zip(one, other)):
        return False
    return any(a < b - margin for a, b, margin in zip(one, other, margins))


def ranks(level: Level) -> dict[str, int]:
    """The front that each is on: 0 for those that nobody dominates, 1 for those that only these do, and so on.

    Example:
        >>> ranks({"a": (1.0, 3.0), "b": (3.0, 1.0), "c": (3.0, 3.0)})
        {'a': 0, 'b': 0, 'c': 1}
    """
    left, rank = dict(level), 0
    rank_of: dict[str, int] = {}
    while left:
        front = [key for key, one in left.items() if not any(dominates(other, one) for other in left.values())]
        rank_of |= dict.fromkeys(front, rank)
        left = {key: value for key, value in left.items() if key not in front}
        rank += 1
    return {key: rank_of[key] for key in level}


def ordered(level: Level) -> list[str]:
    """The keys, best first: by front, then by the first objective."""
    front = ranks(level)
    return sorted(level, key=lambda key: (front[key], level[key]))


def swapped(shorter: Level, longer: Level, noise: Values = ()) -> list[tuple[str, str]]:
    """Pairs of which the first is better on the shorter prefix and the second on the longer one, by more than noise.

    Example:
        >>> swapped({"a": (0.1,), "b": (0.2,)}, {"a": (0.5,), "b": (0.4,)})
        [('a', 'b')]
    """
    both = [key for key in shorter if key in longer]
    return [
        (one, other)
        for one in both
        for other in both
        if dominates(shorter[one], shorter[other], noise) and dominates(longer[other], longer[one], noise)
    ]


def highest(levels: Mapping[int, Level], prefixes: Sequence[int], noise: Values = ()) -> int:
    """The number of the longest prefix in use: one more as often as the ranking of the two longest still changes."""
    top = min(1, len(prefixes) - 1)
    while top + 1 < len(prefixes):
        shorter, longer = levels.get(prefixes[top - 1], {}), levels.get(prefixes[top], {})
        if not swapped(shorter, longer, noise):
            break
        top += 1
    return top


def promotions(
    levels: Mapping[int, Level], prefixes: Sequence[int], top: int, keep: float = KEEP, taken: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Who may go on, and to which length, the longest first.

    Args:
        levels: length -> what was measured there.
        prefixes: every length.
        top: the number of the longest in use.
        keep: part of those on a rung that goes on.
        taken: keys that are at work already.

    Example:
        >>> promotions({2: {"a": (0.1,), "b": (0.2,), "c": (0.3,)}}, [2, 4], 1)
        [('a', 4)]
    """
    promoted = []
    for rung in reversed(range(top)):
        level, above = levels.get(prefixes[rung], {}), levels.get(prefixes[rung + 1], {})
        for key in ordered(level)[: int(len(level) * keep)]:
            if key not in above and key not in taken:
                promoted.append((key, prefixes[rung + 1]))
    return promoted


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None below three pairs or where one never changes.

    Example:
        >>> round(correlation([1, 2, 3, 4], [1, 3, 2, 4]), 3), correlation([1, 2], [2, 1])
        (0.8, None)
    """
    if len(one) < 3:
        return None
    first, second = _ranked(one), _ranked(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranked(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])
