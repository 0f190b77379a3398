"""Images by the name of their data set: torchvision's, and files in IDX format (MNIST) and HDF5 (USPS)."""

from __future__ import annotations

import gzip
import inspect
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, needs_extra, unknown
from holdfast.core.needs import declares
from holdfast.core.ranges import BelowOne, Count, Size, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.arrays import torch_dataset
from holdfast.streams.datasets.build import images, of_tensors

VARIABLE = "HOLDFAST_DATA"
FOUR_FILES = (
    "It holds the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and"
    " t10k-labels-idx1-ubyte.gz"
)
ORIGINS = {
    "mnist": f"{FOUR_FILES}, which `torchvision.datasets.MNIST(folder, download=True)` puts into MNIST/raw. ",
    "fashion_mnist": (
        f"{FOUR_FILES}, which `torchvision.datasets.FashionMNIST(folder, download=True)` puts into FashionMNIST/raw. "
    ),
    "usps": "It holds usps.h5, which is on Kaggle as `bistaumanga/usps-dataset`. ",
}
"""Where a data set comes from, by its name."""


def data_folder(name: str, path: str | None = None) -> Path:
    """The folder of a known data set: `path`, or `name` in the folder that HOLDFAST_DATA says, or else in `data`.

    Raises:
        DataError: it is not there.
    """
    folder = Path(path) if path is not None else Path(os.environ.get(VARIABLE, "data")) / name
    if not folder.exists():
        where = ORIGINS.get(name, "")
        hint = (
            "Give the right path." if path is not None else f"Give path=, or set {VARIABLE} to the folder it lies in."
        )
        raise DataError(f"there is no folder {folder} for {name}. {where}{hint}")
    return folder


TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> Tensor:
    """The array in an IDX file, to look at only: who reads the same file meanwhile gets the same tensor.

    Args:
        path: plain, or gzipped with the ending .gz.

    Raises:
        DataError: no such file, a wrong magic number, or more or fewer values than its header announces.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give the path of an IDX file.")
    key = (path.resolve(), path.stat().st_mtime_ns, path.stat().st_size)
    if (array := _there.get(key)) is None:
        _there[key] = array = _read_idx(path)
    return array


_there: WeakValueDictionary[object, Tensor] = WeakValueDictionary()  # what was read and somebody still has


def _read_idx(path: Path) -> Tensor:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is truncated or no gzip file: {error}. Get it again.") from error
    kind, dims = (data[2], data[3]) if len(data) >= 4 else (0, 0)
    if len(data) < 4 or data[:2] != b"\0\0" or kind not in TYPES or dims < 1:
        raise DataError(f"{path} starts with {data[:4].hex()}, which is not an IDX magic number. Give an IDX file.")
    header = 4 + 4 * dims
    if len(data) < header:
        raise DataError(f"{path} is truncated within its header. Get it again.")
    shape = struct.unpack(f">{dims}I", data[4:header])
    dtype = np.dtype(TYPES[kind])
    announced, present = math.prod(shape) * dtype.itemsize, len(data) - header
    if announced != present:
        word = "truncated" if present < announced else "too long"
        raise DataError(f"{path} is {word}: its header announces {announced} bytes and it has {present}. Get it again.")
    array = np.frombuffer(bytearray(data), dtype=dtype, offset=header).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


@ranged
def idx(
    path: str,
    name: str | None = None,
    class_names: list[str] | None = None,
    normalise: bool = False,
    crop: Size = 0,
    flip: bool = False,
    pad: Size = 0,
) -> Dataset:
    """A folder with the four files of MNIST and its family.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte` (or `test-...`, or with `.idx` for `-idx`), with or without .gz. Every header is checked.

    Args:
        path: of the folder.
        name: for reports; None takes the folder's name.
        class_names: one per class; None numbers them.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.
        pad: black pixels added on every side, for instance 2 from 28 x 28 to 32 x 32.

    Raises:
        ConfigError: a negative pad.
        DataError: a file is missing, truncated or no IDX file, or images and labels differ in number.
    """
    folder = data_folder(name or Path(path).name, path)
    arrays = [read_idx(_find(folder, part, what)) for part in ("train", "t10k") for what in ("images", "labels")]
    for part, pixels, labels in (("training", *arrays[:2]), ("test", *arrays[2:])):
        if len(pixels) != len(labels):
            raise DataError(f"{folder} has {len(pixels)} {part} images and {len(labels)} labels. Get the files again.")
    pixels, others = (F.pad(images(one), (pad,) * 4) if pad else images(one) for one in arrays[::2])
    data = (pixels, arrays[1], others, arrays[3])
    return of_tensors(name or folder.name, *data, class_names, normalise=normalise, crop=crop, flip=flip)


@declares(inputs="images", shape=(1, 28, 28), classes=10, rows=(60_000, 10_000))
@ranged
def mnist(path: str | None = None, normalise: bool = False, crop: Size = 0, pad: Size = 0) -> Dataset:
    """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels.

    Args:
        path: folder of the four files; None takes `mnist` in the folder that the variable HOLDFAST_DATA says.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        pad: black pixels added on every side; 2 makes 32 x 32.

    Raises:
        DataError: the files are not there.
    """
    return idx(str(data_folder("mnist", path)), "mnist", None, normalise, crop, pad=pad)


@declares(inputs="images", shape=(1, 28, 28), classes=10, rows=(60_000, 10_000))
@ranged
def fashion_mnist(
    path: str | None = None, normalise: bool = False, crop: Size = 0, flip: bool = False, pad: Size = 0
) -> Dataset:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28 x 28 pixels, ten classes.

    Args:
        path: folder of the four files; None takes `fashion_mnist` in the folder that the variable HOLDFAST_DATA says.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.
        pad: black pixels added on every side, for instance 2 from 28 x 28 to 32 x 32.

    Raises:
        DataError: the files are not there.
    """
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    return idx(str(data_folder("fashion_mnist", path)), "fashion_mnist", names, normalise, crop, flip, pad)


@declares(inputs="images", shape=(1, 16, 16), classes=10, rows=(7291, 2007))
def usps(path: str | None = None, normalise: bool = False) -> Dataset:
    """USPS: 7,291 + 2,007 handwritten digits of 16 x 16 pixels, from `usps.h5`.

    The file holds floats 0..1; here they are rounded to the 256 levels of a byte, as other images are. Needs h5py,
    which the extra `hdf5` brings.

    Args:
        path: folder of the file; None takes `usps` in the folder that the variable HOLDFAST_DATA says.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.

    Raises:
        DataError: the file is not there, or lacks `train/data`, `train/target`, `test/data` or `test/target`.
        ImportError: h5py is not installed.
    """
    try:
        import h5py  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise needs_extra("usps", "h5py", "hdf5") from error
    file = data_folder("usps", path) / "usps.h5"
    if not file.is_file():
        raise DataError(f"there is no file {file}. Put usps.h5 there.")
    pixels, labels = [], []
    try:
        with h5py.File(file, "r") as opened:
            for part in ("train", "test"):
                grey = np.asarray(opened[part]["data"]).reshape(-1, 1, 16, 16)
                pixels.append(torch.from_numpy(np.rint(grey * 255).astype(np.uint8)))
                labels.append(np.asarray(opened[part]["target"]))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{file} is not the USPS file: {error}. Get it again.") from error
    return of_tensors("usps", pixels[0], labels[0], pixels[1], labels[1], normalise=normalise)


def _find(folder: Path, part: str, what: str) -> Path:
    rank = 3 if what == "images" else 1
    parts = (part, "test") if part == "t10k" else (part,)
    stems = [f"{p}-{what}{dash}idx{rank}-ubyte" for p in parts for dash in ("-", ".")]
    for stem in stems:
        for ending in ("", ".gz"):
            if (folder / (stem + ending)).is_file():
                return folder / (stem + ending)
    raise DataError(f"{folder} has no file {stems[0]} or {stems[0]}.gz. Put the four files of the data set there.")


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
    test_fraction: BelowOne = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """A data set of torchvision, by the name of its class (`CIFAR10`, `SVHN`, `EMNIST`, ...).

    Those that hold their pixels as bytes (the MNIST family, CIFAR, SVHN, STL10, USPS) stay in memory; others are read
    through a `DataLoader` and need images of one size: give `size`. Those without a training and a test part of their
    own (Caltech101, Caltech256, EuroSAT, SEMEION, SUN397) are parted by the seed. Needs the extra `vision`.

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
        test_fraction: of each class, held out where the data set has no test part.
        split_seed: of that choice.

    Raises:
        ConfigError: an unknown name, or options that the data set does not take.
        DataError: the files are not there.
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise needs_extra("torchvision", "torchvision", "vision") from error
    names = known_datasets()
    exact = {entry.lower(): entry for entry in names}.get(which.lower())
    if exact is None:
        raise ConfigError(unknown("torchvision data set", which, names))
    kind = getattr(datasets, exact)
    keywords = dict(options or {})
    if size is not None:
        keywords["transform"] = _Sized(size)
    train, test = (_made(kind, exact, part, root, download, keywords) for part in (True, False))
    title = exact.lower()
    look: dict[str, Any] = {"normalise": normalise, "crop": crop, "flip": flip}
    class_names = getattr(train, "classes", None)
    named = list(class_names) if isinstance(class_names, (list, tuple)) else None
    split: dict[str, Any] = {"test_fraction": test_fraction, "split_seed": split_seed}
    if _held(train) and (test is None or _held(test)):
        if size is not None:
            raise ConfigError(f"size is {size}, and {exact} is held in memory as it is. Leave size out.")
        pixels, others = images(train.data), None if test is None else images(test.data)
        labels, other_labels = _labels(train), None if test is None else _labels(test)
        if named is not None and len(named) != len(np.unique(labels)):
            named = None
        return of_tensors(title, pixels, labels, others, other_labels, named, **split, **look)
    return torch_dataset(train, test, title, named, workers=workers, **split, **look)


PARTS = {"OxfordIIITPet": ("trainval", "test"), "Places365": ("train-standard", "val")}
PARTS |= dict.fromkeys(("Imagenette", "ImageNet"), ("train", "val"))
"""What some data sets call their training and test part."""


def known_datasets() -> list[str]:
    """The names of torchvision's data sets; torchvision must be installed."""
    from torchvision import datasets

    return [entry for entry in datasets.__all__ if inspect.isclass(getattr(datasets, entry))]


class _Sized:
    """A PIL image in three channels and of one size."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigError(f"size is {size}. Give the height and width in pixels.")
        self.size = size

    def __call__(self, image: Any) -> Any:
        return image.convert("RGB").resize((self.size, self.size))


def _made(kind: Any, name: str, training: bool, root: str, download: bool, options: dict[str, Any]) -> Any:
    """The training or test part, by whichever parameter the class has for it; None for a test part that it lacks."""
    parameters = inspect.signature(kind.__init__).parameters
    arguments: dict[str, Any] = {"root": root, **options}
    inner = inspect.signature(kind.__mro__[1].__init__).parameters if "kwargs" in parameters else {}
    if "train" in parameters or "train" in inner:
        arguments["train"] = training
    elif "split" in parameters and "split" not in options:
        arguments["split"] = PARTS.get(name, ("train", "test"))[not training]
    elif not training:
        return None
    if "download" in parameters or "download" in inner:
        arguments["download"] = download
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot take these options: {error}. Change options, or make it and pass it to torch_dataset."
        ) from error
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(f"{name} is not in {root!r}: {error}. Give the right root, or download=true.") from error


def _held(part: Any) -> bool:
    data = getattr(part, "data", None)
    if not isinstance(data, (np.ndarray, torch.Tensor)) or len(data) != len(part):
        return False
    return str(data.dtype).removeprefix("torch.") == "uint8"


def _labels(part: Any) -> Any:
    return np.asarray(getattr(part, "targets", None) if hasattr(part, "targets") else part.labels)
