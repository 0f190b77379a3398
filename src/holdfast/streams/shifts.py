"""Streams whose inputs change while the classes stay: permuted, rotated, and one data set after another."""

from __future__ import annotations

from typing import Any, Literal

import torch

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Experience, Stream
from holdfast.core.needs import declares
from holdfast.core.ranges import BelowOne, Count, ranged
from holdfast.streams.data import TensorData, materialise
from holdfast.streams.dataset import Dataset
from holdfast.streams.prepare import Prepare
from holdfast.streams.scenario import (
    Paradigm,
    Scenario,
    make_stream,
    present_classes,
    viewed,
)
from holdfast.streams.tables import hold_out, rng
from holdfast.streams.transforms import Resize


@ranged
def permuted(
    dataset: Dataset,
    experiences: Count = 10,
    first_identity: bool = False,
    paradigm: Paradigm = "domain",
    mode: Literal["all", "by_channel"] = "all",
    validation: BelowOne = 0.0,
    validation_seed: int = 0,
    seed: int = 0,
) -> Stream:
    """Every experience is the whole data set under another fixed permutation of its values (Permuted MNIST).

    Permutations are applied when batches are gathered: twenty experiences need one copy of the pixels. Domain
    incremental shares the labels; otherwise experience t has the labels t*C .. t*C + C - 1.

    Args:
        dataset: what is permuted.
        experiences: how many.
        first_identity: whether the first experience keeps its inputs as they are.
        paradigm: "class", "task" or "domain" incremental.
        mode: "all" permutes every value of a sample, "by_channel" the pixels alike in every channel.
        validation: fraction of each class held out from training, the same samples in every experience.
        validation_seed: of the held-out choice.
        seed: of the permutations.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = permuted(synthetic(classes=3), experiences=2, paradigm="task")
        >>> [experience.classes for experience in stream]
        [(0, 1, 2), (3, 4, 5)]
    """
    seeds = torch.randint(2**31 - 1, (experiences,), generator=rng(seed, "permutations")).tolist()
    transforms: list[dict[str, Any]] = [{"kind": "permute", "seed": value, "mode": mode} for value in seeds]
    if first_identity:
        transforms[0] = {"kind": "none"}
    return _transformed(dataset, "permuted", paradigm, transforms, validation, validation_seed, seed)


@declares(inputs="images")
@ranged
def rotated(
    dataset: Dataset,
    angles: list[float] | None = None,
    experiences: Count | None = None,
    paradigm: Paradigm = "domain",
    validation: BelowOne = 0.0,
    validation_seed: int = 0,
    seed: int = 0,
) -> Stream:
    """Every experience is the whole data set of images rotated by another angle (Rotated MNIST).

    Images are rotated about their centre, bilinearly, when batches are gathered; 0 degrees is exact.

    Args:
        dataset: images.
        angles: in degrees, counter-clockwise, one per experience; None spaces them evenly in 0..180 (180 left out).
        experiences: how many; 5, or as many as angles are given.
        paradigm: "class", "task" or "domain" incremental.
        validation: fraction of each class held out from training, the same samples in every experience.
        validation_seed: of the held-out choice.
        seed: for the record; nothing here is drawn from it.

    Errors:
        ConfigError: no images, or angles and experiences that disagree.

    Example:
        >>> from holdfast.streams.datasets import digits
        >>> [experience.name for experience in rotated(digits(), experiences=3)]
        ['0 degrees', '60 degrees', '120 degrees']
    """
    if len(dataset.input_shape) != 3:
        raise ConfigError(f"{dataset.name} has inputs of shape {dataset.input_shape}. Only images can be rotated.")
    if angles is None:
        experiences = 5 if experiences is None else experiences
        angles = [180.0 * number / experiences for number in range(experiences)]
    elif not angles or (experiences is not None and experiences != len(angles)):
        raise ConfigError(f"experiences is {experiences} and there are {len(angles)} angles. Leave one of them out.")
    transforms = [{"kind": "rotate", "degrees": float(angle)} for angle in angles]
    return _transformed(dataset, "rotated", paradigm, transforms, validation, validation_seed, seed)


