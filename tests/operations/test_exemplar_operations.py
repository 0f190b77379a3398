"""Exemplars: how they are chosen, how they join the data, iCaRL's loss and its nearest mean, all written out."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from holdfast import Continual, methods
from holdfast.core.errors import ConfigError
from holdfast.memory import Uniform
from holdfast.methods import agem_exemplars, er_exemplars, exemplar_replay, icarl
from holdfast.models import mlp
from holdfast.operations import (
    BinaryDistillation,
    LogitReplay,
    MergedReplay,
    NearestExemplarMean,
    Remember,
    RememberExemplars,
)
from holdfast.streams.data import TensorData


def _features(model: Any, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Features of norm 1, one sample at a time."""
    with torch.no_grad():
        found = [model.features(x[None])[0] for x in inputs]
    return [f / f.norm() for f in found]


def _learn(few: Any, engine: Any, data: list[Any], lr: float = 0.3) -> None:
    for index, (inputs, targets) in enumerate(data):
        opened, _ = engine.begin(few.experience(inputs, targets, index))
        few.step(engine, inputs, targets, lr=lr)
        engine.end(opened)


def test_herding_picks_one_after_the_other_what_brings_the_mean_nearest(few: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=3))
    inputs, targets = few.points(12, classes=2)
    _learn(few, engine, [(inputs, targets)])
    features = _features(engine.learner.model, inputs)
    expected: list[int] = []
    for label in (0, 1):
        own = [i for i in range(12) if targets[i] == label]
        mean = sum(features[i] for i in own) / len(own)
        picked: list[int] = []
        for k in range(1, 4):
            left = [i for i in own if i not in picked]
            picked.append(min(left, key=lambda i: float((mean - sum(features[j] for j in [*picked, i]) / k).norm())))
        expected += picked
    held = engine.learner.memory.all()
    assert torch.equal(held["inputs"], inputs[expected])
    assert torch.equal(held["targets"], targets[expected])


def test_with_a_capacity_every_class_has_an_equal_share_and_earlier_sets_lose_their_last(few: Any) -> None:
    engine = few.bind(RememberExemplars(capacity=8), model=few.net(classes=4))
    first, second = few.points(12, classes=2), few.points(12, classes=2, seed=1, first=2)
    _learn(few, engine, [first])
    before = engine.learner.memory.all()
    assert torch.bincount(before["targets"]).tolist() == [4, 4]
    opened, _ = engine.begin(few.experience(*second, 1))
    engine.end(opened)
    after = engine.learner.memory.all()
    assert torch.bincount(after["targets"]).tolist() == [2, 2, 2, 2]
    for label in (0, 1):
        kept = after["inputs"][after["targets"] == label]
        assert torch.equal(kept, before["inputs"][before["targets"] == label][:2])


def test_random_exemplars_are_different_samples_of_their_own_class(few: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=4, selection="random"))
    inputs, targets = few.points(20, classes=3)
    _learn(few, engine, [(inputs, targets)])
    held = engine.learner.memory.all()
    places = [int((inputs == x).all(1).nonzero()) for x in held["inputs"]]
    assert len(set(places)) == 12
    assert torch.equal(targets[places], held["targets"])
    assert torch.bincount(held["targets"]).tolist() == [4, 4, 4]


@pytest.mark.parametrize("selection", ["random", "herding", "closest"])
def test_a_budget_is_that_of_a_class_in_however_many_experiences_it_comes(few: Any, selection: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=3, selection=selection), MergedReplay())
    first, second = few.points(10, classes=2), few.points(30, classes=2, seed=1)
    _learn(few, engine, [first, second])
    held = engine.learner.memory.all()
    assert torch.bincount(held["targets"]).tolist() == [3, 3]
    of_both = [sum(bool((part[0] == x).all(1).any()) for x in held["inputs"]) for part in (first, second)]
    assert sum(of_both) == 6
    assert of_both[1] > 0


def test_a_set_chosen_anew_is_chosen_among_what_arrived_and_what_it_had(few: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=4, selection="random"))
    first, second = few.points(40, classes=1), few.points(4, classes=1, seed=1)
    counts = []
    _learn(few, engine, [first, *[second] * 40])
    held = engine.learner.memory.all()["inputs"]
    counts = [sum(bool((part[0] == x).all(1).any()) for x in held) for part in (first, second)]
    assert sum(counts) == 4


