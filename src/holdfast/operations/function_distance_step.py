"""A step on the function distance alone, after the optimiser's step on the loss of the current data."""

from __future__ import annotations

from typing import Any, Literal

from holdfast.core.ranges import Count, NonNegative
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations.function_distance import FunctionDistance
from holdfast.operations.lookahead import step_on


class FunctionDistanceStep(FunctionDistance):
    r"""After each step on the current data, one on the distance to the answers stored with remembered samples.

    $$ \theta' = \theta - \eta \, \nabla_\theta \ell(x, y), \qquad
       \theta \leftarrow \theta' - \eta \, \alpha \, \nabla_{\theta'} \frac{1}{m}
       \sum_{j=1}^{m} \lVert p_{\theta'}(x'_j) - p'_j \rVert_2, \qquad (x', h') \sim M $$

    The loop makes the first step with its optimiser, the terms and the edits of other operations; the second is plain
    gradient descent with the same learning rate eta. `FunctionDistance` makes one step of the sum: on Split MNIST, with
    large steps, it ends about two points lower.

    Args:
        size: samples drawn per step, m.
        weight: alpha.
        of: whether the distance is between `probabilities`, or between the `outputs` themselves (for targets that are
            numbers).

    Source: Benjamin, Rolnick and Kording 2019, as Buzzega et al. 2020 run it, who leave alpha out (`weight=1.0`).

    Example:
        >>> FunctionDistanceStep(size=10, weight=1.0).remembers
        ('logits',)
    """

    scratch = ("_rows",)

    def __init__(
        self, size: Count = 32, weight: NonNegative = 0.5, of: Literal["probabilities", "outputs"] = "probabilities"
    ) -> None:
        super().__init__(size, weight, of)
        self.needs = self.needs | {"update"}
        self._rows: dict[str, Any] | None = None

    def loss(self, step: Step, learner: Services) -> None:
        """Draw, before the samples of this step are remembered; the distance has a step of its own."""
        self._rows = self.drawn(learner)

    def update(self, step: Step, learner: Services) -> None:
        """Make a step on the distance."""
        rows, self._rows = self._rows, None
        if rows is not None:
            term = self.measured(rows, learner)
            learner.log(self.name, term.detach(), self.weight)
            step_on(self.weight * term, learner, self.name)
