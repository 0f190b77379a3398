"""Selections of exemplars, and sets of them."""

import io
import math

import pytest
import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.memory import ExemplarSets, select_closest, select_herding, select_random
from holdfast.memory.exemplars import quotas


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(label, count, seed=0, first=0):
    features = torch.randn(count, 6, generator=seeded(seed + 100 * label))
    rows = {"inputs": torch.arange(first, first + count), "targets": torch.full((count,), label)}
    return rows, features


def herding_by_loops(features, count):
    """ICaRL's equation 4, as it is written, in float64."""
    unit = [row / row.norm() for row in features.double()]
    mean = sum(unit) / len(unit)
    picks, total = [], torch.zeros_like(mean)
    for k in range(1, count + 1):
        rest = [place for place in range(len(unit)) if place not in picks]
        pick = min(rest, key=lambda place: float((mean - (unit[place] + total) / k).norm()))
        picks.append(pick)
        total = total + unit[pick]
    return picks


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_equation_4_of_icarl(seed):
    features = torch.randn(40, 5, generator=seeded(seed)) * torch.rand(40, 1, generator=seeded(seed)) * 9 + 0.5
    assert select_herding(features, 15).tolist() == herding_by_loops(features, 15)
    assert select_herding(features.double(), 40).tolist() == herding_by_loops(features, 40)


def test_a_prefix_of_a_herding_is_a_herding():
    features = torch.randn(60, 8, generator=seeded())
    assert select_herding(features, 30)[:12].tolist() == select_herding(features, 12).tolist()


def test_herding_follows_the_mean_better_than_random_exemplars():
    features = torch.nn.functional.normalize(torch.randn(200, 16, generator=seeded()) + 1, dim=1)
    mean = features.mean(0)
    herded = (features[select_herding(features, 10)].mean(0) - mean).norm()
    others = [(features[select_random(features, 10, seeded(s))].mean(0) - mean).norm() for s in range(20)]
    assert herded < min(others)


def test_closest_are_those_nearest_to_the_class_mean():
    features = torch.randn(30, 5, generator=seeded()) + 1
    unit = torch.stack([row / row.norm() for row in features])
    mean = unit.mean(0)
    expected = sorted(range(30), key=lambda place: float((unit[place] - mean).norm()))
    assert select_closest(features, 7).tolist() == expected[:7]


def test_random_exemplars_are_drawn_without_replacement_and_equally_often():
    counts = torch.zeros(12)
    for seed in range(2000):
        chosen = select_random(torch.zeros(12, 1), 5, seeded(seed))
        assert len(set(chosen.tolist())) == 5
        counts[chosen] += 1
    share = 5 / 12
    assert ((counts - 2000 * share).abs() < 5 * math.sqrt(2000 * share * (1 - share))).all()


@pytest.mark.parametrize(
    "select", [select_herding, select_closest, lambda features, count: select_random(features, count, seeded())]
)
def test_a_selection_from_few_or_equal_samples_takes_each_once(select):
    assert sorted(select(torch.ones(4, 3), 9).tolist()) == [0, 1, 2, 3]
    assert sorted(select(torch.zeros(4, 3), 4).tolist()) == [0, 1, 2, 3]
    assert select(torch.ones(4, 3), 0).tolist() == []


@pytest.mark.parametrize("select", [select_herding, select_closest])
@pytest.mark.parametrize("features", [torch.ones(3), torch.tensor([[1.0], [math.nan]])])
def test_features_that_have_no_distance_are_refused(select, features):
    with pytest.raises(DataError):
        select(features, 1)


@pytest.mark.parametrize("capacity", [1, 7, 20, 100])
@pytest.mark.parametrize("available", [[50], [50, 50, 50], [1, 50, 2, 50, 50], [3, 2, 1]])
def test_quotas_lose_no_capacity_and_differ_by_one_at_most_unless_a_set_is_used_up(capacity, available):
    shares = quotas(capacity, available)
    assert sum(shares) == min(capacity, sum(available))
    open_shares = [share for share, most in zip(shares, available) if share < most]
    assert all(share <= most for share, most in zip(shares, available))
    if open_shares:
        assert max(shares) - min(open_shares) <= 1


