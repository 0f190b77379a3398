"""What any memory of samples can do, whatever it keeps and however it chooses."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from holdfast.core.tree import Saved, State

Rows = dict[str, Any]
"""Samples by field: `inputs` (a tree, `[rows, ...]`), `targets` (`[rows, ...]`), `logits`, `task` and so on."""


class Retrieval(Protocol):
    """Chooses which rows of a memory are replayed (see `holdfast.memory`)."""

    def indices(self, n: int, size: int, held: Any = None) -> Tensor:
        """`[size]` distinct slots out of the first `n`, int64."""

    def state(self) -> State:
        """All that `load` needs to go on exactly here."""

    def load(self, state: Saved) -> None:
        """Go on where `state` was taken."""


@runtime_checkable
class Memory(Protocol):
    """Samples that an operation keeps, and that every operation of its method can draw from.

    Memories of ours have `add` or `choose` besides, for the one operation that fills them.
    """

    def draw(self, size: int, retrieval: Any) -> Rows | None:
        """`size` rows chosen by `retrieval`, or all if there are fewer; None if there are none."""

    def all(self) -> Rows:
        """A copy of all rows; empty if there are none."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated for rows."""

    def state(self) -> State:
        """All that `load` needs to go on exactly here, as tensors and plain values."""

    def load(self, state: Saved) -> None:
        """Go on where `state` was taken."""
