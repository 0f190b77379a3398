"""A job put together over stand-ins for its data, to find out what only stream, model and method together can tell.

Nothing of the user's is read. Where a data set declares its shape, number of classes and rows (`core.needs.declares`),
the stream is made of blank samples of that shape; where it does not, the model is made for an assumed shape and only
what the method says to the model counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.config import kinds, schema
from holdfast.config.job import Job, make_dataset, make_model, make_stream
from holdfast.config.words import nearest
from holdfast.core.errors import ConfigError, HoldfastError, NeedError, UsageError
from holdfast.core.experience import Experience, Stream
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset, Prepare
from holdfast.training.trainer import Trainer

ASSUMED = {"vectors": (16,), "images": (3, 32, 32), "": (1, 28, 28)}
"""The kind of inputs that a data set declares, or none -> the shape that is assumed where it does not declare one."""


class Still:
    """Stands for an optimiser: making one imports torch's compiler, which takes a second or more.

    Args:
        parameters: that it would move.
    """

    def __init__(self, parameters: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": 0.0}]
        self.state: dict[Any, Any] = {}

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Parameters that a method brought along."""
        self.param_groups.append(group)

    def step(self) -> None:
        """Moves nothing."""


class UnknownData(Exception):  # noqa: N818
    """A data set that says nothing of itself before it is loaded."""


def disagreements(job: Job, here: bool = False) -> list[str]:
    """Why the parts of a job cannot be put together, and those of its references; empty where they can.

    Args:
        job: validated, so that each part is right by itself.
        here: whether it is to run on this machine, so that a library that the model needs has to be installed.

    Raises:
        ImportError: where `here`, and it is not.
    """
    if job.learns_from_source:
        return []  # what it gives is known once it is open
    try:
        problems = _trial(job)
        for index, name in enumerate(job.config["references"]):
            against = job.references.get(name)
            if against is not None and not problems:
                problems += [f"references.{index}: `{name}` does not fit this job. {text}" for text in _trial(against)]
    except ImportError:
        if here:
            raise
        return []
    return problems


def _trial(job: Job) -> list[str]:
    if getattr(kinds.find("models", job.block.model.name), "loads", False):
        try:
            return _put_together(job, hollow)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return []  # some layers of libraries cannot be made without values; the data then tell
    return _put_together(job, Job.make_model)


def _put_together(job: Job, make: Callable[[Job, Stream], nn.Module]) -> list[str]:
    exact = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                stream = make_stream(job.block.stream, job.config["seed"], stand_in)
            except UnknownData:
                exact, stream = False, assumed(job)
            try:
                net = make(job, stream)
            except ConfigError:
                if exact:
                    raise
                return []
            settings = {"compile": False, "optimizer": Still, "scheduler": None}
            arguments = {**job.trainer_arguments(job.method.clone(), torch.device("cpu")), **settings}
            if arguments["precision"] == "16-mixed":
                arguments["precision"] = "32-true"
            engine = Trainer(**arguments).bind(net, stream)
            if exact and make is not hollow:
                engine.begin(stream[0])  # who chooses the data shows there
    except ConfigError as error:
        return [_placed(error)]
    except HoldfastError as error:  # stand-ins have no files or data: only what a method needs counts
        return [_placed(error)] if isinstance(error, NeedError | UsageError) else []
    return []


def hollow(job: Job, stream: Stream) -> nn.Module:
    """The model of a library in its shapes alone: weights are neither read nor drawn, which would take seconds.

    Args:
        job: whose model it is.
        stream: that it is made for.

    Raises:
        ConfigError: as where the model is made in earnest.
        ValueError: for a model that is known by its files only.
        ImportError: where the library is not installed.
    """
    block = job.block.model
    if "transformers" in (block.name, job.config["model"].get("library")):
        raise ValueError("its shapes stand in its files")
    without = block.model_copy(update={"given_weights": "random"})
    try:
        with torch.device("meta"):
            net = make_model(without, stream, job.config["seed"])
    except ConfigError as error:
        if isinstance(error.__cause__, NotImplementedError):  # torch has no shapes for what a layer computes
            raise error.__cause__ from None
        raise
    return net.to_empty(device="cpu")


