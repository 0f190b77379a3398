"""Evidential losses: outputs are evidence for classes, and little evidence is uncertainty."""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.decide import decide
from holdfast.core.experience import Experience, Tree
from holdfast.core.ranges import NonNegative, Size
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.rows import OwnCriterion, inside

Form = Literal["mse", "log", "digamma", "none"]
Evidence = Literal["softplus", "relu", "exp", "identity"]
Counted = Literal["steps", "epochs"]

LEAST = 1e-3
"""The smallest parameter of a Dirichlet distribution whose evidence is the outputs themselves."""


class Evidential(OwnCriterion):
    r"""Expected loss under a Dirichlet distribution over class probabilities, whose evidence comes from the outputs.

    $$ \alpha_k = e(z_k) + 1, \qquad S = \sum_k \alpha_k, \qquad p_k = \alpha_k / S, \qquad u = K / S $$
    $$ \text{mse: } \sum_k ([k{=}y] - p_k)^2 + \frac{p_k (1 - p_k)}{S + 1}, \qquad
       \text{log: } \log S - \log \alpha_y, \qquad \text{digamma: } \psi(S) - \psi(\alpha_y) $$
    $$ L = \text{loss} + \lambda_t \, \mathrm{KL}\big[ D(\tilde\alpha) \,\Vert\, D(1) \big], \qquad
       \tilde\alpha_k = [k{=}y] + (1 - [k{=}y]) \, \alpha_k, \qquad \lambda_t = w \min(1, t / T) $$

    The second part takes evidence for wrong classes away, ever more so in the first T steps of the run, or epochs of
    each experience. Except for `identity` the evidence e is never negative, so the loss is finite for all outputs. The
    class with the largest output has the largest probability, and predictions stay as they are; `uncertainty` gives u.

    Args:
        form: `mse` (the paper's choice), `log` (type II maximum likelihood), `digamma` (expected cross-entropy), or
            `none` for the divergence alone.
        evidence: `softplus` or `relu` of the outputs, `exp` of outputs up to 10, or `identity`: the outputs themselves,
            for cosines, with alpha kept at 0.001 or more.
        annealing: T, the steps or epochs until the divergence has its whole weight; 0 for at once.
        divergence: w, the weight of the divergence.
        counted: what T counts: `steps` of the whole run, or `epochs` of each experience, from 0.
        weight: factor of the whole loss, where several add.

    Source: Sensoy, Kaplan and Kandemir 2018, "Evidential deep learning to quantify classification uncertainty", eq. 3
    to 5 and the loss with the divergence in section 4. Differences: T is in steps, where the paper counts 10 epochs;
    `counted="epochs"` with `annealing=10` is the paper's.

    Example:
        >>> loss = Evidential(annealing=0)
        >>> float(loss.uncertainty(torch.full((1, 4), -50.0)))
        1.0
    """

    role = "uncertainty reduction"
    needs = OwnCriterion.needs | {"classes"}
    state = ("steps", "epochs")

    def __init__(
        self,
        form: Form = "mse",
        evidence: Evidence = "softplus",
        annealing: Size = 1000,
        divergence: NonNegative = 1.0,
        counted: Counted = "steps",
        weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(weight)
        self.form = form
        self.evidence = evidence
        self.annealing = annealing
        self.divergence = divergence
        self.counted = counted
        self.steps = 0
        self.epochs = -1
        if counted == "epochs":
            self.needs = self.needs | {"boundaries", "progress"}

    def begin(self, experience: Experience, learner: Services) -> None:
        """Count the epochs of this experience from 0."""
        self.epochs = -1

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The mean loss of the current rows; the first batch of an epoch counts it."""
        if self.counted == "epochs":
            learner.decide(functools.partial(self._count_epoch, learner))
        return self.weighted(outputs, targets)

    def _count_epoch(self, learner: Services) -> None:
        self.epochs += learner.now.epoch_progress == 0.0

    def observe(self, step: Step, learner: Services) -> None:
        """Count the steps of the annealing."""
        learner.decide(self._count)

    def _count(self) -> None:
        self.steps += 1

    def _annealed(self) -> float:
        """The factor of the divergence at this step."""
        done = self.steps if self.counted == "steps" else max(0, self.epochs)
        return self.divergence * (1.0 if self.annealing == 0 else min(1.0, done / self.annealing))

    def alpha(self, outputs: Tensor) -> Tensor:
        """`[rows, classes]` parameters of the Dirichlet distribution, from 1 up; exactly 1 outside a row's task.

        Of the evidence `identity` it is the outputs plus 1, and above 0.
        """
        outputs = outputs.float()
        if self.evidence == "identity":
            return torch.where(inside(outputs), (outputs + 1).clamp(min=LEAST), 1.0)
        if self.evidence == "relu":
            return outputs.relu() + 1
        if self.evidence == "exp":
            return outputs.clamp(max=10).exp() + 1
        return F.softplus(outputs) + 1

    def uncertainty(self, outputs: Tensor) -> Tensor:
        """`[rows]` the paper's u: 1 without any evidence, near 0 with much."""
        kept = inside(outputs)
        return kept.sum(1) / (self.alpha(outputs) * kept).sum(1)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of `outputs` `[rows, classes]` under class indices `[rows]`."""
        loss, divergence = self._parts(outputs, targets)
        if divergence is None:
            return loss.mean()
        loss = loss.mean() if self.form != "none" else loss.new_zeros(())
        return loss + decide(self._annealed, outputs.device) * divergence.mean()

    def by_row(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, `[rows]`."""
        loss, divergence = self._parts(outputs, targets)
        return loss if divergence is None else loss + decide(self._annealed, outputs.device) * divergence

    def _parts(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Expected loss and divergence from the uniform distribution, each `[rows]`; None for one without weight."""
        kept = inside(outputs)
        alpha = self.alpha(outputs)
        wanted = torch.zeros_like(alpha).scatter_(1, targets.unsqueeze(1), 1.0)  # `one_hot` waits for the device
        total = (alpha * kept).sum(1, keepdim=True)
        if self.form == "mse":
            p = alpha / total
            terms = (wanted - p).square() + p * (1 - p) / (total + 1)
        elif self.form == "log":
            terms = wanted * (total.log() - alpha.log())
        elif self.form == "none":
            terms = torch.zeros_like(alpha)
        else:
            terms = wanted * (total.digamma() - alpha.digamma())
        loss = (terms * kept).sum(1)
        if self.divergence == 0.0:
            return loss, None
        return loss, divergence_from_uniform(torch.where(wanted.bool(), 1.0, alpha), kept)


def divergence_from_uniform(alpha: Tensor, kept: Tensor) -> Tensor:
    r"""`[rows]` Kullback-Leibler divergence of Dirichlet distributions from the uniform one.

    $$ \log \frac{\Gamma(S)}{\Gamma(K) \prod_k \Gamma(\alpha_k)} + \sum_k (\alpha_k - 1) \, (\psi(\alpha_k) - \psi(S))
    $$

    Args:
        alpha: `[rows, classes]`, above 0.
        kept: `[rows, classes]` bool, which classes there are; alpha is 1 elsewhere.

    Example:
        >>> float(divergence_from_uniform(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)))
        0.0
    """
    total = (alpha * kept).sum(1)
    constant = total.lgamma() - kept.sum(1).to(alpha.dtype).lgamma() - (alpha.lgamma() * kept).sum(1)
    return constant + ((alpha - 1) * kept * (alpha.digamma() - total.digamma().unsqueeze(1))).sum(1)
