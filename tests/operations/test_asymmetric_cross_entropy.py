"""Asymmetric cross-entropy, against a softmax written out over the classes that compete."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.operations import AsymmetricCrossEntropy, Remember, Replay
from holdfast.training import Continual


def _among(model: Any, inputs: Tensor, targets: Tensor, classes: list[int]) -> Tensor:
    """Mean negative log-probability with a softmax over `classes` only, one sample and one class at a time."""
    total = 0.0
    for x, y in zip(inputs, targets.tolist(), strict=True):
        outputs = model(x[None])[0]
        total = total - outputs[y] + torch.log(sum(torch.exp(outputs[c]) for c in classes))
    return total / len(inputs)


def test_current_rows_compete_among_the_classes_of_their_batch_only(few: Any) -> None:
    engine = few.bind(AsymmetricCrossEntropy(), model=few.net(classes=5))
    inputs, targets = few.points(4, classes=2, first=1)
    few.step(engine, inputs, targets)
    by_hand = few.gradient_of(engine.learner, lambda: _among(engine.learner.model, inputs, targets, [1, 2]))
    few.assert_gradient(engine.learner, by_hand)
    assert engine.learner.head.weight.grad[[0, 3, 4]].abs().max() == 0
    assert engine.learner.head.weight.grad[[1, 2]].abs().max() > 0


def test_among_the_experience_they_compete_with_classes_that_the_batch_lacks(few: Any) -> None:
    engine = few.bind(AsymmetricCrossEntropy(among="experience"), model=few.net(classes=5))
    inputs, targets = few.points(6, classes=3, first=1)
    engine.begin(few.experience(inputs, targets))
    one = targets == 2
    few.step(engine, inputs[one], targets[one])
    by_hand = few.gradient_of(
        engine.learner, lambda: _among(engine.learner.model, inputs[one], targets[one], [1, 2, 3])
    )
    few.assert_gradient(engine.learner, by_hand)


def test_an_average_with_replay_that_stands_before_it_is_kept(few: Any) -> None:
    engine = few.bind(
        Replay(size=5, average="rows"), AsymmetricCrossEntropy(), Remember(capacity=5), model=few.net(classes=4)
    )
    old, new = few.points(5, classes=4, seed=9), few.points(3, classes=2)
    engine.learner.memory.add({"inputs": old[0], "targets": old[1]})
    few.step(engine, *new)
    model = engine.learner.model
    by_hand = few.gradient_of(
        engine.learner,
        lambda: 3 / 8 * _among(model, *new, [0, 1]) + 5 / 8 * _among(model, *old, [0, 1, 2, 3]),
    )
    few.assert_gradient(engine.learner, by_hand)


def test_in_a_loop_of_ones_own_it_takes_the_place_of_the_loss_that_was_given(few: Any) -> None:
    inputs, targets = few.points(4, classes=2)
    nets = [few.net(), few.net()]
    for net, factor in zip(nets, (1.0, 100.0), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        cl = Continual(net, _method(), optimizer)
        loss = factor * nn.functional.cross_entropy(net(inputs), targets)
        cl.backward(loss, targets, inputs=inputs)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0].head.weight, few.net().head.weight)


def _method() -> Any:
    from holdfast.core.method import Method

    return Method(AsymmetricCrossEntropy())


def test_a_batch_of_one_class_teaches_nothing(few: Any) -> None:
    engine = few.bind(AsymmetricCrossEntropy())
    inputs, _ = few.points(3)
    few.step(engine, inputs, torch.ones(3, dtype=torch.int64))
    assert all(p.grad.abs().max() == 0 for p in engine.learner.parameters())


def test_an_experience_without_classes_and_an_unknown_choice_are_refused(few: Any) -> None:
    with pytest.raises(ConfigError, match="among='all'"):
        AsymmetricCrossEntropy(among="all")
    engine = few.bind(AsymmetricCrossEntropy(among="experience"))
    nothing = few.experience(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ConfigError, match="names none"):
        engine.begin(nothing)
