"""Streams whose inputs change: permuted and rotated with the same classes, and noisy with new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch

from holdfast.core.errors import ConfigError, unknown
from holdfast.core.experience import Stream
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, Range, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.scenario import (
    Paradigm,
    Scenario,
    Validation,
    ValidationSeed,
    check_experiences,
    check_paradigm,
    make_stream,
)
from holdfast.streams.tables import labels_of_first_appearance, ordered_classes, rng, whole_classes
from holdfast.streams.transforms import CORRUPTIONS

Angle = Annotated[float, Range(0, 360, low_open=True)]


@ranged
def permuted(
    dataset: Dataset,
    experiences: Count = 10,
    first_identity: bool = False,
    paradigm: Paradigm = "domain",
    mode: Literal["all", "by_channel"] = "all",
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Every experience is the whole data set under another fixed permutation of its values (Permuted MNIST).

    Permutations are applied when batches are gathered: twenty experiences need one copy of the pixels. Domain
    incremental shares the labels; otherwise experience t has the labels t*C .. t*C + C - 1.

    Args:
        dataset: what is permuted.
        experiences: how many.
        first_identity: whether the first experience keeps its inputs as they are.
        mode: "all" permutes every value of a sample, "by_channel" the pixels alike in every channel.
        validation: fraction of each class held out from training, the same samples in every experience.
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
    angles: list[float] | Literal["even", "random"] | None = None,
    experiences: Count | None = None,
    span: Angle = 180.0,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    paradigm: Paradigm = "domain",
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Every experience is the whole data set of images rotated by another angle (Rotated MNIST).

    Images are rotated about their centre when batches are gathered; 0 degrees is exact.

    Args:
        dataset: images.
        angles: in degrees, counter-clockwise, one per experience; "even" (as None) spaces them evenly from 0 to `span`,
            which is left out; "random" draws each from 0 to `span`, by the seed, as Buzzega et al. 2020 do with
            20 experiences.
        experiences: how many; 5, or as many as angles are given.
        span: degrees that angles are spaced in or drawn from.
        interpolation: "bilinear", the weighted mean of the four nearest pixels, or "nearest", the nearest one.
        validation: fraction of each class held out from training, the same samples in every experience.
        seed: of random angles.

    Raises:
        ConfigError: no images, or angles and experiences that disagree.

    Example:
        >>> from holdfast.streams.datasets import digits
        >>> [experience.name for experience in rotated(digits(), experiences=3)]
        ['0 degrees', '60 degrees', '120 degrees']
    """
    if len(dataset.input_shape) != 3:
        raise ConfigError(f"{dataset.name} has inputs of shape {dataset.input_shape}. Only images can be rotated.")
    if angles is None or isinstance(angles, str):
        if angles not in (None, "even", "random"):
            raise ConfigError(unknown("choice of angles", str(angles), ["even", "random"]))
        experiences = 5 if experiences is None else experiences
        places = [number / experiences for number in range(experiences)]
        if angles == "random":
            drawn = torch.rand(experiences, generator=rng(seed, "angles"), dtype=torch.float64)
            places = drawn.tolist()
        angles = [round(span * position, 6) for position in places]
    elif not angles or (experiences is not None and experiences != len(angles)):
        raise ConfigError(f"experiences is {experiences} and there are {len(angles)} angles. Leave one of them out.")
    how = {} if interpolation == "bilinear" else {"interpolation": interpolation}
    transforms = [{"kind": "rotate", "degrees": float(angle), **how} for angle in angles]
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


@ranged
def noisy(
    dataset: Dataset,
    experiences: Count = 4,
    classes_per_experience: Count = 5,
    corruptions: Sequence[str | dict[str, Any]] = ("clean", "solarized", "blurred", "grey"),
    corrupt: bool = True,
    class_order: Literal["natural", "random"] | list[int] = "random",
    paradigm: Paradigm = "task",
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Each experience brings new classes, and its images, training and test alike, are corrupted in their own way.

    The noisy stream of "Partial Hypernetworks for Continual Learning" (Hemati et al., CoLLAs 2023): clean, then
    solarized from half the range on, then blurred (sigma 0.9), then stretched in contrast, grey and blurred. Classes
    that no experience has room for are left out. Difference: the last blur has sigma 0.65, there drawn from 0.6 to 0.7
    for each image.

    Args:
        dataset: images.
        experiences: how many; at most as many as corruptions.
        classes_per_experience: new classes of each.
        corruptions: one for each experience: "clean", "solarized", "blurred", "grey", or a transform as in saved
            scenarios (`{"kind": "blur", "size": 5, "sigma": 2.0}`, `{"kind": "chain", "of": [...]}`).
        corrupt: false leaves all images as they are, for comparison.
        class_order: "natural", "random" (by the seed), or every class once in order of appearance.
        paradigm: "class", "task" or "domain" incremental; in the last labels are positions within an experience.
        seed: of a random class order.

    Raises:
        ConfigError: no images, too few classes, more experiences than corruptions, or an unknown corruption.

    Example:
        >>> from holdfast.streams.datasets import digits
        >>> stream = noisy(digits(), experiences=3, classes_per_experience=3)
        >>> [experience.name for experience in stream]
        ['clean', 'solarized', 'blurred']
    """
    check_paradigm(paradigm)
    check_experiences(experiences)
    dataset.targets()
    if len(dataset.input_shape) != 3:
        raise ConfigError(f"{dataset.name} has inputs of shape {dataset.input_shape}. Only images can be corrupted.")
    if experiences > len(corruptions):
        raise ConfigError(f"{experiences} experiences with {len(corruptions)} corruptions. Give one for each.")
    wanted = experiences * classes_per_experience
    if classes_per_experience < 1 or wanted > dataset.classes:
        raise ConfigError(
            f"{experiences} experiences of {classes_per_experience} classes from the {dataset.classes} classes of "
            f"{dataset.name}. Give fewer of either."
        )
    order = ordered_classes(class_order, dataset.classes, seed)
    table = whole_classes(order, [classes_per_experience] * experiences)
    labels = labels_of_first_appearance(table, order)
    if paradigm == "domain":
        labels = [label if label < 0 else label % classes_per_experience for label in labels]
    names, transforms = [], []
    for corruption in list(corruptions)[:experiences]:
        if isinstance(corruption, str) and corruption not in CORRUPTIONS:
            raise ConfigError(unknown("corruption", corruption, CORRUPTIONS))
        described = CORRUPTIONS[corruption] if isinstance(corruption, str) else dict(corruption)
        names.append(corruption if isinstance(corruption, str) else str(described.get("kind")))
        transforms.append(described if corrupt else {"kind": "none"})
    return make_stream(
        Scenario(
            name="noisy",
            paradigm=paradigm,
            experiences=experiences,
            classes=dataset.classes,
            table=table,
            labels=labels,
            class_order=order,
            seed=seed,
            validation=validation,
            validation_seed=validation_seed,
            transforms=transforms,
            extra={"names": names if corrupt else ["clean"] * experiences},
        ),
        dataset,
    )