def test_sets_shrink_to_their_first_exemplars_when_classes_arrive():
    sets = ExemplarSets(capacity=20)
    herded = {}
    for label in range(6):
        rows, features = samples(label, 30, first=100 * label)
        herded[label] = [100 * label + place for place in herding_by_loops(features, 20)]
        sets.update(label, rows, features)
        assert len(sets) == 20
        for held in range(label + 1):
            kept = sets.rows(held)["inputs"].tolist()
            assert kept == herded[held][: len(kept)]
            assert len(kept) in (20 // (label + 1), 20 // (label + 1) + 1)
    assert sets.keys == list(range(6))


@pytest.mark.parametrize("selection", ["herding", "closest", "random"])
def test_labels_belong_to_their_samples(selection):
    sets = ExemplarSets(capacity=15, selection=selection, generator=seeded())
    for label in (4, 1, 3):
        rows, features = samples(label, 12, first=100 * label)
        sets.update(label, rows, features)
    rows = sets.all()
    assert torch.equal(rows["inputs"] // 100, rows["targets"])
    assert rows["targets"].tolist() == [1] * 5 + [3] * 5 + [4] * 5
    assert len(set(rows["inputs"].tolist())) == 15


def test_a_fixed_quota_per_class_never_shrinks():
    sets = ExemplarSets(per_class=4)
    for label in range(5):
        sets.update(label, *samples(label, 10))
    sets.update(5, *samples(5, 2))
    assert [sets.count(label) for label in range(6)] == [4] * 5 + [2]


def test_what_a_small_class_cannot_fill_goes_to_others():
    sets = ExemplarSets(capacity=12)
    sets.update(0, *samples(0, 2))
    sets.update(1, *samples(1, 50))
    sets.update(2, *samples(2, 50))
    assert [sets.count(label) for label in range(3)] == [2, 5, 5]


def test_sets_by_experience_may_mix_classes():
    sets = ExemplarSets(capacity=10, by="experience")
    for experience in range(3):
        first, second = samples(0, 8, seed=experience), samples(1, 8, seed=experience)
        rows = {name: torch.cat((first[0][name], second[0][name])) for name in first[0]}
        sets.update(experience, rows, torch.cat((first[1], second[1])))
    assert [sets.count(experience) for experience in range(3)] == [4, 3, 3]


def test_a_class_set_refuses_rows_of_another_class():
    sets = ExemplarSets(capacity=10)
    with pytest.raises(DataError, match="class 1"):
        sets.update(1, *samples(0, 5))
    rows, features = samples(0, 5)
    with pytest.raises(DataError, match="features"):
        sets.update(0, rows, features[:4])
    with pytest.raises(DataError, match="targets"):
        sets.update(0, {"inputs": rows["inputs"]}, features)


def test_a_key_given_again_is_replaced():
    sets = ExemplarSets(capacity=6)
    sets.update(0, *samples(0, 10))
    sets.update(1, *samples(1, 10))
    sets.update(0, *samples(0, 10, first=500))
    assert sets.keys == [0, 1]
    assert [sets.count(0), sets.count(1)] == [3, 3]
    assert sets.rows(0)["inputs"].min() >= 500


def test_dropped_exemplars_and_past_data_are_released():
    sets = ExemplarSets(capacity=8)
    for label in range(4):
        rows, features = samples(label, 1000)
        sets.update(label, {**rows, "inputs": rows["inputs"].view(-1, 1).repeat(1, 50)}, features)
        owned = sum(value.untyped_storage().nbytes() for held in sets._sets.values() for value in held.values())
        assert owned == sets.nbytes == 8 * (50 * 8 + 8)
    sets.clear()
    assert (len(sets), sets.nbytes, sets.all()) == (0, 0, {})


def test_nested_inputs_are_restored_and_logits_carry_no_graph():
    sets = ExemplarSets(per_class=2)
    rows, features = samples(0, 5)
    logits = torch.rand(5, 3, requires_grad=True) * 2
    sets.update(0, {**rows, "inputs": (rows["inputs"], features), "logits": logits}, features.requires_grad_())
    held = sets.all()
    assert isinstance(held["inputs"], tuple)
    assert torch.equal(held["inputs"][1], features[held["inputs"][0]])
    assert not held["logits"].requires_grad


def test_sets_resume_exactly_from_a_weights_only_file():
    def update(sets, labels):
        for label in labels:
            sets.update(label, *samples(label, 20))
        return sets

    whole = update(ExemplarSets(capacity=11, selection="random", generator=seeded()), range(4))
    first = update(ExemplarSets(capacity=11, selection="random", generator=seeded()), range(2))
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = ExemplarSets(capacity=11, selection="random", generator=seeded(5))
    second.load(torch.load(file, weights_only=True))
    update(second.to("cpu"), range(2, 4))
    assert second.all()["inputs"].tolist() == whole.all()["inputs"].tolist()
    assert second.all()["targets"].tolist() == whole.all()["targets"].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "capacity=None"),
        ({"capacity": 3, "per_class": 2}, "Give one"),
        ({"capacity": 0}, "1 or more"),
        ({"capacity": 3, "selection": "herdin"}, "did you mean 'herding'"),
        ({"capacity": 3, "by": "clas"}, "did you mean 'class'"),
        ({"capacity": 3, "selection": "random"}, "generator"),
    ],
)
def test_wrong_settings_say_what_to_write_instead(settings, message):
    with pytest.raises(ConfigError, match=message):
        ExemplarSets(**settings)
