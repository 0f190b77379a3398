"""Every method with any optimiser, scheduler, precision and memory format: it trains, and keeps its books in full."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import holdfast.methods
from holdfast.core.engine import Engine
from holdfast.core.experience import Experience, Stream
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.step import Step
from holdfast.models import cnn, mlp
from holdfast.streams.data import TensorData

SIZES = {"capacity": 20, "size": 4, "candidates": 6, "units": 6, "latent": 2, "epochs": 1, "width": 20, "samples": 8}
HALF = (torch.bfloat16, torch.float16)


def small(name: str) -> Method:
    factory = getattr(holdfast.methods, name)
    return factory(**{key: value for key, value in SIZES.items() if key in inspect.signature(factory).parameters})


def stream(tasks: bool, dtype: torch.dtype = torch.float32, images: bool = False) -> Stream:
    """Three experiences of two classes, 8 samples a class."""
    generator = torch.Generator().manual_seed(0)
    experiences = []
    for index in range(3):
        inputs = torch.rand(16, *((2, 8, 8) if images else (5,)), generator=generator, dtype=dtype)
        if images:
            inputs = inputs.to(memory_format=torch.channels_last)
        task = index if tasks else None
        data = TensorData(inputs, torch.arange(16) % 2 + 2 * index, task=task)
        experiences.append(Experience(index, data, classes=(2 * index, 2 * index + 1), task=task))
    return Stream(experiences, (2, 8, 8) if images else (5,), 6, "task" if tasks else "class")


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def train(
    method: Method,
    model: nn.Module,
    of: Stream,
    optimizer: Callable[..., torch.optim.Optimizer],
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    autocast: bool = False,
) -> Engine:
    """A plain loop: one pass over each experience in batches of 4, under autocast if asked for."""
    learner = Learner(model, seed=1)
    learner.autocast = ("cpu", torch.bfloat16) if autocast else None
    engine = Engine(method, learner, NEEDS)
    movers: list[torch.optim.Optimizer] = []

    def follow(new: list[nn.Parameter]) -> None:
        movers[0].add_param_group({"params": new}) if movers else movers.append(optimizer(new))

    if learner.optimized():
        follow(learner.optimized())
    learner.on_growth.append(follow)
    learner.optimizer = lambda: movers[0] if movers else None
    for experience in of:
        opened, _ = engine.begin(experience)
        moves = scheduler(movers[0]) if scheduler else None
        model.train()
        for number, batch in enumerate(opened.train.batches(torch.arange(min(16, len(opened.train))), 4)):
            learner.progress = learner.epoch_progress = number / 3
            if batch.task is None:
                batch.task = learner.task
            batch = engine.batch(batch)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                outputs, extras = engine.forward(batch)
                loss = engine.criterion(outputs, batch.targets, batch.inputs)
            step = Step(batch.inputs, batch.targets, loss, outputs, batch.task, engine.index, number / 3, extras)
            movers[0].zero_grad()
            if not engine.take_step(step, movers[0]):
                engine.backward(step)
                movers[0].step()
            engine.update(step)
            if moves is not None:
                moves.step()
        engine.end(opened)
        with engine.evaluating(), torch.no_grad():
            assert engine.predict(experience.train.gather(torch.arange(4)).inputs, experience.task).shape[0] == 4
    assert all(value.isfinite().all() for value in model.state_dict().values())
    return engine


def check_books(engine: Engine, model: nn.Module) -> None:
    """State, memory and weights are kept in full precision."""
    kept = [*tensors([operation.save() for operation in engine.method]), *model.state_dict().values()]
    if engine.learner.memory is not None:
        kept += tensors(dict(engine.learner.memory.all()))
    assert not [value.dtype for value in kept if value.dtype in HALF]


def perceptron(of: Stream, method: Method, seed: int = 0) -> nn.Module:
    asked = next((one.check_model for one in method if hasattr(one, "check_model")), None)
    if asked is not None:  # it does not work with just any model
        return asked(of, hidden=[8, 8], seed=seed)
    return mlp(
        input_shape=(5,), classes=6, hidden=[8, 8], head="task" if of[0].task is not None else "growing", seed=seed
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "AdamW": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=60),
    "nesterov": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=4),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_method_trains_with_any_optimiser_and_a_scheduler_without_a_warning(
    method_name: str, optimizer: str
) -> None:
    method = small(method_name)
    of = stream("task" in method.needs)
    model = perceptron(of, method)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = train(method, model, of, OPTIMIZERS[optimizer], SCHEDULERS.get(optimizer))
    moved = any(not torch.equal(start[name], model.state_dict()[name]) for name in start)
    assert moved or not engine.index or engine.acts_at("predict")
    check_books(engine, model)


def test_every_method_trains_under_bfloat16_autocast_and_keeps_its_books_in_full_precision(method_name: str) -> None:
    method = small(method_name)
    of = stream("task" in method.needs)
    model = perceptron(of, method)
    engine = train(method, model, of, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), autocast=True)
    check_books(engine, model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    other = perceptron(of, method)
    train(small(method_name), other, of, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    for (name, half), full in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(half, full, atol=0.2), f"{name} went another way than in full precision"


def test_every_method_trains_a_model_of_doubles_and_keeps_them(method_name: str) -> None:
    method = small(method_name)
    of = stream("task" in method.needs, torch.float64)
    model = perceptron(of, method).double()
    engine = train(method, model, of, lambda p: torch.optim.Adam(p, lr=0.01))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    check_books(engine, model)
    if engine.learner.memory is not None and "inputs" in engine.learner.memory.all():
        assert engine.learner.memory.all()["inputs"].dtype == torch.float64


def test_every_method_trains_a_convolutional_model_in_channels_last(method_name: str) -> None:
    method = small(method_name)
    of = stream("task" in method.needs, images=True)
    head = "task" if "task" in method.needs else "growing"
    layers = {"channels": [4, 6], "seed": 0}
    asked = next((one.check_model for one in method if hasattr(one, "check_model")), None)
    if asked is None:
        nets = [cnn(input_shape=(2, 8, 8), classes=6, head=head, **layers) for _ in range(2)]
    else:
        nets = [asked(of, backbone={"name": "cnn", **layers, "hidden": []}) for _ in range(2)]
    nets[1] = nets[1].to(memory_format=torch.channels_last)
    for net, one in zip(nets, (method, small(method_name)), strict=True):
        train(one, net, of, lambda p: torch.optim.SGD(p, lr=0.05))
    for (name, plain), last in zip(nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True):
        assert torch.allclose(plain, last, atol=0.02), name
