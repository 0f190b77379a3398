"""Cross-entropy on logits, written down as an operation; with label smoothing if wanted."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from holdfast.core.ranges import NonNegative, Share
from holdfast.operations._parts.rows import OwnCriterion


class CrossEntropy(OwnCriterion):
    r"""The mean cross-entropy of the outputs' softmax.

    $$ \ell(z, y) = - \sum_k q_k \log \frac{e^{z_k}}{\sum_j e^{z_j}}, \qquad
       q_k = (1 - \epsilon) [k = y] + \frac{\epsilon}{K} $$

    Outputs are logits: no softmax stands before. It is what the trainer does by default; written down it can be chosen,
    smoothed, and found by a search over losses.

    Args:
        label_smoothing: epsilon, from 0 to 1.
        weight: factor of the loss, where several add.
        double_softmax: whether the outputs are put through a softmax before; it is CLMixer's way to compute it, and
            leaves little gradient. To repeat what was measured with it.

    Source: label smoothing: Szegedy et al. 2016, "Rethinking the inception architecture for computer vision", section
    7.
    Differences: none. With one head per task, smoothing adds a large constant without a gradient.

    Example:
        >>> import torch
        >>> float(CrossEntropy().measure(torch.zeros(3, 4), torch.tensor([0, 1, 2])).exp())
        4.0
    """

    needs = OwnCriterion.needs | {"classes"}

    def __init__(self, label_smoothing: Share = 0.0, weight: NonNegative = 1.0, double_softmax: bool = False) -> None:
        super().__init__(weight)
        self.label_smoothing = label_smoothing
        self.double_softmax = double_softmax

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of `outputs` `[rows, classes]` under class indices `[rows]`."""
        outputs = outputs.softmax(1) if self.double_softmax else outputs
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def by_row(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each row, `[rows]`."""
        outputs = outputs.softmax(1) if self.double_softmax else outputs
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing, reduction="none")
