"""Folders of images, one sub-folder per class, however deep the images lie in it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.ranges import BelowOne, Count, NonNegative, Size, ranged
from holdfast.streams.data import LoaderData, TensorData
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import encode, finish, held_out
from holdfast.streams.datasets.images import ImageFiles, middle_of, pillow, pixels_of, shape_of
from holdfast.streams.views import View

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
"""Folders that say what their images are for."""

VALIDATION = ("val", "valid", "validation")
"""Folders of images for tests if there are none called `test`."""

SPLITS = ("train", "test", *VALIDATION)

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

UNREAD = (".heic", ".heif", ".avif", ".jp2", ".svg", ".dcm", ".dng", ".cr2", ".nef", ".arw", ".psd", ".exr")
"""Images to people, and none that is read here."""


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
    normalise: bool | Literal["imagenet"] = False,
    crop: Size = 0,
    flip: bool = False,
    shorter_side: Count | None = None,
    filter: Literal["bilinear", "bicubic"] = "bilinear",
) -> Dataset:
    """A folder of images with one sub-folder per class; classes are numbered in sorted order of their names.

    All images below the folder of a class are its own, however deep they lie. Test images are, in this order: what
    `test.txt` lists beside `train.txt` (one path per line, relative to the folder); the folder `test` (or `val`) beside
    `train`, or in the folder of each class (`cat/train`, `cat/test`), or the other images of a class that has a folder
    `train` alone; else a part of each class, drawn by the seed. The classes of images in `val` may stand in a file
    `val_annotations.txt` there, as those of Tiny-ImageNet do. The class of a listed image is the first folder of its
    path that is not the same for all, leaving out `train` and `test`; a list that was written where the folder lay
    elsewhere is understood by the end of its paths. Bytes stay bytes; 16-bit grey images become floats from 0 to 1.
    Needs Pillow (extra `images`).

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
        normalise: whether inputs are normalised by mean and standard deviation of the training data, or by those of
            ImageNet's colours, which networks trained on it expect ("imagenet").
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.
        shorter_side: pixels that the shorter side is resized to first, with an image's own proportions; then the middle
            square of `size` is cropped out, as is usual for ImageNet (256 and 224). None resizes to `size` at once.
        filter: of that resizing.

    Raises:
        DataError: no folder, no images, images of different sizes without size, a listed file that is not there, images
            of 32 bits, or of 8 and 16 bits together.
        ImportError: Pillow is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"there is no folder {path}. Give a folder with one sub-folder of images per class.")
    if in_memory not in ("auto", True, False):
        raise ConfigError(f"in_memory is {in_memory!r}. Give 'auto', true or false.")
    pillow()
    shape = shape_of(size) if shorter_side is None else middle_of(size, shorter_side, filter)
    files, tests = _files(folder)
    labels = [label for _, label in files]
    if tests is None:
        targets, _, names = encode(labels)
        kept, tested = held_out(targets, test_fraction, split_seed)
        tests, files = [files[row] for row in tested.tolist()], [files[row] for row in kept.tolist()]
        targets, test_targets = targets[kept], targets[tested]
    else:
        if files and tests and not {label for _, label in files} & {label for _, label in tests}:
            raise DataError(
                f"{folder}: no class of the test images ({tests[0][1]!r}, ...) is one of the training images"
                f" ({files[0][1]!r}, ...). Sort both into folders of the same names."
            )
        targets, other, names = encode(labels, [label for _, label in tests])
        test_targets = targets[:0] if other is None else other
    if not files:
        raise DataError(f"{folder} has no training images. Put some of each class where the others' are.")
    train = ImageFiles([file for file, _ in files], targets, shape, grayscale)
    test = ImageFiles([file for file, _ in tests], test_targets, shape, grayscale)
    if len(test):
        one, other = train.read(0), test.read(0)
        if one.dtype != other.dtype:
            raise DataError(f"{folder}: training and test images have pixels of 8 and 16 bits. Give all of one kind.")
        if one.shape != other.shape:
            raise DataError(
                f"{test.paths[0]} has {tuple(other.shape[1:])} pixels, and {train.paths[0]} {tuple(one.shape[1:])}. "
                "Give size=, the height and width to resize to."
            )
    if in_memory == "auto":
        in_memory = (len(train) + len(test)) * train.read(0).nbytes <= memory_limit_mb * 2**20

    def data(files: ImageFiles) -> View:
        return TensorData(pixels_of(files), files.targets) if in_memory else LoaderData(files, workers=workers)

    return finish(
        name or folder.resolve().name,
        data(train),
        data(test) if len(test) else None,
        names,
        normalise=normalise,
        crop=crop,
        flip=flip,
    )


Files = list[tuple[Path, str]]
"""Image files, each with the name of its class."""


