"""What other papers and libraries mean by EWC, MAS and GSS, by hand, as arguments of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast import Method, methods
from holdfast.core.errors import ConfigError
from holdfast.operations import (
    FisherPenalty,
    GradientConstraints,
    JoinedReplay,
    MergedReplay,
    RememberDiverse,
    RememberExemplars,
    SensitivityPenalty,
)


def _flat(values: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in values])


def _fisher(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    total = 0.0
    for x, y in zip(inputs, targets):
        loss = F.cross_entropy(model(x[None]), y[None])
        total = total + _flat(torch.autograd.grad(loss, list(model.parameters()))).square()
    return total / len(inputs)


@pytest.mark.parametrize("by", ["none", "mean", "max"])
def test_only_the_last_experiences_normalised_diagonal_counts_with_decay_0(few: Any, by: str) -> None:
    engine = few.bind(FisherPenalty(fisher="empirical", online=True, decay=0.0, normalize=by))
    model, operation = engine.learner.model, engine.method.operations[0]
    for index in range(2):
        data = few.experience(*few.points(6, seed=index), index=index)
        engine.begin(data)
        few.step(engine, *few.points(6, seed=index), lr=0.1)
        engine.end(data)
    inputs, targets = few.points(6, seed=1)
    expected = _fisher(model, inputs, targets)
    expected = expected / {"none": 1.0, "mean": expected.mean(), "max": expected.max()}[by]
    torch.testing.assert_close(_flat(operation.importance.values()), expected)
    assert torch.equal(_flat(operation.anchor.values()), _flat(model.parameters()))


@pytest.mark.parametrize("size", [2, 4])
def test_the_squared_gradient_of_a_batchs_mean_is_averaged_over_batches(few: Any, size: int) -> None:
    engine = few.bind(FisherPenalty(fisher="batch", batch_size=size))
    model, operation = engine.learner.model, engine.method.operations[0]
    inputs, targets = few.points(8)
    data = few.experience(inputs, targets)
    engine.begin(data)
    engine.end(data)
    losses = [F.cross_entropy(model(x), y) for x, y in zip(inputs.split(size), targets.split(size))]
    squares = [_flat(torch.autograd.grad(loss, list(model.parameters()))).square() for loss in losses]
    torch.testing.assert_close(_flat(operation.importance.values()), sum(squares) / len(squares))


@pytest.mark.parametrize("size", [2, 4])
def test_the_importance_of_mas_over_batches_depends_on_their_size(few: Any, size: int) -> None:
    engine = few.bind(SensitivityPenalty(over="batch", batch_size=size))
    model, operation = engine.learner.model, engine.method.operations[0]
    inputs, targets = few.points(8)
    data = few.experience(inputs, targets)
    engine.begin(data)
    engine.end(data)
    norms = [model(part).square().sum() for part in inputs.split(size)]
    parts = [_flat(torch.autograd.grad(norm, list(model.parameters()))).abs() for norm in norms]
    found = _flat(operation.importance.values())
    ratio = (sum(parts) / found)[found > 0]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # the same but for one factor: its mean
    other = sum(
        _flat(torch.autograd.grad(model(x[None]).square().sum(), list(model.parameters()))).abs() for x in inputs
    )
    assert (other / found)[found > 0].std() > 1e-3


def test_mas_and_gss_say_the_same_as_methods() -> None:
    penalty = methods.mas(over="batch", batch_size=64).operations[0]
    assert (penalty.over, penalty.batch_size) == ("batch", 64)
    assert methods.gss(over="batch").operations[1].over == "batch"
    assert methods.ewc_online(normalize="max", decay=0.0).operations[0].normalize == "max"
    with pytest.raises(ConfigError, match="normalize"):
        methods.ewc(normalize="sum")  # type: ignore[arg-type]


def test_gss_by_the_batchs_gradient_offers_a_batch_whole_or_not_at_all(few: Any) -> None:
    engine = few.bind(RememberDiverse(capacity=3, compare=3, over="batch"), JoinedReplay(size=2))
    model, operation, memory = engine.learner.model, engine.method.operations[0], engine.learner.memory
    few.step(engine, *few.points(3))
    assert operation._insertion.scores == [1.0] * 3
    held = memory.all()
    rows = dict(zip(("inputs", "targets"), few.points(4, seed=7)))
    gate, own = operation._batch_scores(rows, engine.services)

    def gradient(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _flat(torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters())))

    old = [gradient(x[None], y[None]) for x, y in zip(held["inputs"], held["targets"])]
    whole = gradient(rows["inputs"], rows["targets"])
    expected = 1 + max(float(F.cosine_similarity(whole, one, dim=0)) for one in old)
    assert gate == pytest.approx(expected, abs=1e-6)
    if gate < 1:
        one = gradient(rows["inputs"][:1], rows["targets"][:1])
        single = 1 + max(float(F.cosine_similarity(one, other, dim=0)) for other in old)
        assert float(own[0]) == pytest.approx(single, abs=1e-6)
    operation._insertion.gate, operation._insertion.incoming = 1.2, torch.full((4,), 0.1)
    assert operation._insertion.plan(4, 3, 3) is None  # alike as a batch: nothing of it is offered
    operation._insertion.gate, operation._insertion.scores = 0.2, [1.9] * 3
    assert operation._insertion.plan(4, 3, 3) is not None


@pytest.mark.parametrize(("budget", "sizes"), [(4, [2, 2, 2, 2]), ([6, 2], [3, 3, 1, 1]), ([1], [1, 0, 1, 0])])
def test_every_experience_has_a_budget_that_its_classes_share(few: Any, budget: Any, sizes: list[int]) -> None:
    engine = few.bind(RememberExemplars(per_experience=budget, selection="random"), JoinedReplay(size=2))
    for index in range(2):
        inputs, targets = few.points(10, classes=2, seed=index)
        data = few.experience(inputs, targets, index=index)
        engine.begin(data)
        engine.end(data)
        if index == 0:
            first = engine.learner.memory.all()["inputs"].clone()
    held = engine.learner.memory.all()
    found = [held["targets"][: len(first)], held["targets"][len(first) :]]
    assert [int((part == label).sum()) for part in found for label in range(2)] == sizes
    assert torch.equal(held["inputs"][: len(first)], first)  # nobody takes it away


def test_two_kinds_of_budget_at_once_or_a_budget_of_nothing_are_refused() -> None:
    for wrong in ({"per_experience": 4, "per_class": 2}, {"per_experience": [3, 0]}, {"per_experience": []}):
        with pytest.raises(ConfigError, match="Give one of the three"):
            RememberExemplars(**wrong)
    kept = methods.er_exemplars(per_experience=[20, 10]).operations[1]
    assert (kept.per_class, kept.per_experience) == (None, [20, 10])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_samples_that_join_again_stay_in_the_memory_of_the_experience_they_came_in(toy: Any, accumulate: int) -> None:
    of = toy.stream(samples=8)

    method = Method(GradientConstraints(per_experience=6), MergedReplay(repeat=2))
    trainer = toy.train(method, toy.model(of), of, batch_size=4, epochs=3, accumulate=accumulate)
    memory = trainer.learner.memory
    assert memory.experiences == [0, 1, 2]
    for index in range(3):
        held = set(memory.of(index)["targets"].tolist())
        assert held <= set(of[index].classes), f"experience {index} holds {held}"
        assert len(memory.of(index)["targets"]) == 6
