"""Maximally interfered retrieval, against a virtual step made by hand on a copy of the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.step import Step
from holdfast.operations import InterferedReplay, Remember


def _engine(few: Any, model: Any = None, **arguments: Any) -> Any:
    engine = few.bind(InterferedReplay(**arguments), Remember(capacity=8), model=few.net() if model is None else model)
    old = few.points(8, seed=9)
    engine.learner.memory.add({"inputs": old[0], "targets": old[1]})
    return engine, old


def _scores(model: nn.Module, new: Any, old: Any, rate: float) -> list[float]:
    """How much one step of gradient descent on the new samples raises the loss of each old one."""
    after = copy.deepcopy(model)
    F.cross_entropy(after(new[0]), new[1]).backward()
    with torch.no_grad():
        for p in after.parameters():
            p -= rate * p.grad
        return [
            float(F.cross_entropy(after(x[None]), y[None]) - F.cross_entropy(model(x[None]), y[None]))
            for x, y in zip(*old, strict=True)
        ]


def test_the_old_samples_that_the_step_would_hurt_most_are_replayed(few: Any) -> None:
    engine, old = _engine(few, size=3, candidates=8, rate=0.5)
    new, model = few.points(4, seed=1), engine.learner.model
    scores = _scores(model, new, old, 0.5)
    worst = sorted(range(8), key=scores.__getitem__)[-3:]

    def by_hand() -> torch.Tensor:
        current = sum(F.cross_entropy(model(x[None]), y[None]) for x, y in zip(*new, strict=True)) / 4
        return current + sum(F.cross_entropy(model(old[0][i : i + 1]), old[1][i : i + 1]) for i in worst) / 3

    few.step(engine, *new)
    few.assert_gradient(engine.learner, few.gradient_of(engine.learner, by_hand))


def test_the_virtual_step_leaves_model_gradients_buffers_and_randomness_alone(few: Any) -> None:
    model = few.net(batch_norm=True, dropout=0.5)
    engine, old = _engine(few, model, size=3, candidates=8, rate=0.5)
    learner, operation = engine.learner, engine.method.operations[0]
    new = few.points(4, seed=1)
    outputs = learner(new[0])
    step = Step(*new, F.cross_entropy(outputs, new[1]), outputs)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    scores = operation.interference(step, {"inputs": old[0], "targets": old[1]}, learner)
    assert scores.shape == (8,)
    assert scores.abs().max() > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    step.loss.backward()  # its graph is still there


def test_the_rate_is_the_optimisers_unless_one_is_given(few: Any) -> None:
    engine, old = _engine(few, size=3, candidates=8)
    learner, operation = engine.learner, engine.method.operations[0]
    new = few.points(4, seed=1)
    rows = {"inputs": old[0], "targets": old[1]}
    for rate in (0.03, 0.7):
        learner.optimizer = lambda rate=rate: torch.optim.SGD(learner.parameters(), lr=rate)
        outputs = learner(new[0])
        step = Step(*new, F.cross_entropy(outputs, new[1]), outputs)
        expected = torch.tensor(_scores(learner.model, new, old, rate), dtype=torch.float64)
        torch.testing.assert_close(operation.interference(step, rows, learner), expected)


def test_a_memory_no_larger_than_the_replay_is_replayed_whole_and_an_empty_one_not(few: Any) -> None:
    engine = few.bind(InterferedReplay(size=5, candidates=6), Remember(capacity=8))
    new = few.points(3)
    few.step(engine, *new)
    alone = {name: p.grad.clone() for name, p in engine.learner.named_parameters().items()}
    few.assert_gradient(
        engine.learner,
        few.gradient_of(engine.learner, lambda: F.cross_entropy(engine.learner.model(new[0]), new[1])),
    )
    few.step(engine, *new)  # the memory holds the same three samples now: twice the gradient
    few.assert_gradient(engine.learner, {name: 2 * grad for name, grad in alone.items()})


def test_fewer_candidates_than_samples_to_replay_are_refused() -> None:
    with pytest.raises(ConfigError, match="candidates=4 and size=10"):
        InterferedReplay(size=10, candidates=4)
    with pytest.raises(ConfigError, match="rate=-1"):
        InterferedReplay(rate=-1)
