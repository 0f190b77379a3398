"""Networks that a library built or trained: a head of ours, saved weights, sizes and colours, features from inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.models.build import Classifier, HeadName, make_head
from holdfast.models.weights import first_line

NO_LINEAR = (
    "{!r} does not end with a linear layer on features, so it can have no other head. Choose another architecture."
)


def with_head(
    backbone: nn.Module,
    architecture: str,
    input_shape: Sequence[int],
    classes: int,
    head: HeadName,
    weights: str | None,
    seed: int | None,
    preprocess: nn.Module | None = None,
) -> Classifier:
    """Put a head onto a backbone, and what it wants of images before it, after trying it on one black image."""
    channels = input_shape[0]
    if preprocess is not None:
        backbone = nn.Sequential(preprocess, backbone)
    if channels != 3 and not (channels == 1 and preprocess is not None and len(preprocess.mean) == 3):  # type: ignore[arg-type]
        match_channels(backbone, channels, keep=weights is not None)
    backbone.eval()  # batch norm neither learns from the black image nor refuses a batch of one
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(1, *input_shape))
    except Exception as error:  # whatever the library raises for a wrong size
        raise ConfigError(
            f"{architecture!r} cannot take images of shape {tuple(input_shape)} ({first_line(error)}). "
            "Resize the images in the stream to the size that it was made for, or choose another architecture."
        ) from error
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise ConfigError(NO_LINEAR.format(architecture))
    backbone.train()
    return Classifier(backbone, make_head(head, features.shape[1], classes, seed))


def match_channels(backbone: nn.Module, channels: int, keep: bool) -> None:
    """Let the first convolution take another number of channels.

    Weights worth keeping become the mean over the three colours, scaled so that the same grey image in all
    channels gives the same maps as before.
    """
    first = next(((name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)), None)
    if first is None:
        raise ConfigError(
            f"a model without convolutions takes 3 channels, not {channels}. Choose another architecture."
        )
    name, module = first
    new = nn.Conv2d(
        channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    if keep:
        with torch.no_grad():
            new.weight.copy_(module.weight.mean(1, keepdim=True) * (module.in_channels / channels))
            if new.bias is not None and module.bias is not None:
                new.bias.copy_(module.bias)
    backbone.set_submodule(name, new)


Pool = Literal["cls", "mean", "cls_mean"]
POOLS = ("cls", "mean", "cls_mean")


class Preprocess(nn.Module):
    """Prepared images (0 to 1) as a pretrained network saw its own: resized whole, then `(x - mean) / std`.

    Nothing is cropped, so that nothing at the border of a small image is lost. A single channel is repeated.

    Args:
        mean: of each channel, or of all.
        std: likewise.
        size: height and width; None leaves images as they are.
        interpolation: "bicubic" or "bilinear", smoothed where images shrink.

    Example:
        >>> Preprocess(mean=[0.5], std=[0.5], size=2)(torch.ones(1, 1, 4, 4)).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        if interpolation not in ("bicubic", "bilinear"):
            interpolation = "bicubic"
        self.size = size
        self.interpolation = interpolation
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[rows, channels, height, width]` as the network takes them."""
        if images.shape[1] == 1 and len(self.mean) == 3:
            images = images.expand(-1, 3, -1, -1)
        if self.size is not None and tuple(images.shape[2:]) != (self.size, self.size):
            images = F.interpolate(
                images, (self.size, self.size), mode=self.interpolation, align_corners=False, antialias=True
            )
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """All that the outputs depend on."""
        values = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return f"mean={values[0]}, std={values[1]}, size={self.size}, interpolation={self.interpolation!r}"


class _Reached(Exception):  # noqa: N818
    """Carries what an inner layer gave out of the forward that need not go on."""


class Cut(nn.Module):
    """The features that an inner layer of a network gives, or those at its end, as one vector an input.

    Maps `[rows, channels, height, width]` become their mean over positions; tokens `[rows, tokens, features]` become
    what `pool` says. The forward stops at the layer.

    Args:
        network: any.
        cut: dotted name of the layer; None takes what the network returns.
        pool: of tokens: the first one (`cls`), the `mean` of those of the image, or both side by side (`cls_mean`).
        prefix: tokens in front that are not of the image: the first one, and registers.

    Raises:
        ConfigError: for a layer that is not there, or a way to pool that is unknown.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        >>> Cut(network, cut="1")(torch.zeros(2, 3, 6, 6)).shape
        torch.Size([2, 8])
    """

    def __init__(self, network: nn.Module, cut: str | None = None, pool: Pool = "cls", prefix: int = 1) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConfigError(unknown("way to pool", pool, POOLS))
        self.network = network
        self.cut = cut
        self.pool = pool
        self.prefix = prefix
        if cut is not None:
            layers = [name for name, _ in network.named_modules() if name]
            if cut not in layers:
                raise ConfigError(unknown("layer", cut, layers, "Give a name of `network.named_modules()`."))
            network.get_submodule(cut).register_forward_hook(self._stop)

    @staticmethod
    def _stop(_: nn.Module, __: Any, outputs: Any) -> None:
        raise _Reached(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features `[rows, features]`."""
        try:
            features: Any = self.network(inputs)
        except _Reached as reached:
            features = reached.args[0]
        if self.cut is not None and isinstance(features, tuple):
            features = features[0]
        features = getattr(features, "last_hidden_state", features)
        if features.dim() == 4:
            return features.mean((2, 3))
        return self._pooled(features) if features.dim() == 3 else features.flatten(1)

    def _pooled(self, tokens: Tensor) -> Tensor:
        first, mean = tokens[:, 0], tokens[:, self.prefix :].mean(1)
        if self.pool == "cls_mean":
            return torch.cat((first, mean), dim=1)
        return first if self.pool == "cls" else mean

    def extra_repr(self) -> str:
        """What the features are."""
        return f"cut={self.cut!r}, pool={self.pool!r}, prefix={self.prefix}"


def folder_preprocess(folder: str, size: int | None) -> Preprocess:
    """What `preprocessor_config.json` in a folder of transformers says of images.

    Args:
        folder: that `save_pretrained` wrote.
        size: instead of the one in the file.

    Raises:
        DataError: if the file is not there or lacks mean or standard deviation.
    """
    path = Path(folder) / "preprocessor_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        mean, std = content["image_mean"], content["image_std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not say mean and standard deviation of images ({type(error).__name__}: {error}). Put the "
            "model's own file there, or write preprocess=false and normalise in the data set."
        ) from error
    kept = content.get("crop_size") if content.get("do_center_crop") else content.get("size")
    if isinstance(kept, dict):
        kept = kept.get("height", kept.get("shortest_edge"))
    filters = {2: "bilinear", 3: "bicubic"}
    return Preprocess(mean, std, size or kept, filters.get(content.get("resample", 3), "bicubic"))
