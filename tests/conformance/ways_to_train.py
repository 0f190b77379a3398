"""Every method and operation trained in every way on a stream that takes a blink, and digests of what is left."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# All that is used of Holdfast: whoever renames one of these changes it here alone.
from holdfast import Continual, Every, OnNewClass, StreamTrainer, Trainer, methods
from holdfast.core.errors import HoldfastError


def lightning_parts() -> tuple[Any, Any]:
    """The callback and the data module, which need the extra `lightning`."""
    from holdfast.lightning import ContinualCallback, StreamDataModule

    return ContinualCallback, StreamDataModule


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOGGED = (
    *("event", "experience", "after", "split", "epoch", "step", "steps", "samples", "lr", "loss", "accuracy", "terms"),
    *("correct", "correct_task", "class_samples", "class_correct", "parameters", "memory_items"),
)
"""The fields of the log that are part of a digest: no seconds and no bytes."""


def _loaded(path: Path) -> ModuleType:
    """A file of tests, which are no package."""
    name = "_".join(path.relative_to(ROOT).with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toys = _loaded(ROOT / "tests" / "conftest.py")
conformance = _loaded(HERE / "conftest.py")
Make = Callable[[], Any]
SUBJECTS: dict[str, Make] = {parameter.id: parameter.values[0] for parameter in conformance.subjects()}
"""Every method, and every operation that is part of none."""
SUBJECTS |= {
    name: functools.partial(getattr(methods, name), bounded=False) for name in ("ewc", "ewc_online") if name in SUBJECTS
}  # the record is of before there was a bound

SGD = {"name": "SGD", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-2}
ADAM = {"name": "Adam", "lr": 0.01}
SEED, BATCH, EPOCHS = 3, 4, 2


@dataclass
class Outcome:
    """What training left.

    Attributes:
        weights: every parameter and buffer.
        log: the recorded numbers, as plain values.
        predictions: on the test samples, where the way to train hands them out.
        loss: on the test samples, or the last that was logged.
        right: share of the test samples.
    """

    weights: dict[str, Tensor]
    log: Any
    predictions: list[Tensor]
    loss: float | None
    right: float | None

    def digest(self) -> str:
        """Of the weights, and of the log with the predictions."""
        weights, log = hashlib.sha256(), hashlib.sha256(json.dumps(self.log, sort_keys=True).encode())
        for name, value in sorted(self.weights.items()):
            weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + bytes_of(value))
        for value in self.predictions:
            log.update(f"{value.dtype} {tuple(value.shape)}".encode() + bytes_of(value))
        return f"{weights.hexdigest()[:20]} {log.hexdigest()[:20]}"

    def portable(self) -> dict[str, Any]:
        """A few numbers that differ little from one processor to another; masked outputs (huge ones) are left out."""
        values = [value.detach().double() for value in self.weights.values()]
        outputs = torch.cat([torch.zeros(1).double(), *(value.double().flatten() for value in self.predictions)])
        return {
            "count": sum(value.numel() for value in values),
            "weights": _rounded(float(sum(value.abs().sum() for value in values))),
            "signed": _rounded(float(sum(value.sum() for value in values))),
            "outputs": _rounded(float(outputs[outputs.abs() < 1e4].abs().sum())),
            "loss": _rounded(self.loss),
            "right": _rounded(self.right),
        }


def bytes_of(value: Tensor) -> bytes:
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


# The ways to train ---------------------------------------------------------------------------------------


def _outcome(model: nn.Module, log: Any, stream: Any, predict: Callable[..., Tensor]) -> Outcome:
    """Of a way that hands out predictions."""
    predictions, targets = [], []
    for experience in stream:
        test = experience.test.gather(torch.arange(len(experience.test)))
        predictions.append(predict(test.inputs, experience.task).detach())
        targets.append(test.targets)
    right = [outputs.argmax(1) == labels for outputs, labels in zip(predictions, targets)]
    losses = [nn.functional.cross_entropy(outputs, labels) for outputs, labels in zip(predictions, targets)]
    return Outcome(_state(model), log, predictions, float(sum(losses)), float(torch.cat(right).double().mean()))


def _state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, the ones that are not saved too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _stream(make: Make, head: str) -> Any:
    return toys.stream("task" if head == "task" or "task" in make().needs else "class")


def _model(make: Make, stream: Any, head: str = "fixed") -> nn.Module:
    """A small model, of the kind that the subject's operations ask for, where they do not work with just any."""
    asked = next((operation.check_model for operation in make() if hasattr(operation, "check_model")), toys.model)
    return asked(stream, head)


