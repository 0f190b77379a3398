"""Every way to train on the same batches: what they give is equal to the bit, or they are refused in a sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary, Every
from holdfast.core.errors import ConfigError, HoldfastError, NeedError
from holdfast.core.experience import Batch, Stream
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.testing import toys
from holdfast.testing.checking import DoesNotApply, expect
from holdfast.testing.construction import MethodSubject
from holdfast.testing.training import ADAM, MOMENTUM, check_finite, refused
from holdfast.training import Continual, Trainer
from holdfast.training.endless import StreamTrainer

BATCH, EPOCHS = 4, 2
OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {"name": "SGD", "lr": 0.05}, "momentum": MOMENTUM, "adam": ADAM}

Predict = Callable[[Any, int | None], Tensor]
Loop = Callable[[Method, nn.Module, Stream, dict[str, Any]], Predict]


def optimizer_of(spec: dict[str, Any], parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of a loop of one's own, by torch's name for it."""
    arguments = {key: value for key, value in spec.items() if key != "name"}
    made: torch.optim.Optimizer = getattr(torch.optim, spec["name"])(parameters, **arguments)
    return made


# The ways to train -----------------------------------------------------------------------------------------


def by_trainer(method: Method, model: nn.Module, stream: Stream, spec: dict[str, Any]) -> Predict:
    """`Trainer(method).fit(model, stream)`."""
    trainer = Trainer(method, optimizer=dict(spec), epochs=EPOCHS, batch_size=BATCH, evaluate="none", seed=toys.SEED)
    trainer.fit(model, stream)

    def predict(inputs: Any, task: int | None) -> Tensor:
        with trainer.engine.evaluating(), torch.no_grad():
            return trainer.engine.predict(inputs, task)

    return predict


def by_wrapper(method: Method, model: nn.Module, stream: Stream, spec: dict[str, Any]) -> Predict:
    """`Continual(model, method, optimizer)` in a plain loop, with `begin` and `end`, the model called by `cl(x)`."""
    cl = toys.wrap(method, model, stream, lambda p: optimizer_of(spec, p), BATCH, EPOCHS)
    return cl.predict


def by_direct_call(method: Method, model: nn.Module, stream: Stream, spec: dict[str, Any]) -> Predict:
    """The same, with the model called by the loop itself, as any module is."""
    cl = toys.wrap(method, model, stream, lambda p: optimizer_of(spec, p), BATCH, EPOCHS, prepare=False)
    return cl.predict


