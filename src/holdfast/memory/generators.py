"""The one check every random policy makes of its generator."""

from __future__ import annotations

import torch

from holdfast.core.errors import ConfigError


def on_cpu(generator: torch.Generator) -> torch.Generator:
    """`generator`, if it is a CPU generator: decisions are made on the host, equal on every device.

    Raises:
        ConfigError: it is none, or lies on another device.
    """
    if not isinstance(generator, torch.Generator):
        raise ConfigError(
            f"generator is {generator!r}, and randomness only comes from an explicit generator. "
            "Pass torch.Generator().manual_seed(0)."
        )
    if generator.device.type != "cpu":
        raise ConfigError(
            f"the generator lies on {generator.device}, and the memory decides on the host. "
            "Pass torch.Generator().manual_seed(0), which lies on the CPU."
        )
    return generator