def trainer(make: Make, head: str, optimizer: dict[str, Any], resumed: bool = False, **settings: Any) -> Outcome:
    """Our own loop; with `resumed`, saved in the middle and gone on with by another trainer."""
    stream = _stream(make, head)

    def fitted(resume: Any = None, **more: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        model = _model(make, stream, head)
        options = {"epochs": EPOCHS, "batch_size": BATCH, "log_every": 3, "seed": SEED, **settings, **more}
        return model, Trainer(make(), optimizer=dict(optimizer), **options).fit(model, stream, resume=resume)

    if resumed:
        keep = toys.KeepAt(13)
        fitted(checkpoints=keep)
        model, events = fitted(keep.kept)
    else:
        model, events = fitted()
    log = [{key: event[key] for key in LOGGED if key in event} for event in events]
    last = [event for event in events if event["event"] == "evaluate"][-len(stream) :]
    losses = [event["loss"] for event in last]
    if not last or None in losses:
        return Outcome(_state(model), log, [], None, None)
    right = sum(event["correct"] for event in last) / sum(event["samples"] for event in last)
    return Outcome(_state(model), log, [], sum(losses), right)


def _optimizer(spec: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    options = {key: value for key, value in spec.items() if key != "name"}
    return getattr(torch.optim, spec["name"])(model.parameters(), **options)


def _batches(data: Any, order: torch.Generator) -> Iterator[Any]:
    """One epoch."""
    yield from (data.gather(rows) for rows in torch.randperm(len(data), generator=order).split(BATCH))


def _arriving(stream: Any) -> Iterator[Any]:
    """Batches of one experience after the other, with nothing said in between."""
    order = torch.Generator().manual_seed(SEED)
    for experience in stream:
        for _ in range(EPOCHS):
            yield from _batches(experience.train, order)


def loop(
    make: Make, head: str, spec: dict[str, Any], boundary: Callable[[], Any] | None = None, accumulate: int = 1
) -> Outcome:
    """A loop of one's own: with `begin` and `end`, or with a boundary that somebody else finds."""
    stream = _stream(make, head)
    model = _model(make, stream, head)
    optimizer = _optimizer(spec, model)
    between = None if boundary is None else boundary()
    cl = Continual(model, make(), optimizer, boundary=between, prepare=stream.prepare, accumulate=accumulate, seed=SEED)
    log, order, calls = [], torch.Generator().manual_seed(SEED), 0

    def step(batch: Any) -> None:
        nonlocal calls
        loss = cl.loss(cl(batch.inputs, batch.task), batch.targets, batch.inputs)
        if calls % accumulate == 0:
            optimizer.zero_grad()
        cl.backward(loss, batch.targets, inputs=batch.inputs, task=batch.task)
        calls += 1
        if calls % accumulate == 0:
            optimizer.step()
            log.append(cl.losses())

    model.train()
    if boundary is not None:
        for batch in _arriving(stream):
            step(batch)
    else:
        for experience in stream:
            data = cl.begin(experience, epochs=EPOCHS, batch_size=BATCH)
            for _ in range(EPOCHS if len(data) else 0):
                for batch in _batches(data, order):
                    step(batch)
            if calls % accumulate:
                optimizer.step()
                calls = 0
            cl.end()
    return _outcome(model, log, stream, cl.predict)


def endless(make: Make, spec: dict[str, Any], boundary: Callable[[], Any] | None = None) -> Outcome:
    """Batches as they arrive, each once."""
    stream = _stream(make, "fixed")
    model = _model(make, stream)
    log: list[Any] = []
    between = None if boundary is None else boundary()
    options = {"boundary": between, "prepare": stream.prepare, "log_every": 3, "record": log.append, "seed": SEED}
    way = StreamTrainer(model, make(), optimizer=dict(spec), **options)
    way.train((batch.inputs, batch.targets) for batch in _arriving(stream))
    later = ("experience", "epoch", "lr")  # which this loop did not log when the digests were taken
    kept = [
        {key: event[key] for key in LOGGED if key in event and key not in later}
        for event in log
        if event["event"] != "boundary"  # likewise
    ]
    return _outcome(model, [*kept, way.accuracy], stream, lambda inputs, task: way.predict(inputs))


def in_lightning(make: Make, head: str, spec: dict[str, Any]) -> Outcome:
    """Lightning's loop, all experiences in one fit."""
    import lightning.pytorch as lightning

    callback_class, data_class = lightning_parts()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stream = _stream(make, head)
    model, log = _model(make, stream, head), []
    callback = callback_class(make(), seed=SEED)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = callback.loss(self.net(batch[0]), batch[1], batch[0])
            log.append(float(loss))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(spec, self)

    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options: dict[str, Any] = {**dict.fromkeys(off, False), "accelerator": "cpu", "devices": 1}
    fit = lightning.Trainer(max_epochs=EPOCHS * len(stream), callbacks=[callback], **options).fit
    fit(Module(), datamodule=data_class(stream, batch_size=BATCH, epochs=EPOCHS))
    return _outcome(model, log, stream, callback.predict)


def small_memory(make: Make) -> Make:
    """The same method with a memory that is full long before the stream ends."""
    factory = getattr(methods, make().name)
    other = {"per_class": None} if "per_class" in inspect.signature(factory).parameters else {}
    return functools.partial(factory, capacity=20, **other)


def takes_capacity(subject: str) -> bool:
    """Whether a subject is a method that is told how much to remember."""
    return hasattr(methods, subject) and "capacity" in inspect.signature(getattr(methods, subject)).parameters


every, new_class = functools.partial(Every, steps=6, window=16), functools.partial(OnNewClass, window=16)
FAST: dict[str, Callable[[Make], Outcome]] = {
    "trainer, fixed head, momentum": lambda make: trainer(make, "fixed", SGD),
    "trainer, growing head, momentum": lambda make: trainer(make, "growing", SGD),
    "trainer, growing head, momentum, resumed": lambda make: trainer(make, "growing", SGD, resumed=True),
    "trainer, growing head, Adam": lambda make: trainer(make, "growing", ADAM, evaluate="none"),
    "trainer, head per task, momentum": lambda make: trainer(make, "task", SGD),
    "trainer, fixed head, momentum, accumulated": lambda make: trainer(make, "fixed", SGD, accumulate=2),
    "trainer, fixed head, momentum, small memory": lambda make: trainer(small_memory(make), "fixed", SGD),
    "loop with begin and end, growing head, momentum": lambda make: loop(make, "growing", SGD),
    "loop with Every, fixed head, momentum": lambda make: loop(make, "fixed", SGD, every),
    "loop with OnNewClass, fixed head, Adam": lambda make: loop(make, "fixed", ADAM, new_class),
    "endless stream, momentum": lambda make: endless(make, SGD),
}
SLOW: dict[str, Callable[[Make], Outcome]] = {
    "trainer, fixed head, Adam": lambda make: trainer(make, "fixed", ADAM),
    "trainer, head per task, Adam": lambda make: trainer(make, "task", ADAM),
    "loop with begin and end, fixed head, Adam": lambda make: loop(make, "fixed", ADAM),
    "loop with begin and end, head per task, momentum": lambda make: loop(make, "task", SGD),
    "loop with begin and end, fixed head, momentum, accumulated": lambda make: loop(make, "fixed", SGD, accumulate=2),
    "endless stream, Adam": lambda make: endless(make, ADAM),
    "endless stream with Every, momentum": lambda make: endless(make, SGD, every),
    "endless stream with OnNewClass, momentum": lambda make: endless(make, SGD, new_class),
}
LIGHTNING: dict[str, Callable[[Make], Outcome]] = {
    "Lightning, fixed head, momentum": lambda make: in_lightning(make, "fixed", SGD),
    "Lightning, growing head, Adam": lambda make: in_lightning(make, "growing", ADAM),
    "Lightning, head per task, momentum": lambda make: in_lightning(make, "task", SGD),
}
WAYS = {**FAST, **SLOW, **LIGHTNING}


@contextmanager
def quiet_thread() -> Iterator[None]:
    """One thread, no warnings, and the caller's random state as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def trained(subject: str, way: str) -> Outcome | str:
    """What training leaves, or which error refused it: its class alone, since its words may change."""
    with quiet_thread():
        try:
            return WAYS[way](SUBJECTS[subject])
        except HoldfastError as refused:
            return f"refused {type(refused).__name__}"
