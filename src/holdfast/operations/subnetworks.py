"""Subnetworks: each task chooses the best-scored weights of every layer, and those it used stay as they are."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.decide import recording
from holdfast.core.ranges import UpToOne
from holdfast.core.services import Services
from holdfast.operations._parts.blocking import ScoreMasks


class Subnetworks(ScoreMasks):
    r"""Weights and scores are learnt together; the weights of earlier tasks' masks may be used but do not move.

    $$ m_t = \big[\, |s| \text{ among the top } c \text{ of its layer} \big], \qquad
       \theta \leftarrow \theta - \eta \Big( \frac{\partial L}{\partial \theta} \odot (1 - M_{t-1}) \Big), \qquad
       s \leftarrow s - \eta \frac{\partial L}{\partial s}, \qquad M_t = M_{t-1} \vee m_t $$

    The scores go on from task to task, so that related tasks share weights.

    Args:
        fraction: the fraction c of each layer's weights that a task uses.

    Source: Kang et al. 2022, "Forget-free continual learning with winning subnetworks", section 3 and Algorithm 1.
    Differences: biases and normalisation are kept once per task (the paper's networks have none); masks are kept as one
    byte a weight, without the paper's Huffman code.

    Example:
        >>> Subnetworks(fraction=0.3)
        Subnetworks(fraction=0.3)
    """

    def __init__(self, fraction: UpToOne = 0.5) -> None:
        super().__init__()
        self.fraction = fraction

    def setup(self, learner: Services) -> None:
        """Draw the scores as `nn.Linear` draws weights."""
        super().setup(learner)
        generator = learner.rng(f"scores/{self.name}")
        with torch.no_grad():
            for scores in self.scores.values():
                drawn = torch.empty(scores.shape)
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                scores.copy_(drawn)

    def choose(self, scores: Tensor) -> Tensor:
        """The largest absolute scores of the layer."""
        absolute = scores.abs()
        rank = scores.numel() - max(1, round(self.fraction * scores.numel())) + 1
        return absolute >= smallest(absolute.reshape(-1), rank)

    def backbone_rates(self, learner: Services) -> dict[str, Tensor]:
        """Zero for the weights that some earlier task uses."""
        if not self.masks:
            return {}
        used = {name: torch.stack([mask[name] for mask in self.masks.values()]).any(0) for name in self.layers}
        return {f"{name}.weight": 1.0 - mask.float() for name, mask in used.items()}


def smallest(values: Tensor, rank: int) -> Tensor:
    """The value of that rank, from 1 for the smallest: on a CPU by NumPy's partition, 20 times faster than torch's.

    Args:
        values: `[n]`, without a graph.
        rank: from 1 to n.

    Example:
        >>> smallest(torch.tensor([3.0, 1.0, 2.0]), 2)
        tensor(2.)
    """
    plain = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    if not plain or torch.compiler.is_compiling() or recording():
        return torch.kthvalue(values, rank).values
    return torch.as_tensor(np.partition(values.numpy(), rank - 1)[rank - 1])
