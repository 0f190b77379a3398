"""Corruptions of images, applied a batch at a time when samples are gathered: solarise, blur, stretch, grey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.errors import ConfigError

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
                f"a blur of {self.size} pixels and sigma {self.sigma} is none. Give an odd size, a positive sigma."
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
