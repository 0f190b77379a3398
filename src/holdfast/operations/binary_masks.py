"""Binary masks: the network stays as it is, and each task learns which of its weights to use."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.operation import require
from holdfast.core.services import Services
from holdfast.operations._parts.blocking import ScoreMasks
from holdfast.operations._parts.layers import Layer


class BinaryMasks(ScoreMasks):
    r"""Real-valued masks of a frozen backbone, thresholded in the forward.

    $$ \hat W = W \odot m, \qquad m_{ij} = [m^r_{ij} > \tau], \qquad
       \frac{\partial L}{\partial m^r} := \frac{\partial L}{\partial \hat W} \odot W $$

    The weights and biases of linear and convolutional layers never move; normalisation is learnt once per task, as is
    the head. Start from a pretrained backbone, or from a wide random one. Memory grows by one byte a weight and task.

    Args:
        threshold: the paper's tau.
        initial: the real-valued masks at the start of each task: above the threshold, all weights take part.

    Source: Mallya, Davis and Lazebnik 2018, "Piggyback: adapting a single network to multiple tasks by learning to mask
    weights", section 3.
    Differences: the masks have the loop's optimiser and learning rate (the paper: Adam at 1e-4 beside the classifier's
    1e-3); a weight decay of the optimiser also acts on them and drives unused ones below the threshold.

    Example:
        >>> BinaryMasks().threshold
        0.005
    """

    def __init__(self, threshold: float = 5e-3, initial: float = 1e-2) -> None:
        super().__init__()
        message = f"got initial={initial} at threshold={threshold}. Start above the threshold."
        require(initial > threshold, "binary_masks", message)
        self.threshold = threshold
        self.initial = initial

    def covered(self, layer: Layer) -> tuple[str, ...]:
        """Weights and biases."""
        return ("weight", "bias")

    def choose(self, scores: Tensor) -> Tensor:
        """Above the threshold."""
        return scores > self.threshold

    def trained(self, weight: Tensor) -> Tensor:
        """The weight is never trained."""
        return weight.detach()

    def backbone_rates(self, learner: Services) -> dict[str, Tensor]:
        """Zero: the backbone never moves."""
        rates: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            parameters = {key: getattr(layer.module, key) for key in self.covered(layer)}
            rates.update({f"{name}.{key}": torch.zeros_like(p) for key, p in parameters.items() if p is not None})
        return rates

    def begin(self, experience: Experience, learner: Services) -> None:
        """Start the task's masks."""
        super().begin(experience, learner)
        with torch.no_grad():
            for scores in self.scores.values():
                scores.fill_(self.initial)
        learner.trainable.forget_moments(list(self.scores.values()))
