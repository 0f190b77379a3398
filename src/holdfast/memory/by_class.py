"""Retrieval that gives every class the same share, however many of its rows are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.memory.generators import on_cpu
from holdfast.memory.retrieval import Held, Retrieval, check_size, needs_held


class BalancedUniform(Retrieval):
    """As equal a number of rows of each class as is held, uniform without replacement within a class.

    Rows are dealt in rounds, one random row per class and round, until `size` are chosen; the classes of the last,
    incomplete round are chosen at random. A class of which fewer rows are held leaves its share to the others.
    Every call sorts the held targets: O(n log n), without a host synchronisation.

    Args:
        generator: CPU generator the draws come from.
        column: the integer column to balance by.
    """

    __slots__ = ("column", "generator")

    def __init__(self, generator: torch.Generator, column: str = "targets") -> None:
        self.generator = on_cpu(generator)
        self.column = column

    def indices(self, n: int, size: int, held: Held | None = None) -> Tensor:
        """See `Retrieval.indices`.

        Raises:
            DataError: the column is not one integer per row.
        """
        check_size(n, size)
        labels = needs_held(self, held).column(self.column)
        if labels.ndim != 1 or labels.is_floating_point():
            raise DataError(
                f"column {self.column!r} has shape {tuple(labels.shape)} and dtype {labels.dtype}, not one class per "
                "row. Use Uniform where targets are not classes."
            )
        shuffled, tie = (torch.randperm(n, generator=self.generator).to(labels.device) for _ in range(2))
        ordered, origin = labels[shuffled].sort(stable=True)
        place = torch.arange(n, device=labels.device)
        begins = torch.ones_like(place, dtype=torch.bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        turn = place - torch.where(begins, place, 0).cummax(0).values  # the round in which a row is dealt
        return shuffled[origin[(turn * n + tie).argsort()[:size]]]

    def state(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """
        self.generator.set_state(state["generator"].cpu())