@ranged
def domains(
    datasets: list[Dataset],
    paradigm: Paradigm = "domain",
    size: Count | None = None,
    validation: BelowOne = 0.0,
    validation_seed: int = 0,
) -> Stream:
    """One data set after the other (MNIST, then USPS, then digits).

    Domain incremental shares the labels, so that class c of one is class c of all; otherwise every data set has
    labels of its own, after those before it. With `size`, images are brought to one size, number of channels and
    range of values (0..255), beforehand for data in memory. Normalisation is kept only if all data sets agree on it.

    Args:
        datasets: in order; all of one input shape unless size is given.
        paradigm: "class", "task" or "domain" incremental.
        size: height and width that all images are resized to.
        validation: fraction of each class held out from training.
        validation_seed: of the held-out choice.

    Errors:
        ConfigError: no data set, shapes or scales that differ without size, regression mixed with classes.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = domains([synthetic(classes=2), synthetic(classes=3, seed=1)], paradigm="class")
        >>> [experience.classes for experience in stream]
        [(0, 1), (2, 3, 4)]
    """
    if not datasets:
        raise ConfigError("domains of no data set. Give at least one.")
    if len({dataset.kind for dataset in datasets}) > 1:
        raise ConfigError(f"the data sets are {[dataset.kind for dataset in datasets]}. Give all of one kind.")
    datasets = list(datasets) if size is None else [_resized(dataset, size, datasets) for dataset in datasets]
    first = datasets[0]
    shapes = [dataset.input_shape for dataset in datasets]
    if len(set(shapes)) > 1:
        raise ConfigError(f"the data sets have inputs of shape {shapes}. Give size=, or data of one shape.")
    kinds = {str(inputs.dtype) for inputs in _first_inputs(datasets)}
    if len(kinds) > 1:
        raise ConfigError(f"the data sets hold inputs of the types {sorted(kinds)}. Convert them to one type.")
    scales = {dataset.scale for dataset in datasets}
    if len(scales) > 1:
        raise ConfigError(f"the data sets' values run to {sorted(scales)}. Give size=, which brings them to 0..255.")
    counts = [dataset.classes for dataset in datasets]
    starts = [0 if paradigm == "domain" else sum(counts[:number]) for number in range(len(counts))]
    experiences = []
    for number, (dataset, start) in enumerate(zip(datasets, starts)):
        task = number if paradigm == "task" else None
        whole = viewed(dataset.train).derive(target_shift=start, task=task)
        kept, held = hold_out(whole.targets, validation, rng(validation_seed, "validation", number))
        experiences.append(
            Experience(
                index=number,
                train=whole.subset(kept) if validation else whole,
                test=None if dataset.test is None else viewed(dataset.test).derive(target_shift=start, task=task),
                validation=whole.subset(held) if validation and len(held) else None,
                classes=present_classes(whole) if dataset.classes else (),
                task=task,
                name=dataset.name,
            )
        )
    if paradigm == "domain":
        names = max((dataset.names for dataset in datasets), key=len)
    else:
        names = tuple(f"{dataset.name} {name}" for dataset in datasets for name in dataset.names)
    agreed = all(dataset.prepare == first.prepare for dataset in datasets)
    described = {
        "name": "domains",
        "paradigm": paradigm,
        "datasets": [dataset.name for dataset in datasets],
        "size": size,
        "validation": validation,
        "validation_seed": validation_seed,
    }
    return Stream(
        experiences,
        input_shape=first.input_shape,
        classes=max(counts) if paradigm == "domain" else sum(counts),
        paradigm=paradigm,
        prepare=first.prepare if agreed else Prepare(scale=first.scale),
        name="_".join(("domains", *(dataset.name for dataset in datasets))),
        class_names=names,
        description=described,
    )


def _transformed(
    dataset: Dataset,
    name: str,
    paradigm: Paradigm,
    transforms: list[dict[str, Any]],
    validation: float,
    validation_seed: int,
    seed: int,
) -> Stream:
    return make_stream(
        Scenario(
            name=name,
            paradigm=paradigm,
            experiences=len(transforms),
            classes=dataset.classes,
            draw="all",
            labels=list(range(dataset.classes)),
            shift=0 if paradigm == "domain" else dataset.classes,
            class_order=list(range(dataset.classes)),
            seed=seed,
            validation=validation,
            validation_seed=validation_seed,
            transforms=transforms,
        ),
        dataset,
    )


def _first_inputs(datasets: list[Dataset]) -> list[torch.Tensor]:
    """The first training input of every data set that has a single input tensor."""
    found = [dataset.train.gather(torch.tensor([0])).inputs for dataset in datasets]
    return [inputs for inputs in found if isinstance(inputs, torch.Tensor)]


def _resized(dataset: Dataset, size: int, every: list[Dataset]) -> Dataset:
    """The data set with images of this size, as many channels as the richest, and values that run to 255."""
    for each in every:
        if len(each.input_shape) != 3:
            raise ConfigError(f"{each.name} has inputs of shape {each.input_shape}. Only images can be resized.")
    channels = max(each.input_shape[0] for each in every)
    floating = any(inputs.is_floating_point() for inputs in _first_inputs([dataset]))
    factor = 1.0 if floating else 255.0 / dataset.scale
    old = dataset.prepare or Prepare()
    prepare = Prepare(old.mean, old.std, 255.0, old.crop, old.flip)
    if dataset.input_shape == (channels, size, size) and factor == 1.0:
        return dataset
    resize = Resize((size, size), channels, factor)

    def changed(data: Data) -> Data:
        view = viewed(data).derive(transform=resize)
        return materialise(view) if isinstance(view, TensorData) and len(view) else view

    return Dataset(
        name=dataset.name,
        train=changed(dataset.train),
        test=None if dataset.test is None else changed(dataset.test),
        classes=dataset.classes,
        input_shape=(channels, size, size),
        class_names=dataset.class_names,
        prepare=prepare,
        kind=dataset.kind,
    )
