"""Gradient projection: a step may not raise the loss on a reference batch from the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Draws


class GradientProjection(Draws):
    r"""The gradient's part that points against the reference gradient is taken out.

    $$ g \leftarrow g - \min\Big(0, \frac{g^\top g_{\text{ref}}}{g_{\text{ref}}^\top g_{\text{ref}}}\Big) \,
    g_{\text{ref}} $$

    Where the two do not conflict the factor is zero and g stays as it is; a zero reference gradient changes nothing.
    There is no branch on the values, so the device is never waited for.

    Args:
        size: samples drawn from the memory for the reference gradient.
        per_layer: project each parameter tensor on its own instead of the whole vector.

    Source: Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM", eq. 11. Per layer: StreamedML.
    """

    role = "knowledge retention"

    def __init__(self, size: Count = 64, per_layer: bool = False) -> None:
        super().__init__(size)
        self.per_layer = per_layer

    def gradient(self, step: Step, learner: Services) -> None:
        """Project the gradients in place."""
        rows = self.drawn(learner)
        if rows is None:
            return
        reference = learner.grad(learner.loss_on(rows["inputs"], rows["targets"], rows.get("task")))
        project(learner.gradients(), reference, self.per_layer)


def project(gradients: list[Tensor], reference: list[Tensor], per_layer: bool = False) -> None:
    """Take out of `gradients`, in place, the part that points against `reference`.

    Args:
        gradients: one tensor per parameter.
        reference: likewise.
        per_layer: treat each tensor as a vector of its own.
    """
    along = torch.stack([torch.dot(g.flatten(), r.flatten()) for g, r in zip(gradients, reference)])
    norm = torch.stack([torch.dot(r.flatten(), r.flatten()) for r in reference])
    if not per_layer:
        along, norm = along.sum(), norm.sum()
    tiny = torch.finfo(norm.dtype).tiny
    factor = along.clamp(max=0) / norm.clamp(min=tiny)
    parts = factor.unbind() if per_layer else [factor] * len(gradients)
    for gradient, direction, part in zip(gradients, reference, parts):
        gradient.sub_(direction * part)
