"""Data sets from what is in memory already: arrays, torch data sets, scikit-learn's digits, synthetic blobs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from holdfast.core.errors import DataError
from holdfast.core.needs import declares
from holdfast.core.ranges import BelowOne, Count, NonNegative, Size, ranged
from holdfast.streams.data import LoaderData
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import Kind, Layout, encode, finish, held_out, images, of_tensors
from holdfast.streams.datasets.missing import Missing
from holdfast.streams.tables import rng


def arrays(
    inputs: Any,
    targets: Any,
    test_inputs: Any = None,
    test_targets: Any = None,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    kind: Kind = "classification",
    layout: Layout = "auto",
    missing: Missing = "refuse",
    scale: float | None = None,
    normalise: bool = False,
    crop: int = 0,
    flip: bool = False,
    by: Any = None,
    test_by: Any = None,
) -> Dataset:
    """A data set of tensors or NumPy arrays (Python only); nothing is copied unless doubles must become floats.

    Args:
        inputs: training inputs, `[rows, ...]`; images as uint8.
        targets: numbers or strings, one per row; floats for regression.
        test_inputs: test inputs; None holds out a part of the training data.
        test_targets: their targets.
        name: for reports.
        class_names: one per class, in sorted order of the labels.
        test_fraction: of each class, held out if there are no test inputs.
        split_seed: of that choice.
        kind: "classification" or "regression".
        layout: of one image; "auto" guesses. "tokens" keeps whole numbers as they are, for a model with an embedding.
        missing: "refuse" values that are missing or infinite and labels that are missing, fill in the "mean" of the
            feature over the training data, or "drop" those rows.
        scale: what whole numbers are divided by; None takes 255 for bytes, 65535 for 16-bit images, and 1 for others.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.
        by: one value per training row, which cuts them into groups for the stream `grouped`: numbers in their order,
            words in that of their first rows.
        test_by: the same for the test rows.

    Example:
        >>> data = arrays([[0.0], [1.0], [2.0], [3.0]], ["b", "a", "b", "a"], test_fraction=0.5)
        >>> data.class_names, len(data.train), len(data.test)
        (('a', 'b'), 2, 2)
    """
    rows = images(inputs, layout, scale)
    tests = None if test_inputs is None else images(test_inputs, layout, scale)
    look: dict[str, Any] = {"scale": scale, "normalise": normalise, "crop": crop, "flip": flip}
    look |= {"missing": missing, "tokens": layout == "tokens", "by": by, "test_by": test_by}
    return of_tensors(name, rows, targets, tests, test_targets, class_names, test_fraction, split_seed, kind, **look)


def torch_dataset(
    train: Any,
    test: Any = None,
    name: str = "torch_dataset",
    class_names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    kind: Kind = "classification",
    workers: int = 0,
    scale: float | None = None,
    normalise: bool = False,
    crop: int = 0,
    flip: bool = False,
) -> Dataset:
    """A data set of map-style torch data sets, read through a `DataLoader` (Python only).

    Where both say their `classes` (as torchvision's `ImageFolder` does), classes are matched by these names.

    Args:
        train: items `(input, target)`; anything with `__len__` and `__getitem__`.
        test: the same; None holds out a part of the training data.
        name: for reports.
        class_names: one per class, in sorted order of the labels.
        test_fraction: of each class, held out if there is no test data set.
        split_seed: of that choice.
        kind: "classification" or "regression".
        workers: processes that read.
        scale: what whole numbers are divided by; None takes 255 for bytes and 1 for others.
        normalise: whether inputs are normalised; reads the training data once.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.

    Example:
        >>> data = torch_dataset([(torch.zeros(3), 5), (torch.ones(3), 9)], test_fraction=0.0)
        >>> data.class_names, data.input_shape
        (('5', '9'), (3,))
    """
    whole = LoaderData(train, workers=workers)
    other = None if test is None else LoaderData(test, workers=workers)
    names: Sequence[str] = ()
    if kind == "classification":
        train_names, other_said = (_said(data) for data in (train, test))
        named, other_named = whole.targets, None if other is None else other.targets
        if train_names and other_said and train_names != other_said and other_named is not None:
            _check_names(train_names, other_said)
            other_named = torch.tensor([train_names.index(name) for name in other_said])[other_named]
        targets, test_targets, numbers = encode(named, other_named)
        fitting = train_names and all(number.isdigit() and int(number) < len(train_names) for number in numbers)
        names = [train_names[int(number)] for number in numbers] if fitting else numbers
        names = names if class_names is None else class_names
        whole = LoaderData(train, targets, workers=workers)
        other = None if test is None else LoaderData(test, test_targets, workers=workers)
    if other is None:
        kept, tested = held_out(whole.targets, test_fraction, split_seed)
        whole, other = whole.subset(kept), whole.subset(tested) if len(tested) else None
    return finish(name, whole, other, names, kind, scale, normalise, crop, flip)


def _said(dataset: Any) -> list[str]:
    """The class names that a torch data set says, by the number of the class."""
    names = getattr(dataset, "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def _check_names(train: Sequence[str], test: Sequence[str]) -> None:
    strange = [name for name in test if name not in train]
    if strange:
        raise DataError(f"the test data have the classes {strange[:5]}, which the training data do not have. Add them.")


@declares(inputs="images", shape=(1, 8, 8), classes=10, rows=(1438, 359))
@ranged
def digits(test_fraction: BelowOne = 0.2, split_seed: int = 0, normalise: bool = False) -> Dataset:
    """The 1,797 handwritten digits that come with scikit-learn: 8 x 8 images with values 0..16.

    Args:
        test_fraction: of each class.
        split_seed: of the choice of test samples.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.

    Example:
        >>> digits().input_shape, len(digits().train), len(digits().test)
        ((1, 8, 8), 1438, 359)
    """
    table = _digits_table()
    return of_tensors(
        "digits",
        torch.from_numpy(table[:, :-1].astype(np.uint8)).reshape(-1, 1, 8, 8),
        table[:, -1].astype(np.int64),
        test_fraction=test_fraction,
        split_seed=split_seed,
        scale=16.0,
        normalise=normalise,
    )


def _digits_table() -> np.ndarray:
    """The digits as scikit-learn's file has them, `[1797, 65]`: the pixels of each, and its class."""
    package = importlib.util.find_spec("sklearn")
    file = Path((package.origin if package else None) or "").parent / "datasets" / "data" / "digits.csv.gz"
    try:
        return np.loadtxt(file, delimiter=",")  # the package takes longer to import than a small run takes to train
    except (OSError, ValueError):  # another version of it keeps them elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return np.column_stack([digits.data, digits.target])


@declares(inputs="vectors", made=True)
@ranged
def synthetic(
    classes: Count = 10,
    features: Count = 20,
    samples: Count = 100,
    test_samples: Size = 20,
    spread: NonNegative = 0.5,
    seed: int = 0,
) -> Dataset:
    """Gaussian blobs: class centres are standard normal, samples lie around them; for tests and tutorials.

    Args:
        classes: how many blobs.
        features: dimensions of a sample.
        samples: training samples per class.
        test_samples: test samples per class.
        spread: standard deviation of a blob.
        seed: of everything.

    Raises:
        ConfigError: fewer than one class, feature or sample.

    Example:
        >>> synthetic(classes=3, samples=4).train.targets
        tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """
    generator = rng(seed, "synthetic")
    centres = torch.randn(classes, features, generator=generator)

    def around(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(classes).repeat_interleave(count)
        return centres[labels] + spread * torch.randn(len(labels), features, generator=generator), labels

    inputs, labels = around(samples)
    if test_samples == 0:
        return of_tensors("synthetic", inputs, labels, test_fraction=0.0)
    return of_tensors("synthetic", inputs, labels, *around(test_samples))


@declares(inputs="vectors")
@ranged
def spiral(
    classes: Count = 5,
    samples: Count = 100,
    test_fraction: BelowOne = 0.2,
    spread: NonNegative = 0.005,
    seed: int = 0,
) -> Dataset:
    """Small clusters of points in the plane, whose centres lie on half a turn of a spiral: CLMixer's `dummy` data.

    Centre i of K has the radius `1 - 0.99 a` and the angle `(1 - a) pi`, with a from 0 to 1 in equal steps.

    Args:
        classes: how many clusters.
        samples: points of each, training and test together.
        test_fraction: of each cluster.
        spread: standard deviation of a cluster along each axis.
        seed: of everything.

    Example:
        >>> data = spiral(samples=10)
        >>> len(data.train), len(data.test), data.input_shape
        (40, 10, (2,))
    """
    share = torch.linspace(0, 1, classes)
    radius, angle = 1 - 0.99 * share, (1 - share) * math.pi
    centres = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    labels = torch.arange(classes).repeat_interleave(samples)
    points = centres[labels] + spread * torch.randn(len(labels), 2, generator=rng(seed, "spiral"))
    return of_tensors("spiral", points, labels, test_fraction=test_fraction, split_seed=seed)


POLYNOMIALS: tuple[tuple[float, float, Callable[[np.ndarray], np.ndarray]], ...] = (
    (-4.0, -2.0, lambda x: x + 3),
    (-1.0, 1.0, lambda x: 2 * x**2 - 1),
    (2.0, 4.0, lambda x: (x - 3) ** 3),
)
"""Where each of the three polynomials is sampled, and the polynomial."""


@declares(made=True)
@ranged
def polynomial(
    degree: Literal[1, 2, 3] = 1,
    samples: Count = 100,
    test_samples: Count = 50,
    noise: NonNegative = 0.05,
    seed: int = 42,
) -> Dataset:
    """One of three polynomials, each on an interval of its own: the one-dimensional regression toy of hypernetworks.

    `x + 3` on -4 to -2, `2 x^2 - 1` on -1 to 1, `(x - 3)^3` on 2 to 4; training inputs are uniform and their targets
    noisy, test inputs equidistant and their targets exact. As a stream of three tasks
    (`{"name": "domains", "paradigm": "task", "datasets": [...]}`) it is that of "Continual learning with hypernetworks"
    (von Oswald et al., ICLR 2020), figure 2, with the very numbers of the published code.

    Args:
        degree: of the polynomial.
        samples: training samples.
        test_samples: test samples.
        noise: standard deviation of the training targets.
        seed: of the training samples.

    Example:
        >>> polynomial(degree=2, test_samples=3).test.targets.tolist()
        [[1.0], [-1.0], [1.0]]
    """
    low, high, function = POLYNOMIALS[degree - 1]
    random = np.random.RandomState(seed)  # the published numbers are this generator's
    x = random.uniform(low, high, size=(samples, 1))
    y = function(x) + random.normal(0.0, noise, size=(samples, 1)) if noise else function(x)
    test = np.linspace(low, high, test_samples).reshape(-1, 1)
    inputs, targets, test_inputs, test_targets = (torch.from_numpy(v).float() for v in (x, y, test, function(test)))
    return of_tensors(f"polynomial_{degree}", inputs, targets, test_inputs, test_targets, kind="regression")


polynomial.kind = "regression"  # type: ignore[attr-defined]  # for the check of a job's criterion
