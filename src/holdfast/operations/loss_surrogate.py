"""Loss surrogate: the losses of past experiences, each as a small network that learned it, added to today's."""

from __future__ import annotations

from typing import Literal

from holdfast.core.operation import Term
from holdfast.core.ranges import Count, NonNegative, Positive
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.draws import mix
from holdfast.operations._parts.loss_models import LossModels


class LossSurrogate(LossModels):
    r"""After each experience its loss is learned as a function of the weights; later training goes on on that function.

    $$ L = \frac{1}{c} L(x, y) + \frac{c-1}{c} \sum_{i<c} \frac{n_i}{\sum_j n_j} \hat L_i(\theta), \qquad
       \hat L_i(\theta) = g_i(z_i) + \lambda \, d_i(\theta)^2, \quad z_i = B_i (\theta - \theta^*_i) $$

    The experience's loss is measured at random points of a ball around its last weights, in the few directions in which
    weights and loss varied together on the way there (partial least squares). A network g with one residual block
    is fitted to what was measured; d is the distance of the weights from that ball. Nothing of the data is kept. Cost
    and memory grow with the number of experiences: each keeps as many vectors of the size of the model as it has
    directions, and one more.

    What is learned is the loss along a few directions of a space with as many as the model has weights. All others are
    held by `outside` alone, as an `AnchorPenalty` holds them.

    Args:
        dimensions: directions in which the loss is learned.
        points: weights at which it is measured.
        samples: of the experience, that it is measured on.
        radius: of the ball of points, relative to the path that training took along the directions.
        units: of the network's hidden layers.
        steps: of Adam in fitting it.
        rate: of Adam in fitting it.
        outside: lambda, the factor of the squared distance from the ball.
        weight: of the old losses, under `average="none"`.
        average: `experiences` weighs as in the formula, after c experiences; `none` adds `weight` times the old losses.

    Source: CLMixer's `LossApproxOperation` and `LossLandscapeOperation`, research code without a paper; no line of it
    is used. Differences: theirs knows nothing of leaving the directions (no lambda), goes on as the network pleases
    outside the points, samples 10,000 points on all data on cuda:0, and weighs by the number of samples also today's
    loss. `LossLandscapeOperation` also trains a classifier of d parameters instead of the model's.

    Example:
        >>> LossSurrogate(dimensions=3).dimensions
        3
    """

    check_arguments = {"points": 5, "samples": 8, "units": 4, "steps": 5}
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
        weight: NonNegative = 1.0,
        average: Literal["none", "experiences"] = "experiences",
    ) -> None:
        super().__init__(dimensions, points, samples, radius, units, steps, rate, outside)
        self.weight = weight
        self.average = average

    def loss(self, step: Step, learner: Services) -> Term | None:
        """The modelled losses of past experiences, once there are any."""
        if not self.models:
            return None
        return mix(self.modelled(self.weights(learner)), step, learner, self.average, self.weight)
