"""Number formats by Lightning's names: what runs under autocast, what is scaled, what is double."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Tree, tree_map

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
Prepare = Callable[[Any, bool, torch.Generator | None], Any]

PRECISIONS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "64-true": None,
}
"""Each precision with the dtype of its autocast, if it has one."""


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what there is not.

    Raises:
        ConfigError: an unknown name, or `16-mixed` on a CPU, which computes no faster in it and overflows sooner.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"the trainer got precision={precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    if precision == "16-mixed" and device.type == "cpu":
        raise ConfigError("precision 16-mixed is for GPUs, and the device is the CPU. Write precision=bf16-mixed.")


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """The gradient scaler that float16 needs, None for every other precision."""
    return torch.amp.GradScaler(device.type) if precision == "16-mixed" else None


def as_precise(model: nn.Module, prepare: Prepare | None, precision: str) -> Prepare | None:
    """Under `64-true` the model in double precision, and a `prepare` that makes doubles; else nothing changes."""
    if precision != "64-true":
        return prepare
    model.double()
    return Doubles(prepare)


class Doubles:
    """Prepares inputs as another does, and makes doubles of the floats.

    Args:
        prepare: what is called first; None leaves inputs as they are.
    """

    def __init__(self, prepare: Prepare | None) -> None:
        self.prepare = prepare

    def __call__(self, inputs: Tree, training: bool = False, generator: torch.Generator | None = None) -> Tree:
        """Prepare a batch; see `streams.prepare.Prepare`."""
        prepared = inputs if self.prepare is None else self.prepare(inputs, training, generator)
        return tree_map(_double, prepared)

    def __getattr__(self, name: str) -> Any:
        if name == "prepare":
            raise AttributeError(name)
        return getattr(self.prepare, name)


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf
