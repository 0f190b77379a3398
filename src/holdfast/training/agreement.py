"""What the ranks of a distributed loop that is not ours must agree on, beside the gradients that DDP averages."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from holdfast.core.ranks import average_over_ranks, rank_count


def union_over_ranks(classes: Iterable[int]) -> tuple[int, ...]:
    """The classes that any rank has, ascending, so that every head grows to the same width.

    Example:
        >>> union_over_ranks((3, 1))
        (1, 3)
    """
    found = [tuple(classes)] * rank_count()
    if len(found) > 1:
        dist.all_gather_object(found, found[0])
    return tuple(sorted({label for part in found for label in part}))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over ranks the gradients that DDP does not know of; a rank without one counts as zero."""
    own = [p for p in parameters if p.requires_grad]
    for parameter in own:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average_over_ranks([p.grad for p in own if p.grad is not None])
