"""Folders of images, one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, needs_extra
from holdfast.core.ranges import BelowOne, NonNegative, Size, ranged
from holdfast.streams.data import LoaderData, TensorData
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import encode, finish, held_out
from holdfast.streams.views import View

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class ImageFiles:
    """Image files as a map-style data set of uint8 tensors `[channels, height, width]`.

    Args:
        paths: of the files.
        targets: class indices.
        size: height and width to resize to; None leaves them.
        grayscale: one channel instead of three.
    """

    def __init__(
        self, paths: Sequence[Path], targets: Tensor, size: tuple[int, int] | None, grayscale: bool = False
    ) -> None:
        self.paths = list(paths)
        self.targets = targets
        self.size = size
        self.grayscale = grayscale

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index), int(self.targets[index])

    def identity(self, index: int) -> str:
        """What tells one image from another without reading it: path, bytes, time of change, and how it is read."""
        path = self.paths[index].resolve()
        state = path.stat()
        return f"{path} {state.st_size} {state.st_mtime_ns} {self.size} {self.grayscale}"

    def read(self, index: int) -> Tensor:
        """The pixels of one image."""
        image = _pillow()
        path = self.paths[index]
        try:
            with image.open(path) as opened:
                picture = opened.convert("L" if self.grayscale else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} is no image that Pillow can read: {error}. Remove or replace it.") from error
        if self.size is not None and picture.size != self.size[::-1]:
            picture = picture.resize(self.size[::-1], image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture))
        return pixels[None] if self.grayscale else pixels.permute(2, 0, 1).contiguous()


@ranged
def image_folder(
    path: str,
    size: int | list[int] | None = None,
    grayscale: bool = False,
    in_memory: Literal["auto"] | bool = "auto",
    memory_limit_mb: NonNegative = 2048.0,
    workers: Size = 0,
    test_fraction: BelowOne = 0.2,
    split_seed: int = 0,
    name: str | None = None,
    normalise: bool = False,
    crop: Size = 0,
    flip: bool = False,
) -> Dataset:
    """A folder of images with one sub-folder per class; classes are numbered in sorted order of their names.

    Test images are, in this order: what `test.txt` lists beside `train.txt` (one path per line, relative to the
    folder, of which the last folder is the class); the folder `test` (or `val`) beside `train`; else a part of each
    class, drawn by the seed. Needs Pillow, which the extra `vision` brings.

    Args:
        path: of the folder.
        size: height and width in pixels, one number or two, that images are resized to; None needs equal images.
        grayscale: one channel instead of three.
        in_memory: whether all pixels are held as bytes; "auto" does so up to the limit.
        memory_limit_mb: the limit.
        workers: processes that read images where they are not held in memory.
        test_fraction: of each class, where neither lists nor folders say.
        split_seed: of that choice.
        name: for reports; None takes the folder's name.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.

    Errors:
        DataError: no folder, no images, images of different sizes without size, a listed file that is not there.
        ImportError: Pillow is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"there is no folder {path}. Give a folder with one sub-folder of images per class.")
    if in_memory not in ("auto", True, False):
        raise ConfigError(f"in_memory is {in_memory!r}. Give 'auto', true or false.")
    _pillow()
    shape = _shape(size)
    train_files, test_files = _files(folder)
    labels = [file.parent.name for file in train_files]
    if test_files is None:
        targets, _, names = encode(labels)
        kept, tested = held_out(targets, test_fraction, split_seed)
        test_files = [train_files[row] for row in tested.tolist()]
        train_files = [train_files[row] for row in kept.tolist()]
        targets, test_targets = targets[kept], targets[tested]
    else:
        targets, other, names = encode(labels, [file.parent.name for file in test_files])
        test_targets = targets[:0] if other is None else other
    train = ImageFiles(train_files, targets, shape, grayscale)
    test = ImageFiles(test_files, test_targets, shape, grayscale)
    if in_memory == "auto":
        in_memory = (len(train) + len(test)) * train.read(0).numel() <= memory_limit_mb * 2**20

    def data(files: ImageFiles) -> View:
        return TensorData(_pixels(files), files.targets) if in_memory else LoaderData(files, workers=workers)

    return finish(
        name or folder.resolve().name,
        data(train),
        data(test) if len(test) else None,
        names,
        normalise=normalise,
        crop=crop,
        flip=flip,
    )


def _pixels(files: ImageFiles) -> Tensor:
    """All images in one tensor, filled image by image."""
    first = files.read(0)
    pixels = torch.empty((len(files), *first.shape), dtype=torch.uint8)
    for row in range(len(files)):
        image = files.read(row)
        if image.shape != first.shape:
            raise DataError(
                f"{files.paths[row]} has {tuple(image.shape[1:])} pixels, and "
                f"{files.paths[0]} {tuple(first.shape[1:])}. "
                "Give size=, the height and width to resize to."
            )
        pixels[row] = image
    return pixels


def _files(folder: Path) -> tuple[list[Path], list[Path] | None]:
    lists = folder / "train.txt", folder / "test.txt"
    if all(one.is_file() for one in lists):
        return _listed(lists[0]), _listed(lists[1])
    test = next((folder / part for part in ("test", "val", "valid") if (folder / part).is_dir()), None)
    if (folder / "train").is_dir() and test is not None:
        return _walk(folder / "train"), _walk(test)
    return _walk(folder / "train" if (folder / "train").is_dir() else folder), None


def _walk(folder: Path) -> list[Path]:
    files = [
        file
        for sub in sorted(entry for entry in folder.iterdir() if entry.is_dir())
        for file in sorted(sub.iterdir())
        if file.suffix.lower() in ENDINGS
    ]
    if not files:
        raise DataError(
            f"{folder} has no sub-folders with images. Put the images of each class in a folder of its own."
        )
    return files


def _listed(file: Path) -> list[Path]:
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    paths = [file.parent / line for line in lines if line]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{file} lists {path}, which is not there. Mend the list.")
    if not paths:
        raise DataError(f"{file} lists no image. Give one path per line.")
    return paths


def _shape(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = [size, size] if isinstance(size, int) else list(size)
    if len(pair) != 2 or any(side < 1 for side in pair):
        raise ConfigError(f"size is {size}. Give the height and width in pixels, as one number or two.")
    return pair[0], pair[1]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise needs_extra("image_folder", "Pillow", "images") from error
    return Image
