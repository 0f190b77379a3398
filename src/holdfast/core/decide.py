"""What the host decides anew at every step, told apart from what the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

NOTED = "_holdfast_on_host"
"""Attribute of a tensor on another device with the same values on the CPU, and the number of writes to it then."""

Many = Callable[[int], "Tensor | None"]
"""Makes the decisions of several steps at once; see `decide`."""


class Recorder(Protocol):
    """Whoever records a step, and makes its decisions again before each replay."""

    def decide(self, make: Callable[[], T], device: torch.device | None, many: Many | None = None) -> T:
        """The value of `make()` now, or what stands for it in the recorded step."""


_recorder: ContextVar[Recorder | None] = ContextVar("holdfast_recorder", default=None)


def decide(make: Callable[[], T], device: torch.device | None = None, many: Many | None = None) -> T:
    """The value of `make()`, through which goes everything the host decides anew at a step.

    Draws, counters, schedules and branches are such decisions. A step that is run as written calls `make` and returns
    its value. A step that was recorded once and is run again can do so only with decisions that are made again before
    it, which is why they must be found: what `make` does is done at every step, and what the host does outside of it
    may be done once for all.

    Args:
        make: draws from a generator, counts, or reads `learner.now`; it must not read what the step computes. It
            returns a tensor, of the same shape at every step; a float, which may come back as a scalar tensor; or
            anything else (a bool, an int, a tuple of these), which is a branch of the step.
        device: where a tensor that `make` returns is wanted.
        many: a faster way for many steps, which no operation needs: `many(count)` does what `count` calls of `make`
            would do, and returns their tensors as `[count, ...]` on the CPU. It is for draws from a generator of their
            own, which nothing else in a step moves. Where it cannot say beforehand, `many(0)` is None.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> decide(lambda: torch.randint(9, (2,), generator=generator)).shape
        torch.Size([2])
    """
    recorder = _recorder.get()
    if recorder is not None:
        return recorder.decide(make, device, many)
    value = make()
    if device is not None and isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    return value


@contextmanager
def recorded_by(recorder: Recorder) -> Iterator[None]:
    """Decisions inside are asked of `recorder`."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def recording() -> bool:
    """Whether a step is being recorded, for shortcuts over the host that a recorded step cannot take."""
    return _recorder.get() is not None


def note_on_host(tensor: Tensor, host: Tensor | None) -> None:
    """Note that `host` has, on the CPU, what `tensor` has now, so that decisions need not wait for the device.

    Args:
        tensor: on any device; a later write to it makes the note void.
        host: of the same shape, which nobody writes to; None to take an earlier note back.
    """
    if host is not None and not tensor.is_inference():
        setattr(tensor, NOTED, (host, tensor._version))
    elif hasattr(tensor, NOTED):
        delattr(tensor, NOTED)


def noted_on_host(tensor: Tensor) -> Tensor | None:
    """What was noted of a tensor, if it still has these values."""
    host, writes = getattr(tensor, NOTED, (None, -1))
    return host if host is not None and writes == tensor._version else None


def on_host(tensor: Tensor) -> Tensor:
    """The values of a tensor for a decision: what was noted of them, else the tensor itself.

    Reading the latter (`tolist`) waits for the device.

    Example:
        >>> labels = torch.tensor([1, 0])
        >>> note_on_host(labels, torch.tensor([1, 0]))
        >>> on_host(labels) is labels, on_host(labels.add_(1)) is labels
        (False, True)
    """
    tensor.dim()  # a call that whoever records sees: the decision looks at this tensor, wherever its values come from
    host = noted_on_host(tensor)
    return tensor if host is None else host
