"""What the host decides in a step that is recorded: noted once, and made again before every run of the recording."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from holdfast.core.decide import Many
from holdfast.core.tape import Tape, Watch, line
from holdfast.core.walk import PLAIN, Held, changed

T = TypeVar("T")


class Decision(NamedTuple):
    """A decision of a recorded step.

    Attributes:
        make: makes it again.
        value: a tensor that every run reads, or the value of a branch.
        told: plain values that `make` has from the step it comes from.
        line: where it stands.
        guard: what a step must have in common with this one to be run as this one was.
        many: makes those of several steps, if there is such a way.
    """

    make: Callable[[], Any]
    value: Any
    told: tuple[object, ...]
    line: str
    guard: Hashable
    many: Many | None = None


def guard_of(value: Any) -> Hashable:
    """What of a decision a recording is good for: any tensor of its shape and any number, or one branch."""
    if isinstance(value, Tensor):
        return (value.shape, value.dtype) if value.dim() or not value.is_floating_point() else float
    return float if type(value) is float else (type(value), tuple(value) if isinstance(value, list) else value)


@dataclass
class Recording:
    """A step that was recorded.

    Attributes:
        tape: what it did.
        decisions: in order.
        baked: numbers of the host that stand in it and are not asked for again.
        run: runs it.
        read: the storages of all that it reads.
        after: puts tensors where the step leaves them, by path.
        outputs: what its function returned.
        runs: how often it was run.
        audit: the number of the run in whose place it is recorded again and compared, ...
        between: ... and how many runs there are to the next such one.
        fed: the tensors that hold what the step is given.
        looked: the storages that its decisions looked at, ...
        wrote: ... and those that the step writes.
    """

    tape: Tape
    decisions: list[Decision]
    baked: Hashable
    outputs: Any = None
    run: Callable[[], None] | None = None
    after: list[tuple[str, Callable[[Tensor], None], Tensor]] = field(default_factory=list)
    read: frozenset[int] = frozenset()
    runs: int = 0
    audit: int = 0
    between: int = 0
    fed: list[Tensor] = field(default_factory=list)
    looked: frozenset[int] = frozenset()
    wrote: frozenset[int] = frozenset()

    @property
    def guards(self) -> Hashable:
        """What it was recorded for."""
        return (self.baked, tuple(one.guard for one in self.decisions))


class Decisions:
    """Makes the decisions of the step that is running, and notes them while it is recorded.

    Args:
        device: where numbers go that steps compute with.
        dtype: of such numbers.

    Attributes:
        made: decisions of this step that were made already.
        noted: those of the recording in progress; None where nothing is recorded.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.made: deque[Any] = deque()
        self.noted: list[Decision] | None = None
        self.excused: set[str] = set()  # what decisions of this recording changed, and ...
        self.ever: set[str] = set()  # ... those of all
        self.look: Callable[[], dict[str, Held]] | None = None  # at what decisions may change; None to let them
        self.watch: Watch | None = None
        self._inside = False

    def decide(self, make: Callable[[], T], device: torch.device | None, many: Many | None = None) -> T:
        """See `core.decide.Recorder`."""
        if self._inside:
            return make()
        if self.noted is None:
            value = self._make(make)
            if isinstance(value, Tensor) and device is not None:
                return value.to(device, non_blocking=True)  # type: ignore[return-value]
            return value
        value = self._make(make)
        code = getattr(make, "__code__", None)
        where = f"{code.co_filename.rpartition('holdfast/')[2]}:{code.co_firstlineno}" if code else repr(make)
        kept: Any = value
        with _disable_current_modes():
            if isinstance(value, Tensor):
                kept = value.to(value.device if device is None else device, copy=True)
            elif type(value) is float:
                kept = torch.tensor(value, dtype=self.dtype, device=self.device if device is None else device)
        self.noted.append(Decision(make, kept, _told(make), where, guard_of(kept), many))
        return kept  # type: ignore[no-any-return]

    def _make(self, make: Callable[[], T]) -> T:
        if self.made:
            return self.made.popleft()  # type: ignore[no-any-return]
        if self.look is None:
            return make()
        with _disable_current_modes():
            before = self.look()
            self._inside = True
            try:
                with nullcontext() if self.noted is None or self.watch is None else self.watch.decision():
                    value = make()
            finally:
                self._inside = False
            self.excused |= changed(before, self.look())
        self.ever |= self.excused
        return value

    def recording(self) -> bool:
        """Whether a step is recorded, and no decision is being made."""
        return self.noted is not None and not self._inside and self.watch is not None

    def peek(self, what: str) -> None:
        """Note that something which differs from step to step is read outside of a decision."""
        if self.recording():
            assert self.watch is not None
            self.watch.tape.problems.append(f"{what} is read outside of a decision ({line()})")


def _told(make: Callable[[], Any]) -> tuple[object, ...]:
    cells = [cell.cell_contents for cell in getattr(make, "__closure__", None) or ()]
    return tuple(value for value in (*cells, *(getattr(make, "__defaults__", None) or ())) if isinstance(value, PLAIN))
