"""What is done to raw inputs a batch at a time: lazy transforms, corruptions, scale, augmentation, normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.errors import ConfigError, unknown

GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True)
class Solarize:
    """Invert every value from a threshold on: `v` becomes `1 - v`, on a scale from 0 to 1.

    Args:
        threshold: on that scale.

    Example:
        >>> Solarize(0.5)(torch.tensor([[[[10, 200]]]], dtype=torch.uint8))
        tensor([[[[10, 55]]]], dtype=torch.uint8)
    """

    threshold: float = 0.5

    def __call__(self, inputs: Tensor) -> Tensor:
        """Images `[rows, channels, height, width]`, uint8 from 0 to 255 or floats from 0 to 1, of the same type."""
        top = _top(inputs)
        return torch.where(inputs >= self.threshold * top, (top - inputs).to(inputs.dtype), inputs)


@dataclass(frozen=True)
class Blur:
    """Convolve with a normal density: each pixel becomes a weighted mean of those around it, edges mirrored.

    Args:
        size: of the window, an odd number of pixels.
        sigma: standard deviation, in pixels.
    """

    size: int = 5
    sigma: float = 0.9

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0 or self.sigma <= 0:
            raise ConfigError(
                f"a blur has no size {self.size} and sigma {self.sigma}. Give an odd size and a positive sigma."
            )

    def __call__(self, inputs: Tensor) -> Tensor:
        """Images `[rows, channels, height, width]`, of the same type; integers are rounded."""
        half = self.size // 2
        offsets = torch.arange(-half, half + 1, dtype=torch.float32, device=inputs.device)
        line = torch.exp(-offsets.square() / (2 * self.sigma**2))
        line = line / line.sum()
        channels = inputs.shape[1]
        images = F.pad(inputs.to(torch.float32), (half, half, half, half), mode="reflect")
        images = F.conv2d(images, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        images = F.conv2d(images, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return _back(images, inputs)


@dataclass(frozen=True)
class Autocontrast:
    """Stretch each channel of each image linearly, so that its values run over the whole range; flat ones stay."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Images `[rows, channels, height, width]`, of the same type; integers are rounded."""
        images = inputs.to(torch.float32)
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        spread = torch.where(high > low, high - low, torch.ones_like(low))
        return _back(torch.where(high > low, (images - low) / spread * _top(inputs), images), inputs)


@dataclass(frozen=True)
class Greyscale:
    """Give all three channels the same value, a weighted mean of red, green and blue."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Images `[rows, 3, height, width]`, of the same type; images of one channel stay as they are."""
        if inputs.shape[1] == 1:
            return inputs
        weights = torch.tensor(GREY, device=inputs.device).view(1, -1, 1, 1)
        return _back((inputs.to(torch.float32) * weights).sum(1, keepdim=True).expand(inputs.shape), inputs)


CORRUPTIONS: dict[str, dict[str, Any]] = {
    "clean": {"kind": "none"},
    "solarized": {"kind": "solarize", "threshold": 0.5},
    "blurred": {"kind": "blur", "size": 5, "sigma": 0.9},
    "grey": {
        "kind": "chain",
        "of": [{"kind": "autocontrast"}, {"kind": "greyscale"}, {"kind": "blur", "size": 5, "sigma": 0.65}],
    },
}
"""The corruptions of the noisy stream by name, in its order, as `transforms.from_description` reads them."""


def _top(inputs: Tensor) -> float:
    """The largest value of the range: 255 of bytes, 1 of floats."""
    return 1.0 if inputs.is_floating_point() else 255.0


def _back(images: Tensor, inputs: Tensor) -> Tensor:
    """Floats as the type that came in, rounded and kept within its range."""
    images = images.clamp(0, _top(inputs))
    return images.to(inputs.dtype) if inputs.is_floating_point() else images.round_().to(inputs.dtype)


INTERPOLATIONS = ("bilinear", "nearest")
PIECE = 2**20


@dataclass(frozen=True)
class Chain:
    """Apply `first`, then `second`."""

    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Transform a batch of raw inputs."""
        return self.second(self.first(inputs))


@dataclass(frozen=True)
class Permute:
    """One fixed random permutation of the values of every sample.

    Args:
        seed: of the permutation.
        mode: "all" permutes all values of a sample, "by_channel" the pixels, in the same way in every channel.

    Example:
        >>> Permute(seed=0)(torch.tensor([[1, 2, 3, 4]])).sort().values
        tensor([[1, 2, 3, 4]])
    """

    seed: int
    mode: Literal["all", "by_channel"] = "all"
    _cache: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Permute a batch `[rows, ...]`, keeping its shape and type."""
        keep = 2 if self.mode == "by_channel" and inputs.dim() > 2 else 1
        flat = inputs.reshape(*inputs.shape[:keep], -1)
        order = self.order(flat.shape[-1], inputs.device)
        return flat.gather(-1, order.expand(*flat.shape[:-1], -1)).view(inputs.shape)

    def order(self, values: int, device: torch.device | str = "cpu") -> Tensor:
        """The permutation of that many values: output `j` is input `order[j]`."""
        key = (values, str(device))
        if key not in self._cache:
            generator = torch.Generator().manual_seed(self.seed)
            with torch.inference_mode(False):
                self._cache[key] = torch.randperm(values, generator=generator).to(device)
        return self._cache[key]


