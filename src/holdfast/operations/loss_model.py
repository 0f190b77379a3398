"""What a loss is like around some weights: a small network over a few directions, fitted to measured losses."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LossModel = dict[str, Any]
"""Tensors and plain values: centre, basis, radius, mean, scale, samples and the network's `layers`."""


def directions(points: Tensor, losses: Tensor, count: int) -> Tensor:
    r"""The directions along which weights and loss vary together: partial least squares with one response.

    $$ w_k \propto X_k^\top y, \quad t_k = X_k w_k, \quad
       X_{k+1} = X_k - t_k \frac{t_k^\top X_k}{t_k^\top t_k} $$

    with the mean of the points and of the losses taken off. (Taking t off y as well changes no direction.)

    Args:
        points: weights `[points, values]`.
        losses: measured there, `[points]`.
        count: the most directions wanted; fewer are found where nothing is left to explain.

    Returns:
        Orthonormal directions `[found, values]`.

    Source: Wold et al. 2001, "PLS-regression: a basic tool of chemometrics", appendix 1 (NIPALS).
    """
    x, y = points - points.mean(0), losses - losses.mean()
    floor = 1e-6 * float(x.norm()) * float(y.norm())
    found: list[Tensor] = []
    for _ in range(count):
        along = x.T @ y
        for known in found:  # orthogonal already, but for rounding
            along = along - known * (known @ along)
        length = float(along.norm())
        if not math.isfinite(length) or length <= floor or length == 0:
            break
        along = along / length
        score = x @ along
        x = x - torch.outer(score, score @ x) / (score @ score)
        found.append(along)
    return torch.stack(found) if found else points.new_zeros(0, points.shape[1])


def ball(count: int, dimensions: int, radius: Tensor, generator: torch.Generator) -> Tensor:
    """Points `[count, dimensions]`, uniform in a ball of this radius around zero; the first is zero itself."""
    drawn = torch.randn(count, dimensions, generator=generator)
    lengths = torch.rand(count, 1, generator=generator) ** (1 / max(1, dimensions))
    points = (F.normalize(drawn, dim=1) * lengths).to(radius) * radius
    points[0] = 0
    return points


def fit(
    points: Tensor, losses: Tensor, radius: Tensor, units: int, steps: int, rate: float, generator: torch.Generator
) -> LossModel:
    r"""A network with one residual block, fitted to losses at points by Adam on all of them at once.

    $$ g(z) = \mu + \sigma \, w^\top \big( h + \operatorname{gelu}(W_2 h + b_2) \big) + \sigma b, \qquad
       h = \operatorname{gelu}(W_1 z / r + b_1) $$

    Args:
        points: coordinates `[points, dimensions]`.
        losses: `[points]`.
        radius: r.
        units: width of the hidden layers.
        steps: of Adam.
        rate: of Adam.
        generator: of the initial values.
    """
    mean, scale = losses.mean(), losses.std(correction=0).clamp(min=1e-8)
    shapes = [(units, points.shape[1]), (units,), (units, units), (units,), (1, units), (1,)]
    layers = [
        (
            torch.randn(shape, generator=generator) / math.sqrt(max(1, shape[-1]))
            if len(shape) == 2
            else torch.zeros(shape)
        )
        .to(points)
        .requires_grad_()
        for shape in shapes
    ]
    model: LossModel = {"radius": radius, "mean": mean, "scale": scale, "layers": layers}
    optimizer = torch.optim.Adam(layers, lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            error = ((network(model, points) - losses) / scale).square().mean()
            for layer, gradient in zip(layers, torch.autograd.grad(error, layers)):
                layer.grad = gradient
            optimizer.step()
    return {**model, "layers": [layer.detach() for layer in layers]}


def network(model: LossModel, points: Tensor) -> Tensor:
    """The network at coordinates `[points, dimensions]`: `[points]`; outside the ball, what it says at its edge."""
    first, bias, second, other, last, offset = model["layers"]
    radius = model["radius"]
    inside = points / points.norm(dim=1, keepdim=True).clamp(min=1e-12).maximum(radius.expand(len(points), 1))
    hidden = F.gelu(F.linear(inside, first, bias))
    hidden = hidden + F.gelu(F.linear(hidden, second, other))
    return model["mean"] + model["scale"] * F.linear(hidden, last, offset).squeeze(1)  # type: ignore[no-any-return]


def value(model: LossModel, weights: Tensor, outside: float) -> Tensor:
    r"""The modelled loss at `weights`, a scalar with its graph.

    $$ \hat L(\theta) = g(z) + \lambda \Big( \lVert \theta - \theta^* \rVert^2 - \lVert z \rVert^2
       + \max(0, \lVert z \rVert - r)^2 \Big), \qquad z = B (\theta - \theta^*) $$

    The bracket is the squared distance of the weights from the ball in which losses were measured.

    Args:
        model: with `centre` (the paper's theta star), `basis` (B) and the network g.
        weights: all trainable values in a row, those that came later at the end; they are left out.
        outside: lambda.
    """
    moved = weights[: len(model["centre"])] - model["centre"]
    place = model["basis"] @ moved
    length = place.square().sum().clamp(min=1e-24).sqrt()
    beyond = (length - model["radius"]).clamp(min=0).square()
    away = (moved @ moved - place @ place).clamp(min=0) + beyond
    return network(model, place.unsqueeze(0)).squeeze(0) + outside * away  # type: ignore[no-any-return]
