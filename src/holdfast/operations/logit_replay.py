"""Logit replay: the model is held to the outputs it gave when a sample arrived."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from holdfast.core.operation import Term
from holdfast.core.ranges import Count, NonNegative
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Draws


class LogitReplay(Draws):
    r"""Squared distance between today's outputs on remembered samples and those stored with them.

    $$ L = L(x, y) + \alpha \, \lVert h_\theta(x') - z' \rVert_2^2 / C, \qquad (x', z') \sim M $$

    The mean is over rows and outputs, as in the authors' code. The logits stored are those of the step a sample
    arrived in, before its update. Where the head grew since, the outputs that did not exist then are left out.

    Args:
        size: samples drawn per step.
        weight: the paper's alpha.

    Source: Buzzega et al. 2020, "Dark experience for general continual learning", eq. 4 and algorithm 1.
    Differences: the equation has the sum over outputs; their code and their alphas use the mean.
    """

    role = "knowledge retention"
    remembers = ("logits",)

    def __init__(self, size: Count = 32, weight: NonNegative = 0.5) -> None:
        super().__init__(size)
        self.weight = weight

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean squared distance to the stored logits, weighted."""
        rows = self.drawn(learner)
        if rows is None:
            return None
        outputs, stored = learner(rows["inputs"], rows.get("task")), rows["logits"]
        if not learner.grown and not getattr(learner.memory, "ragged", False):
            return F.mse_loss(outputs, stored), self.weight
        is_stored = ~torch.isnan(stored)
        outputs_then = outputs[tuple(slice(0, length) for length in stored.shape)]
        difference = torch.where(is_stored, outputs_then - stored, 0.0)
        return difference.square().sum() / is_stored.sum(), self.weight
