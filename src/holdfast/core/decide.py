"""What the host decides anew at every step, told apart from what the device computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def decide(make: Callable[[], T], device: torch.device | None = None) -> T:
    """The value of `make()`, through which goes everything the host decides anew at a step.

    Draws, counters, schedules and branches are such decisions.
    A step that is run as written calls `make` and returns its value. A step that was recorded once and is run again
    can do so only with decisions that are made again before it, which is why they must be found: what `make` does is
    done at every step, and what stands outside of it may be done once for all.

    Args:
        make: draws from a generator, counts, or reads `learner.now`; it must not read what the step computes. A tensor
            that it returns keeps its shape from step to step; anything else (a bool, a number) is a branch of the
            step.
        device: where a tensor that `make` returns is wanted.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> decide(lambda: torch.randint(9, (2,), generator=generator)).shape
        torch.Size([2])
    """
    value = make()
    if device is not None and isinstance(value, Tensor):
        return value.to(device)  # type: ignore[return-value]
    return value
