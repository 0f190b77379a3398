"""Streams over several data sets, or over the groups of one: classes and columns are matched by their names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Experience, Stream
from holdfast.core.ranges import Count, ranged
from holdfast.streams.data import TensorData, materialise
from holdfast.streams.dataset import Dataset, Prepare
from holdfast.streams.scenario import (
    Paradigm,
    Scenario,
    Validation,
    ValidationSeed,
    check_paradigm,
    make_stream,
    present_classes,
    viewed,
)
from holdfast.streams.tables import hold_out, rng
from holdfast.streams.transforms import Resize

Match = Literal["name", "index", "apart"]


@ranged
def grouped(
    dataset: Dataset,
    paradigm: Paradigm = "domain",
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """An experience for each group of a data set: each month, machine or hospital of a table (`csv(by="month")`).

    Domain incremental keeps the data set's labels; otherwise classes are numbered in the order in which they appear.

    Args:
        dataset: that comes in groups.
        paradigm: "class", "task" or "domain" incremental; with "task", every group has its number as task label.
        validation: fraction of each class of each group held out from training.
        seed: for the record; nothing here is drawn from it.

    Raises:
        ConfigError: a data set without groups, or a group without a training sample.

    Example:
        >>> from holdfast.streams.datasets import frame
        >>> table = {"heat": [1.0, 2.0, 3.0, 4.0] * 2, "month": ["May"] * 4 + ["June"] * 4, "label": [0, 1] * 4}
        >>> stream = grouped(frame(table, "label", by="month"))
        >>> [(experience.name, len(experience.train), len(experience.test)) for experience in stream]
        [('May', 3, 1), ('June', 3, 1)]
    """
    check_paradigm(paradigm)
    if dataset.groups is None:
        raise ConfigError(
            f"{dataset.name} does not come in groups. Name the column that makes them, for instance csv(by='month')."
        )
    order = list(range(dataset.classes))
    if paradigm != "domain" and dataset.classes:
        by_group = [dataset.train.targets[dataset.groups == group] for group in range(len(dataset.group_names))]
        order = list(dict.fromkeys([*(label for part in by_group for label in part.unique().tolist()), *order]))
    labels = [0] * dataset.classes
    for position, label in enumerate(order):
        labels[label] = position
    return make_stream(
        Scenario(
            name="grouped",
            paradigm=paradigm,
            experiences=len(dataset.group_names),
            classes=dataset.classes,
            draw="groups",
            labels=labels,
            class_order=order,
            seed=seed,
            validation=validation,
            validation_seed=validation_seed,
            extra={"names": list(dataset.group_names)},
        ),
        dataset,
    )


@ranged
def domains(
    datasets: list[Dataset],
    paradigm: Paradigm = "domain",
    size: Count | None = None,
    match: Match | None = None,
    standardise: Literal["first", "pooled"] = "first",
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
) -> Stream:
    """One data set after the other (MNIST, then USPS, then digits; a file for each month).

    Domain incremental shares the labels: classes of one name are one class, whatever their numbers are in each data
    set. Otherwise every data set has labels of its own, after those before it. All inputs are normalised in one way, by
    the statistics of the first data set or of all together. With `size`, images are brought to one size, number of
    channels and range of values (0..255), beforehand for data in memory.

    Args:
        datasets: in order; all of one input shape unless size is given.
        size: height and width that all images are resized to.
        match: which classes of different data sets are the same: those of one "name", of one "index", or none
            ("apart"); None takes the name in domain incremental streams, and "apart" in others.
        standardise: where the data sets are normalised by different statistics: by those of the "first" (all that is
            known when training begins), or "pooled" over the training data of all.

    Raises:
        ConfigError: no data set; shapes, types, scales or augmentations that differ; columns of tables in another
            order; data sets that are normalised in part, but for the first; regression mixed with classes.

    Example:
        >>> from holdfast.streams.datasets import arrays
        >>> one = arrays([[0.0], [1.0]], ["acetone", "ethanol"], test_fraction=0.0, name="May")
        >>> two = arrays([[2.0], [3.0]], ["ethanol", "toluene"], test_fraction=0.0, name="June")
        >>> stream = domains([one, two])
        >>> stream.class_names, [experience.classes for experience in stream]
        (('acetone', 'ethanol', 'toluene'), [(0, 1), (1, 2)])
    """
    check_paradigm(paradigm)
    _check(datasets, size)
    match = ("name" if paradigm == "domain" else "apart") if match is None else match
    if match == "apart" and paradigm == "domain":
        raise ConfigError("match is 'apart', and domain incremental data sets share their classes. Write 'name'.")
    datasets = list(datasets) if size is None else [_resized(dataset, size, datasets) for dataset in datasets]
    _check_alike(datasets)
    first = datasets[0]
    maps, names = _matched(datasets, match)
    experiences = []
    for number, (dataset, labels) in enumerate(zip(datasets, maps)):
        task = number if paradigm == "task" else None
        whole = viewed(dataset.train).derive(label_map=labels, task=task)
        kept, held_out = hold_out(whole.targets, validation, rng(validation_seed, "validation", number))
        experiences.append(
            Experience(
                index=number,
                train=whole.subset(kept) if validation else whole,
                test=None if dataset.test is None else viewed(dataset.test).derive(label_map=labels, task=task),
                validation=whole.subset(held_out) if validation and len(held_out) else None,
                classes=present_classes(whole) if dataset.classes else (),
                task=task,
                name=dataset.name,
            )
        )
    described = {
        "name": "domains",
        "paradigm": paradigm,
        "datasets": [dataset.name for dataset in datasets],
        "size": size,
        "match": match,
        "standardise": standardise,
        "validation": validation,
        "validation_seed": validation_seed,
    }
    return Stream(
        experiences,
        input_shape=first.input_shape,
        classes=len(names),
        paradigm=paradigm,
        prepare=_prepare(datasets, standardise),
        name="_".join(("domains", *(dataset.name for dataset in datasets))),
        class_names=names,
        description=described,
        table=None if first.table is None else first.table.describe(),
    )


def _check(datasets: Sequence[Dataset], size: int | None) -> None:
    if not datasets:
        raise ConfigError("domains of no data set. Give at least one.")
    if len({dataset.kind for dataset in datasets}) > 1:
        raise ConfigError(f"the data sets are {[dataset.kind for dataset in datasets]}. Give all of one kind.")
    if size is not None and size < 1:
        raise ConfigError(f"size is {size}. Give the height and width in pixels.")


def _check_alike(datasets: Sequence[Dataset]) -> None:
    """Raise a ConfigError unless the inputs of all mean the same."""
    shapes = [dataset.input_shape for dataset in datasets]
    if len(set(shapes)) > 1:
        raise ConfigError(f"the data sets have inputs of shape {shapes}. Give size=, or data of one shape.")
    kinds = {str(inputs.dtype) for inputs in _first_inputs(datasets)}
    if len(kinds) > 1:
        raise ConfigError(f"the data sets hold inputs of the types {sorted(kinds)}. Convert them to one type.")
    scales = {dataset.scale for dataset in datasets}
    if len(scales) > 1:
        raise ConfigError(f"the data sets' values run to {sorted(scales)}. Give size=, which brings them to 0..255.")
    tables = [(dataset.name, dataset.table.outputs) for dataset in datasets if dataset.table is not None]
    for name, outputs in tables:
        if outputs != tables[0][1]:
            here, there = next((a, b) for a, b in zip(outputs, tables[0][1]) if a != b)
            raise ConfigError(
                f"where {tables[0][0]} has the feature {there!r}, {name} has {here!r}. Give features= with the same"
                " names in one order, or read all files as one table with by=."
            )


def _matched(datasets: Sequence[Dataset], match: Match) -> tuple[list[Tensor | None], tuple[str, ...]]:
    """The new label of each class of each data set, and the name of each label."""
    if not datasets[0].classes:
        return [None] * len(datasets), ()
    if match == "name":
        labels: dict[str, int] = {}
        for dataset in datasets:
            for name in dataset.names:
                labels.setdefault(name, len(labels))
        return [torch.tensor([labels[name] for name in dataset.names]) for dataset in datasets], tuple(labels)
    counts = [dataset.classes for dataset in datasets]
    if match == "index":
        return [torch.arange(count) for count in counts], max((dataset.names for dataset in datasets), key=len)
    every = [name for dataset in datasets for name in dataset.names]
    shared = sorted({name for name in every if every.count(name) > 1 and not name.isdigit()})
    if shared:
        warnings.warn(
            f"the class {shared[0]!r} occurs in several data sets, and is a class of its own in each. Write"
            " match='name' if it is the same.",
            stacklevel=5,
        )
    starts = [sum(counts[:number]) for number in range(len(counts))]
    return (
        [start + torch.arange(count) for start, count in zip(starts, counts)],
        tuple(f"{dataset.name} {name}" for dataset in datasets for name in dataset.names),
    )


def _prepare(datasets: Sequence[Dataset], standardise: Literal["first", "pooled"]) -> Prepare | None:
    """How all inputs are prepared: as those of the first data set, perhaps by the statistics of all."""
    first = datasets[0].prepare
    every = [dataset.prepare for dataset in datasets]
    if all(prepare == first for prepare in every) or first is None:
        return first
    preparations = [prepare for prepare in every if prepare is not None]
    if len({(prepare.crop, prepare.flip) for prepare in preparations}) > 1 or len(preparations) < len(every):
        raise ConfigError("the data sets are cropped and flipped in different ways. Give all the same crop and flip.")
    lacking = first.mean is None or standardise == "pooled"
    if lacking and len({prepare.mean is None for prepare in preparations}) > 1:
        named = {dataset.name: dataset.prepare is not None and dataset.prepare.mean is not None for dataset in datasets}
        raise ConfigError(
            f"of the data sets some are normalised and some are not: {named}. Normalise all, or the first, which then"
            " counts for all."
        )
    if standardise == "first" or first.mean is None:
        return first
    rows = torch.tensor([float(len(dataset.train)) for dataset in datasets], dtype=torch.float64)
    width = max(len(_values(prepare.mean)) for prepare in preparations)
    means, stds = (
        torch.stack([torch.tensor(_values(getattr(p, part)), dtype=torch.float64).expand(width) for p in preparations])
        for part in ("mean", "std")
    )
    share = (rows / rows.sum()).unsqueeze(1)
    mean = (share * means).sum(0)
    deviation = ((share * (stds.square() + means.square())).sum(0) - mean.square()).clamp(min=0).sqrt()
    return Prepare(mean.tolist(), deviation.tolist(), first.scale, first.crop, first.flip)


def _values(value: float | Sequence[float] | None) -> list[float]:
    if value is None:
        return [1.0]
    return [float(value)] if isinstance(value, int | float) else [float(number) for number in value]


def _first_inputs(datasets: Sequence[Dataset]) -> list[torch.Tensor]:
    """The first training input of every data set that has a single input tensor."""
    first_rows = [dataset.train.gather(torch.tensor([0])).inputs for dataset in datasets]
    return [inputs for inputs in first_rows if isinstance(inputs, torch.Tensor)]


def _resized(dataset: Dataset, size: int, every: Sequence[Dataset]) -> Dataset:
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
