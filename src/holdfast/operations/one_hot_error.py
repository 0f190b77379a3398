"""Squared error between outputs and one-hot targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.ranges import NonNegative
from holdfast.operations._parts.rows import OwnCriterion, inside


class OneHotError(OwnCriterion):
    r"""The mean squared distance of the outputs to the one-hot target.

    $$ \ell(z, y) = \frac{1}{K} \sum_{k=1}^{K} (z_k - [k = y])^2 $$

    Targets that are floats already (regression, several labels) are taken as they are. With one head per task the mean
    is over the outputs of the row's task.

    Args:
        weight: factor of the loss, where several add.

    Source: Hui and Belkin 2021, "Evaluation of neural architectures trained with square loss vs cross-entropy in
    classification tasks", section 2. Differences: without their rescaling for many classes.

    Example:
        >>> import torch
        >>> OneHotError().measure(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), torch.tensor([0]))
        tensor(1.)
    """

    def __init__(self, weight: NonNegative = 1.0) -> None:
        super().__init__(weight)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over rows and outputs of the squared error."""
        if targets.is_floating_point():
            return F.mse_loss(outputs, targets.to(outputs.dtype).view_as(outputs))
        kept = inside(outputs)
        wanted = torch.zeros_like(outputs).scatter_(1, targets.unsqueeze(1), 1.0)  # `one_hot` waits for the device
        return ((outputs - wanted).square() * kept).sum() / kept.sum()

    def by_row(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over outputs of each row's squared error, `[rows]`."""
        if targets.is_floating_point():
            wanted = targets.to(outputs.dtype).view_as(outputs)
            return (outputs - wanted).square().flatten(1).mean(1)
        kept = inside(outputs)
        wanted = torch.zeros_like(outputs).scatter_(1, targets.unsqueeze(1), 1.0)
        return ((outputs - wanted).square() * kept).sum(1) / kept.sum(1)
