"""A small quadratic program over non-negative numbers, solved exactly by an active set."""

from __future__ import annotations

import torch
from torch import Tensor


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
