"""`torch.compile` for a model that grows: as many recompilations as the stream may need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

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
