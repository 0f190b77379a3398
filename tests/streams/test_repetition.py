"""Streams with repetition: what each experience holds, tables that follow their distributions, serialisation."""

import json
import math
from itertools import pairwise

import pytest
import torch

from holdfast.core.errors import ConfigError
from holdfast.streams import online, repetition_sampling, repetition_slots, saved
from holdfast.streams.occurrence import first_distribution, recurrence_distribution
from holdfast.streams.repetition import class_table, seen_classes

COUNTS = [31, 17, 50, 23, 41, 29, 33]


def chi_square(observed, expected):
    """The statistic, and the value it exceeds with a probability of about 0.001 (Wilson and Hilferty 1931)."""
    pairs = [(o, e) for o, e in zip(observed, expected) if e > 0]
    assert all(o == 0 for o, e in zip(observed, expected) if e == 0)
    free = len(pairs) - 1
    limit = free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3
    return sum((o - e) ** 2 / e for o, e in pairs), limit


@pytest.mark.parametrize(("experiences", "slots"), [(7, 1), (4, 7), (5, 4), (10, 3), (9, 6), (1, 7)])
def test_in_slot_mode_every_sample_is_in_exactly_one_experience(experiences, slots, make, rows):
    stream = repetition_slots(make(COUNTS), experiences=experiences, slots=slots, seed=3)
    assert sorted(row for experience in stream for row in rows(experience.train)) == list(range(sum(COUNTS)))
    tests = sorted(row for experience in stream if experience.test for row in rows(experience.test))
    assert tests == list(range(100_000, 100_000 + sum(COUNTS)))


