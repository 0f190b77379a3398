"""Quadratic penalties with a gradient of their own, small quadratic programs, and the sensitivity of outputs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, tree_map
from holdfast.core.forward import gradients_of
from holdfast.core.inspect import eval_mode
from holdfast.core.ranks import mean_over_ranks
from holdfast.core.services import Services
from holdfast.operations._parts.layer_gradients import Diagonal
from holdfast.operations._parts.per_sample import PerSample


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
    anchored = [(name, p) for name, p in learner.named_parameters().items() if name in importance]
    if not anchored:  # everything that had an importance is frozen by now
        return torch.zeros((), device=learner.device)
    parameters = [_real(p) for _, p in anchored]
    weights = [
        importance[n].unsqueeze(-1).expand(*p.shape, 2) if p.is_complex() else importance[n] for n, p in anchored
    ]
    anchors = [_real(anchor[name]) for name, _ in anchored]
    return _Quadratic.apply(len(anchored), *parameters, *weights, *anchors)  # type: ignore[no-untyped-call]


class Stiffness:
    r"""Holds the importance of parameters to what a step of SGD can follow.

    A step of learning rate eta moves a parameter by eta times its gradient, so a pull of curvature kappa on it
    overshoots its anchor where kappa > 1 / eta, and throws it further away with every step where kappa > 2 / eta. The
    curvature is therefore at most 1 / eta: the pull brings a parameter back to its anchor in one step, and no further.

    $$ \kappa_i = \min\big( \kappa \, \Omega_i, \; 1 / \eta \big) $$

    Under other optimisers than `torch.optim.SGD`, whose steps are not in proportion to the gradient, nothing is held.

    Args:
        curvature: of the penalty on a parameter of importance 1: twice its factor.
        active: whether anything is held at all.
    """

    def __init__(self, curvature: float, active: bool) -> None:
        self.curvature = curvature
        self.active = active
        self._made: tuple[float, dict[str, Tensor], dict[str, Tensor]] | None = None

    def forget(self) -> None:
        """The importance is another one."""
        self._made = None

    def of(self, learner: Services, importance: dict[str, Tensor]) -> dict[str, Tensor]:
        """The importance to pull with, by parameter name; worked out anew where the learning rate changed."""
        kind = learner.trainable.kind if importance and self.active and self.curvature > 0 else None
        if kind is None or not issubclass(kind, torch.optim.SGD):
            return importance
        optimizer = learner.trainable.optimizer()
        assert optimizer is not None
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        if self._made is None or self._made[0] != rate or self._made[1] is not importance:
            most = 1 / (max(rate, 1e-30) * self.curvature)
            bounded = torch._foreach_clamp_max([value.detach() for value in importance.values()], most)
            self._made = rate, importance, dict(zip(importance, bounded))
        return self._made[2]


def _real(value: Tensor) -> Tensor:
    """A complex tensor as pairs of numbers, whose squares add up to its squared magnitude."""
    return torch.view_as_real(value) if value.is_complex() else value


def nonnegative_minimum(matrix: Tensor, vector: Tensor) -> Tensor:
    r"""The minimum of a strictly convex quadratic function over the non-negative orthant.

    $$ u^* = \arg\min_{u \ge 0} \tfrac{1}{2} u^\top P u + q^\top u $$

    Coordinates enter the free set one at a time, where the gradient is steepest; after each, the function is
    minimised over the free ones exactly, and those that would become negative leave again. This is the method of
    Lawson and Hanson (1974, "Solving least squares problems", chapter 23) written for P = A'A, q = -A'b.

    Args:
        matrix: P, `[n, n]`, symmetric and positive definite, float64 on the CPU.
        vector: q, `[n]`.

    Returns:
        `[n]`, exact up to rounding.

    Example:
        >>> P = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> nonnegative_minimum(P, torch.tensor([-2.0, 4.0], dtype=torch.float64))
        tensor([1., 0.], dtype=torch.float64)
    """
    solution = torch.zeros_like(vector)
    free = torch.zeros_like(vector, dtype=torch.bool)
    tolerance = 1e-12 * float(vector.abs().max().clamp(min=1e-300)) if len(vector) else 0.0
    for _ in range(3 * len(vector) + 10):
        downhill = torch.where(free, 0.0, -(matrix @ solution + vector))
        steepest = int(downhill.argmax())
        if float(downhill[steepest]) <= tolerance:
            break
        free[steepest] = True
        while True:
            target = torch.zeros_like(solution)
            target[free] = torch.linalg.solve(matrix[free][:, free], -vector[free])
            leaving = free & (target <= 0)
            if not bool(leaving.any()):
                solution = target
                break
            share = (solution[leaving] / (solution[leaving] - target[leaving]).clamp(min=1e-300)).min()
            solution = solution + share * (target - solution)
            free &= solution > 1e-14 * solution.max()
            solution[~free] = 0.0
            if not bool(free.any()):
                break
    return solution


Over = Literal["sample", "batch"]


def sensitivity(
    learner: Services,
    data: Data,
    over: Over = "sample",
    *,
    samples: int | None = None,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    closed_form: bool | None = None,
) -> Diagonal:
    r"""Sensitivity of the outputs' squared norm to each parameter, by parameter name; needs no labels.

    $$ \Omega_i = \frac{1}{N} \sum_{n=1}^{N} \Big| \partial_{\theta_i} \lVert f_\theta(x_n) \rVert_2^2 \Big| $$

    Args:
        learner: the model; put into eval mode for the pass.
        data: over which the mean is taken.
        over: `sample` as in the formula; `batch`: the magnitude of the gradient of each batch's mean, which is smaller
            and what several implementations compute.
        samples: use this many samples, drawn without replacement; default: all.
        batch_size: samples per forward. It changes the result of `batch` only.
        generator: for the choice of samples.
        closed_form: True, False, or None to use the closed form where the model allows it.

    Returns:
        One real tensor per trainable parameter, shaped like it.

    Outputs of classes that were not seen yet are left out. With a layer's inputs a and output gradients d of each
    sample, the sum over samples for a linear layer is the product |d|^T |a|: one matrix product, no gradient per
    sample. Models without that form take other ways (`operations.per_sample`), down to one backward a sample.

    Source: Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget", eq. 2 and 3.
    """
    if over not in ("sample", "batch"):
        raise ConfigError(f"sensitivity over {over!r} is unknown. Choose sample or batch.")
    order = torch.arange(len(data))
    if samples is not None and samples < len(data):
        order = torch.randperm(len(data), generator=generator)[:samples]
    if over != "batch":  # which depends on who is in a batch with whom
        order = learner.share.rows(order)
    named = learner.named_parameters()
    total = {name: torch.zeros_like(p).abs() for name, p in named.items()}
    with eval_mode(learner.model):
        measured = None if over == "batch" else PerSample(learner, torch.abs, closed_form)
        for batch in data.batches(order, batch_size):
            inputs = tree_map(lambda leaf: leaf.to(learner.device), batch.inputs)
            if measured is None:
                norm = _squared_norm(learner(inputs, batch.task), learner)
                part = {name: value.abs() for name, value in zip(named, gradients_of(norm, list(named.values()))[0])}
            else:
                rows = torch.zeros(len(batch.targets), device=learner.device)  # no labels are needed
                part = measured.summed(
                    inputs,
                    rows,
                    batch.task,
                    lambda outputs, _: _squared_norm(outputs, learner),
                    lambda _, targets: ((targets, None),),
                )
                measured.warn(len(order))
            for name, value in part.items():
                total[name] += value
    return mean_over_ranks(total, len(order))


def _squared_norm(outputs: Tensor, learner: Services) -> Tensor:
    """The squared norm of the outputs of seen classes, summed over rows; masked outputs have no gradient."""
    seen = learner.classes
    if outputs.dim() == 2 and 0 < seen.shape[0] <= outputs.shape[1]:
        outputs = outputs[:, : seen.shape[0]] * seen
    return outputs.square().sum()
