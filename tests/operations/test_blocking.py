"""Methods that promise not to forget: old tasks' outputs do not change by a bit, whatever the optimiser does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience, Stream
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.methods import (
    duplicate_backbone,
    freeze_backbone,
    hat,
    packnet,
    piggyback,
    progressive,
    separate_networks,
    wsn,
)
from holdfast.models import Classifier, TaskHead, cnn, mlp, resnet18
from holdfast.operations import (
    BinaryMasks,
    ContextGates,
    Distillation,
    PrunedWeights,
    SeparateNetworks,
    Subnetworks,
    UnitAttention,
)
from holdfast.streams.data import TensorData
from holdfast.training import Continual, Trainer

KEEPERS = {
    "duplicate_backbone": lambda: duplicate_backbone(columns=3),
    "freeze_backbone": freeze_backbone,
    "hat": lambda: hat(strength=0.02),
    "packnet": lambda: packnet(fraction=0.6),
    "piggyback": piggyback,
    "progressive": lambda: progressive(columns=3),
    "separate_networks": separate_networks,
    "wsn": wsn,
}
OPTIMIZERS = {
    "momentum": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.02},
    "adam": {"name": "Adam", "lr": 0.01, "weight_decay": 0.02},
}
ROWS, BATCH, TASKS = 24, 6, 3


def tasks(image: bool) -> Stream:
    generator = torch.Generator().manual_seed(4)
    shape = (1, 6, 6) if image else (9,)
    experiences = []
    for task in range(TASKS):
        labels = torch.randint(2, (ROWS,), generator=generator)
        direction = torch.randn(shape, generator=generator)
        signs = (2.0 * labels - 1).view(-1, *[1] * len(shape))
        inputs = torch.randn(ROWS, *shape, generator=generator) + signs * direction
        data = TensorData(inputs, labels + 2 * task)
        experiences.append(Experience(task, data, data, classes=(2 * task, 2 * task + 1), task=task))
    return Stream(experiences, shape, 2 * TASKS, paradigm="task")


def network(image: bool) -> nn.Module:
    if image:
        return cnn(input_shape=(1, 6, 6), classes=6, channels=[4, 6], hidden=[8], head="task", batch_norm=True, seed=0)
    return mlp(input_shape=(9,), classes=6, hidden=[10, 8], head="task", batch_norm=False, seed=0)


class Watched(Trainer):
    """Keeps every task's outputs after each experience."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.outputs: list[list[Tensor]] = []
        self.record = self.look

    def look(self, event: dict[str, Any]) -> None:
        if event["event"] != "experience":
            return
        stream = self.session.stream
        with self.engine.evaluating(), torch.no_grad():
            outputs = [self.engine.predict(e.train.gather(torch.arange(ROWS)).inputs, e.task) for e in stream]
        self.outputs.append(outputs)


def trained(method: Method, net: nn.Module, stream: Stream, optimizer: dict[str, Any], **other: Any) -> Watched:
    resume = other.pop("resume", None)
    trainer = Watched(method, optimizer=optimizer, batch_size=BATCH, epochs=2, seed=3, evaluate_before=False, **other)
    trainer.fit(net, stream, resume=resume)
    return trainer


def own(outputs: Tensor, task: int) -> Tensor:
    return outputs[:, 2 * task : 2 * task + 2]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("image", [False, True], ids=["mlp", "cnn"])
@pytest.mark.parametrize("name", KEEPERS)
def test_outputs_of_old_tasks_do_not_change_by_a_bit(name: str, image: bool, optimizer: str) -> None:
    seen = trained(KEEPERS[name](), network(image), tasks(image), OPTIMIZERS[optimizer]).outputs
    for task in range(TASKS):
        for after in range(task, TASKS):
            assert torch.equal(own(seen[after][task], task), own(seen[task][task], task)), (task, after)
        assert own(seen[task][task], task).unique().numel() > 4


@pytest.mark.parametrize("name", KEEPERS)
def test_outputs_of_old_tasks_do_not_change_by_a_bit_behind_a_cosine_head(name: str) -> None:
    net = mlp(input_shape=(9,), classes=6, hidden=[10, 8], head="cosine_task", seed=0)
    seen = trained(KEEPERS[name](), net, tasks(False), OPTIMIZERS["momentum"]).outputs
    for task in range(TASKS):
        assert torch.equal(own(seen[-1][task], task), own(seen[task][task], task)), task


def test_a_learnt_scale_of_the_head_is_refused() -> None:
    net = mlp(input_shape=(9,), classes=6, hidden=[10], head="cosine_learnable", seed=0)
    with pytest.raises(ConfigError, match="cosine_task"):
        Continual(net, Method(UnitAttention()), torch.optim.SGD(net.parameters(), lr=0.1))


def test_the_check_above_can_fail() -> None:
    seen = trained(Method(ContextGates(fraction=0.5)), network(False), tasks(False), OPTIMIZERS["momentum"]).outputs
    assert not torch.equal(own(seen[2][0], 0), own(seen[0][0], 0))