@pytest.mark.parametrize(("experiences", "slots"), [(7, 1), (4, 7), (5, 4), (10, 3), (9, 6), (1, 7)])
def test_every_experience_has_that_many_classes_and_every_class_an_even_number_of_slots(experiences, slots, make):
    stream = repetition_slots(make([40] * 7), experiences=experiences, slots=slots, seed=3)
    table = class_table(stream)
    assert ((table > 0).sum(0) == slots).all()
    parts = (table > 0).sum(1)
    assert set(parts.tolist()) <= {experiences * slots // 7, experiences * slots // 7 + 1}
    for row, count in zip(table, parts.tolist()):
        sizes = row[row > 0]
        assert sizes.sum() == 40
        assert sizes.max() - sizes.min() <= 1, "the slots of a class are equal"
        assert count == len(sizes)


def test_as_many_slots_as_classes_is_domain_incremental_and_one_slot_a_class_is_class_incremental(make):
    assert all(len(e.classes) == 7 for e in repetition_slots(make(COUNTS), experiences=4, slots=7))
    once = repetition_slots(make([20] * 6), experiences=3, slots=2)
    assert [experience.classes for experience in once] == [(0, 1), (2, 3), (4, 5)]


def test_every_class_is_equally_likely_in_every_experience_of_a_stream_of_slots(make):
    data, experiences, slots, runs = make([6] * 8), 4, 2, 400
    seen = torch.zeros(8, experiences)
    for seed in range(runs):
        stream = repetition_slots(data, experiences=experiences, slots=slots, paradigm="domain", seed=seed)
        seen += class_table(stream) > 0
    for column in range(experiences):
        statistic, limit = chi_square(seen[:, column].tolist(), [runs * slots / 8] * 8)
        assert statistic < limit, f"experience {column}"


FIRST = [
    "uniform",
    {"name": "uniform_alpha", "alpha": 0.3},
    {"name": "poisson", "mu": 3.0},
    {"name": "zipf", "exponent": 1.2},
    {"name": "zipf_reversed", "exponent": 0.7},
    {"name": "geometric", "p": 0.3},
]


def first_by_hand(described, n):
    name = described if isinstance(described, str) else described["name"]
    weights = {
        "uniform": lambda k: 1.0,
        "uniform_alpha": lambda k: float(k < math.ceil(0.3 * n)),
        "poisson": lambda k: math.exp(-3) * 3**k / math.factorial(k),
        "zipf": lambda k: (k + 1) ** -1.2,
        "zipf_reversed": lambda k: (n - k) ** -0.7,
        "geometric": lambda k: 0.3 * 0.7**k,
    }[name]
    values = [weights(k) for k in range(n)]
    return [value / sum(values) for value in values]


@pytest.mark.parametrize("first", FIRST, ids=str)
def test_first_appearances_follow_their_distribution(first, make):
    experiences = 10
    wanted = first_by_hand(first, experiences)
    assert first_distribution(first, experiences).tolist() == pytest.approx(wanted)
    data, runs = make([3] * 40), 25
    observed = torch.zeros(experiences)
    for seed in range(runs):
        # a chance of 1 to come back leaves no experience after the first class empty, so none is renumbered but
        # leading ones, which the number of experiences tells
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            stream = repetition_sampling(
                data,
                experiences=experiences,
                samples=80,
                first=first,
                recurrence={"name": "fixed", "p": 1.0},
                paradigm="domain",
                seed=seed,
            )
        left_out = experiences - len(stream)
        begins = (class_table(stream) > 0).float().argmax(1) + left_out
        observed += torch.bincount(begins, minlength=experiences)
    statistic, limit = chi_square(observed.tolist(), [40 * runs * value for value in wanted])
    assert statistic < limit


def test_a_class_comes_back_with_its_own_chance(make):
    experiences, classes, runs = 60, 12, 6
    dual = {"name": "fixed_dual", "fraction": 0.25, "low": 0.1, "high": 0.8}
    back = {0.1: [0, 0], 0.8: [0, 0]}
    for seed in range(runs):
        stream = repetition_sampling(
            make([4] * classes),
            experiences=experiences,
            samples=20,
            first={"name": "geometric", "p": 1.0},
            recurrence=dual,
            paradigm="domain",
            seed=seed,
        )
        assert len(stream) == experiences
        present = class_table(stream) > 0
        assert present[:, 0].all(), "all classes begin at once"
        shares = present[:, 1:].float().mean(1)
        for share in shares.tolist():
            chance = 0.1 if share < 0.45 else 0.8
            back[chance][0] += round(share * (experiences - 1))
            back[chance][1] += experiences - 1
    assert back[0.1][1] == 3 * runs * (experiences - 1), "a quarter of the classes has the low chance"
    for chance, (hits, trials) in back.items():
        statistic, limit = chi_square([hits, trials - hits], [trials * chance, trials * (1 - chance)])
        assert statistic < limit


@pytest.mark.parametrize(
    ("recurrence", "wanted"),
    [
        ({"name": "fixed", "p": 0.2}, [0.2] * 5),
        ({"name": "poisson", "mu": 2.0}, sorted(math.exp(-2) * 2**k / math.factorial(k) for k in range(5))),
        ({"name": "zipf", "exponent": 1.5}, sorted((k + 1) ** -1.5 for k in range(5))),
        ({"name": "fixed_dual", "fraction": 0.5, "low": 0.0, "high": 0.9}, [0.0, 0.0, 0.9, 0.9, 0.9]),
    ],
)
def test_chances_to_come_back_are_those_of_the_distribution_in_a_random_order(recurrence, wanted):
    drawn = [recurrence_distribution(recurrence, 5, torch.Generator().manual_seed(seed)).tolist() for seed in range(9)]
    assert all(sorted(one) == pytest.approx(wanted) for one in drawn)
    assert len(set(map(tuple, drawn))) > 1 or len(set(wanted)) == 1


def test_random_chances_are_uniform():
    chances = recurrence_distribution("random", 4000, torch.Generator().manual_seed(0))
    statistic, limit = chi_square(torch.histc(chances, 10, 0, 1).tolist(), [400] * 10)
    assert statistic < limit


def test_an_experience_has_that_many_samples_shared_evenly_and_no_sample_twice(make, rows):
    data = make([50] * 9)
    stream = repetition_sampling(
        data, experiences=12, samples=40, first="uniform", recurrence={"name": "fixed", "p": 0.5}, seed=2
    )
    table = class_table(stream)
    for experience, column in zip(stream, table.T):
        held = column[column > 0]
        assert held.max() - held.min() <= 1
        assert len(experience.train) == min(40, 50 * len(held))
        drawn = rows(experience.train)
        assert len(set(drawn)) == len(drawn)
    total = [row for experience in stream for row in rows(experience.train)]
    assert len(set(total)) < len(total), "but samples come back in later experiences"


def test_a_class_with_too_few_samples_gives_all_it_has(make):
    stream = repetition_sampling(
        make([3, 60]),
        experiences=2,
        samples=40,
        first={"name": "geometric", "p": 1.0},
        recurrence={"name": "fixed", "p": 1.0},
    )
    assert sorted(map(sorted, class_table(stream).T.tolist())) == [[3, 20], [3, 20]]


def test_experiences_without_a_class_are_left_out_with_a_warning(make):
    with pytest.warns(UserWarning, match="of 30 experiences got no class"):
        stream = repetition_sampling(
            make([9] * 2), experiences=30, samples=5, recurrence={"name": "fixed", "p": 0.0}, seed=1
        )
    assert 1 <= len(stream) <= 2
    assert all(len(experience.train) == 5 for experience in stream)


def test_labels_follow_first_appearance_and_seen_classes_only_grow(make):
    stream = repetition_sampling(
        make([20] * 10), experiences=8, samples=30, recurrence={"name": "fixed", "p": 0.5}, seed=4
    )
    seen = seen_classes(stream)
    assert seen[-1] == tuple(range(10))
    for before, after in pairwise(seen):
        assert set(before) <= set(after)
    assert all(classes == tuple(range(len(classes))) for classes in seen), "new classes get the next numbers"


@pytest.mark.parametrize("test", ["shared", "whole"])
@pytest.mark.parametrize("slots", [True, False])
def test_all_test_data_are_evaluated_once_after_every_experience(test, slots, make, rows):
    data = make([20] * 6, [7] * 6)
    if slots:
        stream = repetition_slots(data, experiences=4, slots=3, test=test)
    else:
        always = {"name": "fixed", "p": 0.6}
        stream = repetition_sampling(data, experiences=6, samples=30, recurrence=always, test=test, seed=1)
    held = [experience.test for experience in stream]
    assert sorted(row for part in held if part for row in rows(part)) == list(range(100_000, 100_042))
    if test == "whole":
        assert len(held[0]) == 42
        assert not any(held[1:])
    else:
        for experience in stream:
            if experience.test is not None:
                assert set(experience.test.targets.tolist()) <= set(experience.classes)


@pytest.mark.parametrize(
    "build",
    [
        lambda data: repetition_slots(data, experiences=5, slots=3, seed=3, validation=0.2),
        lambda data: repetition_sampling(
            data,
            experiences=7,
            samples=30,
            first={"name": "geometric", "p": 0.4},
            recurrence={"name": "fixed", "p": 0.5},
            seed=3,
        ),
        lambda data: online(data, samples=6, of={"name": "repetition_slots", "experiences": 5, "slots": 3}),
    ],
)
def test_a_stream_with_repetition_is_written_as_json_and_made_again_exactly(build, make, rows):
    data = make(COUNTS)
    stream = build(data)
    again = saved(data, json.loads(json.dumps(stream.description)))
    assert again.description == stream.description == build(data).description
    for one, other in zip(stream, again, strict=True):
        assert rows(one.train) == rows(other.train)
        assert one.classes == other.classes


def test_another_seed_gives_another_stream(make):
    data = make(COUNTS)
    assert (
        repetition_slots(data, experiences=5, slots=3, seed=0).description["table"]
        != (repetition_slots(data, experiences=5, slots=3, seed=1).description["table"])
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: repetition_slots(d, slots=8), "slots is 8.*7 classes"),
        (lambda d: repetition_slots(d, experiences=2, slots=3), "6 slots for 7 classes"),
        (lambda d: repetition_slots(d, experiences=60, slots=7), "31 samples for 60 slots"),
        (lambda d: repetition_slots(d, slots=3, paradigm="task"), "paradigm='task'"),
        (lambda d: repetition_slots(d, slots=3, test="all"), "test='all'"),
        (lambda d: repetition_sampling(d, samples=0), "samples=0"),
        (lambda d: repetition_sampling(d, first="unifrom"), "did you mean 'uniform'"),
        (lambda d: repetition_sampling(d, first={"name": "zipf", "mu": 1.0}), "'zipf' cannot take"),
        (lambda d: repetition_sampling(d, first={"name": "geometric", "p": 0.0}), "p is 0.0"),
        (lambda d: repetition_sampling(d, recurrence={"name": "fixed", "p": 1.5}), "p is 1.5"),
        (lambda d: repetition_sampling(d, recurrence="dual"), "distribution of recurrence 'dual'"),
    ],
)
def test_wrong_arguments_are_refused(build, message, make):
    with pytest.raises(ConfigError, match=message):
        build(make(COUNTS))