def at_hand(job: Job) -> bool:
    """Whether the data of a job are made or come with a package, and are there as soon as stand-ins would be."""
    block = job.config["stream"] or {}
    while isinstance(block.get("of"), dict):
        block = block["of"]
    sets = [job.config["stream"].get("dataset"), block.get("dataset"), *(block.get("datasets") or [])] if block else []
    names = [one["name"] for one in sets if one]
    return bool(names) and all(
        name == "digits" or getattr(kinds.find("datasets", name), "made", False) for name in names
    )


def _placed(error: HoldfastError) -> str:
    """A sentence that begins with the key it is about; what no part of the job says of itself, the method says."""
    text = " ".join(str(error).split())
    return text if text.split(":")[0].split(".")[0] in schema.job_model().model_fields else f"method: {text}"


def stand_in(block: Any, seed: int, path: str) -> Dataset:
    """A data set of blank samples, as large as the one of a validated block.

    Args:
        block: of a data set.
        seed: of those that are made from random numbers, which are made as they are.
        path: of the block, for messages.

    Raises:
        UnknownData: if the data set does not declare its shape.
    """
    factory = kinds.find("datasets", block.name)
    if getattr(factory, "made", False):
        return make_dataset(block, seed, path)  # type: ignore[no-any-return]
    shape, rows = getattr(factory, "shape", None), getattr(factory, "rows", (0, 0))
    if shape is None:
        raise UnknownData(block.name)
    pad = schema.arguments(block).get("pad", 0)
    shape = tuple(size + 2 * pad if axis else size for axis, size in enumerate(shape))
    train, test = (blank(shape, count, factory.classes) for count in rows)
    return Dataset(block.name, train, test, factory.classes, shape, prepare=Prepare())


def blank(shape: tuple[int, ...], rows: int, classes: int, first: int = 0) -> TensorData:
    """Black samples of some classes in turn, which take the memory of one."""
    inputs: Tensor = torch.zeros(1, *shape, dtype=torch.uint8).expand(rows, *shape)
    return TensorData(inputs, torch.arange(rows) % classes + first)


def assumed(job: Job) -> Stream:
    """Two experiences of two classes, of the paradigm that the stream of a job has as far as anybody can tell."""
    block = job.config["stream"]
    recast = getattr(kinds.find("streams", block["name"]), "kind", None)
    if block.get("of") is not None:
        block = {**block["of"], "dataset": block["dataset"]}
    sets = [block["dataset"]] if block.get("dataset") else block.get("datasets") or []
    declared = {getattr(kinds.find("datasets", one["name"]), "inputs", "") for one in sets}
    shape = ASSUMED[declared.pop() if len(declared) == 1 else ""]
    factory = kinds.find("streams", block["name"])
    paradigm = block.get("paradigm", getattr(factory, "paradigm", "class"))
    if not isinstance(paradigm, str):
        paradigm = "class"
    numbers = "regression" in (recast, *(one.get("kind") for one in sets))
    experiences = []
    for index in range(2):
        task = index if paradigm == "task" else None
        data = TensorData(torch.zeros(4, *shape), torch.zeros(4, 1) if numbers else torch.arange(4) % 2 + 2 * index)
        classes = () if numbers else (2 * index, 2 * index + 1)
        experiences.append(Experience(index, data, data, classes=classes, task=task))
    return Stream(experiences, shape, 0 if numbers else 4, paradigm)


def check_device_name(device: str) -> list[str]:
    """Whether torch knows a device of this name; whether it is there is asked when it is used."""
    if device == "auto":
        return []
    try:
        torch.device(device)
    except RuntimeError:
        near = nearest(device.split(":")[0], ["cpu", "cuda", "mps", "xpu", "auto"])
        advice = f"did you mean {near!r}?" if near else "write cpu, cuda, cuda:1 or mps."
        return [f"device: unknown device {device!r}; {advice}"]
    return []
