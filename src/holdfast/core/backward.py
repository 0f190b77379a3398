"""One backward pass from several weighted losses, without an operation on scalars for each weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_constants: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}
_engine = getattr(torch.autograd.Variable, "_execution_engine", None)


def constant(value: float, like: Tensor) -> Tensor:
    """`value` as a scalar tensor of the type and device of `like`, made once."""
    key = (value, like.dtype, like.device)
    found = _constants.get(key)
    if found is None:
        if len(_constants) > 4096:  # annealed weights would fill it without end
            _constants.clear()
        found = _constants[key] = torch.full((), value, dtype=like.dtype, device=like.device)
    return found


def backward(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Accumulate the gradient of the weighted sum of `losses` into the leaves.

    The same as `torch.autograd.backward(losses, weights)`, which spends 16 us a call on comparing shapes symbolically
    (torch 2.13 to 2.15); the engine beneath it is called directly where it is there.

    Args:
        losses: scalars with their graphs.
        weights: one scalar each, without a graph.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> backward([x * x, 5 * x], [constant(1.0, x), constant(2.0, x)])
        >>> x.grad
        tensor(16.)
    """
    if _engine is None:
        torch.autograd.backward(list(losses), list(weights))
    else:
        _engine.run_backward(
            tuple(losses), tuple(weights), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
