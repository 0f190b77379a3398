from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.errors import ConfigError
from holdfast.streams.tables import allocate, check_table, deal, hold_out, ordered_classes, rng, whole_classes


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 500), st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 9))
def test_an_allocation_gives_every_sample_away_and_is_off_by_less_than_one(count, weights, turn):
    total = sum(weights)
    counts = allocate(count, weights, turn)
    if total == 0:
        assert counts == [0] * len(weights)
        return
    assert sum(counts) == count
    for got, weight in zip(counts, weights):
        assert abs(got - count * weight / total) < 1 + 1e-6


def test_equal_remainders_take_turns():
    assert allocate(1, [0.5, 0.5], turn=0) == [1, 0]
    assert allocate(1, [0.5, 0.5], turn=1) == [0, 1]


def test_dealing_gives_every_sample_to_one_experience_and_follows_the_table():
    targets = torch.randint(0, 3, (101,), generator=rng(3))
    table = [[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]]
    hands = deal(targets, table, rng(0))
    assert sorted(torch.cat(hands).tolist()) == list(range(101))
    for label in range(3):
        total = int((targets == label).sum())
        for column, hand in enumerate(hands):
            assert abs(int((targets[hand] == label).sum()) - total * table[label][column]) < 1


def test_held_out_samples_are_a_fraction_of_each_class_and_never_all_of_it():
    targets = torch.tensor([0] * 40 + [1] * 10 + [2])
    kept, held = hold_out(targets, 0.25, rng(1))
    assert sorted(torch.cat((kept, held)).tolist()) == list(range(51))
    assert torch.bincount(targets[held], minlength=3).tolist() == [10, 3, 0]
    assert hold_out(targets, 0.25, rng(1))[1].tolist() == held.tolist()
    assert hold_out(targets, 0.25, rng(2))[1].tolist() != held.tolist()


def test_a_random_order_has_every_class_once_and_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = ordered_classes("random", 50, seed=3)
    torch.manual_seed(2)
    assert first == ordered_classes("random", 50, seed=3)
    assert sorted(first) == list(range(50))
    assert first != ordered_classes("random", 50, seed=4)


@pytest.mark.parametrize(
    ("order", "word"),
    [
        ([0, 1, 1], r"repeats \[1\], lacks \[2\]"),
        ([0, 1], r"lacks \[2\]"),
        ([0, 1, 3], r"unknown \[3\]"),
        ("up", "'up'"),
    ],
)
def test_a_class_order_that_is_no_permutation_says_why(order, word):
    with pytest.raises(ConfigError, match=word):
        ordered_classes(order, 3, 0)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ([[1.0]], "1 rows"),
        ([[1.0], [0.5, 0.5]], "entries"),
        ([[1.5, -0.5], [0, 1]], "-0.5"),
        ([[0.5, 0.4], [0, 1]], "0.9"),
        ([[1.0, 0.0], [1.0, 0.0]], "experience 1"),
        ([[float("nan"), 1.0], [1.0, 0.0]], "nan"),
        ([[], []], "entries"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_the_value(table, word):
    with pytest.raises(ConfigError, match=word):
        check_table(table, 2)


def test_whole_classes_go_to_one_experience_each():
    assert whole_classes([2, 0, 1], [1, 2]) == [[0, 1], [0, 1], [1, 0]]


def test_generators_for_different_purposes_are_independent_of_each_other():
    draws = {
        tuple(torch.randint(1000, (5,), generator=rng(*key)).tolist()) for key in [(0,), (0, "a"), (1, "a"), (0, 1)]
    }
    assert len(draws) == 4
