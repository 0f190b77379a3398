"""Data sets made of others: classes chosen or joined to coarser ones; and fields of a simulation in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.experience import Data
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, Inside, Size, ranged
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.npz import npz
from holdfast.streams.scenario import viewed

_CIFAR = """
aquatic_mammals: beaver dolphin otter seal whale
fish: aquarium_fish flatfish ray shark trout
flowers: orchid poppy rose sunflower tulip
food_containers: bottle bowl can cup plate
fruit_and_vegetables: apple mushroom orange pear sweet_pepper
household_electrical_devices: clock keyboard lamp telephone television
household_furniture: bed chair couch table wardrobe
insects: bee beetle butterfly caterpillar cockroach
large_carnivores: bear leopard lion tiger wolf
large_man-made_outdoor_things: bridge castle house road skyscraper
large_natural_outdoor_scenes: cloud forest mountain plain sea
large_omnivores_and_herbivores: camel cattle chimpanzee elephant kangaroo
medium_mammals: fox porcupine possum raccoon skunk
non-insect_invertebrates: crab lobster snail spider worm
people: baby boy girl man woman
reptiles: crocodile dinosaur lizard snake turtle
small_mammals: hamster mouse rabbit shrew squirrel
trees: maple_tree oak_tree palm_tree pine_tree willow_tree
vehicles_1: bicycle bus motorcycle pickup_truck train
vehicles_2: lawn_mower rocket streetcar tank tractor
"""

CIFAR100_COARSE = {line.split(":")[0]: tuple(line.split(":")[1].split()) for line in _CIFAR.strip().splitlines()}
"""The twenty superclasses of CIFAR-100 and the five classes of each (Krizhevsky 2009, section 3.1)."""


def sub_dataset(dataset: Dataset, labels: Sequence[int | str], renumber: bool = True) -> Dataset:
    """The samples of some classes (Python only; the stream `split` shares classes out by itself).

    Args:
        dataset: any with classes.
        labels: their numbers or names.
        renumber: whether they are numbered from 0 in this order; False keeps their numbers, and the number of classes.

    Raises:
        ConfigError: for a class that is not there, or twice, or a data set without classes.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> part = sub_dataset(synthetic(classes=5, samples=4), [3, 1])
        >>> part.classes, part.class_names, part.train.targets.unique(return_counts=True)[1].tolist()
        (2, ('3', '1'), [4, 4])
    """
    names = dataset.names
    if dataset.kind == "regression" or not names:
        raise ConfigError(f"{dataset.name} has no classes to choose. Give a data set with classes.")
    chosen = []
    for label in labels:
        if isinstance(label, str) and label not in names:
            raise ConfigError(unknown("class", label, names))
        number = names.index(label) if isinstance(label, str) else int(label)
        if not 0 <= number < len(names) or number in chosen:
            raise ConfigError(f"labels has {label!r} twice, or {dataset.name} has no such class. It has {len(names)}.")
        chosen.append(number)
    if not chosen:
        raise ConfigError("labels is empty. Name at least one class.")
    mapped = torch.full((len(names),), -1)
    mapped[chosen] = torch.arange(len(chosen)) if renumber else torch.tensor(chosen)

    def part(data: Data) -> Data:
        kept = (mapped[data.targets] >= 0).nonzero().flatten()
        return viewed(data).derive(kept, label_map=mapped)

    def of(groups: Tensor | None, data: Data | None) -> Tensor | None:
        return None if groups is None or data is None else groups[mapped[data.targets] >= 0]

    return replace(
        dataset,
        train=part(dataset.train),
        test=None if dataset.test is None else part(dataset.test),
        classes=len(chosen) if renumber else dataset.classes,
        class_names=tuple(names[number] for number in chosen) if renumber else names,
        groups=of(dataset.groups, dataset.train),
        test_groups=of(dataset.test_groups, dataset.test),
    )


def coarse(dataset: Dataset, classes: Mapping[str, Sequence[str]]) -> Dataset:
    """The same samples with coarser classes (Python only).

    Args:
        dataset: with named classes.
        classes: name of each coarse class -> names of those that it takes together, in the order of the new labels.

    Raises:
        ConfigError: a class of the data set that is in none, or in two.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> data = coarse(synthetic(classes=4, samples=3), {"even": ["0", "2"], "odd": ["1", "3"]})
        >>> data.class_names, data.train.targets.unique(return_counts=True)[1].tolist()
        (('even', 'odd'), [6, 6])
    """
    mapped = []
    for name in dataset.names:
        homes = [number for number, fine in enumerate(classes.values()) if name in fine]
        if len(homes) != 1:
            raise ConfigError(f"the class {name!r} is in {len(homes)} coarse classes. Put each into one.")
        mapped += homes
    table = torch.tensor(mapped)
    return replace(
        dataset,
        train=viewed(dataset.train).derive(label_map=table),
        test=None if dataset.test is None else viewed(dataset.test).derive(label_map=table),
        classes=len(classes),
        class_names=tuple(classes),
    )


@declares(inputs="images")
@ranged
def cifar100_coarse(path: str, normalise: bool = True, crop: Size = 0, flip: bool = False) -> Dataset:
    """CIFAR-100, or a part of it, with its twenty coarse classes.

    Args:
        path: of a .npz file with the fine class names beside images and labels, see `npz`.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.

    Raises:
        DataError: see `npz`.
        ConfigError: for classes that are not CIFAR-100's.
    """
    fine = npz(path, normalise=normalise, crop=crop, flip=flip)
    classes = {name: [*names, *(one.removesuffix("_tree") for one in names)] for name, names in CIFAR100_COARSE.items()}
    strange = set(fine.names) - {name for names in classes.values() for name in names}
    if strange:
        raise ConfigError(
            f"{path} has the class {min(strange)!r}, which is not one of CIFAR-100. Give its own class names."
        )
    return replace(coarse(fine, classes), name="cifar100_coarse")


@ranged
def fields(
    path: str,
    block: list[Count],
    pattern: str = "*.npy",
    components: list[Size] | None = None,
    test_fraction: Inside = 0.2,
    seed: int = 0,
) -> Dataset:
    """A field or mesh on a grid in blocks that fit into memory, for autoencoders: each block is its own target.

    Each file is one time step, [components, ...] or [...] for a field of one component, and a group, so that the stream
    `grouped` has an experience for each. A grid is cut into as many whole blocks as fit; files are read block by block
    (memory mapped). Each component is standardised by the first file.

    Args:
        path: of the folder.
        block: sizes of a block along each axis of the grid.
        pattern: of the files' names, which are read in the order of their names.
        components: which ones; null for all.
        test_fraction: of the blocks of each file, at least one.
        seed: of the choice of test blocks.

    Raises:
        DataError: no files, or arrays of other shapes than the first, or no numbers.
        ConfigError: a block that is larger than the grid, or a component that is not there.
    """
    files = sorted(Path(path).glob(pattern))
    if not files:
        raise DataError(f"{path} has no files {pattern}. Give a folder of arrays that numpy.save wrote.")
    parts: list[tuple[list[Tensor], list[Tensor]]] = []
    scaling: tuple[np.ndarray, np.ndarray] | None = None
    shape: tuple[int, ...] = ()
    for number, file in enumerate(files):
        array = _opened(file, len(block))
        shape = shape or array.shape
        if array.shape != shape:
            raise DataError(f"{file} has shape {array.shape}, and {files[0]} {shape}. Give grids of one shape.")
        if any(size > side for size, side in zip(block, shape[1:])):
            raise ConfigError(f"block is {list(block)}, and the grid of {file} {list(shape[1:])}. Give smaller blocks.")
        chosen = list(range(shape[0])) if components is None else list(components)
        if max(chosen) >= shape[0]:
            raise ConfigError(f"components has {max(chosen)}, and {file} has {shape[0]}. Count from 0.")
        axes = tuple(range(1, len(shape)))
        if scaling is None:
            first = array[chosen]
            spread = first.std(axes, keepdims=True, dtype=np.float64)
            scaling = first.mean(axes, keepdims=True, dtype=np.float64), np.where(spread > 0, spread, 1.0)
        blocks = []
        for corner in np.ndindex(*(side // size for side, size in zip(shape[1:], block))):
            where: Any = (chosen, *(slice(at * size, (at + 1) * size) for at, size in zip(corner, block)))
            values = (array[where] - scaling[0]) / scaling[1]
            blocks.append(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed + number)).tolist()
        test_blocks = set(order[: max(1, round(test_fraction * len(blocks)))])
        parts.append(
            (
                [one for i, one in enumerate(blocks) if i not in test_blocks],
                [one for i, one in enumerate(blocks) if i in test_blocks],
            )
        )
    if not all(train for train, _ in parts):
        raise ConfigError(f"block is {list(block)}, and a grid has only one such block. Give smaller blocks.")
    train, test = (torch.stack([one for part in parts for one in part[which]]) for which in (0, 1))
    groups = [torch.repeat_interleave(torch.tensor([len(part[which]) for part in parts])) for which in (0, 1)]
    return Dataset(
        name=Path(path).name,
        train=TensorData(train, train),
        test=TensorData(test, test),
        classes=0,
        input_shape=tuple(train.shape[1:]),
        kind="regression",
        groups=groups[0],
        test_groups=groups[1],
        group_names=tuple(file.stem for file in files),
    )


fields.kind = "regression"  # type: ignore[attr-defined]


def _opened(file: Path, axes: int) -> np.ndarray:
    """The array of a file, with an axis of components in front."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} holds no array: {error}. Give a file that numpy.save wrote.") from error
    if array.ndim == axes:
        array = array[None]
    if array.ndim != axes + 1 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{file} has shape {array.shape} of {array.dtype}. Give numbers [components, ...] on {axes} axes."
        )
    return array
