"""What torch does around a training: number formats by Lightning's names, compilation, and its own checks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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


# Compilation and checks ------------------------------------------------------------------------------------

PER_EXPERIENCE = 8
"""Graphs that an experience may need: training, evaluation, a smaller last batch, replay, and as many to spare."""


def compiled_forward(model: nn.Module) -> None:
    """Compile the forward of `model` in place; hooks that are attached by now are compiled with it."""
    model.compile()


@contextlib.contextmanager
def recompilable(wanted: bool, experiences: int) -> Iterator[None]:
    """Inside, torch's limit on recompilations leaves room for a head that grows at every experience.

    Past its limit (8) torch runs a function as it is from then on, after one warning among others.

    Args:
        wanted: whether anything is compiled; else this costs nothing, not even the compiler's import.
        experiences: of the stream.
    """
    if not wanted:
        yield
        return
    import torch._dynamo

    config = torch._dynamo.config
    limits = {
        name: max(getattr(config, name), PER_EXPERIENCE * (experiences + 1))
        for name in (
            "recompile_limit",
            "cache_size_limit",
            "accumulated_recompile_limit",
            "accumulated_cache_size_limit",
        )
        if hasattr(config, name)
    }
    with config.patch(limits):  # type: ignore[attr-defined]
        yield


@contextlib.contextmanager
def torch_checks(deterministic: bool, detect_anomaly: bool) -> Iterator[None]:
    """Torch's own checks inside, what was set before afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(True) if detect_anomaly else contextlib.nullcontext():
            yield
    finally:
        torch.use_deterministic_algorithms(before)
