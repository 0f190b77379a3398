"""One optimisation step: what was seen and what was computed from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from torch import Tensor

from holdfast.core.experience import Extras
from holdfast.core.tree import Tree


@dataclass(frozen=True, slots=True)
class Now:
    """Where training is, as the loop says before each step.

    Attributes:
        index: how many steps came before this one, over the whole stream.
        progress: how far the experience has come, from 0 to 1; None in loops that do not know.
        epoch_progress: how far the current pass over the experience's data has come: 0 at its first step, 1 at its
            last; None in loops that do not know.
    """

    index: int = 0
    progress: float | None = None
    epoch_progress: float | None = None

    def watched(self, peek: Callable[[str], None]) -> Now:
        """The same, which calls `peek` whenever somebody looks at it: for a step that is being recorded."""
        return _WatchedNow(self, peek)

    def stamped(self, step: Step, index: int) -> Step:
        """`step` as the one with this number, made now."""
        step.index, step.progress = index, self.progress
        return step


@dataclass(slots=True)
class Step:
    """One optimisation step: what was seen and what was computed from it.

    Attributes:
        inputs: the current data, `[rows, ...]`, raw (before `Learner.prepare`).
        targets: their targets, `[rows, ...]`.
        loss: the current data's loss, a scalar with its graph.
        outputs: the model's outputs on the current data, `[rows, ...]`, with their graph, if the loop has them.
        task: the task label (`[rows]` labels where tasks are mixed), or None in unlabelled streams.
        index: how many steps came before this one, over the whole stream.
        progress: from 0 to 1 within the experience; None when unbounded.
        extras: side results of *this* forward (masks, chosen prompts, outputs of appended rows).
        weight: the factor of `loss` in the total. An operation that averages its term with the current
            loss, instead of adding to it, lowers this (`step.weight *= 1 - share`).
        fresh: `[rows]` bool, which rows are trained on for the first time; None: all of them.
    """

    inputs: Tree
    targets: Tensor
    loss: Tensor
    outputs: Tensor | None = None
    task: int | Tensor | None = None
    index: int = 0
    progress: float | None = None
    extras: Extras = field(default_factory=dict)
    weight: float = 1.0
    fresh: Tensor | None = None


class _WatchedNow(Now):
    """What differs from step to step, seen whenever it is looked at."""

    __slots__ = ("_now", "_peek")

    def __init__(self, now: Now, peek: Callable[[str], None]) -> None:
        object.__setattr__(self, "_now", now)
        object.__setattr__(self, "_peek", peek)

    def __getattribute__(self, name: str) -> object:
        if name not in _NOW:
            return object.__getattribute__(self, name)
        object.__getattribute__(self, "_peek")(f"learner.now.{name}")
        return getattr(object.__getattribute__(self, "_now"), name)

    def stamped(self, step: Step, index: int) -> Step:
        """See `Now.stamped`."""
        now, peek = object.__getattribute__(self, "_now"), object.__getattribute__(self, "_peek")
        made = _WatchedStep(*(getattr(step, one.name) for one in fields(Step)))
        made.index, made.progress = index, now.progress
        made.peek = peek
        return made


class _WatchedStep(Step):
    """A step that is being recorded: what differs from step to step on the host belongs into a decision."""

    __slots__ = ("peek",)
    peek: Callable[[str], None]

    def __getattribute__(self, name: str) -> object:
        if name in ("index", "progress"):
            try:
                peek = object.__getattribute__(self, "peek")
            except AttributeError:  # it is being made
                return object.__getattribute__(self, name)
            peek(f"step.{name}")
        return object.__getattribute__(self, name)


_NOW = frozenset(one.name for one in fields(Now))
