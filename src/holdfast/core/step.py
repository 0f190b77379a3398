"""One optimisation step: what was seen and what was computed from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

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
    extras: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    fresh: Tensor | None = None
