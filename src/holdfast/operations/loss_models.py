"""Base of what keeps a model of each experience's loss: the path of the weights, and the loss around its end."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.experience import Data, Experience, tree_map
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count, NonNegative, Positive
from holdfast.core.ranks import mean_over_ranks, total_over_ranks
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations.loss_model import LossModel, ball, directions, fit, value

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
            known = set(self.names)
            self.names += [name for name in learner.named_parameters() if name not in known]
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
                for place, point in enumerate(points):
                    self.put(point, learner)
                    for batch in data.batches(order, BATCH):
                        inputs = tree_map(lambda t: t.to(learner.device), batch.inputs)
                        loss = learner.loss_on(inputs, batch.targets.to(learner.device), batch.task)
                        losses[place] += loss * len(batch.targets)
        finally:
            with torch.no_grad():
                for parameter, kept in zip(self.values(learner), before):
                    parameter.copy_(kept)
        return mean_over_ranks({"losses": losses}, len(data))["losses"]
