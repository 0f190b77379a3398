"""Image files as pixels: how one is read, resized and cropped, and many of them as a data set."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, needs_extra


@dataclass(frozen=True)
class Middle:
    """The middle square of an image whose shorter side was resized first.

    Attributes:
        shorter: side in pixels, with the image's own proportions.
        square: side of what is cropped out of the middle.
        filter: "bilinear" or "bicubic".
    """

    shorter: int
    square: int
    filter: str = "bilinear"


ORIENTATION = 0x0112
"""The tag of a picture that says which way is up."""

UNREADABLE = (OSError, SyntaxError, ValueError, struct.error)
"""What Pillow raises for a broken file."""

Size2 = tuple[int, int] | Middle


class ImageFiles:
    """Image files as a map-style data set of tensors `[channels, height, width]`, bytes or floats (`read_image`).

    Args:
        paths: of the files.
        targets: class indices.
        size: what images are resized to; None leaves them.
        grayscale: one channel instead of three.
    """

    def __init__(self, paths: Sequence[Path], targets: Tensor, size: Size2 | None, grayscale: bool = False) -> None:
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
        return read_image(self.paths[index], self.size, self.grayscale)


def read_image(path: Path, size: Size2 | None = None, grayscale: bool = False) -> Tensor:
    """The pixels of an image file `[channels, height, width]`: bytes, or floats from 0 to 1 of 16-bit grey images.

    Args:
        path: of the file.
        size: height and width to resize to, bilinearly, or the middle of the resized image; None leaves it.
        grayscale: one channel instead of three.

    Raises:
        DataError: for a file that is not an image, or one of 32-bit numbers, whose range is unknown.
    """
    image = pillow()
    try:
        with image.open(path) as stored:
            if getattr(stored, "n_frames", 1) > 1:
                warnings.warn("images of several pages or frames are read by their first one.", stacklevel=2)
            opened = _upright(stored)
            deep = opened.mode.startswith("I")
            if opened.mode == "F" or (opened.mode == "I" and stored.format != "PNG"):
                raise DataError(
                    f"{path} has pixels of 32 bits, and does not say which value is white. Save it with 8 or 16 bits,"
                    " or as an array (npz)."
                )
            if deep:  # of 16 bits; Pillow's own conversion cuts everything off above 255
                picture = image.fromarray(np.asarray(opened).astype(np.float32))
            else:
                picture = opened.convert("L" if grayscale else "RGB")
    except UNREADABLE as error:
        raise DataError(f"{path} is no image that Pillow can read: {error}. Remove or replace it.") from error
    if isinstance(size, Middle):
        picture = _middle(picture, size, image.Resampling)
    elif size is not None and picture.size != size[::-1]:
        picture = picture.resize(size[::-1], image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture))
    if deep:
        return (pixels / 65535).expand(1 if grayscale else 3, -1, -1).contiguous()
    return pixels[None] if grayscale else pixels.permute(2, 0, 1).contiguous()


def _upright(picture: Any) -> Any:
    """The picture as every viewer shows it: cameras note in its tags how they were held."""
    try:
        turned = picture.getexif().get(ORIENTATION, 1)
    except UNREADABLE:  # the tags alone are broken
        return picture
    if turned not in range(2, 9):
        return picture
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _middle(picture: Any, size: Middle, filters: Any) -> Any:
    width, height = picture.size
    scale = size.shorter / min(width, height)
    width, height = max(size.shorter, int(width * scale)), max(size.shorter, int(height * scale))
    if picture.size != (width, height):
        picture = picture.resize((width, height), filters[size.filter.upper()])
    left, top = round((width - size.square) / 2), round((height - size.square) / 2)
    return picture.crop((left, top, left + size.square, top + size.square))


def pixels_of(files: ImageFiles) -> Tensor:
    """All images in one tensor, filled image by image."""
    first = files.read(0)
    pixels = torch.empty((len(files), *first.shape), dtype=first.dtype)
    for row in range(len(files)):
        image = files.read(row)
        if image.shape != first.shape:
            raise DataError(
                f"{files.paths[row]} has {tuple(image.shape[1:])} pixels, and "
                f"{files.paths[0]} {tuple(first.shape[1:])}. "
                "Give size=, the height and width to resize to."
            )
        if image.dtype != first.dtype:
            raise DataError(
                f"{files.paths[row]} and {files.paths[0]} have pixels of 8 and of 16 bits. Give all images one kind."
            )
        pixels[row] = image
    return pixels


def shape_of(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width that one number or two stand for; None for None."""
    if size is None:
        return None
    pair = [size, size] if isinstance(size, int) else list(size)
    if len(pair) != 2 or any(side < 1 for side in pair):
        raise ConfigError(f"size is {size}. Give the height and width in pixels, as one number or two.")
    return pair[0], pair[1]


def middle_of(size: int | Sequence[int] | None, shorter: int, filter: str) -> Middle:
    """The middle square of side `size` of images whose shorter side is resized to `shorter` first."""
    if not isinstance(size, int) or size > shorter:
        raise ConfigError(
            f"shorter_side is {shorter}, and size is {size}. Give size, one number that is at most shorter_side: the"
            " side of the square that is cropped."
        )
    return Middle(shorter, size, filter)


def pillow() -> Any:
    """The module that reads images, or an error that says how to install it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise needs_extra("image_folder", "Pillow", "images") from error
    return Image