def by_lightning(method: Method, model: nn.Module, stream: Stream, spec: dict[str, Any]) -> Predict:
    """`ContinualCallback(method)` with `StreamDataModule(stream)`, all experiences in one `fit` of Lightning."""
    import lightning.pytorch as lightning

    from holdfast.lightning import ContinualCallback, StreamDataModule

    callback = ContinualCallback(method, seed=toys.SEED)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return callback.loss(self.net(batch[0]), batch[1], batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(spec, self.parameters())

    off: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with silent("lightning.pytorch", "lightning.fabric", "lightning"):
        trainer = lightning.Trainer(max_epochs=EPOCHS * len(stream), callbacks=[callback], accelerator="cpu", **off)
        trainer.fit(Module(), datamodule=StreamDataModule(stream, batch_size=BATCH, epochs=EPOCHS))
    return callback.predict


def by_stream(
    method: Method, model: nn.Module, stream: Stream, spec: dict[str, Any], boundary: Boundary | None = None
) -> Predict:
    """`StreamTrainer(model, method)` over the trainer's batches in their order."""
    trainer = StreamTrainer(
        model, method, optimizer=dict(spec), boundary=boundary, prepare=stream.prepare, seed=toys.SEED
    )
    trainer.train(arriving(stream))
    return lambda inputs, task: trainer.predict(inputs)


def by_plain_loop(
    method: Method, model: nn.Module, stream: Stream, spec: dict[str, Any], boundary: Boundary | None = None
) -> Predict:
    """`Continual` in a loop over the same batches that never says where an experience begins."""
    optimizer = optimizer_of(spec, model.parameters())
    cl = Continual(model, method, optimizer, boundary=boundary, prepare=stream.prepare, seed=toys.SEED)
    model.train()
    for batch in arriving(stream):
        loss = cl.loss(cl(batch.inputs, batch.task), batch.targets, batch.inputs)
        optimizer.zero_grad()
        cl.backward(loss, batch.targets, inputs=batch.inputs, task=batch.task)
        optimizer.step()
    return cl.predict


def with_boundary(train: Callable[..., Predict]) -> Loop:
    """The same with a boundary every four steps."""
    return lambda *arguments: train(*arguments, Every(steps=4, window=16))


def arriving(stream: Stream) -> Iterator[Batch]:
    """The batches that the trainer takes, in its order, where no method chooses others."""
    order = Continual(nn.Linear(1, 1), Method(), seed=toys.SEED).learner.rng("order")
    for experience in stream:
        for _ in range(EPOCHS):
            rows = torch.randperm(len(experience.train), generator=order)
            yield from experience.train.batches(rows, BATCH)


@contextlib.contextmanager
def silent(*loggers: str) -> Iterator[None]:
    """Let nothing but errors of these loggers through."""
    import warnings

    before = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


# What came of it -------------------------------------------------------------------------------------------


class Outcome:
    """Weights and predictions after training in one way, or the error it was refused with.

    Args:
        subject: the method.
        head: kind of head.
        train: the way to train.
        spec: the optimiser.
    """

    def __init__(
        self, subject: MethodSubject, head: str, train: Loop, spec: dict[str, Any] = OPTIMIZERS["momentum"]
    ) -> None:
        method = subject.make()
        stream = subject.stream("task" if head == "task" else toys.paradigm_for(method))
        model = subject.model(stream, head)
        self.refused: HoldfastError | None = None
        self.values: dict[str, Tensor] = {}
        try:
            predict = train(method, model, stream, spec)
        except HoldfastError as error:
            self.refused = error
            return
        self.values.update(toys.weights(model))
        model.eval()
        for experience in stream:
            data = experience.test if experience.test is not None else experience.train
            inputs = data.gather(torch.arange(len(data))).inputs
            self.values[f"predictions {experience.index}"] = predict(inputs, experience.task)

    def differs(self, other: Outcome) -> list[str]:
        """The weights and predictions in which two outcomes differ."""
        a, b = self.values, other.values
        return [key for key in {**a, **b} if key not in a or key not in b or not torch.equal(a[key], b[key])]

    def reason(self) -> str:
        """Why it was refused, in a word: the need, or the sentence."""
        sentence = str(self.refused)
        if "changes weights at a boundary" in sentence:
            return "moved weights"
        for need, why in NEEDS.items():
            if isinstance(self.refused, NeedError) and why in sentence:
                return need
        return sentence


WAYS: dict[str, tuple[Loop, Loop | None]] = {
    "wrapper": (by_wrapper, None),
    "model called directly": (by_direct_call, None),
    "Lightning": (by_lightning, None),
    "unlabelled stream": (by_stream, by_plain_loop),
    "stream with a boundary": (with_boundary(by_stream), with_boundary(by_plain_loop)),
}
"""Way to train -> how, and the loop it may equal instead of the trainer, where nobody announces an experience."""


def compared(subject: MethodSubject, head: str, way: str, reference: Outcome, spec: dict[str, Any]) -> str:
    """What a way to train gives: `equal`, `equal to the loop`, or `refused: ` and why.

    Raises:
        CheckError: if it gives other weights, or is refused in no sentence.
    """
    train, loop = WAYS[way]
    outcome = Outcome(subject, head, train, spec)
    who = f"`{subject.name}` with a {head} head and {spec['name']}, {way}:"
    if outcome.refused is not None:
        expect(refused(outcome.refused), f"{who} it is refused, but in no sentence: {outcome.refused}")
        expect(
            isinstance(outcome.refused, NeedError | ConfigError) or outcome.reason() == "moved weights",
            f"{who} it breaks only while it trains: {outcome.refused} Say what it needs in `needs`.",
        )
        return f"refused: {outcome.reason()}"
    bounded = way == "stream with a boundary"
    different = outcome.differs(reference) if not bounded else ["boundaries"]
    if not different:
        return "equal"
    if loop is not None:
        different = outcome.differs(Outcome(subject, head, loop, spec))
        if not different:
            return "equal" if bounded else "equal to the loop"
    expect(
        False,
        f"{who} {', '.join(different)} are others than the trainer's. An entry point must not depend on who calls it:"
        " look for something that is read from outside of its arguments.",
    )
    raise AssertionError


def check_ways(subject: MethodSubject, names: Iterable[str], head: str, optimizer: str) -> None:
    """Fail unless each way gives the trainer's weights, or is refused in a sentence.

    Args:
        subject: the method.
        names: of the ways.
        head: kind of head.
        optimizer: to train with, a name in `OPTIMIZERS`.

    Raises:
        DoesNotApply: if the trainer refuses the method with this head, in a sentence.
    """
    if "task" in subject.make().needs and head != "task":
        raise DoesNotApply("it needs a head for each task")
    spec = OPTIMIZERS[optimizer]
    reference = Outcome(subject, head, by_trainer, spec)
    if reference.refused is not None:
        expect(refused(reference.refused), f"`{subject.name}` is refused, but in no sentence: {reference.refused}")
        raise DoesNotApply(str(reference.refused))
    for way in names:
        compared(subject, head, way, reference, spec)


def natural_head(subject: MethodSubject) -> str:
    """A head for each task where a method needs that, else one of the final width."""
    return "task" if "task" in subject.make().needs else "fixed"


def ways_agree(subject: MethodSubject) -> None:
    """Trainer, drop-in and unlabelled stream give equal weights and predictions, or say what the method needs."""
    check_ways(subject, [name for name in WAYS if name != "Lightning"], natural_head(subject), "momentum")


def ways_agree_growing(subject: MethodSubject) -> None:
    """They do so with a head that grows, and with Adam."""
    check_ways(subject, [name for name in WAYS if name != "Lightning"], "growing", "adam")


def ways_agree_by_task(subject: MethodSubject) -> None:
    """They do so with a head for each task, where the loop says the task of what it calls the model with."""
    check_ways(subject, ["wrapper", "unlabelled stream", "stream with a boundary"], "task", "sgd")


def lightning_agrees(subject: MethodSubject) -> None:
    """Lightning gives equal weights and predictions, or the method says what it needs."""
    if importlib.util.find_spec("lightning") is None:
        raise DoesNotApply("Lightning is not installed")
    check_ways(subject, ["Lightning"], natural_head(subject), "momentum")


def accumulation(subject: MethodSubject) -> None:
    """With accumulated batches trainer and drop-in give equal weights, or both refuse."""
    spec = OPTIMIZERS["momentum"]
    nets, reasons = [], []
    for way in ("trainer", "drop-in"):
        method = subject.make()
        stream = subject.stream_for(method)
        nets.append(subject.model(stream))
        try:
            if way == "trainer":
                toys.train(method, nets[-1], stream, accumulate=2, epochs=EPOCHS, optimizer=dict(spec))
            else:
                toys.wrap(method, nets[-1], stream, lambda p: optimizer_of(spec, p), BATCH, EPOCHS, accumulate=2)
        except HoldfastError as error:
            expect(refused(error), f"`{subject.name}` refuses accumulated batches, but in no sentence: {error}")
            reasons.append(f"{way}: {error}")
    expect(len(reasons) != 1, f"only one way to accumulate batches is refused for `{subject.name}`: {reasons}")
    if reasons:
        return
    for net in nets:
        check_finite(net, subject.name)
    if "progress" in subject.make().needs:
        return  # the trainer counts batches towards the end of an experience, the drop-in steps of the optimiser
    different = toys.differing(*nets)
    expect(
        not different,
        f"`{subject.name}` with two accumulated batches a step ends with other {', '.join(different)} in the drop-in"
        " than in the trainer.",
    )


def needs_are_said(subject: MethodSubject) -> None:
    """A loop that lacks what it needs refuses it at construction, by name and with what to write."""
    from holdfast.core.engine import Engine
    from holdfast.core.learner import Learner
    from holdfast.training.wrapper import ADVICE

    for missing in subject.make().needs:
        method = subject.make()
        try:
            Engine(method, Learner(nn.Linear(2, 2)), set(NEEDS) - {missing}, ADVICE)
        except NeedError as error:
            what, _, advice = str(error).partition("\n")
            expect(f"`{method.name}`" in what and NEEDS[missing] in what, f"it is refused without its name: {error}")
            expect(advice.strip().endswith("."), f"`{method.name}` is refused without what to write instead: {error}")
        else:
            expect(False, f"`{method.name}` needs {missing!r}, and a loop without that takes it.")


WAYS_CHECKS: dict[str, Callable[[MethodSubject], None]] = {
    "ways": ways_agree,
    "ways_growing": ways_agree_growing,
    "ways_task": ways_agree_by_task,
    "lightning": lightning_agrees,
    "accumulate": accumulation,
    "needs": needs_are_said,
}