OF_ALL = [pytest.param(name, marks=() if name in ("hat", "packnet") else pytest.mark.slow) for name in KEEPERS]
OF_ALL += [pytest.param(name, marks=pytest.mark.slow) for name in ("adahat", "xdg")]
"""What every method is checked for by `tests/conformance` as well: two of these are fast."""


@pytest.mark.parametrize("name", OF_ALL)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trainer_and_drop_in_give_equal_weights(name: str, optimizer: str) -> None:
    others = {
        "adahat": lambda: Method(UnitAttention(mode="adapt", intensity=0.1)),
        "xdg": lambda: Method(ContextGates()),
    }
    make = {**KEEPERS, **others}[name]
    for image in (False, True):
        stream, one = tasks(image), network(image)
        other = copy.deepcopy(one)
        trainer = trained(make(), one, stream, OPTIMIZERS[optimizer])
        settings = dict(OPTIMIZERS[optimizer])
        mover = getattr(torch.optim, settings.pop("name"))(other.parameters(), **settings)
        cl = Continual(other, make(), mover, seed=3)
        order_rng = cl.learner.rng("order")
        for experience in stream:
            other.train()
            data = cl.begin(experience, epochs=2, batch_size=BATCH)
            assert data is not None
            for _ in range(2):
                for batch in data.batches(torch.randperm(ROWS, generator=order_rng), BATCH):
                    mover.zero_grad()
                    loss = nn.functional.cross_entropy(cl(batch.inputs), batch.targets)
                    cl.backward(loss, batch.targets, inputs=batch.inputs)
                    mover.step()
            cl.end()
        a, b = one.state_dict(), other.state_dict()
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
        added = zip(trainer.learner.added.values(), cl.learner.added.values())
        assert all(torch.equal(p, q) for p, q in added)
        batch = stream[0].train.gather(torch.arange(ROWS))
        assert torch.equal(cl.predict(batch.inputs, task=0), trainer.outputs[-1][0])


class KeepAt:
    """Checkpoints that keep the state before step `step`."""

    def __init__(self, step: int) -> None:
        self.step, self.count = step, 0
        self.kept: dict[str, Any] | None = None

    def due(self, seconds: float, steps: int) -> bool:
        self.count += 1
        return self.count == self.step

    def save(self, state: dict[str, Any]) -> None:
        if self.count == self.step and self.kept is None:
            self.kept = copy.deepcopy(state)


@pytest.mark.parametrize("step", [3, 11])
@pytest.mark.parametrize("name", OF_ALL)
def test_a_run_resumed_in_the_middle_of_an_experience_ends_with_equal_weights(name: str, step: int) -> None:
    others = {
        "adahat": lambda: Method(UnitAttention(mode="adapt", intensity=0.1)),
        "xdg": lambda: Method(ContextGates()),
    }
    make = {**KEEPERS, **others}[name]
    image, checkpoints = True, KeepAt(step)
    stream = tasks(image)
    whole = trained(make(), network(image), stream, OPTIMIZERS["adam"], checkpoints=checkpoints)
    assert checkpoints.kept is not None
    again = network(image)
    rest = trained(make(), again, stream, OPTIMIZERS["adam"], resume=checkpoints.kept)
    a, b = whole.model.state_dict(), again.state_dict()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    for task in range(TASKS):
        assert torch.equal(whole.outputs[-1][task], rest.outputs[-1][task])
    for p, q in zip(whole.learner.added.values(), rest.learner.added.values()):
        assert torch.equal(p, q)


