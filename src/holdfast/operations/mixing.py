"""How the loss on old data is weighted against the loss on current data."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from holdfast.core.experience import tree_rows
from holdfast.core.operation import Term
from holdfast.core.services import Services
from holdfast.core.step import Step

Average = Literal["none", "rows", "experiences"]


def mix(term: Tensor, step: Step, learner: Services, average: Average, weight: float, rows: int = 0) -> Term | None:
    """The part of the total loss that `term` contributes; lowers `step.weight` where the two are averaged.

    Args:
        term: mean loss on old data, a scalar.
        step: the current step.
        learner: knows how many experiences were seen.
        average: `"none"`: L + weight * term. `"rows"`: the mean over all rows, current and old.
            `"experiences"`: (1 / c) L + (1 - 1 / c) term, with c experiences so far (van de Ven et al. 2022);
            in the first experience there is nothing to average with.
        weight: factor of the term under `"none"`.
        rows: number of rows behind `term`, for `"rows"`.

    Returns:
        The term with its factor, or None where that is zero.
    """
    if average == "none":
        return term, weight
    if average == "rows":
        share = rows / (rows + tree_rows(step.inputs))
    else:
        share = 1 - 1 / (learner.experience + 1) if learner.experience > 0 else 0.0
        if share == 0.0:
            return None
    step.weight *= 1 - share
    return term, share
