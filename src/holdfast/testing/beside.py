"""An operation beside another: they train together, or one of them says in a sentence why it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from holdfast.core.errors import ConfigError, NeedError, UsageError
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.operations import (
    CrossEntropy,
    Distillation,
    FisherPenalty,
    GradientProjection,
    LogitReplay,
    Remember,
    Replay,
)
from holdfast.testing import toys
from holdfast.testing.checking import arguments_of, expect
from holdfast.testing.construction import OperationSubject
from holdfast.testing.training import refused

Make = Callable[[], Operation]

COMPANIONS = (Replay, Distillation, FisherPenalty, GradientProjection, LogitReplay, CrossEntropy)
"""Operations of six kinds: rows of the batch, a teacher, a penalty, an edit of the gradient, stored outputs, a loss."""


def made(kind: type[Operation]) -> Operation:
    """An operation of ours or of a user, with as few arguments as it takes."""
    return kind(**arguments_of(kind, {}))


def makes_memory(make: Make) -> bool:
    """Whether an operation makes the memory of its method."""
    operation = make()
    learner = Services(toys.model_for([operation])(toys.stream(classes=4), hidden=[6, 6]))
    operation.setup(learner)
    return learner.memory is not None


def combined(first: Make, second: Make) -> Method:
    """A method of two operations, and a memory if neither makes one."""
    pair = [first(), second()]
    if makes_memory(first) or makes_memory(second):
        return Method(*pair)
    return Method(*pair, Remember(capacity=12))


def short(stream: Stream) -> Stream:
    """The first two experiences of a stream."""
    return Stream(stream.experiences[:2], stream.input_shape, stream.classes, stream.paradigm, stream.prepare)


def train(method: Method, head: str, data: dict[str, Stream] | None = None) -> None:
    """Two experiences of a few steps, and a prediction of both after each."""
    paradigm = "task" if head == "task" else toys.paradigm_for(method)
    of = short(toys.stream(paradigm, samples=4)) if data is None else data[paradigm]
    net = toys.model_for(method)(of, head, hidden=[6, 6])
    momentum = {"name": "SGD", "lr": 0.05, "momentum": 0.9}
    toys.train(method, net, of, optimizer=momentum, evaluate="test", evaluate_before=False)
    wrong = [name for name, value in net.state_dict().items() if not value.isfinite().all()]
    expect(not wrong, f"values of {', '.join(wrong)} are not finite.")


def verdict(first: Make, second: Make, head: str, names: tuple[str, str], data: dict[str, Stream] | None = None) -> str:
    """What is wrong with a pair: nothing if it trains, or is refused in a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = f"{names[0]} beside {names[1]} with a {head} head"
        try:
            train(combined(first, second), head, data)
        except (ConfigError, NeedError, UsageError) as error:
            return "" if refused(error) else f"{pair} is refused, but in no sentence: {error}"
        except Exception as error:
            return f"{pair} breaks: {type(error).__name__}: {error}"
    return ""


def beside_others(subject: OperationSubject) -> None:
    """It trains beside other operations, before and after them, or is refused in a sentence."""
    for number, other in enumerate(COMPANIONS):
        if other is subject.kind:
            continue
        head = ("fixed", "growing", "task")[number % 3]
        pair: tuple[Make, Make] = (subject.make, lambda other=other: made(other))  # type: ignore[misc]
        names = (subject.kind.__name__, other.__name__)
        if number % 2:
            pair, names = (pair[1], pair[0]), (names[1], names[0])
        sentence = verdict(*pair, head, names)
        expect(not sentence, f"{sentence} Look for what it takes for granted of the batch, the outputs or the memory.")
