"""What a file says of objects: of a stream all that its model must know to be asked without data, of others a name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Batch, Data, Experience, Stream
from holdfast.core.method import Method
from holdfast.core.randomness import add_tensor
from holdfast.runs.folder import OBJECTS
from holdfast.streams.dataset import Prepare

LOOKED_AT = 64
"""Samples that the range of values is read from."""

LONGEST = 1000
"""Letters of a `repr` that are kept of an object that no file can hold."""


def card_of(stream: Stream) -> dict[str, Any]:
    """The card of a stream: classes and their names, shape and range of inputs, preprocessing, columns of a table.

    Args:
        stream: with its data.

    Returns:
        JSON values; `stream_of` makes a stream without data of them. `prepare` is missing where the preprocessing is a
        function that no file can hold.
    """
    card: dict[str, Any] = {
        "name": stream.name,
        "classes": stream.classes,
        "class_names": list(stream.class_names),
        "input_shape": list(stream.input_shape),
        "outputs": stream.outputs,
        "paradigm": stream.paradigm,
        "table": stream.table,
        "description": stream.description,
        "experiences": [
            {"name": one.name, "classes": list(one.classes), "task": one.task, "samples": len(one.train)}
            for one in stream
        ],
        **_range(stream),
    }
    if stream.prepare is None:
        card["prepare"] = None
    elif isinstance(stream.prepare, Prepare):
        card["prepare"] = stream.prepare.describe()
    return card


def _range(stream: Stream) -> dict[str, Any]:
    """Type and largest value of raw inputs, which say how an image file becomes such an input."""
    if not len(stream) or not len(stream[0].train):
        return {"dtype": None, "top": 1.0}
    data = stream[0].train
    with torch.random.fork_rng(devices=[]):  # a reader may draw seeds for its processes
        inputs = data.gather(torch.arange(min(LOOKED_AT, len(data)))).inputs
    if not isinstance(inputs, Tensor):
        return {"dtype": None, "top": 1.0}
    return {"dtype": str(inputs.dtype).removeprefix("torch."), "top": float(inputs.max())}


def stream_of(card: Mapping[str, Any]) -> Stream:
    """The stream of a card, with everything but the data.

    Raises:
        DataError: when the data of one of its experiences are asked for.
    """
    classes, outputs = int(card["classes"]), int(card["outputs"])
    experiences = [
        Experience(
            index=index,
            train=NoData(classes, outputs),
            classes=tuple(one["classes"]),
            task=one["task"],
            name=one["name"],
        )
        for index, one in enumerate(card["experiences"])
    ]
    prepare = card["prepare"]
    return Stream(
        experiences,
        tuple(card["input_shape"]),
        classes,
        card["paradigm"],
        None if prepare is None else Prepare(**prepare),
        card["name"],
        tuple(card["class_names"]),
        dict(card["description"]),
        card["table"],
    )


class NoData(Data):
    """The data of an experience that are not here: no samples, and targets of the right type.

    Args:
        classes: of the stream; 0 for regression.
        outputs: numbers of a target of regression.
    """

    def __init__(self, classes: int, outputs: int) -> None:
        self._targets = torch.empty(0, dtype=torch.int64) if classes else torch.empty(0, outputs)

    def __len__(self) -> int:
        return 0

    @property
    def targets(self) -> Tensor:
        """None of them."""
        return self._targets

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """No batch, as there is no sample.

        Raises:
            DataError: where a sample is asked for.
        """
        if len(order):
            raise DataError("the data of this run are not loaded. Evaluate the run, or give data of your own.")
        return iter(())

    def subset(self, index: Tensor) -> Data:
        """Nothing of nothing."""
        return self

    def to(self, device: torch.device | str) -> Data:
        """The same."""
        return self


def number_of(label: object, class_names: Sequence[str]) -> int:
    """The class of a label as its user writes it; -1 where the model has no such class.

    Args:
        label: a word or a number: `"setosa"`, `3`, `3.0`.
        class_names: of the stream; classes that share a label are joined by `/`.

    Example:
        >>> number_of("b", ["a", "b/c"]), number_of(7.0, ["5", "7"]), number_of("x", ["a"])
        (1, 1, -1)
    """
    word = str(label).strip()
    if isinstance(label, float) and label.is_integer():
        word = str(int(label))
    if word in class_names:
        return list(class_names).index(word)
    within = [index for index, name in enumerate(class_names) if word in name.split("/")]
    if len(within) == 1:
        return within[0]
    whole = word.removesuffix(".0")
    return list(class_names).index(whole) if whole != word and whole in class_names else -1


def is_plain(value: Any) -> bool:
    """Whether JSON can hold it as it is."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def told_of(value: Any) -> dict[str, str]:
    """What can be said of an object in a file: its name and its `repr`."""
    kind = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return {"name": f"{kind.__module__}.{kind.__qualname__}", "repr": repr(value)[:LONGEST]}


def digest_of_model(model: nn.Module) -> str:
    """Of the names, shapes and types of its tensors: another seed gives the same."""
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def digest_of_stream(stream: Stream) -> str:
    """Of its classes, sizes and targets, in order: data that take long to read are not read for it."""
    digest = hashlib.sha256(repr((stream.name, stream.classes, stream.paradigm, tuple(stream.input_shape))).encode())
    for experience in stream:
        digest.update(repr((experience.classes, experience.task, len(experience.train))).encode())
        add_tensor(digest, torch.as_tensor(experience.train.targets))
    return digest.hexdigest()[:16]


def config_of(
    written: Mapping[str, Any],
    apart: Sequence[str],
    method: Method,
    loggers: Sequence[Any],
    model: nn.Module,
    stream: Stream,
) -> dict[str, Any]:
    """The configuration of a training in Python as far as JSON can say it; what was an object is told under `python`.

    Args:
        written: arguments of the trainer.
        apart: those that are not keys of `trainer`.
        method: what is done around each step.
        loggers: of the trainer.
        model: that is trained.
        stream: that is learned, maybe one that stands for a source.
    """
    objects = {
        "model": {**told_of(model), "digest": digest_of_model(model)},
        "stream": {
            **told_of(getattr(stream, "source", stream)),
            "digest": digest_of_stream(stream),
            "description": stream.description,
        },
    }
    config: dict[str, Any] = {"seed": written["seed"], "device": str(written["device"])}
    parts = {name: written[name] for name in ("optimizer", "scheduler", "criterion")}
    parts["method"] = method.config()
    for name, value in parts.items():
        config[name] = value if is_plain(value) else None
        if not is_plain(value):
            objects[name] = told_of(method if name == "method" else value)
    settings = {name: value for name, value in written.items() if name not in apart}
    config["trainer"] = {name: value if is_plain(value) else told_of(value) for name, value in settings.items()}
    config["loggers"] = [one if is_plain(one) else told_of(one) for one in loggers]
    return {**config, "tags": [], OBJECTS: objects}


def check_same(kept: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run of another method, model or stream."""
    if OBJECTS not in kept:
        raise ConfigError(f"{folder} was made by `holdfast run`. Go on with: holdfast resume {folder}")
    for name in ("model", "stream"):
        if kept[OBJECTS][name]["digest"] != config[OBJECTS][name]["digest"]:
            raise ConfigError(
                f"{folder} was trained with another {name} ({kept[OBJECTS][name]['name']}: "
                f"{kept[OBJECTS][name]['repr'][:80]}). Give the same one, or another out."
            )
    for name in ("method", "seed"):
        if kept[name] != config[name]:
            raise ConfigError(f"{folder} was trained with {name} {kept[name]}, not {config[name]}. Give the same one.")