def test_two_of_them_keep_each_its_own_budget_and_selection(few: Any) -> None:
    both = few.bind(RememberExemplars(per_class=3, selection="random"), RememberExemplars(per_class=2), MergedReplay())
    parts = [few.points(10, classes=2), few.points(10, classes=2, seed=1)]
    _learn(few, both, parts)
    memory = both.learner.memory
    assert [len(one) for one in memory.members] == [6, 4]
    assert torch.bincount(memory.all()["targets"]).tolist() == [5, 5]
    alone = few.bind(RememberExemplars(per_class=2))
    _learn(few, alone, parts)
    drawn = memory.draw(4, Uniform(torch.Generator().manual_seed(0)))
    assert drawn["targets"].shape == (4,)
    again = few.bind(RememberExemplars(per_class=3, selection="random"), RememberExemplars(per_class=2), MergedReplay())
    again.load(both.state())
    assert torch.equal(again.learner.memory.all()["inputs"], memory.all()["inputs"])


def test_a_class_that_comes_again_gets_a_set_for_each_experience_where_sets_belong_to_those(few: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=3, selection="random", by="experience"), MergedReplay())
    first, second = few.points(10, classes=2), few.points(10, classes=2, seed=1)
    _learn(few, engine, [first, second])
    held = engine.learner.memory.all()
    assert torch.bincount(held["targets"]).tolist() == [6, 6]
    of_first = sum(bool((first[0] == x).all(1).any()) for x in held["inputs"])
    assert of_first == 6  # what had joined the second experience was not chosen again


def test_draws_are_without_replacement_and_the_memory_is_empty_until_an_experience_ends(few: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=4, selection="random"))
    memory, uniform = engine.learner.memory, Uniform(torch.Generator().manual_seed(0))
    inputs, targets = few.points(20, classes=2)
    opened, _ = engine.begin(few.experience(inputs, targets))
    few.step(engine, inputs, targets)
    assert memory.draw(3, uniform) is None
    engine.end(opened)
    for _ in range(20):
        drawn = memory.draw(5, uniform)["inputs"]
        assert len({tuple(x.tolist()) for x in drawn}) == 5
    assert len(memory.draw(50, uniform)["targets"]) == len(memory) == 8
    assert memory.nbytes == 8 * (4 * 8 + 8)


def test_logits_of_exemplars_are_those_of_the_model_at_the_end(few: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=2), LogitReplay(size=4))
    inputs, targets = few.points(9)
    _learn(few, engine, [(inputs, targets)])
    held = engine.learner.memory.all()
    torch.testing.assert_close(held["logits"], engine.learner.model(held["inputs"]).detach())


