"""Joined replay: old samples from the memory, in the same forward as the current ones."""

from __future__ import annotations

from holdfast.core.experience import Batch
from holdfast.core.operation import Term
from holdfast.core.ranges import Count, NonNegative
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Average, Draws, mix
from holdfast.operations._parts.rows import loss_of


class JoinedReplay(Draws):
    r"""Samples drawn from the memory are joined to the current batch before the forward.

    $$ L = \frac{1}{n + m} \Big( \sum_{i=1}^{n} \ell(x_i, y_i) + \sum_{j=1}^{m} \ell(x'_j, y'_j) \Big) $$

    One forward over the joined rows, measured at 0.6 to 0.75 of the time of two. Under BatchNorm the statistics
    are shared by old and new samples, so this is another algorithm than `Replay`.

    Args:
        size: samples drawn per step.
        weight: factor of the replay loss under `average="none"`.
        average: `rows` (default) takes one mean over all rows; `none` adds the two losses; `experiences` weighs the
            current data by 1/c and the old by 1 - 1/c after c experiences.

    Source: Riemer et al. 2019, "Learning to learn without forgetting by maximizing transfer and minimizing
    interference", appendix (experience replay with a reservoir); Buzzega et al. 2020 use the same form.
    """

    role = "knowledge retention"
    needs = frozenset({"batch"})

    def __init__(self, size: Count = 32, weight: NonNegative = 1.0, average: Average = "rows") -> None:
        super().__init__(size)
        self.weight = weight
        self.average = average

    def batch(self, batch: Batch, learner: Services) -> Batch:
        """Append the drawn samples."""
        rows = self.drawn(learner)
        return batch if rows is None else batch.append(self.name, rows)

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean loss on the appended samples, weighted."""
        rows = step.extras.get(self.name)
        if rows is None:
            return None
        term = loss_of(learner, rows["outputs"], rows["targets"])
        return mix(term, step, learner, self.average, self.weight, rows["targets"].shape[0])
