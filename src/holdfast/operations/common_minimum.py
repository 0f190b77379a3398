"""Common minimum: after each experience the weights move to where the learned losses of all of them are lowest."""

from __future__ import annotations

import torch

from holdfast.core.experience import Experience
from holdfast.core.ranges import Count, NonNegative, Positive
from holdfast.core.services import Services
from holdfast.operations._parts.loss_models import LossModels


class CommonMinimum(LossModels):
    r"""Training is left alone; when an experience ends, the weights are moved to a compromise between all of them.

    $$ \theta \leftarrow \arg\min_\theta \sum_{i \le c} \frac{n_i}{\sum_j n_j}
       \big( g_i(B_i (\theta - \theta^*_i)) + \lambda \, d_i(\theta)^2 \big) $$

    Each experience's loss is learned in the affine subspace that its training went through (see `LossSurrogate`), and
    the sum is minimised from the last weights by Adam, today's experience included. Where networks say nothing, the
    squared distances d from the subspaces decide: with `outside` large this is the point nearest to all of them.

    Args:
        dimensions: directions of each subspace.
        points: weights at which a loss is measured.
        samples: of the experience, that it is measured on.
        radius: of the ball of points, relative to the path that training took along the directions.
        units: of the networks' hidden layers.
        steps: of Adam in fitting a network.
        rate: of Adam in fitting a network.
        outside: lambda, the factor of the squared distance from the ball of points.
        moves: of Adam in finding the minimum.
        move_rate: of Adam in finding the minimum.

    Source: CLMixer's `CrossEntropyProjectionOperation`, research code without a paper; no line of it is used.
    Differences: theirs looks for a point in the intersection of all subspaces, which are too few dimensions to meet in
    general, and which all hold the weights between two experiences: a solution that forgets the last one. Here the
    losses learned in the subspaces decide as well. No plots.

    Example:
        >>> CommonMinimum(moves=50).moves
        50
    """

    check_arguments = {"points": 5, "samples": 8, "units": 4, "steps": 5, "moves": 5}
    role = "knowledge retention"

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
        moves: Count = 200,
        move_rate: Positive = 0.001,
    ) -> None:
        super().__init__(dimensions, points, samples, radius, units, steps, rate, outside)
        self.moves = moves
        self.move_rate = move_rate

    def end(self, experience: Experience, learner: Services) -> None:
        """Learn the experience's loss, then move to the minimum of all."""
        super().end(experience, learner)
        if len(self.models) < 2:
            return
        weights = self.weights(learner).detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=self.move_rate)
        with torch.enable_grad():
            for _ in range(self.moves):
                (weights.grad,) = torch.autograd.grad(self.modelled(weights), [weights])
                optimizer.step()
        self.put(weights.detach(), learner)
