"""Replay: old samples from the memory, in a forward of their own."""

from __future__ import annotations

from holdfast.core.operation import Term
from holdfast.core.ranges import Count, NonNegative
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Average, Draws, mix


class Replay(Draws):
    r"""Loss on samples drawn from the memory, without replacement within a step.

    $$ L = L(x, y) + w \, L(x', y'), \qquad (x', y') \sim M $$

    The replayed samples go through the model in their own forward, so BatchNorm normalises them apart from the
    current ones; `JoinedReplay` is the other algorithm, with one forward.

    Args:
        size: samples drawn per step.
        weight: factor of the replay loss under `average="none"` (the paper's beta in DER++).
        average: `none` adds the two losses; `rows` takes one mean over all rows; `experiences` weighs the current
            data by 1/c and the old by 1 - 1/c after c experiences.

    Source: Ratcliff 1990; Chaudhry et al. 2019, "On tiny episodic memories in continual learning", eq. 1;
    `average="experiences"`: van de Ven et al. 2022, "Three types of incremental learning", Methods.
    """

    role = "knowledge retention"

    def __init__(self, size: Count = 32, weight: NonNegative = 1.0, average: Average = "none") -> None:
        super().__init__(size)
        self.weight = weight
        self.average = average

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean loss on the drawn samples, weighted."""
        rows = self.drawn(learner)
        if rows is None:
            return None
        term = learner.loss_on(rows["inputs"], rows["targets"], rows.get("task"))
        return mix(term, step, learner, self.average, self.weight, rows["targets"].shape[0])
