"""Anchor penalty: every parameter is pulled back to where it was, all alike."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term
from holdfast.core.ranges import Strength
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.quadratic import quadratic


class AnchorPenalty(Operation):
    r"""The squared distance to the parameters after the last experience.

    $$ L = L(x, y) + \lambda \sum_i (\theta_i - \theta^*_i)^2 $$

    The plainest of the quadratic penalties, and their control: what EWC, SI and MAS add to it is the choice of which
    parameters matter. It needs no pass over data. Outputs that are added later are free until their first experience
    ends.

    Args:
        strength: lambda.

    Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", the L2 control of
    fig. 2; Hsu et al. 2018, "Re-evaluating continual learning scenarios", section 4, whose factor this is (no 1/2).
    Differences: none.

    Example:
        >>> AnchorPenalty(strength=0.5)
        AnchorPenalty(strength=0.5)
    """

    asks = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries"})
    state = ("weight", "anchor")

    def __init__(self, strength: Strength = 0.01) -> None:
        super().__init__()
        self.strength = strength
        self.weight: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Strength times the squared distance, once there is an anchor."""
        if not self.anchor:
            return None
        return quadratic(learner, self.weight, self.anchor), self.strength

    def end(self, experience: Experience, learner: Services) -> None:
        """Move the anchor to today's parameters."""
        with torch.no_grad():
            for name, parameter in learner.named_parameters().items():
                self.anchor[name] = parameter.detach().clone()
                if name not in self.weight:
                    self.weight[name] = torch.ones_like(parameter)
