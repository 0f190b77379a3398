"""Every operation beside every other: they train together, or one of them says in a sentence why it cannot."""

from __future__ import annotations

import functools
import inspect
import random
import warnings
from typing import Any

import pytest
import torch

import holdfast.operations
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, NeedError, UsageError
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.operation import Operation
from holdfast.core.step import Step
from holdfast.streams import split
from holdfast.streams.datasets import synthetic
from holdfast.testing.toys import model_for

NAMES = [
    name
    for name in holdfast.operations.__all__
    if isinstance(getattr(holdfast.operations, name), type)
    and issubclass(getattr(holdfast.operations, name), Operation)
]
SIZES = {"capacity": 12, "size": 4, "candidates": 6, "per_experience": 6, "samples": 4, "width": 8, "max_task": 8}
SIZES |= {"units": 4, "latent": 2, "epochs": 1, "rate": 0.1, "held_out": 2}
"""Small values for arguments that are counts, so that a pair takes some milliseconds."""
DATA = synthetic(classes=4, features=5, samples=12, test_samples=4, seed=1)
STREAMS = {paradigm: split(DATA, experiences=2, paradigm=paradigm) for paradigm in ("task", "class")}


def small(name: str) -> Operation:
    """An operation that is quick to train with."""
    kind = getattr(holdfast.operations, name)
    parameters = inspect.signature(kind).parameters
    counts = {
        key: SIZES[key]
        for key, p in parameters.items()
        if key in SIZES and (p.default is p.empty or (type(p.default) is int and key != "rate"))
    }
    try:
        return kind(**counts)
    except ConfigError:
        needed = {"capacity": 12, "path": "backbone.0"}
        return kind(**counts, **{key: needed[key] for key in needed if key in parameters and key not in counts})


def small_model(operations: Any, stream: Any, head: str) -> torch.nn.Module:
    """A perceptron of two hidden layers, or what an operation asks for that does not work with just any."""
    return model_for(operations)(stream, head, hidden=[6, 6], seed=0)


@functools.cache
def makes_memory(name: str) -> bool:
    """Whether an operation makes the memory of its method."""
    operation = small(name)
    learner = Learner(small_model([operation], STREAMS["class"], "fixed"))
    operation.setup(learner)
    return learner.memory is not None


def combined(first: str, second: str) -> Method:
    """A method of two operations, and a memory if neither makes one."""
    pair = [small(first), small(second)]
    if makes_memory(first) or makes_memory(second):
        return Method(*pair)
    return Method(*pair, holdfast.operations.Remember(capacity=12))


def train(method: Method, head: str) -> None:
    """Two experiences of three steps, and a prediction after each."""
    stream = STREAMS["task" if head == "task" or "task" in method.needs else "class"]
    model = small_model(method, stream, head)
    learner = Learner(model, prepare=stream.prepare, seed=1)
    engine = Engine(method, learner, NEEDS)
    optimizer = torch.optim.SGD(learner.optimized() or [torch.nn.Parameter(torch.zeros(1))], lr=0.05, momentum=0.9)
    learner.on_growth.append(lambda new: optimizer.add_param_group({"params": new}))
    learner.optimizer = lambda: optimizer
    for experience in stream:
        opened, _ = engine.begin(experience)
        model.train()
        for number, batch in enumerate(opened.train.batches(torch.arange(min(12, len(opened.train))), 4)):
            learner.progress = learner.epoch_progress = number / 2
            if batch.task is None:
                batch.task = learner.task
            batch = engine.batch(batch)
            outputs, extras = engine.forward(batch)
            loss = engine.criterion(outputs, batch.targets, batch.inputs)
            step = Step(batch.inputs, batch.targets, loss, outputs, batch.task, engine.index, number / 2, extras)
            optimizer.zero_grad()
            if not engine.take_step(step, optimizer):
                engine.backward(step)
                optimizer.step()
            engine.update(step)
            learner.logged.clear()
        engine.end(opened)
        with engine.evaluating(), torch.no_grad():
            outputs = engine.predict(experience.test.gather(torch.arange(4)).inputs, experience.task)
        assert outputs.shape[0] == 4
        assert not outputs.isnan().any()
    assert all(value.isfinite().all() for value in model.state_dict().values())


def verdict(first: str, second: str, head: str) -> str:
    """What is wrong with the pair: nothing if it trains, or is refused in sentences."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            train(combined(first, second), head)
        except (ConfigError, NeedError, UsageError) as refused:
            return "" if str(refused).rstrip().endswith(".") else f"{first} + {second}: no sentence: {refused}"
        except Exception as error:
            return f"{first} + {second} ({head} head): {type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    "name", ["AnchorPenalty", "RememberExemplars", "GradientConstraints", "BinaryMasks", "InferTask"]
)
def test_an_operation_trains_beside_some_others_or_is_refused_in_a_sentence(name: str) -> None:
    """The check `beside` of `test_checks.py` trains each operation beside six; the slow test below each beside each."""
    chosen = random.Random(name).sample(NAMES, 4)
    pairs = [(name, other, "fixed" if place % 2 else "task") for place, other in enumerate(chosen)]
    assert [found for pair in pairs if (found := verdict(*pair))] == []


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fixed", "task", "growing"])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_trains_beside_every_other_in_either_order_or_is_refused_in_a_sentence(
    name: str, head: str
) -> None:
    assert [found for other in NAMES if (found := verdict(name, other, head))] == []


def test_most_pairs_train_and_few_are_refused() -> None:
    sample = random.Random(1).sample([(a, b) for a in NAMES for b in NAMES if a != b], 16)
    refused = 0
    for first, second in sample:
        try:
            train(combined(first, second), "fixed")
        except (ConfigError, UsageError):
            refused += 1
    assert refused < 4


def test_a_pair_that_breaks_is_found(monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("backbone.0.weight")

    monkeypatch.setattr(holdfast.operations.Replay, "loss", broken)
    assert "KeyError" in verdict("Replay", "AnchorPenalty", "fixed")
    monkeypatch.undo()
    assert verdict("Replay", "AnchorPenalty", "fixed") == ""
