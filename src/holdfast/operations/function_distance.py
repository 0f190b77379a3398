"""Function distance: on remembered samples the model keeps the probabilities it gave when their experience ended."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.operation import Term
from holdfast.core.ranges import Count, NonNegative
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Draws


class FunctionDistance(Draws):
    r"""The distance between today's answers on remembered samples and the answers that were stored with them.

    $$ L = L(x, y) + \alpha \, \frac{1}{m} \sum_{j=1}^{m} \lVert p_\theta(x'_j) - p'_j \rVert_2, \qquad
       p = \operatorname{softmax}(h), \qquad (x', h') \sim M $$

    The distance itself, not its square: all differences pull alike, however small. Stored are the outputs of the model
    at the end of the sample's experience where `RememberExemplars` fills the memory, as in the paper, and those of the
    step that a sample arrived in where `Remember` does. An output that did not exist then had no probability.

    Args:
        size: samples drawn per step, m.
        weight: alpha.
        of: whether the distance is between `probabilities`, or between the `outputs` themselves (for targets that are
            numbers).

    Source: Benjamin, Rolnick and Kording 2019, "Measuring and regularizing networks in function space" (the L2 distance
    of functions, on a working memory of examples of earlier tasks). Differences: the mean over rows of each row's
    distance, as Buzzega et al. 2020 have it, instead of the root of the mean over rows of its square. They make a step
    on the distance alone after that of the loss, which is `FunctionDistanceStep`.

    Example:
        >>> FunctionDistance(size=10).remembers
        ('logits',)
    """

    role = "knowledge retention"
    remembers = ("logits",)

    def __init__(
        self, size: Count = 32, weight: NonNegative = 0.5, of: Literal["probabilities", "outputs"] = "probabilities"
    ) -> None:
        super().__init__(size)
        self.weight = weight
        self.of = of
        if of == "probabilities":
            self.needs = frozenset({"classes"})

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean distance to the stored answers, weighted."""
        rows = self.drawn(learner)
        return None if rows is None else (self.measured(rows, learner), self.weight)

    def measured(self, rows: dict[str, Any], learner: Services) -> Tensor:
        """The mean distance on rows of the memory, a scalar."""
        return distance(learner(rows["inputs"], rows.get("task")), rows["logits"], self.of)


def distance(outputs: Tensor, stored: Tensor, of: Literal["probabilities", "outputs"] = "probabilities") -> Tensor:
    """The mean over rows of the Euclidean distance between answers, a scalar.

    Args:
        outputs: today's, `[rows, outputs]`.
        stored: those of before, `[rows, as many or fewer]`; NaN where an output did not exist.
        of: what is compared.

    Example:
        >>> distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), "outputs")
        tensor(5.)
    """
    rows = outputs.shape[0]
    if stored.shape[1] < outputs.shape[1]:
        missing = stored.new_full((rows, outputs.shape[1] - stored.shape[1]), torch.nan)
        stored = torch.cat([stored, missing], dim=1)
    existed = ~torch.isnan(stored)
    if of == "probabilities":
        kept = torch.where(existed, stored, -torch.inf).softmax(1)
        return torch.linalg.vector_norm(outputs.softmax(1) - kept, dim=1).mean()
    difference = torch.where(existed, outputs - stored, 0.0).flatten(1)
    return torch.linalg.vector_norm(difference, dim=1).mean()
