"""What an operation makes of a batch before its forward is the same in every way to train, or refused beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import NeedError, UsageError
from holdfast.core.experience import Batch, Experience, Stream, tree_map
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.core.source import Experiences
from holdfast.operations import JoinedReplay, Remember
from holdfast.streams.data import TensorData
from holdfast.training import Continual, Trainer
from holdfast.training.endless import StreamTrainer

SGD = {"name": "SGD", "lr": 0.05}


class Halve(Operation):
    """Halves the inputs: what the model, the memory and the criteria of other operations see is the half."""

    needs = frozenset({"batch"})

    def batch(self, batch: Batch, learner: Any) -> Batch:
        return Batch(tree_map(lambda leaf: leaf * 0.5, batch.inputs), batch.targets, batch.task, batch.appended)


class Swap(Operation):
    """Turns the targets around."""

    needs = frozenset({"batch", "targets"})

    def batch(self, batch: Batch, learner: Any) -> Batch:
        return Batch(batch.inputs, 5 - batch.targets, batch.task, batch.appended)


class Undeclared(Swap):
    """Gives targets although it says nothing of them."""

    needs = frozenset({"batch"})

    def batch(self, batch: Batch, learner: Any) -> Batch:
        return Batch(batch.inputs, torch.zeros(len(batch.inputs), dtype=torch.int64), batch.task)


class Double(Undeclared):
    """Doubles the rows, likewise."""

    def batch(self, batch: Batch, learner: Any) -> Batch:
        return Batch(torch.cat([batch.inputs, batch.inputs]), batch.targets, batch.task)


class Look(Operation):
    """Keeps what the step holds."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[Any] = []
        self.after: list[Tensor] = []

    def batch(self, batch: Batch, learner: Any) -> Batch:
        self.before.append(batch.targets)
        return batch

    def observe(self, step: Any, learner: Any) -> None:
        self.after.append(step.inputs)


def changed_and_replayed() -> Method:
    return Method(Halve(), JoinedReplay(size=3), Remember(capacity=10))


def by_trainer(method: Method, model: nn.Module, stream: Stream, toy: Any) -> Any:
    return toy.train(method, model, stream, optimizer=SGD)


def by_wrapper(method: Method, model: nn.Module, stream: Stream, toy: Any) -> Any:
    return toy.wrap(method, model, stream, lambda p: torch.optim.SGD(p, lr=0.05))


def by_hooks(method: Method, model: nn.Module, stream: Stream, toy: Any) -> Any:
    return toy.wrap(method, model, stream, lambda p: torch.optim.SGD(p, lr=0.05), prepare=False)


def by_stream(method: Method, model: nn.Module, stream: Stream, toy: Any) -> Any:
    trainer = StreamTrainer(model, method, optimizer=SGD, prepare=stream.prepare, seed=3)
    trainer.train(Experiences(stream, batch_size=4, seed=3))
    return trainer


OURS = [by_trainer, by_stream]
EVERY = [*OURS, by_wrapper, by_hooks]


@pytest.mark.parametrize("train", EVERY[1:])
def test_changed_inputs_are_what_is_learned_and_remembered_in_every_way_to_train(toy: Any, train: Any) -> None:
    stream = toy.stream()
    nets = [toy.model(stream), toy.model(stream)]
    one, other = (way(changed_and_replayed(), net, stream, toy) for way, net in zip((by_trainer, train), nets))
    assert toy.equal(*nets)
    assert torch.equal(one.learner.memory.all()["inputs"], other.learner.memory.all()["inputs"])


def test_halved_inputs_are_other_weights_than_whole_ones(toy: Any) -> None:
    stream = toy.stream()
    nets = [toy.model(stream), toy.model(stream)]
    by_hooks(changed_and_replayed(), nets[0], stream, toy)
    by_hooks(Method(JoinedReplay(size=3), Remember(capacity=10)), nets[1], stream, toy)
    assert not toy.equal(*nets)


