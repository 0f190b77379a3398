"""The quadratic penalty on moved parameters, with its gradient in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.core.services import Services


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> Tensor:
        parameters, importance, anchor = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        moved = torch._foreach_sub(parameters, anchor)
        pull = torch._foreach_mul(moved, importance)
        ctx.count, ctx.pull = count, pull
        return torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in zip(moved, pull)]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return (None, *torch._foreach_mul(ctx.pull, 2 * grad), *([None] * (2 * ctx.count)))


def quadratic(learner: Services, importance: dict[str, Tensor], anchor: dict[str, Tensor]) -> Tensor:
    """The sum over parameters of importance * |parameter - anchor|^2, a scalar with its graph.

    Its gradient, 2 * importance * (parameter - anchor), is written down instead of derived step by step,
    which spares four passes over the parameters. Parameters that have no importance yet (a head that grew) are left
    out.

    Args:
        learner: whose trainable parameters are held.
        importance: by parameter name, real, shaped like the parameter.
        anchor: by parameter name, shaped like the parameter.
    """
    held = [(name, p) for name, p in learner.named_parameters().items() if name in importance]
    if not held:  # everything that had an importance is frozen by now
        return torch.zeros((), device=learner.device)
    parameters = [_real(p) for _, p in held]
    weights = [importance[n].unsqueeze(-1).expand(*p.shape, 2) if p.is_complex() else importance[n] for n, p in held]
    anchors = [_real(anchor[name]) for name, _ in held]
    return _Quadratic.apply(len(held), *parameters, *weights, *anchors)  # type: ignore[no-untyped-call]


def _real(value: Tensor) -> Tensor:
    """A complex tensor as pairs of numbers, whose squares add up to its squared magnitude."""
    return torch.view_as_real(value) if value.is_complex() else value
