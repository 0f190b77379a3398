"""Streams whose targets are made of the inputs: reconstruction, and the inverse of a regression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Stream
from holdfast.core.needs import declares
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset
from holdfast.streams.parts import named_stream

Recast = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@declares(paradigm="domain")
def reconstruction(dataset: Dataset, of: Stream | dict[str, Any] | str | None = None, seed: int = 0) -> Stream:
    """Any stream with its inputs as targets, for an autoencoder and criterion=mse (or chamfer, for clouds).

    Inputs are scaled and normalised beforehand, as the data set says, and not augmented: what a model gives back is
    what it saw. The classes of the stream that is recast decide what comes when, and are then forgotten.

    Args:
        dataset: what the stream is made from.
        of: the stream to recast, or its name and arguments (`{"name": "split", "experiences": 5}`); None takes an
            experience for each group of a data set that comes in groups, else the stream split or data_incremental.
        seed: of that stream, where `of` is None.

    Raises:
        ConfigError: several inputs a sample, an unknown stream.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = reconstruction(synthetic(classes=4, features=6), of={"name": "split", "experiences": 2})
        >>> stream.classes, stream.outputs, stream[1].train.gather(torch.tensor([0])).targets.shape
        (0, 6, torch.Size([1, 6]))
    """
    return _recast("reconstruction", dataset, of, seed, lambda inputs, _: (inputs, inputs))


@declares(paradigm="domain")
def inversion(dataset: Dataset, of: Stream | dict[str, Any] | str | None = None, seed: int = 0) -> Stream:
    """Any stream of a regression, turned round for a model of the distribution of targets given inputs (`invertible`).

    Each row of inputs becomes `[targets | inputs]`, flattened, so that training sees both; the targets stay. What such
    a model answers depends on the second part alone.

    Args:
        dataset: a data set with numbers as targets.
        of: as in `reconstruction`.
        seed: of the stream, where `of` is None.

    Raises:
        ConfigError: a data set with classes, several inputs a sample, an unknown stream.

    Example:
        >>> from holdfast.streams.datasets import polynomial
        >>> stream = inversion(polynomial(samples=20), of={"name": "data_incremental", "experiences": 2})
        >>> stream.outputs, stream.input_shape
        (1, (2,))
    """
    if dataset.kind != "regression":
        raise ConfigError(f"{dataset.name} has classes, and an inversion is of numbers. Give kind='regression'.")

    def beside(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([targets.flatten(1), inputs.flatten(1)], dim=1), targets

    return _recast("inversion", dataset, of, seed, beside)


for _made in (reconstruction, inversion):
    _made.kind = "regression"  # type: ignore[attr-defined]  # whatever the data set's targets are


def _recast(name: str, dataset: Dataset, of: Stream | dict[str, Any] | str | None, seed: int, recast: Recast) -> Stream:
    if of is None:
        kind = "grouped" if dataset.groups is not None else "split" if dataset.classes else "data_incremental"
        stream = named_stream({"name": kind, "seed": seed}, dataset)
    else:
        stream = of if isinstance(of, Stream) else named_stream(of, dataset)
    shapes: list[tuple[int, ...]] = []

    def changed(data: Data) -> Data:
        parts = []
        for batch in data:
            if not isinstance(batch.inputs, Tensor):
                raise ConfigError(f"{dataset.name} has several inputs a sample, and {name} takes one. Join them.")
            inputs = batch.inputs if stream.prepare is None else stream.prepare(batch.inputs, False, None)
            parts.append(recast(inputs.float(), batch.targets))
        if not parts:
            return data
        inputs, targets = (torch.cat(column) for column in zip(*parts))
        shapes.append(tuple(inputs.shape[1:]))
        shared = inputs if parts[0][0] is parts[0][1] else targets  # one tensor where both are the same
        return TensorData(inputs, shared, task=getattr(data, "task", None))

    experiences = [
        replace(
            one,
            train=changed(one.train),
            test=None if one.test is None else changed(one.test),
            validation=None if one.validation is None else changed(one.validation),
            classes=(),
        )
        for one in stream.experiences
    ]
    return replace(
        stream,
        experiences=experiences,
        input_shape=shapes[0],
        classes=0,
        class_names=(),
        paradigm="task" if stream.paradigm == "task" else "domain",
        prepare=None,
        table=None,
        name=f"{name}_{dataset.name}",
        description={"name": name, "of": stream.description},
    )
