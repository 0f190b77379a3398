"""GDumb: its sampler against the algorithm written out, and a training that starts over from the same weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holdfast.core.errors import ConfigError
from holdfast.operations import Remember, TrainOnMemory
from holdfast.operations.train_on_memory import GreedyBalance


def test_a_class_below_its_share_takes_the_place_of_one_of_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    sampler = GreedyBalance(generator)
    targets = torch.randint(4, (300,), generator=torch.Generator().manual_seed(1)).clamp(max=3)
    targets[:40] = 0  # a long first class fills the memory alone
    slots: dict[int, int] = {}  # slot -> class, kept by the paper's rule
    for number, label in enumerate(targets.tolist()):
        before = dict(slots)
        seen = len(set(targets[: number + 1].tolist()))
        placed = sampler.plan(1, number, 12, targets[number : number + 1])
        counts = [list(before.values()).count(c) for c in range(4)]
        if counts[label] >= 12 / seen:
            assert placed is None
            continue
        slot = placed.slots[0]
        if len(before) < 12:
            assert slot not in before
        else:
            assert counts[before[slot]] == max(counts)
        slots[slot] = label
    assert sorted(list(slots.values()).count(c) for c in range(4)) == [3, 3, 3, 3]


def test_the_memory_sees_each_sample_once_and_ends_balanced(few: Any) -> None:
    engine = few.bind(TrainOnMemory(capacity=12, epochs=1))
    for index in range(3):
        inputs, targets = few.points(30, classes=1, first=index, seed=index)
        opened, _ = engine.begin(few.experience(inputs, targets, index))
        few.step(engine, inputs[:4], targets[:4])
        engine.end(opened)
    held = engine.learner.memory.all()
    assert torch.bincount(held["targets"]).tolist() == [4, 4, 4]
    assert len({tuple(x.tolist()) for x in held["inputs"]}) == 12
    assert engine.learner.memory.seen == 90


@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_what_the_loop_trained_in_between_does_not_matter(few: Any, head: str) -> None:
    ends = []
    for lr in (0.0, 0.7):
        engine = few.bind(TrainOnMemory(capacity=8, epochs=3), model=few.net(head=head, classes=4))
        for index in range(2):
            inputs, targets = few.points(12, classes=2, first=2 * index, seed=index)
            opened, _ = engine.begin(few.experience(inputs, targets, index))
            for _ in range(3):
                few.step(engine, inputs, targets, lr=lr)
            engine.end(opened)
        ends.append(engine.learner.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    start = few.net(head=head, classes=4).state_dict()
    assert not torch.equal(ends[0]["backbone.0.weight"], start["backbone.0.weight"])


def test_one_step_on_the_memory_is_sgd_from_the_initial_weights(few: Any) -> None:
    engine = few.bind(TrainOnMemory(capacity=6, epochs=1, batch_size=6, rate=0.5, weight_decay=0.0))
    inputs, targets = few.points(6)
    opened, _ = engine.begin(few.experience(inputs, targets))
    few.step(engine, inputs, targets, lr=1.0)
    engine.end(opened)
    by_hand = few.net()
    torch.nn.functional.cross_entropy(by_hand(inputs), targets).backward()
    for own, p in zip(engine.learner.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(
            own.detach(), (p - 0.05 * p.grad).detach()
        )  # the first epoch is a warm-up at a tenth
        assert own.grad is None


def test_the_learning_rate_falls_along_a_cosine_and_restarts_after_1_2_4_8_epochs() -> None:
    operation = TrainOnMemory(capacity=1, rate=1.0, least_rate=0.1)
    rates = [operation._rate(epoch) for epoch in range(16)]
    expected = [0.1]
    for length in (1, 2, 4, 8):
        expected += [0.1 + 0.45 * (1 + math.cos(math.pi * e / length)) for e in range(length)]
    assert rates == pytest.approx(expected)


def test_a_second_memory_and_senseless_numbers_are_refused(few: Any) -> None:
    with pytest.raises(ConfigError, match="both fill the memory"):
        few.bind(Remember(capacity=3), TrainOnMemory(capacity=3))
    with pytest.raises(ConfigError, match="epochs=0"):
        TrainOnMemory(capacity=3, epochs=0)