@pytest.mark.parametrize("train", EVERY)
def test_before_the_forward_targets_are_known_where_the_loop_is_ours_and_none_elsewhere(toy: Any, train: Any) -> None:
    stream = toy.stream()
    look = Look()
    train(Method(look, Halve()), toy.model(stream), stream, toy)
    assert look.before
    assert all((targets is not None) == (train in OURS) for targets in look.before)
    assert all(isinstance(inputs, Tensor) for inputs in look.after)


@pytest.mark.parametrize("train", OURS)
def test_changed_targets_are_learned_where_the_loop_is_ours(toy: Any, train: Any) -> None:
    stream = toy.stream()
    turned = Stream(
        [
            Experience(e.index, TensorData(e.train.gather(torch.arange(len(e.train))).inputs, 5 - e.train.targets))
            for e in stream
        ],
        stream.input_shape,
        stream.classes,
        prepare=stream.prepare,
    )
    nets = [toy.model(stream), toy.model(stream)]
    train(Method(Swap()), nets[0], stream, toy)
    train(Method(), nets[1], turned, toy)
    assert toy.equal(*nets)


@pytest.mark.parametrize("train", [by_wrapper, by_hooks])
def test_changed_targets_are_refused_when_the_method_is_bound_to_a_loop_that_is_not_ours(toy: Any, train: Any) -> None:
    stream = toy.stream()
    with pytest.raises(NeedError, match=r"targets before the forward.*\n.*Use the Trainer or the StreamTrainer"):
        train(Method(Swap()), toy.model(stream), stream, toy)


@pytest.mark.parametrize("make", [Undeclared, Double])
@pytest.mark.parametrize("train", [by_wrapper, by_hooks])
def test_targets_or_rows_that_were_changed_and_not_declared_are_refused_with_what_to_write(
    toy: Any, train: Any, make: Callable[[], Operation]
) -> None:
    stream = toy.stream()
    with pytest.raises(UsageError, match=r'needs = frozenset\(\{"targets"\}\)'):
        train(Method(make()), toy.model(stream), stream, toy)


def test_inputs_of_several_tensors_are_changed_where_the_model_is_called_by_position_or_by_name(toy: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.layer(left - right)

    left, right, y = torch.randn(5, 4), torch.randn(5, 4), torch.arange(5) % 3

    def gradient(call: Callable[[nn.Module], Tensor], factor: float, *operations: Operation) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Two()
        cl = Continual(model, Method(*operations), torch.optim.SGD(model.parameters(), lr=0.1))
        loss = nn.functional.cross_entropy(call(model), y)
        cl.backward(loss, y, inputs={"left": factor * left, "right": factor * right})
        assert model.layer.weight.grad is not None
        return model.layer.weight.grad

    wanted = gradient(lambda m: m(0.5 * left, 0.5 * right), 0.5)
    for call in (lambda m: m(left, right), lambda m: m(left, right=right), lambda m: m(right=right, left=left)):
        assert torch.equal(gradient(call, 1.0, Halve()), wanted)


def test_an_operation_without_a_batch_of_its_own_costs_no_hook_before_the_forward(toy: Any) -> None:
    model = toy.model(toy.stream())
    Continual(model, Method(Remember(capacity=10)), torch.optim.SGD(model.parameters(), lr=0.1))
    assert not model._forward_pre_hooks


@pytest.mark.slow
def test_changed_inputs_are_learned_in_lightning_too(toy: Any) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from holdfast.lightning import ContinualCallback, StreamDataModule

    stream = toy.stream()
    nets = [toy.model(stream), toy.model(stream)]
    Trainer(changed_and_replayed(), optimizer=SGD, batch_size=4, evaluate="none", seed=3).fit(nets[0], stream)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets[1]

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callback = ContinualCallback(changed_and_replayed(), seed=3)
    trainer = lightning.Trainer(max_epochs=len(stream), callbacks=[callback], accelerator="cpu", **off)
    trainer.fit(Module(), datamodule=StreamDataModule(stream, batch_size=4))
    assert toy.equal(*nets)
