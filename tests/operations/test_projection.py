"""Gradient projection: no step against the memory, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.methods import agem
from holdfast.operations import GradientProjection, Remember
from holdfast.operations.gradient_projection import project
from holdfast.training import Continual


def _vectors(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in [(3, 4), (4,), (2, 2, 2)]]


def _dot(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return sum(
        float(x) * float(y) for u, v in zip(a, b, strict=True) for x, y in zip(u.flatten(), v.flatten(), strict=True)
    )


@pytest.mark.parametrize("seed", range(20))
def test_after_projection_no_gradient_points_against_the_reference(seed: int) -> None:
    gradients, reference = _vectors(seed), _vectors(seed + 100)
    before = [g.clone() for g in gradients]
    project(gradients, reference)
    along = _dot(before, reference)
    if along >= 0:
        assert all(torch.equal(a, b) for a, b in zip(before, gradients, strict=True))
    else:
        factor = along / _dot(reference, reference)
        for g, old, r in zip(gradients, before, reference, strict=True):
            torch.testing.assert_close(g, old - factor * r, rtol=1e-5, atol=1e-6)
    assert _dot(gradients, reference) >= -1e-5


@pytest.mark.parametrize("seed", range(10))
def test_per_layer_every_tensor_is_a_vector_of_its_own(seed: int) -> None:
    gradients, reference = _vectors(seed), _vectors(seed + 100)
    before = [g.clone() for g in gradients]
    project(gradients, reference, per_layer=True)
    for g, old, r in zip(gradients, before, reference, strict=True):
        along = _dot([old], [r])
        if along >= 0:
            assert torch.equal(g, old)
        else:
            torch.testing.assert_close(g, old - along / _dot([r], [r]) * r, rtol=1e-5, atol=1e-6)
        assert _dot([g], [r]) >= -1e-5


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e15])
def test_a_reference_of_any_length_gives_finite_gradients(size: float, per_layer: bool) -> None:
    gradients = _vectors(0)
    before = [g.clone() for g in gradients]
    project(gradients, [-g * size for g in before], per_layer)
    assert all(g.isfinite().all() for g in gradients)
    if size == 0.0:
        assert all(torch.equal(a, b) for a, b in zip(before, gradients, strict=True))


def test_a_step_is_projected_on_the_memorys_own_gradient(few: Any) -> None:
    engine = few.bind(GradientProjection(size=5), Remember(capacity=5))
    learner = engine.learner
    x, y = few.points(5)
    old = {"inputs": x, "targets": (y + 1) % 3}  # the same inputs with other labels: a conflict
    learner.memory.add(old)
    g = few.gradient_of(learner, lambda: F.cross_entropy(learner.model(x), y))
    r = few.gradient_of(learner, lambda: F.cross_entropy(learner.model(x), old["targets"]))
    along = _dot(list(g.values()), list(r.values()))
    assert along < 0
    few.step(engine, x, y)
    norm = _dot(list(r.values()), list(r.values()))
    few.assert_gradient(learner, {name: g[name] - along / norm * r[name] for name in g})


def test_without_a_conflict_the_gradient_stays_to_the_bit(few: Any) -> None:
    engine, plain = few.bind(GradientProjection(size=5), Remember(capacity=5)), few.bind()
    x, y = few.points(5)
    engine.learner.memory.add({"inputs": x, "targets": y})
    for one in (engine, plain):
        few.step(one, x, y)
    for a, b in zip(engine.learner.parameters(), plain.learner.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("per_layer", [False, True])
def test_gradients_that_are_zeroed_instead_of_dropped_give_the_same_weights(few: Any, per_layer: bool) -> None:
    ends = []
    for set_to_none in (True, False):
        model = few.net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        cl = Continual(model, agem(capacity=10, size=10, per_layer=per_layer), optimizer)
        for seed in range(6):
            x, y = few.points(5, seed=seed % 2)
            y = (y + seed) % 3  # labels that change: conflicts
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=set_to_none)
            cl.backward(loss, y, inputs=x)
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_parameter_that_had_no_gradient_takes_part_as_zero(few: Any) -> None:
    model = few.net()
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    engine = few.bind(GradientProjection(size=5), Remember(capacity=5), model=model)
    x, y = few.points(5)
    engine.learner.memory.add({"inputs": x, "targets": (y + 1) % 3})
    few.step(engine, x, y)
    assert torch.equal(model.unused.grad, torch.zeros(2, dtype=torch.float64))
