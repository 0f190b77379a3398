"""Promotion, ranks and prefixes, on a few numbers."""

from __future__ import annotations

import itertools
import random

import pytest

from holdfast.discovery.rungs import correlation, dominates, highest, lengths, ordered, promotions, ranks, swapped


def test_ranks_are_those_of_peeling_off_what_nobody_dominates() -> None:
    generator = random.Random(0)
    level = {str(n): (generator.random(), generator.random()) for n in range(30)}
    found, left, rank = ranks(level), dict(level), 0
    while left:
        front = {k for k in left if not any(dominates(left[o], left[k]) for o in left if o != k)}
        assert {k for k in level if found[k] == rank} == front
        left, rank = {k: v for k, v in left.items() if k not in front}, rank + 1


def test_one_objective_is_ordered_by_its_value() -> None:
    level = {"a": (0.3,), "b": (0.1,), "c": (0.2,)}
    assert ordered(level) == ["b", "c", "a"]


def test_the_best_third_is_promoted_once() -> None:
    level = {str(n): (n / 10,) for n in range(7)}
    assert promotions({2: level}, [2, 4], 1) == [("0", 4), ("1", 4)]
    assert promotions({2: level, 4: {"0": (0.0,)}}, [2, 4], 1) == [("1", 4)]
    assert promotions({2: level}, [2, 4], 1, taken=["0", "1"]) == []


def test_a_longer_prefix_is_used_only_while_the_ranking_of_the_longest_two_changes() -> None:
    prefixes = [2, 4, 8, 16]
    same = {2: {"a": (0.1,), "b": (0.2,)}, 4: {"a": (0.3,), "b": (0.4,)}}
    assert highest(same, prefixes) == 1
    changed = {**same, 4: {"a": (0.5,), "b": (0.4,)}}
    assert highest(changed, prefixes) == 2
    assert highest(changed, prefixes, noise=(0.3,)) == 1
    assert highest({**changed, 8: {"a": (0.1,), "b": (0.2,)}}, prefixes) == 3


def test_a_swap_over_two_objectives_is_one_of_domination() -> None:
    shorter = {"a": (0.1, 0.1), "b": (0.2, 0.2)}
    assert swapped(shorter, {"a": (0.3, 0.3), "b": (0.2, 0.2)}) == [("a", "b")]
    assert swapped(shorter, {"a": (0.3, 0.1), "b": (0.2, 0.2)}) == []


@pytest.mark.parametrize(("first", "most"), [(1, 1), (2, 3), (2, 5), (3, 20), (5, 4)])
def test_prefixes_double_and_end_with_the_whole(first: int, most: int) -> None:
    found = lengths(first, most)
    assert found[-1] == most
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(found))


def test_rank_correlation_is_one_for_any_rising_line_and_shares_ties() -> None:
    assert correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)
    assert correlation([1, 1, 1], [1, 2, 3]) is None
