"""How operations stand together in a method: pipe, sum, at most one; names, hyperparameters and memories apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Batch, Data, Experience
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.operation import Operation
from holdfast.core.step import Step
from holdfast.methods import er, finetune
from holdfast.operations import CumulativeData, JointData, LogitReplay, Remember, Replay


class Shift(Operation):
    """Changes whatever passes by, in a way that shows the order."""

    needs = frozenset({"replacement"})

    def __init__(self, times: float = 1.0, plus: float = 0.0) -> None:
        super().__init__()
        self.times = times
        self.plus = plus

    def begin(self, experience: Experience, learner: Learner) -> Data:
        count = int(len(experience.train) * self.times + self.plus)
        return experience.train.subset(torch.arange(count) % len(experience.train))

    def batch(self, batch: Batch, learner: Learner) -> Batch:
        return Batch(batch.inputs * self.times + self.plus, batch.targets, batch.task)

    def loss(self, step: Step, learner: Learner) -> Any:
        return sum(p.sum() for p in learner.parameters()) * self.times

    def gradient(self, step: Step, learner: Learner) -> None:
        for grad in learner.gradients():
            grad.mul_(self.times).add_(self.plus)

    def predict(self, outputs: Tensor, inputs: Any, learner: Learner) -> Tensor:
        return outputs * self.times + self.plus


class OwnLoss(Operation):
    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Any, learner: Learner) -> Tensor:
        return outputs.square().mean()


class OwnStep(Operation):
    def take_step(self, step: Step, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for p in learner.parameters():
                p.add_(1.0)


def _engine(*operations: Operation, seed: int = 0) -> Engine:
    torch_model = nn.Linear(2, 3)
    with torch.no_grad():
        torch_model.weight.copy_(torch.arange(6.0).view(3, 2) / 10)
        torch_model.bias.zero_()
    return Engine(Method(*operations), Learner(torch_model, seed=seed), NEEDS)


X, Y = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0, 2])


def _step(engine: Engine) -> Step:
    outputs = engine.learner(X)
    return Step(X, Y, nn.functional.cross_entropy(outputs, Y), outputs)


def test_batches_pass_through_the_operations_in_order() -> None:
    engine = _engine(Shift(times=2.0), Shift(plus=1.0))
    assert torch.equal(engine.batch(Batch(X, Y)).inputs, X * 2 + 1)
    engine = _engine(Shift(plus=1.0), Shift(times=2.0))
    assert torch.equal(engine.batch(Batch(X, Y)).inputs, (X + 1) * 2)


def test_outputs_pass_through_predict_in_order_and_only_in_prediction() -> None:
    engine = _engine(Shift(times=2.0), Shift(plus=1.0))
    assert torch.equal(engine.predict(X), engine.learner(X) * 2 + 1)
    assert torch.equal(engine.forward(Batch(X, Y))[0], engine.learner(X))


def test_losses_add_up_and_gradient_edits_follow_one_another() -> None:
    engine = _engine(Shift(times=2.0, plus=1.0), Shift(times=3.0, plus=5.0))
    engine.backward(_step(engine))
    plain = _engine()
    plain.backward(_step(plain))
    for edited, grad in zip(engine.learner.parameters(), plain.learner.parameters(), strict=True):
        by_hand = ((grad.grad + 2.0 + 3.0) * 2 + 1) * 3 + 5  # the derivative of a sum of parameters is 1
        assert torch.allclose(edited.grad, by_hand)


def test_every_loss_is_logged_under_its_own_operations_name() -> None:
    engine = _engine(Shift(times=2.0), Shift(times=3.0))
    engine.backward(_step(engine))
    total = sum(float(p.detach().sum()) for p in engine.learner.parameters())
    logged = {
        name: sum(float(value) * factor for value, factor in values) for name, values in engine.learner.logged.items()
    }
    assert set(logged) == {"loss", "shift", "shift_2"}
    assert logged["shift"] == pytest.approx(2 * total)
    assert logged["shift_2"] == pytest.approx(3 * total)


@pytest.mark.parametrize("owner", [OwnLoss, OwnStep])
def test_two_operations_cannot_both_own_the_criterion_or_the_step(owner: type[Operation]) -> None:
    Method(owner())
    with pytest.raises(ConfigError, match="both own"):
        Method(owner(), owner())


def test_a_methods_own_criterion_takes_the_place_of_the_learners() -> None:
    engine = _engine(OwnLoss())
    outputs = engine.learner(X)
    assert torch.equal(engine.criterion(outputs, Y, X), outputs.square().mean())
    assert torch.equal(_engine().criterion(outputs, Y, X), nn.functional.cross_entropy(outputs, Y))


def test_an_operation_that_takes_the_step_is_the_only_one_that_moves_the_weights(toy: Any) -> None:
    stream = toy.stream(experiences=2, classes=2, samples=4)
    model, start = toy.model(stream), toy.model(stream)
    trainer = toy.train(Method(OwnStep()), model, stream)
    steps = trainer.engine.index
    assert steps == 2
    for moved, before in zip(model.parameters(), start.parameters(), strict=True):
        assert torch.allclose(moved, before + steps)


def test_one_operation_object_cannot_stand_twice_in_a_method() -> None:
    one = Replay()
    with pytest.raises(ConfigError, match="clone"):
        Method(one, one)


def test_what_is_no_operation_is_refused_by_a_method() -> None:
    with pytest.raises(ConfigError, match="made of operations"):
        Method("replay")  # type: ignore[arg-type]


def test_two_instances_keep_separate_hyperparameters_names_and_draws(toy: Any) -> None:
    stream = toy.stream()
    one, two = Replay(size=2, weight=0.25), Replay(size=5, weight=0.75)
    trainer = toy.train(Method(one, two, Remember(capacity=30)), toy.model(stream), stream, log_every=1)
    assert (one.name, two.name) == ("replay", "replay_2")
    assert ((one.size, one.weight), (two.size, two.weight)) == ((2, 0.25), (5, 0.75))
    assert one.retrieval.generator is not two.retrieval.generator
    late = [event["terms"] for event in trainer.events if event["event"] == "train"][3:]
    assert all({"replay", "replay_2"} <= terms.keys() for terms in late)
    assert any(terms["replay"] != terms["replay_2"] for terms in late)


def test_two_operations_that_replace_the_data_compose(toy: Any) -> None:
    stream = toy.stream()
    engine = Engine(Method(CumulativeData(), Shift(times=0.5)), Learner(toy.model(stream)), NEEDS)
    assert len(engine.begin(stream[0])[0].train) == len(stream[0].train) // 2
    engine.end(stream[0])
    assert len(engine.begin(stream[1])[0].train) == (len(stream[0].train) + len(stream[1].train)) // 2


@pytest.mark.parametrize("second", [JointData, CumulativeData])
def test_an_operation_that_would_undo_another_ones_choice_of_data_refuses(toy: Any, second: Any) -> None:
    stream = toy.stream()
    engine = Engine(Method(Shift(times=0.5), second()), Learner(toy.model(stream)), NEEDS)
    with pytest.raises(UsageError, match="undo"):
        engine.begin(stream[0])


def test_replay_without_anything_that_remembers_is_refused_at_once() -> None:
    for operation in (Replay(), LogitReplay()):
        with pytest.raises(ConfigError, match=r"Add Remember\(capacity"):
            _engine(operation)


def test_one_memory_serves_a_method_and_a_second_is_refused() -> None:
    with pytest.raises(ConfigError, match="both fill the memory"):
        _engine(Remember(capacity=3), Remember(capacity=4))


def test_the_fields_that_operations_want_remembered_are_asked_for_once() -> None:
    method = Method(LogitReplay(), LogitReplay(), Remember(capacity=3))
    assert method.remembers == ("logits",)


def test_a_method_can_be_bound_once_and_its_clone_again() -> None:
    method = er()
    Engine(method, Learner(nn.Linear(2, 2)), NEEDS)
    with pytest.raises(ConfigError, match=r"clone\(\)"):
        Engine(method, Learner(nn.Linear(2, 2)), NEEDS)
    Engine(method.clone(), Learner(nn.Linear(2, 2)), NEEDS)


def test_an_empty_method_is_plain_gradient_descent(toy: Any) -> None:
    stream = toy.stream(experiences=1, classes=2, samples=8)
    model, by_hand = toy.model(stream), toy.model(stream)
    trainer = toy.train(finetune(), model, stream, optimizer={"name": "SGD", "lr": 0.1})
    order = torch.randperm(16, generator=Learner(toy.model(stream), seed=3).rng("order"))
    inputs = torch.cat([batch.inputs for batch in stream[0].train])
    targets = stream[0].train.targets
    for start in range(0, 16, 4):
        rows = order[start : start + 4]
        loss = nn.functional.cross_entropy(by_hand(inputs[rows]), targets[rows])
        for p, grad in zip(by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters())), strict=True):
            p.data -= 0.1 * grad
    assert trainer.engine.index == 4
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_loss_that_is_no_scalar_is_refused_with_the_operations_name() -> None:
    class Wide(Operation):
        def loss(self, step: Step, learner: Learner) -> Tensor:
            return step.outputs.mean(1)

    engine = _engine(Wide())
    with pytest.raises(UsageError, match="'wide'"):
        engine.backward(_step(engine))


def test_a_loss_without_a_graph_is_logged_and_moves_nothing() -> None:
    class Watch(Operation):
        def loss(self, step: Step, learner: Learner) -> Tensor:
            return torch.tensor(3.0)

    engine, plain = _engine(Watch()), _engine()
    for one in (engine, plain):
        one.backward(_step(one))
    assert float(engine.learner.logged["watch"][0][0]) == 3.0
    for a, b in zip(engine.learner.parameters(), plain.learner.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_scaling_the_whole_loss_scales_the_whole_gradient() -> None:
    gradients = []
    for scale in (None, 0.25):
        engine = _engine(Replay(size=2), Remember(capacity=4))
        engine.learner.memory.add({"inputs": X, "targets": Y})
        engine.backward(_step(engine), scale=scale)
        gradients.append([p.grad for p in engine.learner.parameters()])
    for whole, quarter in zip(*gradients, strict=True):
        assert torch.allclose(whole * 0.25, quarter)
