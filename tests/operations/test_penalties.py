"""Penalties on moved weights and on changed outputs: EWC, SI and LwF against their formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError
from holdfast.operations import Distillation, FisherPenalty, PathPenalty
from holdfast.operations._parts.fisher import fisher_diagonal
from holdfast.operations._parts.quadratic import quadratic
from holdfast.streams.data import TensorData


def _learn(few: Any, engine: Engine, experience: Any, steps: int = 3, lr: float = 0.2) -> None:
    batch = experience.train.gather(torch.arange(len(experience.train)))
    engine.begin(experience)
    for _ in range(steps):
        few.step(engine, batch.inputs, batch.targets, lr=lr, task=experience.task)


def _values(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.learner.named_parameters().items()}


# The quadratic ---------------------------------------------------------------------------------------------


def test_the_quadratic_and_its_gradient_equal_the_sum_over_parameters(few: Any) -> None:
    engine = few.bind()
    learner = engine.learner
    generator = torch.Generator().manual_seed(0)
    like = {name: torch.rand(p.shape, generator=generator).double() for name, p in learner.named_parameters().items()}
    anchor = {name: torch.rand(p.shape, generator=generator).double() for name, p in learner.named_parameters().items()}
    expected = sum(
        float(f) * (float(p) - float(a)) ** 2
        for name, parameter in learner.named_parameters().items()
        for f, p, a in zip(like[name].flatten(), parameter.detach().flatten(), anchor[name].flatten(), strict=True)
    )
    found = quadratic(learner, like, anchor)
    assert float(found) == pytest.approx(expected)
    grads = few.gradient_of(learner, lambda: 3 * quadratic(learner, like, anchor))
    for name, parameter in learner.named_parameters().items():
        torch.testing.assert_close(grads[name], 6 * like[name] * (parameter.detach() - anchor[name]))


# Elastic weight consolidation ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_offline_the_merged_penalty_is_the_sum_of_one_per_experience(few: Any, kind: str) -> None:
    engine = few.bind(FisherPenalty(strength=3.0, fisher=kind))
    learner, (penalty,) = engine.learner, engine.method.operations
    kept: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    for index in range(4):
        experience = few.experience(*few.points(6, seed=index), index=index)
        _learn(few, engine, experience)
        kept.append((fisher_diagonal(learner, experience.train, kind), _values(engine)))
        engine.end(experience)
    x, y = few.points(5, seed=9)
    few.step(engine, x, y, lr=0.3)  # away from every anchor

    def penalties() -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for fisher, anchor in kept:
            for name, parameter in learner.named_parameters().items():
                total = total + 1.5 * (fisher[name] * (parameter - anchor[name]) ** 2).sum()
        return total

    value, factor = penalty.loss(None, learner)
    assert float(value) * factor == pytest.approx(float(penalties()), rel=1e-9)
    expected = few.gradient_of(learner, lambda: F.cross_entropy(learner.model(x), y) + penalties())
    few.step(engine, x, y)
    few.assert_gradient(learner, expected)


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_online_one_running_penalty_holds_the_latest_weights(few: Any, decay: float) -> None:
    engine = few.bind(FisherPenalty(strength=2.0, fisher="exact", online=True, decay=decay))
    learner = engine.learner
    running: dict[str, torch.Tensor] = {}
    for index in range(3):
        experience = few.experience(*few.points(6, seed=index), index=index)
        _learn(few, engine, experience)
        found, anchor = fisher_diagonal(learner, experience.train, "exact"), _values(engine)
        running = {name: decay * running.get(name, torch.zeros(())) + value for name, value in found.items()}
        engine.end(experience)
    x, y = few.points(5, seed=9)
    few.step(engine, x, y, lr=0.3)

    def by_hand() -> torch.Tensor:
        named = learner.named_parameters()
        held = sum((running[name] * (named[name] - anchor[name]) ** 2).sum() for name in named)
        return F.cross_entropy(learner.model(x), y) + held

    expected = few.gradient_of(learner, by_hand)
    few.step(engine, x, y)
    few.assert_gradient(learner, expected)


def test_nothing_is_held_before_the_first_experience_ended_and_something_after_it(few: Any) -> None:
    engine = few.bind(FisherPenalty())
    (penalty,) = engine.method.operations
    experience = few.experience(*few.points(6))
    engine.begin(experience)
    assert penalty.loss(None, engine.learner) is None
    engine.end(experience)
    few.step(engine, *few.points(6, seed=2), lr=0.5)
    value, factor = penalty.loss(None, engine.learner)
    assert float(value) * factor > 0


def test_new_outputs_are_free_until_their_own_experience_ended(few: Any) -> None:
    engine = few.bind(FisherPenalty(strength=5.0, fisher="exact"), model=few.net("growing"))
    (penalty,) = engine.method.operations
    first = few.experience(*few.points(6, classes=2))
    _learn(few, engine, first)
    engine.end(first)
    second = few.experience(*few.points(6, classes=2, first=2, seed=1), index=1)
    _learn(few, engine, second)
    assert "head.weights.1" not in penalty.anchor
    engine.end(second)
    assert penalty.anchor["head.weights.1"].shape == (2, 5)
    few.step(engine, *few.points(4, classes=4))


def test_an_experience_without_data_leaves_the_penalty_alone(few: Any) -> None:
    engine = few.bind(FisherPenalty(fisher="exact"))
    (penalty,) = engine.method.operations
    x, y = few.points(3)
    empty = few.experience(x, y)
    empty.train = TensorData(x[:0], y[:0])
    engine.begin(empty)
    engine.end(empty)
    assert penalty.anchor == {}


@pytest.mark.parametrize("given", [{"strength": -1.0}, {"decay": 1.5}, {"fisher": "diagonal"}])
def test_a_fisher_penalty_refuses_what_makes_no_sense(given: Any) -> None:
    with pytest.raises(ConfigError, match="`fisher_penalty`"):
        FisherPenalty(**given)


# Synaptic intelligence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "pulled"), [(None, True), (None, False), (1e-3, True)])
@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_the_path_integral_equals_the_sum_written_out(few: Any, head: str, limit: float | None, pulled: bool) -> None:
    strength, damping, lr = 0.7, 0.2, 0.3
    operation = PathPenalty(strength=strength, damping=damping, limit=limit, head=pulled)
    engine = few.bind(operation, model=few.net(head, classes=4))
    learner = engine.learner
    omega: dict[str, torch.Tensor] = {}
    anchor: dict[str, torch.Tensor] = {}

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        held = torch.zeros((), dtype=torch.float64)
        for name, parameter in learner.named_parameters().items():
            if name in omega:
                held = held + strength * (omega[name] * (parameter - anchor[name]) ** 2).sum()
        return F.cross_entropy(learner.model(x), y) + held

    for index in range(3):
        classes = 2 if head == "growing" else 4
        x, y = few.points(6, classes=classes, seed=index, first=2 * index if head == "growing" else 0)
        experience = few.experience(x, y, index=index)
        engine.begin(experience)
        start = _values(engine)
        path = {name: torch.zeros_like(value) for name, value in start.items()}
        for _ in range(4):
            expected = few.gradient_of(learner, lambda x=x, y=y: loss(x, y))
            before = _values(engine)
            few.step(engine, x, y, lr=lr)
            few.assert_gradient(learner, expected)
            after = _values(engine)
            for name in path:
                path[name] -= expected[name] * (after[name] - before[name])
        engine.end(experience)
        for name, value in _values(engine).items():
            if not pulled and name.startswith("head."):
                continue
            added = path[name] / ((value - start[name]) ** 2 + damping)
            omega[name] = omega.get(name, torch.zeros(())) + added
            if limit is not None:
                bounded = [min(max(one, 0.0), limit) for one in omega[name].flatten().tolist()]
                omega[name] = torch.tensor(bounded, dtype=torch.float64).view_as(value)
            anchor[name] = value
    (penalty,) = engine.method.operations
    assert penalty.importance.keys() == omega.keys()
    for name, value in omega.items():
        torch.testing.assert_close(penalty.importance[name], value, msg=name)
    assert any(float(value.abs().max()) > 0 for value in omega.values())
    assert limit is None or any(float(value.max()) == limit for value in omega.values())


def test_the_path_penalty_has_a_gradient(few: Any) -> None:
    engine, plain = few.bind(PathPenalty(strength=10.0)), few.bind()
    for one in (engine, plain):
        experience = few.experience(*few.points(6))
        _learn(few, one, experience)
        one.end(experience)
        few.step(one, *few.points(6, seed=1), lr=0.3)
        few.step(one, *few.points(6, seed=1))
    pairs = zip(engine.learner.parameters(), plain.learner.parameters(), strict=True)
    assert any(not torch.allclose(a.grad, b.grad) for a, b in pairs)


# Learning without forgetting -------------------------------------------------------------------------------


def _soft_cross_entropy(old: torch.Tensor, new: torch.Tensor, temperature: float) -> torch.Tensor:
    """By loops; outputs that only the new model has get no probability from the old one."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(new)):
        p = [float(value) for value in (old[row] / temperature).exp()]
        q = (new[row] / temperature).exp()
        for label in range(len(p)):
            total = total - p[label] / sum(p) * (q[label] / q.sum()).log()
    return temperature**2 * total / len(new)


