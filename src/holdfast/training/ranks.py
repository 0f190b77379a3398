"""The processes that train together: each on its part of every batch, all with the same weights; in any loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, NeedError
from holdfast.core.experience import Batch, Data
from holdfast.core.method import Method
from holdfast.core.ranks import average_over_ranks, rank_count

PACE = 16
"""On a GPU, what rank 0 wishes is read every so many steps, since reading waits for the device."""


class Ranks:
    """One process among those that train together; alone it communicates with nobody.

    Args:
        rank: of this process, from 0; rank 0 keeps the log and the checkpoints.
        count: how many processes there are.
        device: where this one computes; None leaves that to the trainer.

    Attributes:
        wish: what rank 0 wants all ranks to do after the coming step; 0 is nothing.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.count = count
        self.device = device
        self.wish = 0
        self._heard: Tensor | None = None

    def check(self, method: Method, batch_size: int) -> None:
        """Refuse what cannot be shared between processes.

        Raises:
            NeedError: for a method with an operation that must see every sample.
            ConfigError: for a batch with fewer samples than there are processes.
        """
        if self.count > 1:
            check_shared(method, batch_size, self.count)

    # The data of a step --------------------------------------------------------------------------------

    def batches(self, data: Data, order: Tensor, batch_size: int, join: int = 0) -> Iterator[tuple[Batch, float]]:
        """This rank's part of each batch of `batch_size`, with its weight in the mean over ranks.

        Row i of a batch goes to rank i modulo the number of ranks. Weights are `count * own rows / all rows`. A last
        batch with fewer rows than ranks goes to every rank whole, so that none stands idle and the mean stays right.

        Args:
            data: the same on every rank.
            order: indices into it, the same on every rank.
            batch_size: samples of all ranks together.
            join: so many samples at the end belong to the batch before them.
        """
        if join and len(order) > batch_size:
            last = len(order) - batch_size - join
            return chain(
                self.batches(data, order[:last], batch_size), self.batches(data, order[last:], batch_size + join)
            )
        if self.count == 1:
            return ((batch, 1.0) for batch in data.batches(order, batch_size))
        mine, parts, rest = self._parts(order, batch_size)
        sliced = zip(data.batches(torch.cat(mine), len(mine[0])) if mine else (), parts)
        return chain(sliced, ((batch, 1.0) for batch in data.batches(rest, len(rest))) if len(rest) else ())

    def _parts(self, order: Tensor, batch_size: int) -> tuple[list[Tensor], list[float], Tensor]:
        """Own indices and weight for each batch, and the indices of a last one that is too small to share."""
        parts: list[Tensor] = []
        weights: list[float] = []
        for batch in order.split(batch_size):
            if len(batch) < self.count:
                return parts, weights, batch
            parts.append(batch[self.rank :: self.count])
            weights.append(self.count * len(parts[-1]) / len(batch))
        return parts, weights, order[:0]

    # Communication -------------------------------------------------------------------------------------

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average `p.grad` over ranks, in one collective that also carries rank 0's wish.

        A gradient that is None on every rank stays None; one that only some ranks have counts as zero on the others.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        here = [float(p.grad is not None) for p in parameters]
        told = torch.tensor([*here, float(self.wish)], dtype=torch.float32).to(grads[0].device)
        kinds = dict.fromkeys(grad.dtype for grad in grads)
        for kind in kinds:
            same = [grad for grad in grads if grad.dtype == kind]
            flat = torch.cat([*(grad.flatten() for grad in same), *([told.to(kind)] if kind is grads[0].dtype else [])])
            dist.all_reduce(flat)
            if kind is grads[0].dtype:
                flat, told = flat[: -len(told)], flat[-len(told) :]
            flat.div_(self.count)
            for grad, part in zip(same, flat.split([grad.numel() for grad in same])):
                grad.copy_(part.view_as(grad))
        if not all(here):
            total = told.tolist()
            for parameter, grad, count in zip(parameters, grads, total):
                if parameter.grad is None and count:
                    parameter.grad = grad
        self._heard = told[-1]

    def heard(self, step: int) -> int:
        """What rank 0 wished for before step `step`; on a GPU it is asked for now and then only."""
        if self._heard is None or (self._heard.device.type != "cpu" and step % PACE):
            return 0
        return int(self._heard)

    def gather(self, value: Any) -> list[Any]:
        """The plain `value` of every rank, by rank, on every rank."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, value)
        return gathered

    def collect(self, value: Any) -> list[Any]:
        """The `value` of every rank, by rank, on rank 0; nothing on the others."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        dist.gather_object(value, gathered if self.rank == 0 else None)
        return gathered if self.rank == 0 else []

    def average_buffers(self, model: nn.Module) -> None:
        """Average what BatchNorm and the like counted on each rank's part of the batches."""
        if self.count > 1:
            average_over_ranks([buffer for buffer in model.buffers() if buffer.is_floating_point()])

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank what rank 0 has."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


def check_shared(method: Method, batch_size: int, count: int) -> None:
    """Refuse a method or a batch that `count` processes cannot share; see `Ranks.check`."""
    for operation in method:
        if operation.alone:
            who = f"`{method.name}`" + ("" if operation.name == method.name else f" (its operation `{operation.name}`)")
            raise NeedError(f"{who} {operation.alone}, and {count} processes see a part each.\n  Write devices=1.")
    if batch_size < count:
        raise ConfigError(
            f"batch_size={batch_size} leaves some of {count} processes without a sample. It counts the samples of all "
            f"of them: give {count} or more."
        )


ALONE = Ranks()
"""This process on its own."""


# In a loop that is not ours, where DDP averages the gradients it knows of ------------------------------------


def union_over_ranks(classes: Iterable[int]) -> tuple[int, ...]:
    """The classes that any rank has, ascending, so that every head grows to the same width.

    Example:
        >>> union_over_ranks((3, 1))
        (1, 3)
    """
    gathered = [tuple(classes)] * rank_count()
    if len(gathered) > 1:
        dist.all_gather_object(gathered, gathered[0])
    return tuple(sorted({label for part in gathered for label in part}))


def average_unknown(ddp_parameters: Iterable[nn.Parameter]) -> Callable[[Sequence[nn.Parameter]], None]:
    """What averages over ranks the gradients that DDP does not know of; a rank without one counts as zero.

    Args:
        ddp_parameters: the parameters whose gradients DDP averages.
    """
    averaged = {id(p) for p in ddp_parameters if p.requires_grad}

    def average(parameters: Sequence[nn.Parameter]) -> None:
        rest = [p for p in parameters if p.requires_grad and id(p) not in averaged]
        for parameter in rest:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        average_over_ranks([p.grad for p in rest if p.grad is not None])

    return average
