"""Heads that compare directions only, so that new classes cannot win by longer weight vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.models.heads.growing import ChunkedHead, TaskHead, joined


class CosineHead(ChunkedHead):
    """Cosine similarity of features and class vectors, growing: `z_c = s * <x / |x|, w_c / |w_c|>`.

    Without a bias, every output is within `[-s, s]`: the imbalance between the magnitudes of old and new classes
    is gone. "Learning a Unified Classifier Incrementally via Rebalancing" (Hou et al., CVPR 2019), section 3.2, after
    "Dynamic Few-Shot Visual Learning without Forgetting" (Gidaris and Komodakis, CVPR 2018), section 3.2.
    Differences from the paper: the scale (its eta) is fixed by default; the feature keeps its ReLU or not as the
    backbone has it.

    Args:
        features: number of features that come in.
        classes: outputs to start with.
        scale: the factor s.
        learnable: whether s is a parameter (named `factor`) that starts at `scale`.
        seed: of the initial values; None draws them from torch's global generator, as `nn.Linear` does.

    Example:
        >>> head = CosineHead(8, classes=3, scale=16.0)
        >>> head(torch.randn(5, 8)).abs().max() <= 16.001
        tensor(True)
    """

    def __init__(
        self, features: int, classes: int = 0, scale: float = 16.0, learnable: bool = False, seed: int | None = None
    ) -> None:
        super().__init__(features, classes, seed, bias=False)
        self.scale = scale
        self.learnable = learnable
        self.factor = nn.Parameter(torch.tensor(float(scale))) if learnable else None

    def forward(self, features: Tensor) -> Tensor:
        """Outputs `[rows, width]` of features `[rows, features]`."""
        return cosines(self, features) * (self.scale if self.factor is None else self.factor)


class CosineTaskHead(TaskHead):
    """A cosine head a task: scaled cosines of all classes, masked outside the sample's task as `TaskHead` does.

    The scale is fixed: one that is learnt would be shared by all tasks, and change what was learnt before.

    Args:
        features: number of features that come in.
        classes: outputs to start with.
        scale: the factor s.
        seed: of the initial values; None draws them from torch's global generator, as `nn.Linear` does.

    Example:
        >>> head = CosineTaskHead(8, classes=2)
        >>> head.assign(0, [0, 1])
        >>> head.task = 0
        >>> head(torch.randn(5, 8)).abs().max() <= 16.001
        tensor(True)
    """

    def __init__(self, features: int, classes: int = 0, scale: float = 16.0, seed: int | None = None) -> None:
        super().__init__(features, classes, seed, bias=False)
        self.scale = scale

    def all_outputs(self, features: Tensor) -> Tensor:
        """Scaled cosines of all classes, `[rows, width]`."""
        return cosines(self, features) * self.scale


def cosines(head: ChunkedHead, features: Tensor) -> Tensor:
    """Cosine of each row of features and each class vector, `[rows, width]`; no columns while the head is empty."""
    if len(head.weights) == 0:
        return features.new_zeros(*features.shape[:-1], 0)
    directions = F.normalize(features, dim=-1)
    if head.apart and not head.training:
        return torch.cat([F.linear(directions, F.normalize(weight, dim=-1)) for weight in head.weights], dim=-1)
    return F.linear(directions, F.normalize(joined(head.weights), dim=-1))
