"""What every method must stand: optimisers, precision, layouts, targets of any kind, and operations beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, HoldfastError, NeedError, UsageError
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
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
from holdfast.testing.construction import MethodSubject, OperationSubject
from holdfast.testing.training import check_finite, refused, tensors_of
from holdfast.training import Trainer

HALF = (torch.bfloat16, torch.float16)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1},
    "RMSprop": {"name": "RMSprop", "lr": 0.01, "momentum": 0.5},
    "nesterov": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "Adagrad": {"name": "Adagrad", "lr": 0.05},
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "AdamW": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=60),
    "nesterov": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4),
}
CRITERIA: dict[str, Callable[..., Tensor]] = {"numbers": F.mse_loss, "labels": F.binary_cross_entropy_with_logits}
"""Kind of target -> the loss for it."""


def trained(subject: MethodSubject, of: Stream | None = None, **settings: Any) -> Trainer:
    """A trainer that has trained on the toy stream and predicted its test data."""
    method = subject.make()
    of = subject.stream_for(method) if of is None else of
    net = subject.model(of, "task" if "task" in method.needs else "growing")
    trainer = toys.train(method, net, of, **{"evaluate": "test", **settings})
    check_finite(net, subject.name)
    return trainer


def check_books(trainer: Trainer, name: str) -> None:
    """Fail unless state, memory and weights are kept in full precision."""
    kept: dict[str, Tensor] = dict(trainer.model.state_dict())
    for operation in trainer.method:
        kept |= dict(tensors_of(operation.save(), operation.name))
    if trainer.learner.memory is not None:
        kept |= dict(tensors_of(dict(trainer.learner.memory.all()), "memory"))
    half = [key for key, value in kept.items() if value.dtype in HALF]
    expect(
        not half,
        f"`{name}` keeps {', '.join(half)} in half precision. Under autocast outputs are half; write .float() on what"
        " is kept.",
    )


def optimizers(subject: MethodSubject) -> None:
    """It trains with any optimiser and scheduler, without a warning."""
    for name, spec in OPTIMIZERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer = trained(subject, optimizer=spec, scheduler=SCHEDULERS.get(name), scheduler_every="step")
        check_books(trainer, subject.name)


def half_precision(subject: MethodSubject) -> None:
    """It trains under bfloat16 autocast, close to full precision, and keeps its books in full precision."""
    spec = {"name": "SGD", "lr": 0.05, "momentum": 0.9}
    half = trained(subject, optimizer=spec, precision="bf16-mixed")
    check_books(half, subject.name)
    full = trained(subject, optimizer=spec)
    for name, value in full.model.state_dict().items():
        expect(
            torch.allclose(half.model.state_dict()[name].double(), value.double(), atol=0.2),
            f"under autocast `{subject.name}` takes {name} another way than in full precision. Every forward of its own"
            " must go through `learner(inputs)`.",
        )


def double_precision(subject: MethodSubject) -> None:
    """It trains a model of doubles, and what it keeps are doubles."""
    trainer = trained(subject, optimizer={"name": "Adam", "lr": 0.01}, precision="64-true")
    other = {key for key, value in trainer.model.named_parameters() if value.dtype != torch.float64}
    expect(not other, f"`{subject.name}` makes {', '.join(sorted(other))} of a model of doubles something else.")
    check_books(trainer, subject.name)


def channels_last(subject: MethodSubject) -> None:
    """It trains a convolutional model in any memory format, to the same weights but for rounding."""
    nets: list[nn.Module] = []
    for last in (False, True):
        method = subject.make()
        of = toys.images(toys.paradigm_for(method), channels_last=last)
        head: Any = "task" if "task" in method.needs else "growing"
        net = toys.cnn_for(of, head) if subject.model is toys.model else subject.model(of, head)
        net = net.to(memory_format=torch.channels_last) if last else net  # type: ignore[call-overload]
        try:
            toys.train(method, net, of)
        except HoldfastError as error:
            expect(refused(error), f"`{subject.name}` is refused with images, but in no sentence: {error}")
            return
        nets.append(net)
    for name, value in nets[0].state_dict().items():
        expect(
            torch.allclose(value, nets[1].state_dict()[name], atol=0.02),
            f"in channels_last `{subject.name}` takes {name} another way: look for a view() of an image.",
        )


def targets(subject: MethodSubject) -> None:
    """It learns numbers and several labels a row in every loop, or says that it needs class labels."""
    for kind, criterion in CRITERIA.items():
        method = subject.make()
        of = toys.numbers(kind, tasks="task" in method.needs, rows=24, experiences=2)
        nets = [subject.model(of, classes=2, hidden=[16]) for _ in range(2)]
        settings: dict[str, Any] = {"batch_size": 8, "epochs": 4}
        adam = {"name": "Adam", "lr": 0.05}
        if "classes" in method.needs:
            for run in ("trainer", "drop-in"):
                check_refuses_numbers(subject.make(), nets[0], of, criterion, run)
            continue
        try:
            trainer = toys.train(method, nets[0], of, optimizer=adam, criterion=criterion, evaluate="test", **settings)
        except HoldfastError as error:
            expect(refused(error), f"`{subject.name}` is refused with {kind} as targets, but in no sentence: {error}")
            continue
        toys.wrap(subject.make(), nets[1], of, lambda p: torch.optim.Adam(p, lr=0.05), criterion=criterion, **settings)
        different = toys.differing(*nets)
        expect(not different, f"`{subject.name}` on {kind}: other {', '.join(different)} in the drop-in.")
        events = [event for event in trainer.events if event["event"] == "evaluate"]
        losses = {(event["after"], event["experience"]): event["loss"] for event in events}
        expect(all(value == value for value in losses.values()), f"`{subject.name}` on {kind}: a loss is no number.")
        if trainer.engine.index:
            best = min(losses[index, index] / losses[-1, index] for index in range(len(of)))
            expect(best < 0.9, f"`{subject.name}` does not learn {kind}: its loss falls to {best:.2f} of the first.")


def check_refuses_numbers(method: Method, net: nn.Module, of: Stream, criterion: Any, run: str) -> None:
    """Fail unless a method that needs class labels is refused on numbers."""
    sgd = {"name": "SGD", "lr": 0.1}
    try:
        if run == "trainer":
            toys.train(method, net, of, optimizer=sgd, criterion=criterion)
        else:
            toys.wrap(method, net, of, lambda p: torch.optim.SGD(p, lr=0.1), criterion=criterion)
    except NeedError as error:
        expect(
            NEEDS["classes"] in str(error), f"`{method.name}` is refused for something else than its classes: {error}"
        )
    else:
        expect(False, f"`{method.name}` needs class labels, and the {run} takes numbers.")


KIND_CHECKS: dict[str, Callable[[MethodSubject], None]] = {
    "optimizers": optimizers,
    "half": half_precision,
    "double": double_precision,
    "channels_last": channels_last,
    "targets": targets,
}


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
