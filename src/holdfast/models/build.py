"""What all model factories share: seeds, heads by name, activations by name, and early checks of shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from holdfast.core.errors import ConfigError, unknown
from holdfast.models.heads import CosineHead, CosineTaskHead, FixedHead, GrowingHead, Head, TaskHead

HeadName = Literal["fixed", "growing", "task", "cosine", "cosine_learnable", "cosine_task"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
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


def make_head(name: HeadName, features: int, classes: int, seed: int | None) -> Head:
    """The head called `name`: "fixed" has all classes from the start, the others start with no outputs and grow.

    "growing" and "task" (one set of outputs a task) are linear; "cosine", "cosine_learnable" (its scale is learnt) and
    "cosine_task" compare directions.
    """
    if name == "fixed":
        return FixedHead(features, classes)
    if name == "cosine_learnable":
        return CosineHead(features, learnable=True, seed=seed)
    growing = {"growing": GrowingHead, "task": TaskHead, "cosine": CosineHead, "cosine_task": CosineTaskHead}
    if name not in growing:
        raise ConfigError(unknown("head", name, ["fixed", *growing, "cosine_learnable"]))
    return growing[name](features, seed=seed)


def make_activation(name: Activation) -> nn.Module:
    """The activation called `name`, with torch's own defaults."""
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
        ConfigError: if the shape has not three sizes from 1 up.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f"`{factory}` takes images, and inputs of shape {tuple(input_shape)} are none. "
            "Use a stream of (channels, height, width), or the model `mlp`, which takes any shape."
        )
    check_sizes("input_shape", input_shape)
    channels, height, width = input_shape
    return channels, height, width