def _files(folder: Path) -> tuple[Files, Files | None]:
    """Training and test files; None for the latter where nothing tells them apart."""
    lists = folder / "train.txt", folder / "test.txt"
    if all(one.is_file() for one in lists):
        return _listed(folder, *lists)
    subs = _folders(folder)
    train, test = _parts(subs)
    if train is not None:
        return _walk(train), None if test is None else _tests(test)
    inside = {sub: _parts(_folders(sub)) for sub in subs}
    parted = [sub for sub, (inner, _) in inside.items() if inner is not None]
    if not parted:
        return _walk(folder), None
    # The images of a class that lie beside its training images are for tests, as CLMixer takes them.
    whole = next((sub.name for sub in subs if sub not in parted and _images(sub)), None)
    if whole is not None:
        raise DataError(
            f"{folder}: the class {parted[0].name!r} has a folder of training images, and {whole!r} has none. Sort all"
            " classes in one way."
        )
    by_part: tuple[Files, Files] = ([], [])
    for sub in parted:
        train, test = inside[sub]
        assert train is not None
        trained = _images(train)
        tested = _images(test) if test is not None else sorted(set(_images(sub)) - set(trained))
        by_part[0].extend((file, sub.name) for file in trained)
        by_part[1].extend((file, sub.name) for file in tested)
        left = len(_images(sub)) - len(trained) - len(tested)
        if left:
            warnings.warn(
                f"{sub}: {left} images beside {train.name} and {test and test.name} are left out.", stacklevel=4
            )
    return by_part[0], by_part[1] or None


def _parts(folders: Sequence[Path]) -> tuple[Path | None, Path | None]:
    """The folders of training and of test images among these."""
    named = {PARTS.get(folder.name.lower(), folder.name.lower()): folder for folder in folders}
    validation = [named[name] for name in VALIDATION if name in named]
    train, test = named.get("train"), named.get("test", validation[0] if validation else None)
    if train is not None and "test" in named and validation:
        warnings.warn(f"{validation[0]} is left out: tests are made on {named['test']}.", stacklevel=4)
    return train, test


def _tests(folder: Path) -> Files:
    """The images of a folder of tests; Tiny-ImageNet's lie in one folder, and a file beside it says their classes."""
    notes = folder / f"{folder.name}_annotations.txt"
    if not notes.is_file():
        return _walk(folder)
    files = []
    for line in _lines(notes):
        name, label, *_ = line.split("\t") if "\t" in line else line.split()
        file = next((one for one in (folder / "images" / name, folder / name) if one.is_file()), None)
        if file is None:
            raise DataError(f"{notes} lists {name}, which is not in {folder}. Mend the list.")
        files.append((file, label))
    return files


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith((".", "__MACOSX")))


def _walk(folder: Path) -> Files:
    """The images of all classes of a folder."""
    by_class = {sub: _images(sub) for sub in _folders(folder)}
    files = [(file, sub.name) for sub, images in by_class.items() for file in images]
    if not files:
        raise DataError(
            f"{folder} has no sub-folders with images. Put the images of each class in a folder of its own."
        )
    empty = [sub.name for sub, images in by_class.items() if not images]
    if empty:
        warnings.warn(f"{folder}: {', '.join(empty[:5])} without images are no classes.", stacklevel=5)
    unread = sorted({file.suffix for file in folder.rglob("*") if file.suffix.lower() in UNREAD})
    if unread:
        warnings.warn(f"{folder}: images that end in {', '.join(unread)} are not read. Convert them.", stacklevel=5)
    loose = sum(_is_image(file) for file in folder.iterdir())
    if loose:
        warnings.warn(f"{folder}: {loose} images lie in no folder of a class, and are left out.", stacklevel=5)
    return files


def _images(folder: Path) -> list[Path]:
    """All images below a folder, sorted by their paths; a folder that is linked twice is read once."""
    images, seen = [], set()
    for path, inner, names in os.walk(folder, followlinks=True):
        here = Path(path)
        if here.resolve() in seen:
            inner.clear()
            continue
        seen.add(here.resolve())
        inner[:] = [name for name in inner if not name.startswith((".", "__MACOSX"))]
        images += [here / name for name in names if _is_image(here / name)]
    return sorted(images)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()


def _listed(folder: Path, *lists: Path) -> tuple[Files, Files]:
    """The files of both lists; a class is the first folder of a path that differs, but for `train` and `test`."""
    dropped = 0
    listed: list[list[Path]] = []
    for one in lists:
        listed.append([])
        for line in _lines(one):
            file, dropped = _here(folder, line, dropped)
            listed[-1].append(file)
    paths: dict[Path, list[str]] = {}
    for name, files in zip(lists, listed):
        for file in files:
            if not file.is_file():
                raise DataError(f"{name} lists {file}, which is not there. Mend the list.")
            start = folder / "data" if file.is_relative_to(folder / "data") else folder
            inside = file.relative_to(start) if file.is_relative_to(start) else file
            paths[file] = [part for part in inside.parts[:-1] if PARTS.get(part.lower(), part.lower()) not in SPLITS]
            if not paths[file]:
                raise DataError(f"{name} lists {file}, which lies in no folder of a class. Mend the list.")
    depth = 0
    while all(len(parts) > depth + 1 for parts in paths.values()):
        if len({parts[depth] for parts in paths.values()}) > 1:
            break
        depth += 1
    train, test = ([(file, paths[file][depth]) for file in files] for files in listed)
    return train, test


def _here(folder: Path, line: str, dropped: int) -> tuple[Path, int]:
    """The file that a line of a list means, and how many leading parts of its path were left out to find it.

    Args:
        folder: of the lists.
        line: a path in `folder`, or one of the time when the list was written, whose end is a path in `folder`.
        dropped: parts that were left out of the line before.
    """
    parts = Path(line).parts
    for start in dict.fromkeys((dropped, *range(len(parts)))):
        file = folder.joinpath(*parts[start:])
        if parts[start:] and file.is_file():
            return file, start
    return folder / line, dropped


def _lines(file: Path) -> list[str]:
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file} lists no image. Give one path per line.")
    return lines
