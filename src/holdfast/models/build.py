"""What all model factories share: backbone and head, seeds, names of activations, early checks of shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.core.body import children_of
from holdfast.core.errors import ConfigError, unknown
from holdfast.models.heads import CosineHead, CosineTaskHead, FixedHead, GrowingHead, Head, TaskHead


class Classifier(nn.Module):
    """`head(backbone(inputs))`, with both parts in reach.

    Args:
        backbone: gives features `[rows, features]`.
        head: gives outputs `[rows, width]` of them; a `Head`, or any module.

    Attributes:
        cuts: the children of the backbone after which its numbered cuts lie (`core.body`); None counts those with
            parameters.

    Example:
        >>> import torch
        >>> from holdfast.models import FixedHead
        >>> model = Classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), FixedHead(8, classes=3))
        >>> model(torch.zeros(2, 4)).shape, model.features(torch.zeros(2, 4)).shape
        (torch.Size([2, 3]), torch.Size([2, 8]))
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.cuts: tuple[str, ...] | None = None

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """What runs in front of the head, in order: the children of a `Sequential`, else the backbone as one."""
        return (
            dict(children_of(self.backbone))
            if isinstance(self.backbone, nn.Sequential)
            else {"backbone": self.backbone}
        )

    def features(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """What the head sees of these inputs, `[rows, features]`."""
        return self.backbone(*inputs, **named)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Outputs `[rows, width]` of inputs as the backbone takes them."""
        return self.head(self.backbone(*inputs, **named))


HeadName = Literal["fixed", "growing", "task", "cosine", "cosine_learnable", "cosine_task", "plain_cosine"]
Activation = Literal["relu", "leaky_relu", "leaky_relu_0.2", "elu", "gelu", "silu", "tanh", "sigmoid"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "leaky_relu_0.2": functools.partial(nn.LeakyReLU, 0.2),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw initial weights on the CPU from `seed` and leave torch's global generators as they were.

    Args:
        seed: None draws from the global generator as it stands, as every `nn.Module` does.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, leaves the devices' generators alone
        yield


HEADS: dict[HeadName, str] = {
    "fixed": "Linear, with all classes from the start.",
    "growing": "Linear; starts with no outputs and gets new ones as classes arrive.",
    "task": "Linear, with a set of outputs for each task label, which grows as tasks arrive.",
    "cosine": "Compares directions, scaled; grows as classes arrive.",
    "cosine_learnable": "Compares directions, with a scale that is learnt; grows as classes arrive.",
    "cosine_task": "Compares directions, with a set of outputs for each task label.",
    "plain_cosine": "Cosines from -1 to 1, without a scale; all classes from the start.",
}
"""Every head by its name in a configuration."""


def make_head(name: HeadName, features: int, classes: int, seed: int | None) -> Head:
    """The head called `name`; see `HEADS`."""
    if name == "fixed":
        return FixedHead(features, classes)
    if name == "plain_cosine":
        return CosineHead(features, classes, scale=1.0, seed=seed)
    if name == "cosine_learnable":
        return CosineHead(features, learnable=True, seed=seed)
    growing = {"growing": GrowingHead, "task": TaskHead, "cosine": CosineHead, "cosine_task": CosineTaskHead}
    if name not in growing:
        raise ConfigError(unknown("head", name, HEADS))
    return growing[name](features, seed=seed)


def make_activation(name: Activation) -> nn.Module:
    """The activation called `name`, with torch's own defaults; "leaky_relu_0.2" has that slope below zero."""
    if name not in _ACTIVATIONS:
        raise ConfigError(unknown("activation", name, _ACTIVATIONS))
    return _ACTIVATIONS[name]()


def check_sizes(what: str, sizes: Sequence[int]) -> None:
    """Refuse sizes below 1."""
    if any(size < 1 for size in sizes):
        raise ConfigError(f"{what} {list(sizes)} contains a size below 1. Write whole numbers from 1 up.")


def check_image(factory: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of an image shape.

    Raises:
        ConfigError: unless the shape is three sizes of at least 1.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f"`{factory}` takes images, not inputs of shape {tuple(input_shape)}. "
            "Use a stream of (channels, height, width), or the model `mlp`, which takes any shape."
        )
    check_sizes("input_shape", input_shape)
    channels, height, width = input_shape
    return channels, height, width
