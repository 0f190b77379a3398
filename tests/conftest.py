"""Toys that several folders of tests share: a stream that learns in a blink, and each way to train on it."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.experience import Batch, Stream
from holdfast.core.method import Method
from holdfast.models import mlp
from holdfast.streams import permuted, split
from holdfast.streams.datasets import synthetic
from holdfast.training import Continual, Trainer


def stream(paradigm: str = "class", experiences: int = 3, classes: int = 6, samples: int = 9, **other: Any) -> Stream:
    data = synthetic(classes=classes, features=5, samples=samples, test_samples=5, seed=1, **other)
    if paradigm == "domain":
        return permuted(data, experiences=experiences, paradigm="domain", seed=2)
    return split(data, experiences=experiences, paradigm=paradigm)


def model(of: Stream, head: str = "fixed", hidden: tuple[int, ...] = (7,), seed: int = 0, **other: Any) -> nn.Module:
    return mlp(input_shape=of.input_shape, classes=of.classes, hidden=list(hidden), head=head, seed=seed, **other)


def stream_for(method: Method, **other: Any) -> Stream:
    """A stream with task labels if the method needs them."""
    return stream("task" if "task" in method.needs else "class", **other)


def train(method: Method, net: nn.Module, of: Stream, **other: Any) -> Trainer:
    """By the trainer; a last batch of another size is left on purpose."""
    settings = {"optimizer": {"name": "SGD", "lr": 0.05}, "batch_size": 4, "evaluate": "none", "seed": 3, **other}
    resume = settings.pop("resume", None)
    trainer = Trainer(method, **settings)
    trainer.fit(net, of, resume=resume)
    return trainer


def wrap(
    method: Method,
    net: nn.Module,
    of: Stream,
    optimizer: Callable[..., torch.optim.Optimizer],
    batch_size: int = 4,
    epochs: int = 1,
    seed: int = 3,
    prepare: bool = True,
    after_step: Callable[[], None] = lambda: None,
) -> Continual:
    """By a loop of one's own around `Continual`, on the same batches as the trainer."""
    settings = {"prepare": of.prepare} if prepare else {}
    mover = optimizer(net.parameters())
    cl = Continual(net, method, mover, seed=seed, **settings)
    order_rng = cl.learner.rng("order")
    net.train()
    for experience in of:
        data = cl.begin(experience, epochs=epochs, batch_size=batch_size)
        for _ in range(epochs if len(data) else 0):
            order = torch.randperm(len(data), generator=order_rng)
            for batch in data.batches(order, batch_size):
                mover.zero_grad()
                outputs = cl(batch.inputs, batch.task) if prepare else net(batch.inputs)
                loss = cl.loss(outputs, batch.targets, batch.inputs)
                cl.backward(loss, batch.targets, inputs=batch.inputs, task=batch.task)
                mover.step()
                after_step()
        cl.end()
    return cl


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def through_disk(state: Any) -> Any:
    """What comes back after saving and loading, without running any code of the file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def batches(of: Stream, index: int, count: int, size: int = 4, seed: int = 0) -> list[Batch]:
    """`count` random batches of one experience, with its task."""
    data = of[index].train
    generator = torch.Generator().manual_seed(seed)
    return [data.gather(torch.randint(len(data), (size,), generator=generator)) for _ in range(count)]


class KeepAt:
    """Checkpoints that keep the state after `step` steps, as it would come back from disk."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.count = 0
        self.kept: Any = None

    def due(self, seconds: float, steps: int) -> bool:
        self.count += 1
        return self.count == self.step

    def save(self, state: dict[str, Any]) -> None:
        if self.count == self.step and self.kept is None:
            self.kept = through_disk(state)


@pytest.fixture
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        stream=stream,
        stream_for=stream_for,
        model=model,
        train=train,
        wrap=wrap,
        weights=weights,
        equal=equal,
        through_disk=through_disk,
        batches=batches,
        KeepAt=KeepAt,
    )