def test_a_parameter_that_an_operation_adds_is_optimised_and_survives_a_new_optimizer() -> None:
    trainer = Trainer(wsn(), optimizer="SGD", reset_optimizer=True, evaluate="none", batch_size=BATCH)
    trainer.fit(network(False), tasks(False))
    assert trainer.optimization.optimizer is not None
    held = {id(p) for group in trainer.optimization.optimizer.param_groups for p in group["params"]}
    scores = list(trainer.learner.added.values())
    assert len(scores) == 2
    assert all(id(p) in held for p in scores)
    assert not any(p is q for p in scores for q in trainer.learner.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "make", [UnitAttention, PrunedWeights, BinaryMasks, Subnetworks, SeparateNetworks], ids=lambda make: make.__name__
)
def test_nothing_is_forgotten_where_blocks_have_shortcuts(make: Any, optimizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    experiences = []
    for task in range(2):
        images = torch.randn(8, 3, 8, 8, generator=generator)
        data = TensorData(images, torch.tensor([0, 1] * 4) + 2 * task)
        experiences.append(Experience(task, data, data, classes=(2 * task, 2 * task + 1), task=task))
    stream = Stream(experiences, (3, 8, 8), 4, paradigm="task")
    net = resnet18(input_shape=(3, 8, 8), classes=4, width=2, head="task", seed=0)
    trainer = Watched(Method(make()), optimizer=OPTIMIZERS[optimizer], batch_size=4, evaluate_before=False)

    def look(event: dict[str, Any]) -> None:
        if event["event"] != "experience":
            return
        with trainer.engine.evaluating(), torch.no_grad():
            seen.append(trainer.engine.predict(stream[0].train.gather(torch.arange(8)).inputs, 0)[:, :2])

    seen: list[Tensor] = []
    trainer.record = look
    trainer.fit(net, stream)
    assert torch.equal(seen[0], seen[1])


def test_a_teacher_shares_the_hooks_and_does_not_copy_the_operation() -> None:
    operation, net = UnitAttention(), network(False)
    learner = Continual(net, Method(operation, Distillation()), torch.optim.SGD(net.parameters(), lr=0.1)).learner
    learner.enter(tasks(False)[0])
    snapshot = learner.snapshot()
    inputs = torch.randn(3, 9)
    assert torch.equal(learner.forward_as(snapshot, inputs), learner.forward_as(snapshot, inputs))


def test_a_task_that_begins_twice_is_refused() -> None:
    net = network(False)
    cl = Continual(net, wsn(), torch.optim.SGD(net.parameters(), lr=0.1))
    cl.begin(tasks(False)[0])
    cl.end()
    with pytest.raises(UsageError, match="begins again"):
        cl.begin(tasks(False)[0])


def test_rows_of_several_tasks_are_refused_where_weights_are_exchanged() -> None:
    net = network(False)
    cl = Continual(net, wsn(), torch.optim.SGD(net.parameters(), lr=0.1))
    cl.begin(tasks(False)[0])
    with pytest.raises(UsageError, match="mixes tasks"):
        cl.learner(torch.randn(2, 9), torch.tensor([0, 1]))


@pytest.mark.parametrize("make", [UnitAttention, ContextGates], ids=["hat", "xdg"])
def test_rows_of_several_tasks_each_get_their_own_gates(make: Any) -> None:
    net = mlp(input_shape=(9,), classes=6, hidden=[10, 8], head="task", seed=0)
    operation = make()
    learner = trained(Method(operation), net, tasks(False), OPTIMIZERS["adam"]).learner
    net.eval()
    inputs, mixed = torch.randn(4, 9), torch.tensor([2, 0, 1, 0])
    with torch.no_grad():
        together = learner(inputs, mixed)
        apart = torch.cat([learner(inputs[i : i + 1], int(mixed[i])) for i in range(4)])
    assert torch.allclose(together, apart, atol=1e-6)


def test_a_compiled_model_is_refused_instead_of_ignoring_the_hooks() -> None:
    net = network(False)
    net.compile()
    with pytest.raises(ConfigError, match=r"before `torch\.compile`"):
        Continual(net, hat(), torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_layer_whose_inputs_mix_units_is_not_taken_for_part_of_a_chain() -> None:
    from holdfast.operations._parts.layers import backbone_layers

    chain = Classifier(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), TaskHead(3)
    )
    first, second, third = backbone_layers(Learner(chain), "x")
    assert (first.source, first.reader) == (None, second.module)
    assert (second.source, second.reader) == (first.name, None)
    assert (third.source, third.reader) == (None, chain.head)


@pytest.mark.parametrize("name", ["hat", "piggyback", "progressive"])
def test_what_is_drawn_anew_for_a_task_starts_without_the_last_tasks_momentum(name: str) -> None:
    stream, net = tasks(False), network(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    cl = Continual(net, KEEPERS[name](), optimizer)
    net.train()
    for index in range(3):
        data = cl.begin(stream[index], batch_size=BATCH)
        assert all(cl.learner.trainable.moments(p) == [] for p in cl.learner.added.values())
        batch = data.gather(torch.arange(BATCH))  # type: ignore[union-attr]
        cl.backward(nn.functional.cross_entropy(cl(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
        optimizer.step()
        if index:  # the first column of a progressive network reads no other
            assert all(len(cl.learner.trainable.moments(p)) == 2 for p in cl.learner.added.values())
        cl.end()


def test_replaying_an_old_task_moves_none_of_the_statistics_it_keeps() -> None:
    learner = trained(separate_networks(), network(True), tasks(True), OPTIMIZERS["adam"]).learner
    inputs = torch.randn(5, 1, 6, 6)
    learner.model.eval()
    before = learner(inputs, 0)
    learner.model.train()
    learner(inputs + 3.0, 0)
    learner.model.eval()
    assert torch.equal(learner(inputs, 0), before)
    assert learner.forward_task == 2  # the task of a forward ends with it


def test_earlier_columns_answer_a_training_forward_as_in_evaluation() -> None:
    net = mlp(input_shape=(9,), classes=6, hidden=[10, 8], head="task", dropout=0.5, seed=0)
    method = progressive(columns=3)
    learner = trained(method, net, tasks(False), OPTIMIZERS["adam"]).learner
    lateral, inputs, seen = method.operations[1], torch.randn(4, 9), []
    for training in (True, True, False):
        learner.model.train(training)
        learner(inputs)
        seen.append([value for reads in lateral._reads for value in reads.values()])
        assert all(module.training == training for module in net.modules())
    for first, second, third in zip(*seen):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
