"""Streams whose inputs change while the classes stay: permuted and rotated."""

from __future__ import annotations

from typing import Any, Literal

import torch

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.needs import declares
from holdfast.core.ranges import BelowOne, Count, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.scenario import (
    Paradigm,
    Scenario,
    make_stream,
)
from holdfast.streams.tables import rng


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

    Raises:
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
