"""What a policy of retrieval is: it says which held rows are replayed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError

CPU = torch.device("cpu")


class Held(Protocol):
    """What a policy may look at: the rows a memory holds, in slot order."""

    @property
    def device(self) -> torch.device | None:
        """Where the rows lie, and where indices are wanted."""

    @property
    def arrivals(self) -> Tensor:
        """`[n]` the number each held row had in the stream, int64."""

    def column(self, name: str) -> Tensor:
        """`[n, ...]` one column of the held rows."""


class Retrieval(ABC):
    """Chooses rows of a memory, never one twice in a call. It is independent of the policy of insertion."""

    __slots__ = ()

    @abstractmethod
    def indices(self, n: int, size: int, held: Held | None = None) -> Tensor:
        """Choose `size` distinct slots out of the first `n`.

        Args:
            n: how many rows are held.
            size: how many to choose, at most `n`.
            held: the memory, for policies that look at what is held; its device receives the indices (else the CPU).

        Returns:
            `[size]` int64.
        """

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on exactly here, as tensors and plain values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """


def check_size(n: int, size: int) -> None:
    """Refuse to choose none, or more than there are.

    Raises:
        ConfigError: not `1 <= size <= n`.
    """
    if not 1 <= size <= n:
        raise ConfigError(f"cannot choose {size} different rows out of {n}. Give a size from 1 to {n}.")


def needs_held(policy: Retrieval, held: Held | None) -> Held:
    """`held`, for a policy that cannot do without.

    Raises:
        ConfigError: it is None.
    """
    if held is None:
        raise ConfigError(
            f"{type(policy).__name__} chooses by what is held and was given no memory. "
            "Call memory.draw(size, retrieval), or pass the memory as `held`."
        )
    return held
