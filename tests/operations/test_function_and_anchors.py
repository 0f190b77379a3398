"""FDR, HAL and MER: their losses, gradients and moves against plain PyTorch, written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast import Continual, methods
from holdfast.core.errors import NeedError
from holdfast.core.experience import Batch
from holdfast.core.step import Now
from holdfast.operations import (
    FunctionDistance,
    FunctionDistanceStep,
    HindsightAnchors,
    JoinedReplay,
    MetaReplay,
    Remember,
)
from holdfast.operations.function_distance import distance
from holdfast.training.update import Update


def _filled(few: Any, *operations: Any, rows: int = 5, **other: Any) -> Any:
    """A bound method whose memory holds `rows` points, all of which every draw returns."""
    engine = few.bind(*operations, Remember(capacity=rows), **other)
    old = few.points(rows, seed=9)
    fields = {"inputs": old[0], "targets": old[1]}
    if "logits" in engine.learner.fields:
        fields["logits"] = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    engine.learner.memory.add(fields)
    return engine, fields


# FDR -------------------------------------------------------------------------------------------------------


def test_the_function_distance_is_the_mean_over_rows_of_the_distance_between_probabilities(few: Any) -> None:
    engine, old = _filled(few, FunctionDistance(size=5, weight=0.7))
    new, model = few.points(3), engine.learner.model

    def by_hand() -> torch.Tensor:
        total = F.cross_entropy(model(new[0]), new[1])
        for x, logits in zip(old["inputs"], old["logits"]):
            now, before = torch.softmax(model(x[None])[0], 0), torch.softmax(logits, 0)
            total = total + 0.7 / 5 * (now - before).square().sum().sqrt()
        return total

    few.step(engine, *new)
    few.assert_gradient(engine.learner, few.gradient_of(engine.learner, by_hand))


def test_a_step_on_the_function_distance_alone_follows_the_one_on_the_loss(few: Any) -> None:
    engine, old = _filled(few, FunctionDistanceStep(size=5, weight=0.7))
    new, model = few.points(3), engine.learner.model
    twin = copy.deepcopy(model)

    def descend(loss: torch.Tensor) -> None:
        for p, gradient in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters()))):
            p.data -= 0.2 * gradient

    descend(F.cross_entropy(twin(new[0]), new[1]))
    apart = torch.softmax(twin(old["inputs"]), 1) - torch.softmax(old["logits"], 1)
    descend(0.7 * apart.square().sum(1).sqrt().mean())
    _one_step(engine, new, rate=0.2)
    for mine, theirs in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(mine, theirs)


def test_an_output_that_did_not_exist_had_no_probability_and_equal_answers_have_no_gradient() -> None:
    narrow = torch.tensor([[1.0, 2.0]])
    wide = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    expected = torch.softmax(wide.detach(), 1) - torch.cat([torch.softmax(narrow, 1), torch.zeros(1, 1)], 1)
    torch.testing.assert_close(distance(wide, narrow).detach(), expected.norm())
    marked = torch.tensor([[1.0, 2.0, torch.nan]])
    torch.testing.assert_close(distance(wide, marked), distance(wide, narrow))
    same = torch.tensor([[1.0, 2.0]], requires_grad=True)
    distance(same, same.detach()).backward()
    assert torch.equal(same.grad, torch.zeros(1, 2))


def test_fdr_stores_the_answers_of_the_end_of_an_experience(toy: Any) -> None:
    of = toy.stream()
    net = toy.model(of)
    answers = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "experience":
            answers[event["experience"]] = copy.deepcopy(net).eval()

    trainer = toy.train(methods.fdr(capacity=12, size=4), net, of, record=keep, batch_size=4)
    held = trainer.learner.memory.all()
    assert len(held["targets"]) == 12
    for index in range(3):
        mine = torch.isin(held["targets"], torch.tensor(of[index].classes))
        with torch.no_grad():
            torch.testing.assert_close(answers[index](held["inputs"][mine]), held["logits"][mine])


# HAL -------------------------------------------------------------------------------------------------------


def test_the_anchors_term_is_the_change_that_a_step_would_make_of_the_answers_on_them(few: Any) -> None:
    engine, old = _filled(few, JoinedReplay(size=5), HindsightAnchors(weight=0.3, rate=0.2))
    operation, model, new = engine.method.operations[1], engine.learner.model, few.points(3)
    anchors = few.points(4, seed=5)[0]
    operation.anchors = anchors

    def replayed(net: Any) -> torch.Tensor:
        return F.cross_entropy(net(torch.cat([new[0], old["inputs"]])), torch.cat([new[1], old["targets"]]))

    ahead = copy.deepcopy(model)
    moves = torch.autograd.grad(replayed(ahead), list(ahead.parameters()))
    with torch.no_grad():
        for p, move in zip(ahead.parameters(), moves):
            p -= 0.2 * move
        then = ahead(anchors)

    def by_hand() -> torch.Tensor:
        return replayed(model) + 0.3 * (model(anchors) - then).square().mean()

    few.step(engine, *new)
    expected = few.gradient_of(engine.learner, by_hand)
    few.assert_gradient(engine.learner, expected)
    without = few.gradient_of(engine.learner, lambda: replayed(model))
    assert max(float((expected[name] - without[name]).abs().max()) for name in expected) > 1e-5


def test_an_anchor_climbs_to_where_fine_tuning_on_the_memory_forgets_its_class(few: Any) -> None:
    engine, _ = _filled(few, HindsightAnchors(closeness=0.25, steps=2, size=9, rate=0.1))
    learner, operation = engine.learner, engine.method.operations[0]
    data = few.experience(*few.points(6, classes=2, seed=2))
    engine.begin(data)
    few.step(engine, *few.points(3), lr=0.1)  # the mean of features has half of this batch's
    model = learner.model
    with torch.no_grad():
        mean = 0.5 * model.backbone(few.points(3)[0]).mean(0)
    torch.testing.assert_close(operation.mean, mean, rtol=1e-5, atol=1e-6)
    generator = torch.Generator()
    generator.set_state(learner.rng(f"anchors/{operation.name}").get_state())
    held = learner.memory.all()
    engine.end(data)

    points = torch.rand((2, 4), generator=generator, dtype=torch.float64)
    other = copy.deepcopy(model)
    found = torch.autograd.grad(F.cross_entropy(other(held["inputs"]), held["targets"]), list(other.parameters()))
    with torch.no_grad():
        for p, gradient in zip(other.parameters(), found):
            p -= 0.1 * gradient
    for _ in range(2):
        points = points.detach().requires_grad_()
        for label in range(2):
            own, target = points[label : label + 1], torch.tensor([label])
            gain = F.cross_entropy(other(own), target) - F.cross_entropy(model(own), target)
            gain = gain - 0.25 * (model.backbone(own)[0] - operation.mean).square().sum()
            gain.backward()
        points = points + 0.1 * points.grad
    torch.testing.assert_close(operation.anchors, points.detach(), rtol=1e-5, atol=1e-7)


def test_every_class_of_every_experience_gets_an_anchor_of_its_task(toy: Any) -> None:
    of = toy.stream("task")
    trainer = toy.train(methods.hal(capacity=12, size=4, steps=2), toy.model(of, head="task"), of, batch_size=4)
    operation = trainer.session.method.operations[1]
    assert operation.anchors.shape == (6, 5)
    assert operation.tasks.tolist() == [0, 0, 1, 1, 2, 2]


# MER -------------------------------------------------------------------------------------------------------


def _moved(model: Any, begin: list[torch.Tensor], share: float) -> None:
    with torch.no_grad():
        for p, before in zip(model.parameters(), begin):
            p.copy_(before + share * (p - before))


def _down(model: Any, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> None:
    found = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    with torch.no_grad():
        for p, gradient in zip(model.parameters(), found):
            p -= rate * gradient


def _copied(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


class _Mover:
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def move(self) -> None:
        self.optimizer.step()


def _one_step(engine: Any, new: Any, rate: float) -> None:
    optimizer = torch.optim.SGD(engine.learner.model.parameters(), lr=rate)
    engine.services.trainable.optimizer = lambda: optimizer
    engine.step(Batch(*new), Now(), Update(engine, _Mover(optimizer)))


@pytest.mark.parametrize("together", [True, False])
def test_meta_replay_goes_a_part_of_the_way_through_each_batch_and_of_all_of_them(few: Any, together: bool) -> None:
    operation = MetaReplay(size=1, batches=2, within=0.6, across=0.4, together=together)
    engine, old = _filled(few, operation, rows=1)
    model, new = engine.learner.model, few.points(2)
    by_hand, rows = copy.deepcopy(model), (old["inputs"], old["targets"])
    start = _copied(by_hand)
    for number in range(2):
        begin = _copied(by_hand)
        if together:
            _down(by_hand, torch.cat([new[0], rows[0]]), torch.cat([new[1], rows[1]]), 0.2)
        else:
            if number == 0:
                _down(by_hand, *new, 0.2)  # the loop's own step is of its batch
            else:
                for row in range(2):
                    _down(by_hand, new[0][row : row + 1], new[1][row : row + 1], 0.2)
            _down(by_hand, *rows, 0.2)
        _moved(by_hand, begin, 0.6)
    _moved(by_hand, start, 0.4)
    _one_step(engine, new, 0.2)
    for p, expected in zip(model.parameters(), by_hand.parameters()):
        torch.testing.assert_close(p, expected)


def test_meta_replay_of_one_batch_that_goes_all_the_way_is_joined_replay(few: Any) -> None:
    new, ends = few.points(3), []
    for operation in (MetaReplay(size=5), JoinedReplay(size=5), MetaReplay(size=5, across=0.5)):
        engine, _ = _filled(few, operation)
        _one_step(engine, new, 0.2)
        ends.append(torch.cat([p.detach().flatten() for p in engine.learner.model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1])
    assert (ends[0] - ends[2]).abs().max() > 1e-4


def test_meta_replay_is_refused_where_nobody_says_when_the_weights_moved(toy: Any) -> None:
    with pytest.raises(NeedError, match="acts after the optimiser moved"):
        Continual(toy.model(toy.stream()), methods.mer(capacity=10, size=4))