@dataclass(frozen=True)
class Rotate:
    """Rotate images counter-clockwise about their centre, with black corners.

    Multiples of 90 degrees are exact on square images, and 0 degrees returns the input itself. Integer images are
    rounded to the nearest value.

    Args:
        degrees: the angle.
        interpolation: "bilinear", the weighted mean of the four nearest pixels, or "nearest", the nearest one.

    Example:
        >>> Rotate(90.0)(torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8))
        tensor([[[[2, 4],
                  [1, 3]]]], dtype=torch.uint8)
    """

    degrees: float
    interpolation: Literal["bilinear", "nearest"] = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(unknown("interpolation", self.interpolation, INTERPOLATIONS))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Rotate a batch of images `[rows, channels, height, width]`, keeping its shape and type."""
        if inputs.dim() != 4:
            raise ConfigError(
                f"a rotation needs images [rows, channels, height, width], and these inputs have shape "
                f"{tuple(inputs.shape)}. Choose another stream for this data set."
            )
        quarters, rest = divmod(self.degrees % 360.0, 90.0)
        square = inputs.shape[2] == inputs.shape[3]
        if rest == 0 and (square or quarters in (0, 2)):
            return torch.rot90(inputs, int(quarters), (2, 3)).contiguous() if quarters else inputs
        rows = max(1, PIECE // max(1, inputs[0].numel())) if len(inputs) else 1
        return torch.cat([self._turn(piece) for piece in inputs.split(rows)])

    def _turn(self, inputs: Tensor) -> Tensor:
        rows, channels, height, width = inputs.shape
        angle = math.radians(self.degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        # Normalised coordinates are stretched to -1..1 on both axes, hence the aspect ratios.
        theta = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
        grid = F.affine_grid(theta[None].to(inputs.device), [1, 1, height, width], align_corners=False)
        # One grid serves every image: they become the channels of a single one.
        stacked = inputs.reshape(1, rows * channels, height, width).to(torch.float32)
        turned = F.grid_sample(stacked, grid, mode=self.interpolation, align_corners=False).view(inputs.shape)
        return turned.to(inputs.dtype) if inputs.is_floating_point() else turned.round_().to(inputs.dtype)


@dataclass(frozen=True)
class Resize:
    """Bring images to one size, number of channels and range of values (uint8 stays uint8, 0..255).

    Args:
        size: height and width.
        channels: a single channel is repeated to this many.
        factor: values are multiplied by this first (255/16 for images that run to 16).
    """

    size: tuple[int, int]
    channels: int
    factor: float = 1.0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Resize a batch of images `[rows, channels, height, width]`, keeping its type."""
        images = inputs.to(torch.float32)
        if self.factor != 1.0:
            images = images * self.factor
        if tuple(images.shape[2:]) != self.size:
            smaller = self.size[0] < images.shape[2] or self.size[1] < images.shape[3]
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=smaller)
        if images.shape[1] != self.channels:
            if images.shape[1] != 1:
                raise ConfigError(f"images with {images.shape[1]} channels cannot be given {self.channels}.")
            images = images.expand(-1, self.channels, -1, -1)
        if inputs.is_floating_point():
            return images.to(inputs.dtype)
        return images.round().clamp_(0, 255).to(torch.uint8)


TRANSFORMS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "permute": Permute,
    "rotate": Rotate,
    "solarize": Solarize,
    "blur": Blur,
    "autocontrast": Autocontrast,
    "greyscale": Greyscale,
}
"""The transforms that plain values can describe, by their `kind`."""


def from_description(description: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """The transform that plain values describe, for instance `{"kind": "rotate", "degrees": 30.0}`.

    `{"kind": "none"}` is no transform, `{"kind": "chain", "of": [...]}` several, one after the other.

    Raises:
        ConfigError: an unknown kind or key.
    """
    values = dict(description)
    kind = values.pop("kind", None)
    if kind == "none":
        return None
    if kind == "chain":
        chained: Callable[[Tensor], Tensor] | None = None
        if list(values) != ["of"] or not isinstance(values["of"], list):
            raise ConfigError(
                f"a chain of transforms cannot take {sorted(values)}. Give it a list, `of`, of transforms."
            )
        for inner in values["of"]:
            following = from_description(inner)
            if following is not None:
                chained = following if chained is None else Chain(chained, following)
        return chained
    if kind not in TRANSFORMS:
        raise ConfigError(unknown("transform", kind, [*TRANSFORMS, "chain", "none"]))
    try:
        return TRANSFORMS[kind](**values)
    except TypeError as error:
        raise ConfigError(f"the transform {kind!r} cannot take {sorted(values)}. Its error says: {error}.") from error
