"""Evidential losses: outputs are evidence for classes, and little evidence is uncertainty."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.decide import decide
from holdfast.core.ranges import NonNegative, Size
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.rows import OwnCriterion, inside

Form = Literal["mse", "log", "digamma"]
Evidence = Literal["softplus", "relu", "exp"]


class Evidential(OwnCriterion):
    r"""Expected loss under a Dirichlet distribution over class probabilities, whose evidence comes from the outputs.

    $$ \alpha_k = e(z_k) + 1, \qquad S = \sum_k \alpha_k, \qquad p_k = \alpha_k / S, \qquad u = K / S $$
    $$ \text{mse: } \sum_k ([k{=}y] - p_k)^2 + \frac{p_k (1 - p_k)}{S + 1}, \qquad
       \text{log: } \log S - \log \alpha_y, \qquad \text{digamma: } \psi(S) - \psi(\alpha_y) $$
    $$ L = \text{loss} + \lambda_t \, \mathrm{KL}\big[ D(\tilde\alpha) \,\Vert\, D(1) \big], \qquad
       \tilde\alpha_k = [k{=}y] + (1 - [k{=}y]) \, \alpha_k, \qquad \lambda_t = w \min(1, t / T) $$

    The second part takes evidence for wrong classes away, ever more so in the first T steps of the run. The evidence e
    is
    never negative, so the loss is finite for all outputs. The class with the largest output has the largest
    probability, and predictions stay as they are; `uncertainty` gives u.

    Args:
        form: `mse` (the paper's choice), `log` (type II maximum likelihood) or `digamma` (expected cross-entropy).
        evidence: `softplus` or `relu` of the outputs, or `exp` of outputs up to 10.
        annealing: T, the steps until the divergence has its whole weight; 0 for at once.
        divergence: w, the weight of the divergence.

    Source: Sensoy, Kaplan and Kandemir 2018, "Evidential deep learning to quantify classification uncertainty", eq. 3
    to 5 and the loss with the divergence in section 4. Differences: T is in steps, where the paper counts 10 epochs.

    Example:
        >>> loss = Evidential(annealing=0)
        >>> float(loss.uncertainty(torch.full((1, 4), -50.0)))
        1.0
    """

    role = "uncertainty reduction"
    needs = OwnCriterion.needs | {"classes"}
    state = ("steps",)

    def __init__(
        self,
        form: Form = "mse",
        evidence: Evidence = "softplus",
        annealing: Size = 1000,
        divergence: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.form = form
        self.evidence = evidence
        self.annealing = annealing
        self.divergence = divergence
        self.steps = 0

    def observe(self, step: Step, learner: Services) -> None:
        """Count the steps of the annealing."""
        learner.decide(self._count)

    def _count(self) -> None:
        self.steps += 1

    def _annealed(self) -> float:
        """The factor of the divergence at this step."""
        return self.divergence * (1.0 if self.annealing == 0 else min(1.0, self.steps / self.annealing))

    def alpha(self, outputs: Tensor) -> Tensor:
        """`[rows, classes]` parameters of the Dirichlet distribution, from 1 up; exactly 1 outside a row's task."""
        outputs = outputs.float()
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
        kept = inside(outputs)
        alpha = self.alpha(outputs)
        wanted = torch.zeros_like(alpha).scatter_(1, targets.unsqueeze(1), 1.0)  # `one_hot` waits for the device
        total = (alpha * kept).sum(1, keepdim=True)
        if self.form == "mse":
            p = alpha / total
            terms = (wanted - p).square() + p * (1 - p) / (total + 1)
        elif self.form == "log":
            terms = wanted * (total.log() - alpha.log())
        else:
            terms = wanted * (total.digamma() - alpha.digamma())
        loss = (terms * kept).sum(1).mean()
        if self.divergence == 0.0:
            return loss
        return (
            loss
            + decide(self._annealed, outputs.device)
            * divergence_from_uniform(torch.where(wanted.bool(), 1.0, alpha), kept).mean()
        )


def divergence_from_uniform(alpha: Tensor, kept: Tensor) -> Tensor:
    r"""`[rows]` Kullback-Leibler divergence of Dirichlet distributions from the uniform one.

    $$ \log \frac{\Gamma(S)}{\Gamma(K) \prod_k \Gamma(\alpha_k)} + \sum_k (\alpha_k - 1) \, (\psi(\alpha_k) - \psi(S))
    $$

    Args:
        alpha: `[rows, classes]`, from 1 up.
        kept: `[rows, classes]` bool, which classes there are; alpha is 1 elsewhere.

    Example:
        >>> float(divergence_from_uniform(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)))
        0.0
    """
    total = (alpha * kept).sum(1)
    constant = total.lgamma() - kept.sum(1).to(alpha.dtype).lgamma() - (alpha.lgamma() * kept).sum(1)
    return constant + ((alpha - 1) * kept * (alpha.digamma() - total.digamma().unsqueeze(1))).sum(1)