def test_what_is_remembered_joins_the_next_experiences_data_as_often_as_told(few: Any) -> None:
    engine = few.bind(RememberExemplars(per_class=2, selection="random"), MergedReplay(repeat=3))
    first, second = few.points(9), few.points(7, seed=1)
    opened, replaced = engine.begin(few.experience(*first))
    assert not replaced
    engine.end(opened)
    held = engine.learner.memory.all()
    opened, replaced = engine.begin(few.experience(*second, 1))
    assert replaced
    joined = opened.train.gather(torch.arange(len(opened.train)))
    assert torch.equal(joined.inputs, torch.cat([second[0], *[held["inputs"]] * 3]))
    assert torch.equal(joined.targets, torch.cat([second[1], *[held["targets"]] * 3]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_old_classes_answer_as_before_and_new_ones_by_the_labels(few: Any, head: str, temperature: float) -> None:
    engine = few.bind(BinaryDistillation(temperature=temperature), model=few.net(head=head, classes=6))
    first, second = few.points(6, classes=2), few.points(6, classes=4, seed=1)
    _learn(few, engine, [first])
    model = engine.learner.model
    with torch.no_grad():
        before = model(second[0]).clone()
    engine.begin(few.experience(*second, 1))

    def by_hand() -> torch.Tensor:
        total = 0.0
        for row, (x, y) in enumerate(zip(*second, strict=True)):
            outputs = model(x[None])[0]
            for c in range(4):  # 4 and 5 are still to come
                wanted = 1 / (1 + math.exp(-float(before[row, c]) / temperature)) if c < 2 else float(c == y)
                g = 1 / (1 + torch.exp(-outputs[c]))
                total = total - wanted * torch.log(g) - (1 - wanted) * torch.log(1 - g)
        return total / 6

    few.step(engine, *second)
    few.assert_gradient(engine.learner, few.gradient_of(engine.learner, by_hand))


def test_the_nearest_mean_of_features_decides_and_classes_without_samples_never_win(few: Any) -> None:
    engine = few.bind(Remember(capacity=9), NearestExemplarMean(), model=few.net(classes=5))
    model = engine.learner.model
    old, new = few.points(9, classes=3), few.points(7, seed=1)
    with engine.evaluating(), torch.no_grad():
        assert torch.equal(engine.predict(new[0]), model(new[0]))  # nothing is remembered
    engine.learner.memory.add({"inputs": old[0], "targets": old[1]})
    features = _features(model, old[0])
    means = [sum(f for f, y in zip(features, old[1], strict=True) if y == c) for c in range(3)]
    means = [mean / mean.norm() for mean in means]
    with engine.evaluating(), torch.inference_mode():
        outputs = engine.predict(new[0]).clone()
    for row, f in enumerate(_features(model, new[0])):
        for c in range(3):
            assert float(outputs[row, c]) == pytest.approx(-float((f - means[c]).square().sum()), abs=1e-5)
    assert (outputs[:, 3:] < -100).all()


def test_after_a_step_the_means_are_those_of_the_model_as_it_is_then(few: Any) -> None:
    engine = few.bind(Remember(capacity=9), NearestExemplarMean())
    old = few.points(9)
    engine.learner.memory.add({"inputs": old[0], "targets": old[1]})
    for _ in range(2):
        with engine.evaluating(), torch.no_grad():
            found = engine.predict(old[0])
        held = engine.learner.memory.all()
        features = _features(engine.learner.model, held["inputs"])
        mean = sum(f for f, y in zip(features, held["targets"], strict=True) if y == 0)
        mean = mean / mean.norm()
        expected = [-float((f - mean).square().sum()) for f in _features(engine.learner.model, old[0])]
        assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
        few.step(engine, *few.points(4), lr=2.0)


def test_methods_take_a_capacity_or_a_number_per_class() -> None:
    for method in (icarl, er_exemplars, agem_exemplars, exemplar_replay):
        for arguments in ({"capacity": 20}, {"per_class": 5}):
            operation = next(o for o in method(**arguments) if isinstance(o, RememberExemplars))
            assert {operation.capacity, operation.per_class} == {None, *arguments.values()}
    with pytest.raises(ConfigError, match="capacity=None and per_class=None"):
        RememberExemplars()
    with pytest.raises(ConfigError, match="repeat=0"):
        MergedReplay(repeat=0)
    with pytest.raises(ConfigError, match="temperature=0"):
        BinaryDistillation(temperature=0)


@pytest.mark.parametrize(
    ("name", "head"), [("er_exemplars", "one"), ("agem_exemplars", "one"), ("er_exemplars", "task")]
)
def test_a_step_calls_no_more_functions_after_more_experiences(name: str, head: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    if head == "task":
        model = mlp(input_shape=(4,), classes=0, hidden=[6], head="task")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, foreach=True)
    cl = Continual(model, getattr(methods, name)(per_class=2, size=4), optimizer)
    calls: dict[int, int] = {}
    counted: list[str] = []

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        cl.backward(nn.functional.cross_entropy(cl(inputs), targets), targets, inputs=inputs)
        optimizer.step()

    for experience in range(71):
        inputs, targets = torch.randn(8, 4), torch.arange(8) % 2
        if head == "task":
            targets = targets + 2 * experience
        data = TensorData(inputs, targets)
        cl.begin(data, task=experience if head == "task" else None)
        for _ in range(5 if experience in (10, 70) else 1):  # the first few look at what they are given
            step(inputs, targets)
        if experience in (10, 70):
            counted.clear()
            sys.setprofile(lambda frame, event, argument: counted.append(event))
            step(inputs, targets)
            sys.setprofile(None)
            calls[experience] = sum(event in ("call", "c_call") for event in counted)
        cl.end(data)
    torchs = 4 * 60 if head == "task" else 0  # SGD lists each weight and bias of a head, and their gradients
    assert calls[70] <= calls[10] + torchs + 8
    assert len(optimizer.param_groups) <= 2
