"""One step of an operation by itself, on a few points in double precision."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.engine import Engine
from holdfast.core.experience import Batch, Experience
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.operation import Operation
from holdfast.core.step import Step
from holdfast.models import mlp
from holdfast.streams.data import TensorData

FEATURES = 4


def points(rows: int, classes: int = 3, seed: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (rows,), generator=generator)
    targets[: min(rows, classes)] = torch.arange(min(rows, classes))  # every class is there
    return inputs, first + targets


def net(head: str = "fixed", classes: int = 3, seed: int = 0, **other: Any) -> nn.Module:
    return mlp(
        input_shape=(FEATURES,), classes=classes, hidden=[5], head=head, seed=seed, activation="tanh", **other
    ).double()


def bind(*operations: Operation, model: nn.Module | None = None, **other: Any) -> Engine:
    return Engine(Method(*operations), Learner(net() if model is None else model, **other), NEEDS)


def experience(inputs: Tensor, targets: Tensor, index: int = 0, task: int | None = None) -> Experience:
    classes = tuple(sorted(set(targets.tolist())))
    return Experience(index, TensorData(inputs, targets, task=task), classes=classes, task=task)


def step(engine: Engine, inputs: Tensor, targets: Tensor, lr: float | None = None, task: int | None = None) -> Step:
    """Backward of one step, and its move if `lr` is given."""
    learner = engine.learner
    batch = engine.batch(Batch(inputs, targets, task))
    outputs, extras = engine.forward(batch)
    made = Step(inputs, targets, engine.criterion(outputs, targets, inputs), outputs, task, engine.index, 0.5, extras)
    for p in learner.parameters():
        p.grad = None
    engine.backward(made)
    if lr is not None:
        with torch.no_grad():
            for p in learner.parameters():
                if p.grad is not None:
                    p -= lr * p.grad
        engine.update(made)
    return made


def gradient_of(learner: Learner, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of a loss written out by hand, by parameter name."""
    named = learner.named_parameters()
    found = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def assert_gradient(learner: Learner, expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    named = learner.named_parameters()
    assert named.keys() == expected.keys()
    for name, p in named.items():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(grad, expected[name], rtol=1e-8, atol=tolerance, msg=name)


@pytest.fixture
def few() -> SimpleNamespace:
    return SimpleNamespace(
        points=points,
        net=net,
        bind=bind,
        experience=experience,
        step=step,
        gradient_of=gradient_of,
        assert_gradient=assert_gradient,
    )
