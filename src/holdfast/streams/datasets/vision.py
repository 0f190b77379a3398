"""The data sets of torchvision, by name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from holdfast.core.errors import ConfigError, DataError, needs_extra, unknown
from holdfast.core.ranges import Count, Size, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.arrays import torch_dataset
from holdfast.streams.datasets.build import images, of_tensors


@ranged
def torchvision(
    which: str,
    root: str = "data",
    download: bool = False,
    options: dict[str, Any] | None = None,
    size: Count | None = None,
    workers: Size = 0,
    normalise: bool = False,
    crop: Size = 0,
    flip: bool = False,
) -> Dataset:
    """A data set of torchvision, by the name of its class (`CIFAR10`, `SVHN`, `EMNIST`, ...).

    Those that hold their pixels as bytes (the MNIST family, CIFAR, SVHN, STL10, USPS) stay in memory; others are read
    through a `DataLoader` and need images of one size. Needs the extra `vision`.

    Args:
        which: the class in `torchvision.datasets`.
        root: folder of the files.
        download: whether to fetch them.
        options: further arguments of the class, for instance `{"split": "letters"}` for EMNIST.
        size: height and width that images are resized to (in three channels) where they are not held in memory.
        workers: processes that read data sets which are not held in memory.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.

    Raises:
        ConfigError: an unknown name, or a data set without a training and a test part.
        DataError: the files are not there.
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise needs_extra("torchvision", "torchvision", "vision") from error
    known = [entry for entry in datasets.__all__ if inspect.isclass(getattr(datasets, entry))]
    exact = {entry.lower(): entry for entry in known}.get(which.lower())
    if exact is None:
        raise ConfigError(unknown("torchvision data set", which, known))
    kind = getattr(datasets, exact)
    given = dict(options or {})
    if size is not None:
        given["transform"] = _Sized(size)
    train, test = (_made(kind, exact, part, root, download, given) for part in (True, False))
    title = exact.lower()
    look: dict[str, Any] = {"normalise": normalise, "crop": crop, "flip": flip}
    class_names = getattr(train, "classes", None)
    named = list(class_names) if isinstance(class_names, (list, tuple)) else None
    if _held(train) and _held(test):
        if size is not None:
            raise ConfigError(f"size is {size}, and {exact} is held in memory as it is. Leave size out.")
        pixels, others = images(train.data), images(test.data)
        labels, other_labels = _labels(train), _labels(test)
        if named is not None and len(named) != len(np.unique(labels)):
            named = None
        return of_tensors(title, pixels, labels, others, other_labels, named, **look)
    return torch_dataset(train, test, title, named, workers=workers, **look)


class _Sized:
    """A PIL image in three channels and of one size."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigError(f"size is {size}. Give the height and width in pixels.")
        self.size = size

    def __call__(self, image: Any) -> Any:
        return image.convert("RGB").resize((self.size, self.size))


def _made(kind: Any, name: str, training: bool, root: str, download: bool, options: dict[str, Any]) -> Any:
    """The training or test part, by whichever parameter the class has for it."""
    parameters = inspect.signature(kind.__init__).parameters
    arguments: dict[str, Any] = {"root": root, **options}
    inner = inspect.signature(kind.__mro__[1].__init__).parameters if "kwargs" in parameters else {}
    if "train" in parameters or "train" in inner:
        arguments["train"] = training
    elif "split" in parameters and "split" not in options:
        arguments["split"] = "train" if training else "test"
    else:
        raise ConfigError(f"{name} has no training and test part that can be asked for. Use torch_dataset in Python.")
    if "download" in parameters or "download" in inner:
        arguments["download"] = download
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{name} cannot take these options: {error}. Change options.") from error
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(f"{name} is not in {root!r}: {error}. Give the right root, or download=true.") from error


def _held(part: Any) -> bool:
    data = getattr(part, "data", None)
    if not isinstance(data, (np.ndarray, torch.Tensor)) or len(data) != len(part):
        return False
    return str(data.dtype).removeprefix("torch.") == "uint8"


def _labels(part: Any) -> Any:
    return np.asarray(getattr(part, "targets", None) if hasattr(part, "targets") else part.labels)
