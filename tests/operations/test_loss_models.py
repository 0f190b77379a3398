"""Learned losses of past experiences: each formula written out on a few points."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holdfast.core.errors import ConfigError
from holdfast.operations import CommonMinimum, LossSurrogate
from holdfast.operations._parts.loss_models import ball, directions, fit, network, value

SMALL: dict[str, Any] = {"points": 12, "steps": 20, "units": 5, "samples": 6}


def weights_of(learner: Any) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in learner.named_parameters().values()])


def live(few: Any, engine: Any, index: int, seed: int, steps: int = 6, **other: Any) -> None:
    """One whole experience."""
    x, y = few.points(8, seed=seed, **other)
    experience = few.experience(x, y, index=index)
    engine.begin(experience)
    for _ in range(steps):
        few.step(engine, x, y, lr=0.4)
    engine.end(experience)


# The directions ---------------------------------------------------------------------------------------------


def test_directions_are_those_of_partial_least_squares_one_deflation_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    losses = torch.randn(7, generator=generator, dtype=torch.float64)
    found = directions(points, losses, 3)
    x = [[float(points[i, j] - points[:, j].mean()) for j in range(5)] for i in range(7)]
    y = [float(losses[i] - losses.mean()) for i in range(7)]
    for row in found:
        w = [sum(x[i][j] * y[i] for i in range(7)) for j in range(5)]
        length = math.sqrt(sum(v * v for v in w))
        w = [v / length for v in w]
        assert row.tolist() == pytest.approx(w, abs=1e-9)
        t = [sum(x[i][j] * w[j] for j in range(5)) for i in range(7)]
        square = sum(v * v for v in t)
        p = [sum(t[i] * x[i][j] for i in range(7)) / square for j in range(5)]
        q = sum(t[i] * y[i] for i in range(7)) / square
        x = [[x[i][j] - t[i] * p[j] for j in range(5)] for i in range(7)]
        y = [y[i] - t[i] * q for i in range(7)]
    assert torch.allclose(found @ found.T, torch.eye(3, dtype=torch.float64))


def test_a_loss_along_one_line_has_one_direction_and_a_constant_one_none() -> None:
    line = torch.arange(6.0)[:, None] * torch.tensor([[3.0, 4.0]])
    found = directions(line, line[:, 0] * 2, 2)
    assert found.shape == (1, 2)
    assert found[0].abs().tolist() == pytest.approx([0.6, 0.8])
    assert directions(line, torch.ones(6), 2).shape == (0, 2)


def test_points_lie_in_the_ball_and_fill_it_evenly() -> None:
    points = ball(4000, 2, torch.tensor(3.0), torch.Generator().manual_seed(1))
    lengths = points.norm(dim=1)
    assert float(lengths.max()) <= 3.0
    assert float(lengths[0]) == 0
    within = float((lengths < 1.5).float().mean())
    assert within == pytest.approx(0.25, abs=0.03)  # a quarter of a disc lies within half its radius


# The network and the value -----------------------------------------------------------------------------------


def gelu(v: float) -> float:
    return v * 0.5 * (1 + math.erf(v / math.sqrt(2)))


def by_hand(model: dict[str, Any], z: list[float]) -> float:
    """The network on one point, unit by unit."""
    w1, b1, w2, b2, w3, b3 = (layer.tolist() for layer in model["layers"])
    length, radius = math.sqrt(sum(v * v for v in z)), float(model["radius"])
    u = [v / max(radius, length) for v in z]
    h = [gelu(sum(a * v for a, v in zip(row, u)) + b) for row, b in zip(w1, b1)]
    h = [v + gelu(sum(a * c for a, c in zip(row, h)) + b) for v, row, b in zip(h, w2, b2)]
    return float(model["mean"]) + float(model["scale"]) * (sum(a * v for a, v in zip(w3[0], h)) + b3[0])


def fitted() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    points = ball(40, 2, torch.tensor(2.0, dtype=torch.float64), generator)
    losses = points[:, 0].square() + 0.5 * points[:, 1] + 3
    model = fit(points, losses, torch.tensor(2.0, dtype=torch.float64), 16, 300, 0.02, generator)
    error = (network(model, points) - losses).square().mean()
    assert float(error) < 0.02 * float(losses.var())
    basis = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return {**model, "centre": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), "basis": basis, "samples": 4}


@pytest.mark.parametrize("theta", [[1.3, 2.4, 3.5], [1.8, 1.2, 3.0], [4.0, 6.0, 9.0]])
def test_a_modelled_loss_is_the_network_in_the_ball_and_the_squared_distance_from_it(theta: list[float]) -> None:
    model = fitted()
    delta = [a - b for a, b in zip(theta, [1.0, 2.0, 3.0])]
    z = [0.6 * delta[0] + 0.8 * delta[1], delta[2]]
    length = math.sqrt(sum(v * v for v in z))
    nearest = [v * min(1.0, 2.0 / length) for v in z]
    point = [1 + 0.6 * nearest[0], 2 + 0.8 * nearest[0], 3 + nearest[1]]
    distance = sum((a - b) ** 2 for a, b in zip(theta, point))
    found = value(model, torch.tensor(theta, dtype=torch.float64), outside=0.7)
    assert float(found) == pytest.approx(by_hand(model, z) + 0.7 * distance, rel=1e-9)


def test_weights_that_came_later_are_left_out() -> None:
    model, theta = fitted(), torch.tensor([1.3, 2.4, 3.5], dtype=torch.float64)
    more = torch.cat([theta, torch.tensor([50.0], dtype=torch.float64)])
    assert float(value(model, theta, 1.0)) == float(value(model, more, 1.0))


# The operations ----------------------------------------------------------------------------------------------


def test_the_loss_is_measured_at_the_points_and_the_weights_stay(few: Any) -> None:
    engine = few.bind(LossSurrogate(**SMALL))
    (operation,) = engine.method.operations
    x, y = few.points(8)
    experience = few.experience(x, y)
    engine.begin(experience)
    points = torch.stack([weights_of(engine.learner) + 0.1 * k for k in range(3)])
    before = weights_of(engine.learner)
    measured = operation.measure(points, experience.train, engine.learner)
    assert torch.equal(weights_of(engine.learner), before)
    for k, loss in enumerate(measured):
        operation.put(points[k], engine.learner)
        assert float(loss) == pytest.approx(float(engine.learner.loss_on(x, y).detach()))


@pytest.mark.parametrize("average", ["experiences", "none"])
def test_the_total_weighs_todays_loss_and_the_learned_ones(few: Any, average: str) -> None:
    engine = few.bind(LossSurrogate(**SMALL, outside=0.5, weight=0.3, average=average))
    learner, (operation,) = engine.learner, engine.method.operations
    live(few, engine, 0, seed=0)
    live(few, engine, 1, seed=1)
    operation.models[0]["samples"] = 24  # three times as many as the second
    x, y = few.points(5, seed=2)
    engine.begin(few.experience(x, y, index=2))
    few.step(engine, x, y, lr=0.5)
    now, old = (1 / 3, 2 / 3) if average == "experiences" else (1.0, 0.3)

    def total() -> torch.Tensor:
        theta = torch.cat([p.reshape(-1) for p in learner.named_parameters().values()])
        first, second = (value(model, theta, 0.5) for model in operation.models)
        today = torch.nn.functional.cross_entropy(learner.model(x), y)
        return now * today + old * (0.75 * first + 0.25 * second)

    expected = few.gradient_of(learner, total)
    few.step(engine, x, y)
    few.assert_gradient(learner, expected)


def test_the_centre_is_where_an_experience_ended_and_outputs_that_grow_later_join_at_the_end(few: Any) -> None:
    engine = few.bind(LossSurrogate(**SMALL), model=few.net("growing"))
    (operation,) = engine.method.operations
    live(few, engine, 0, seed=0, classes=2)
    assert torch.equal(operation.models[0]["centre"], weights_of(engine.learner))
    first = len(operation.models[0]["centre"])
    live(few, engine, 1, seed=1, classes=2, first=2)
    assert len(operation.models[1]["centre"]) == first + 2 * 5 + 2
    assert operation.names[-2:] == ["head.weights.1", "head.biases.1"]


def test_a_long_path_keeps_a_bounded_number_of_points_over_all_of_it(few: Any) -> None:
    engine = few.bind(LossSurrogate(**SMALL))
    (operation,) = engine.method.operations
    x, y = few.points(6)
    engine.begin(few.experience(x, y))
    seen = []
    for _ in range(100):
        seen.append(weights_of(engine.learner))
        few.step(engine, x, y, lr=0.1)
    assert 8 <= len(operation.path) <= 16
    for place, kept in enumerate(operation.path):
        assert torch.equal(kept, seen[place * operation.interval])


def test_the_weights_move_to_a_lower_sum_of_all_learned_losses(few: Any) -> None:
    engine = few.bind(CommonMinimum(**SMALL, outside=0.2, moves=80, move_rate=0.01))
    learner, (operation,) = engine.learner, engine.method.operations
    live(few, engine, 0, seed=0)
    assert torch.equal(weights_of(learner), operation.models[0]["centre"])  # nothing to agree with yet
    live(few, engine, 1, seed=1)
    trained = operation.models[1]["centre"]

    def total(theta: torch.Tensor) -> float:
        return sum(0.5 * float(value(model, theta, 0.2)) for model in operation.models)

    assert total(weights_of(learner)) < total(trained)


@pytest.mark.slow
def test_with_everything_outside_the_minimum_lies_between_the_ends(few: Any) -> None:
    engine = few.bind(CommonMinimum(**SMALL, radius=1e-6, outside=1e4, moves=3000, move_rate=0.005))
    learner, (operation,) = engine.learner, engine.method.operations
    live(few, engine, 0, seed=0)
    live(few, engine, 1, seed=1)
    first, second = (model["centre"] for model in operation.models)
    torch.testing.assert_close(weights_of(learner), (first + second) / 2, atol=2e-2, rtol=0)


@pytest.mark.parametrize("given", [{"dimensions": 0}, {"radius": 0.0}, {"outside": -1.0}, {"average": "rows"}])
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="`loss_surrogate`"):
        LossSurrogate(**given)
    with pytest.raises(ConfigError, match="`common_minimum`"):
        CommonMinimum(moves=0)
