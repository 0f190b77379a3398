"""The processes of a distributed run: joining them, and means over them; nothing outside of such a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


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


# In a loop of the user's own ---------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(backend: str | None = None, timeout: float = 600.0) -> Iterator[tuple[int, int]]:
    """Inside, this process is connected with the others that torchrun started; alone, or if it is already, nothing.

    Args:
        backend: of torch.distributed; None takes nccl where there are GPUs, else gloo.
        timeout: seconds that an exchange waits for the other processes.

    Yields:
        The number of this process, and how many there are: `(0, 1)` for one that nobody started.

    Example:
        >>> with joined() as (number, count):
        ...     number, count
        (0, 1)
    """
    begun = False
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ and rank_count() == 1:
        backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        begun = True
    try:
        yield rank_number(), rank_count()
        if begun:
            barrier()  # gloo aborts a process whose peer hangs up while it still listens
    finally:
        if begun:
            dist.destroy_process_group()


def rank_number() -> int:
    """The number of this process, from 0; 0 outside of a distributed run."""
    return dist.get_rank() if rank_count() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine, which is that of its GPU; 0 outside of torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Wait for all processes; nothing outside of a distributed run."""
    if rank_count() > 1:
        dist.barrier()


def mean_of(value: float | Tensor) -> float:
    """The mean over all processes of a number that each has, a loss for instance.

    Example:
        >>> mean_of(3.0)
        3.0
    """
    device = "cuda" if rank_count() > 1 and dist.get_backend() == "nccl" else "cpu"
    return float(average_over_ranks([torch.as_tensor(value, dtype=torch.float64).detach().clone().to(device)])[0])


def distributed(model: nn.Module) -> nn.Module:
    """The model in `DistributedDataParallel`; itself outside of a distributed run."""
    return DistributedDataParallel(model) if rank_count() > 1 else model


def say(*words: object) -> None:
    """Print on process 0 alone."""
    if rank_number() == 0:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()
