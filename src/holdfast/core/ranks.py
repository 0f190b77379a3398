"""Means over the processes of a distributed run, by one collective for many tensors; nothing outside of such a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Share:
    """This process's part of what all that train together do: of a memory's room, of a draw, of a pass over data.

    Args:
        rank: the number of this process.
        ranks: how many there are.

    Example:
        >>> Share(rank=1, ranks=3)(10), Share()(10)
        (3, 10)
    """

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.rank = rank
        self.ranks = ranks

    def __call__(self, count: int) -> int:
        """This rank's part of `count` samples that all ranks keep or draw between them; at least one."""
        if self.ranks == 1:
            return count
        return max(1, count // self.ranks + (self.rank < count % self.ranks))

    def rows(self, order: Tensor) -> Tensor:
        """This rank's part of `order`, the samples that a pass goes over on all ranks together; maybe empty."""
        return order if self.ranks == 1 else order[self.rank :: self.ranks]


def rank_count() -> int:
    """How many processes train together; 1 outside of a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace `tensors` by their sums over all ranks, in place: one collective for each type among them."""
    if rank_count() == 1:
        return
    for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):
        same = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([tensor.detach().flatten() for tensor in same])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in same])
        with torch.no_grad():
            for tensor, part in zip(same, parts):
                tensor.copy_(part.view_as(tensor))


def average_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """`tensors` averaged over all ranks of a distributed run, in place; unchanged outside of one."""
    count = rank_count()
    if count > 1:
        sum_over_ranks(tensors)
        for tensor in tensors:
            tensor.div_(count)
    return tensors


def mean_over_ranks(totals: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Totals over `rows` samples, by name, as means over the samples of all ranks of a distributed run.

    A rank without samples takes part with zeros.

    Example:
        >>> mean_over_ranks({"weight": torch.tensor([6.0])}, rows=3)
        {'weight': tensor([2.])}
    """
    if rank_count() > 1:
        counted = torch.tensor(rows, dtype=torch.float64, device=next(iter(totals.values())).device)
        sum_over_ranks([counted, *totals.values()])
        rows = int(counted)
    return {name: value / max(1, rows) for name, value in totals.items()}


def total_over_ranks(count: int, device: torch.device) -> int:
    """The sum of `count` over all ranks: whether any of them has data for a pass that all take part in.

    Example:
        >>> total_over_ranks(3, torch.device("cpu"))
        3
    """
    if rank_count() == 1:
        return count
    counted = torch.tensor(count, device=device)
    dist.all_reduce(counted)
    return int(counted)
