"""Learned models of losses: one in a subspace of the weights, and one for each experience."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Data, Experience, tree_map
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count, NonNegative, Positive
from holdfast.core.ranks import mean_over_ranks, total_over_ranks
from holdfast.core.services import Services
from holdfast.core.step import Step

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
    directions: list[Tensor] = []
    for _ in range(count):
        along = x.T @ y
        for earlier in directions:  # orthogonal already, but for rounding
            along = along - earlier * (earlier @ along)
        length = float(along.norm())
        if not math.isfinite(length) or length <= floor or length == 0:
            break
        along = along / length
        score = x @ along
        x = x - torch.outer(score, score @ x) / (score @ score)
        directions.append(along)
    return torch.stack(directions) if directions else points.new_zeros(0, points.shape[1])


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
    inside = model["basis"] @ moved
    length = inside.square().sum().clamp(min=1e-24).sqrt()
    beyond = (length - model["radius"]).clamp(min=0).square()
    away = (moved @ moved - inside @ inside).clamp(min=0) + beyond
    return network(model, inside.unsqueeze(0)).squeeze(0) + outside * away  # type: ignore[no-any-return]


KEPT = 16
"""Most points of a path that are held; beyond, every other one is dropped."""

BATCH = 256


class LossModels(Operation):
    """At the end of each experience its loss is measured at random points near the weights, and a network fitted to it.

    Args:
        dimensions: directions of the subspace in which the loss is measured.
        points: where it is measured.
        samples: of the experience, that it is measured on.
        radius: of the ball of points, relative to the path that the weights took along the directions.
        units: of the network's hidden layers.
        steps: of Adam in fitting it.
        rate: of Adam.
        outside: factor of the squared distance from the ball, where the network knows nothing.
    """

    state = ("models", "names", "path", "interval", "seen")
    needs = frozenset({"boundaries", "data"})
    scratch = ("_order",)

    def __init__(
        self,
        dimensions: Count = 2,
        points: Count = 100,
        samples: Count = 256,
        radius: Positive = 1.0,
        units: Count = 64,
        steps: Count = 200,
        rate: Positive = 0.01,
        outside: NonNegative = 0.03,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.points = points
        self.samples = samples
        self.radius = radius
        self.units = units
        self.steps = steps
        self.rate = rate
        self.outside = outside
        self.models: list[LossModel] = []
        self.names: list[str] = []
        self.path: list[Tensor] = []
        self.interval = 1
        self.seen = 0
        self._order: tuple[object, list[Tensor]] = (None, [])

    # The weights in a row ------------------------------------------------------------------------------

    def values(self, learner: Services) -> list[Tensor]:
        """The parameters that models speak of, always in the same order; new ones come last."""
        if self._order[0] is not learner.parameters():
            names = set(self.names)
            self.names += [name for name in learner.named_parameters() if name not in names]
            named = dict(learner.model.named_parameters())
            self._order = (learner.parameters(), [named[name] for name in self.names])
        return self._order[1]

    def weights(self, learner: Services) -> Tensor:
        """All values in a row, with their graph."""
        return torch.cat([p.reshape(-1) for p in self.values(learner)])

    def put(self, weights: Tensor, learner: Services) -> None:
        """Write a row of values into the parameters."""
        with torch.no_grad():
            parts = weights.split([p.numel() for p in self.values(learner)])
            for parameter, part in zip(self.values(learner), parts):
                parameter.copy_(part.view_as(parameter))

    def modelled(self, weights: Tensor) -> Tensor:
        """The mean of the modelled losses at these weights, each experience by its samples; a scalar."""
        total = sum(model["samples"] for model in self.models)
        terms = [value(model, weights, self.outside) * (model["samples"] / total) for model in self.models]
        return torch.stack(terms).sum()

    # The path ------------------------------------------------------------------------------------------

    def begin(self, experience: Experience, learner: Services) -> None:
        """Start a path."""
        self.path, self.interval, self.seen = [], 1, 0

    def observe(self, step: Step, learner: Services) -> None:
        """Keep the weights now and then: at the first step, then ever more rarely."""
        if learner.decide(self._due):
            with torch.no_grad():
                self.path.append(self.weights(learner))

    def _due(self) -> bool:
        """Count the step, and thin the path out where it is full; whether this step's weights are kept."""
        due = self.seen % self.interval == 0
        if due and len(self.path) == KEPT:
            self.path = self.path[::2]
            self.interval *= 2
            due = self.seen % self.interval == 0
        self.seen += 1
        return due

    # The model -----------------------------------------------------------------------------------------

    def end(self, experience: Experience, learner: Services) -> None:
        """Measure the experience's loss around the weights, and fit a model to it."""
        samples = total_over_ranks(len(experience.train), learner.device)
        if samples == 0:
            return
        generator = learner.rng(f"points/{self.name}")  # goes on alike in all processes, however many rows each has
        chosen = torch.randperm(len(experience.train), generator=learner.rng(f"rows/{self.name}"))[: self.samples]
        data = experience.train.subset(chosen)
        with torch.no_grad():
            centre = self.weights(learner)
            path = torch.stack([*self.path, centre])
            basis = directions(path, self.measure(path, data, learner), min(self.dimensions, len(path) - 1))
            reach = ((path - centre) @ basis.T).norm(dim=1).max() if len(basis) else centre.new_zeros(())
            radius = (self.radius * reach).clamp(min=1e-12)
            places = ball(self.points if len(basis) else 1, len(basis), radius, generator)
            losses = self.measure(centre + places @ basis, data, learner)
        fitted = fit(places, losses, radius, self.units, self.steps, self.rate, generator)
        self.models.append({**fitted, "centre": centre, "basis": basis, "samples": samples})
        self.path = []

    def measure(self, points: Tensor, data: Data, learner: Services) -> Tensor:
        """The mean loss on the data of all processes at each row of weights, `[points]`; the model ends as it was."""
        before = [p.detach().clone() for p in self.values(learner)]
        order = torch.arange(len(data))
        losses = points.new_zeros(len(points))
        try:
            with torch.no_grad(), eval_mode(learner.model):
                for index, point in enumerate(points):
                    self.put(point, learner)
                    for batch in data.batches(order, BATCH):
                        inputs = tree_map(lambda t: t.to(learner.device), batch.inputs)
                        loss = learner.loss_on(inputs, batch.targets.to(learner.device), batch.task)
                        losses[index] += loss * len(batch.targets)
        finally:
            with torch.no_grad():
                for parameter, kept in zip(self.values(learner), before):
                    parameter.copy_(kept)
        return mean_over_ranks({"losses": losses}, len(data))["losses"]
