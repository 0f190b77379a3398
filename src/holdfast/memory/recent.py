"""Retrieval of what arrived last."""

from __future__ import annotations

from torch import Tensor

from holdfast.memory.retrieval import Held, Retrieval, check_size, needs_held


class Recent(Retrieval):
    """The `size` held rows that arrived last, the latest first; nothing is random. Every call looks at all n rows.

    Example:
        >>> import torch
        >>> from holdfast.memory import Memory, Ring
        >>> memory = Memory(capacity=3, insertion=Ring())
        >>> memory.add({"targets": torch.arange(5)})
        >>> memory.draw(2, Recent())["targets"]
        tensor([4, 3])
    """

    __slots__ = ()

    def indices(self, n: int, size: int, held: Held | None = None) -> Tensor:
        """See `Retrieval.indices`."""
        check_size(n, size)
        return needs_held(self, held).arrivals.topk(size).indices