@pytest.mark.parametrize("over", ["old", "all"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("average", ["none", "experiences"])
@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_distillation_holds_the_outputs_of_the_classes_seen_before(
    few: Any, head: str, average: str, scaled: bool, over: str
) -> None:
    operation = Distillation(temperature=1.7, weight=0.6, average=average, scaled=scaled, over=over)
    engine = few.bind(operation, model=few.net(head, classes=5))
    learner = engine.learner
    first = few.experience(*few.points(6, classes=3))
    _learn(few, engine, first)
    engine.end(first)
    teacher = learner.model
    x, y = few.points(5, classes=2, first=3, seed=1)
    taught = teacher(x).detach().clone()
    taught = taught[:, :3] if over == "old" else taught
    assert taught.shape[1] == (5 if head == "fixed" and over == "all" else 3)
    second = few.experience(x, y, index=1)
    engine.begin(second)
    few.step(engine, x, y, lr=0.4)
    shares = (1.0, 0.6) if average == "none" else (0.5, 0.5)
    factor = shares[1] if scaled else shares[1] / 1.7**2

    def by_hand() -> torch.Tensor:
        outputs = learner.model(x)
        compared = outputs[:, :3] if over == "old" else outputs
        return shares[0] * F.cross_entropy(outputs, y) + factor * _soft_cross_entropy(taught, compared, 1.7)

    expected = few.gradient_of(learner, by_hand)
    few.step(engine, x, y)
    few.assert_gradient(learner, expected)


def test_with_a_head_per_task_each_old_task_is_distilled_over_its_own_classes(few: Any) -> None:
    engine = few.bind(Distillation(temperature=2.0), model=few.net("task"))
    learner = engine.learner
    for index, first in enumerate([0, 2]):
        experience = few.experience(*few.points(6, classes=2, first=first, seed=index), index=index, task=index)
        _learn(few, engine, experience)
        engine.end(experience)
    x, y = few.points(5, classes=2, first=4, seed=2)

    def every_output() -> torch.Tensor:
        return learner(x, "all")

    taught = every_output().detach().clone()
    engine.begin(few.experience(x, y, index=2, task=2))
    few.step(engine, x, y, lr=0.4, task=2)

    def by_hand() -> torch.Tensor:
        outputs = every_output()
        own = F.cross_entropy(outputs[:, 4:6], y - 4)
        old = [_soft_cross_entropy(taught[:, cut], outputs[:, cut], 2.0) for cut in (slice(0, 2), slice(2, 4))]
        return own + sum(old) / 2

    expected = few.gradient_of(learner, by_hand)
    few.step(engine, x, y, task=2)
    few.assert_gradient(learner, expected)


def test_in_the_first_experience_there_is_nothing_to_distil(few: Any) -> None:
    engine, plain = few.bind(Distillation()), few.bind()
    x, y = few.points(4)
    for one in (engine, plain):
        one.begin(few.experience(x, y))
        few.step(one, x, y)
    for a, b in zip(engine.learner.parameters(), plain.learner.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_the_teacher_is_taken_when_an_experience_begins_and_not_moved_in_it(few: Any) -> None:
    engine = few.bind(Distillation())
    (distillation,) = engine.method.operations
    x, y = few.points(4)
    _learn(few, engine, few.experience(x, y))
    assert distillation.teacher is None
    then = _values(engine)
    _learn(few, engine, few.experience(x, y, index=1))
    assert all(torch.equal(distillation.teacher[name], value) for name, value in then.items())


@pytest.mark.parametrize("given", [{"temperature": 0.0}, {"average": "rows"}, {"over": "new"}])
def test_a_distillation_refuses_what_makes_no_sense(given: Any) -> None:
    with pytest.raises(ConfigError, match="`distillation`"):
        Distillation(**given)
