"""Losses of what has no order, and of densities: Chamfer and Sinkhorn between clouds of points, a flow's likelihood."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, UsageError

Costs = dict[tuple[int, int], Tensor]
"""A value for each pair of clouds, by their numbers: 0 for the outputs, 1 for the targets."""


class PackedLoss(ABC):
    """A loss of what a model gives back, and of a term for each row that its outputs may carry in a last column.

    A model that learns a distribution gives, in training, its outputs as rows `[rows, values + 1]` with that term (a
    divergence, a log-determinant), which makes of the forward all that a loss needs; what it answers when it is asked
    (`model.answer`) is of the shape of the targets, and the loss of that is of the answer alone.
    """

    without_classes = True

    @abstractmethod
    def of_answers(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`, of outputs in the shape of the targets."""

    def of_packed(self, values: Tensor, term: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`, of values `[rows, values]` and the row's term `[rows]`."""
        return self.of_answers(values.reshape(targets.shape), targets) + term

    def by_row(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`.

        Raises:
            UsageError: where outputs have another shape than the targets, and are not packed.
        """
        if outputs.shape == targets.shape:
            return self.of_answers(outputs, targets)
        if outputs.dim() != 2 or outputs.shape[1] != targets[0].numel() + 1:
            raise UsageError(
                f"outputs of shape {tuple(outputs.shape)} do not go with targets of shape {tuple(targets.shape)} under"
                f" {type(self).__name__}. Choose a model that gives outputs of the targets' shape."
            )
        return self.of_packed(outputs[:, :-1], outputs[:, -1], targets)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over rows, a scalar."""
        return self.by_row(outputs, targets).mean()


class Chamfer(PackedLoss):
    r"""From each point the squared distance to the nearest one of the other cloud, both ways.

    $$ L(A, B) = \frac{1}{|A|} \sum_{a \in A} \min_{b \in B} \lVert a - b \rVert^2
               + \frac{1}{|B|} \sum_{b \in B} \min_{a \in A} \lVert a - b \rVert^2 $$

    Clouds `[rows, points, features]`; the two may have different numbers of points.

    Source: Fan, Su and Guibas 2017, "A point set generation network for 3D object reconstruction from a single image",
    section 4.1, with means for sums.

    Example:
        >>> cloud = torch.tensor([[[0.0], [1.0]]])
        >>> Chamfer()(cloud, cloud.flip(1)), Chamfer()(cloud + 0.5, cloud)
        (tensor(0.), tensor(0.5000))
    """

    unordered = True

    def of_answers(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`."""
        away_BNM = squared_distances(outputs, targets)
        return away_BNM.amin(2).mean(1) + away_BNM.amin(1).mean(1)


class Sinkhorn(PackedLoss):
    r"""The Sinkhorn divergence: an optimal transport of one cloud to the other, smoothed, and 0 for equal clouds.

    $$ S_\varepsilon(A, B) = OT_\varepsilon(A, B) - \tfrac{1}{2} OT_\varepsilon(A, A) - \tfrac{1}{2}
       OT_\varepsilon(B, B), \qquad c(a, b) = \lVert a - b \rVert_2 $$

    The potentials come from iterations in the log domain whose smoothing falls from `diameter` to `blur`, all points
    having equal weights; gradients go through the last iteration alone, as at its fixed point.

    Args:
        blur: length below which points count as one, in the units of the data.
        diameter: of the clouds, about; where smoothing begins. A number rather than that of the data, which would have
            to be waited for at every step.
        scaling: factor of the smoothing from one iteration to the next.

    Source: Feydy et al. 2019, "Interpolating between optimal transport and MMD using Sinkhorn divergences", eq. 3 and
    section 3.1. geomloss 0.3's `SamplesLoss("sinkhorn", p=1)` computes the same.

    Example:
        >>> one, other = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[3.0], [2.0]]])
        >>> [round(float(Sinkhorn()(cloud, one)), 1) for cloud in (one, other)]
        [0.0, 2.0]
    """

    unordered = True

    def __init__(self, blur: float = 0.01, diameter: float = 10.0, scaling: float = 0.5) -> None:
        if not (0 < blur < diameter and 0 < scaling < 1):
            raise ConfigError(
                f"Sinkhorn got blur={blur}, diameter={diameter} and scaling={scaling}. Give a blur between 0 and the"
                " diameter, and a scaling between 0 and 1."
            )
        self.blur, self.diameter, self.scaling = blur, diameter, scaling
        steps = math.ceil(math.log(diameter / blur) / -math.log(scaling))
        self._smoothing = [diameter, *(diameter * scaling**step for step in range(steps)), blur]

    def of_answers(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`."""
        clouds = (outputs, targets)
        # One side alone has a gradient: at the fixed point the potentials of the other do not change the value.
        costs = {
            (a, b): squared_distances(clouds[a], clouds[b].detach()).clamp(min=1e-12).sqrt()
            for a, b in ((0, 1), (1, 0), (0, 0), (1, 1))
        }
        last = self._improved(costs, self._potentials({key: cost.detach() for key, cost in costs.items()}), self.blur)
        return (last[0, 1] - last[0, 0]).mean(1) + (last[1, 0] - last[1, 1]).mean(1)

    def _potentials(self, costs: Costs) -> Costs:
        """The potential of cloud a against cloud b, `[rows, points of a]`, for each pair."""
        first = self._smoothing[0]
        potentials = {(a, b): _softmin(first, cost, torch.zeros_like(cost[:, 0])) for (a, b), cost in costs.items()}
        for epsilon in self._smoothing:
            improved = self._improved(costs, potentials, epsilon)
            potentials = {key: (potentials[key] + improved[key]) / 2 for key in potentials}
        return potentials

    @staticmethod
    def _improved(costs: Costs, potentials: Costs, epsilon: float) -> Costs:
        return {(a, b): _softmin(epsilon, cost, potentials[b, a]) for (a, b), cost in costs.items()}


def _softmin(epsilon: float, cost_BNM: Tensor, potential_BM: Tensor) -> Tensor:
    """-epsilon log mean exp((potential - cost) / epsilon) over the points of the other cloud, `[rows, N]`."""
    exponents_BNM = (potential_BM.unsqueeze(1) - cost_BNM) / epsilon
    return -epsilon * (exponents_BNM.logsumexp(2) - math.log(cost_BNM.shape[2]))


def squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """Of the points of two clouds `[rows, N, features]` and `[rows, M, features]`: `[rows, N, M]`."""
    lengths_BNM = one.square().sum(2).unsqueeze(2) + other.square().sum(2).unsqueeze(1)
    return (lengths_BNM - 2 * one @ other.transpose(1, 2)).clamp(min=0)


class FlowLoss(PackedLoss):
    r"""The negative log-likelihood a value, of a flow's latent z and the log-determinant of its Jacobian.

    $$ L = \frac{1}{d} \Big( \tfrac{1}{2} \lVert z \rVert^2 - \log |\det J| \Big) $$

    The constant of the normal distribution is left out, as in StreamedML. Of an answer in the shape of the targets it
    is the mean squared error.

    Source: Ardizzone et al. 2019, "Guided image generation with conditional invertible neural networks", eq. 5.
    """

    def of_packed(self, values: Tensor, term: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`, of z and the log-determinant."""
        return (values.square().sum(1) / 2 - term) / values.shape[1]

    def of_answers(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of each row, `[rows]`."""
        return (outputs - targets).square().flatten(1).mean(1)


chamfer, sinkhorn, flow = Chamfer(), Sinkhorn(), FlowLoss()

LOSSES = {"chamfer": chamfer, "sinkhorn": sinkhorn, "flow": flow}
"""Name of a criterion in a configuration -> the loss."""
