"""Gradient constraints: a step may not raise the loss on the memory of any past experience."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.operation import Operation
from holdfast.core.ranges import Count, NonNegative
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.memory.memories import ExperienceMemories
from holdfast.operations._parts.draws import keep_in
from holdfast.operations._parts.quadratic import nonnegative_minimum
from holdfast.operations._parts.rows import rows_of

DAMPING = 1e-3
"""Added to the diagonal of the dual, as the authors do: parallel gradients would make it singular."""


class GradientConstraints(Operation):
    r"""The gradient nearest to the current one that agrees with the gradient on each past experience's memory.

    $$ \min_{\tilde g} \tfrac{1}{2} \lVert g - \tilde g \rVert_2^2 \;\text{ so that }\;
       \langle \tilde g, g_k \rangle \ge 0 \text{ for all } k < t, \qquad
       \tilde g = G^\top v^* + g, \;\;
       v^* = \arg\min_{v \ge \gamma} \tfrac{1}{2} v^\top G G^\top v + g^\top G^\top v $$

    The rows of G are the gradients g_k of the mean loss on the whole memory of experience k. The program is solved
    in the dual, which has one variable per past experience, exactly and in float64. Where no constraint is violated
    the gradient stays as it is. The operation keeps the memories itself (`learner.memory`): the newest samples of
    each experience.

    One backward per past experience and step, so the cost grows with their number; `GradientProjection` (A-GEM) has
    one for all. The dual is solved on the host, so each step waits for the device once.

    Args:
        per_experience: samples kept of each experience, the paper's M / T.
        margin: memory strength, the paper's gamma: the least that each past gradient is added with where some
            constraint is violated; above 0 the step also lowers the losses of the past.

    Raises:
        ConfigError: a size that is not positive, a negative margin, or a method that already has a memory.

    Source: Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning", eq. 8 to 12 and
    algorithm 1; the margin as in section 3: "adding a small constant gamma to v*".
    Differences: the bound v >= gamma instead of v* + gamma, and 1e-3 on the dual's diagonal, both as in the
    authors' code; an active set of our own instead of a solver.

    Example:
        >>> GradientConstraints(per_experience=256)
        GradientConstraints(per_experience=256, margin=0.5)
    """

    asks = "loss"
    fills = True
    role = "knowledge retention"
    needs = frozenset({"boundaries"})
    captured = "solves a quadratic program on the host at every step that violates a constraint"

    def __init__(self, per_experience: Count = 256, margin: NonNegative = 0.5) -> None:
        super().__init__()
        self.per_experience = per_experience
        self.margin = margin

    def setup(self, learner: Services) -> None:
        """Make the memories."""
        memories = ExperienceMemories(
            learner.share(self.per_experience), learner.memory_device, fill=learner.fill, gives=learner.device
        )
        self._memories = keep_in(learner, memories, self.name)

    def gradient(self, step: Step, learner: Services) -> None:
        """Replace the gradient by the nearest one that violates no constraint."""
        past = [key for key in self._memories.experiences if key < learner.experience]
        if not past:
            return
        rows = [self._memories.of(key) for key in past]
        references = [learner.grad(learner.loss_on(r["inputs"], r["targets"], r.get("task"))) for r in rows]
        constrain(learner.gradients(), references, self.margin)

    def observe(self, step: Step, learner: Services) -> None:
        """Put the step's rows into the current experience's memory, but for those remembered before."""
        if step.fresh is None or bool(step.fresh.any()):
            self._memories.add(learner.experience, rows_of(step, learner))


def constrain(gradients: list[Tensor], references: list[list[Tensor]], margin: float) -> None:
    """Turn `gradients`, in place, into the nearest vector that points against none of `references`.

    Args:
        gradients: one tensor per parameter.
        references: for each constraint, one tensor per parameter.
        margin: the least multiple of every reference that is added where some constraint is violated.
    """
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    past = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in references])
    products = torch.cat((past @ past.T, (past @ flat).unsqueeze(1)), dim=1).double().cpu()
    gram, along = products[:, :-1], products[:, -1]
    if bool((along >= 0).all()):
        return
    dual = (gram + gram.T) / 2 + DAMPING * torch.eye(len(gram), dtype=torch.float64)
    shifted = nonnegative_minimum(dual, along + margin * dual.sum(1))
    added = (shifted + margin).to(past.device, past.dtype) @ past
    for gradient, part in zip(gradients, added.split([gradient.numel() for gradient in gradients])):
        gradient.add_(part.view_as(gradient))
