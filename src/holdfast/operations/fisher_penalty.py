"""Fisher penalty: parameters that mattered to old data are pulled back to where they were."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term
from holdfast.core.ranges import Count, Share, Strength
from holdfast.core.ranks import total_over_ranks
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.fisher import Kind, distribution, fisher_diagonal
from holdfast.operations._parts.layer_gradients import square
from holdfast.operations._parts.quadratic import Stiffness, quadratic

Normalize = Literal["none", "mean", "max"]


class FisherPenalty(Operation):
    r"""A quadratic penalty around the parameters after each experience, weighted by the Fisher diagonal.

    Offline (one penalty per experience) and online (one running penalty):

    $$ L = L(x, y) + \frac{\lambda}{2} \sum_{k} \sum_i F_{k,i} (\theta_i - \theta^*_{k,i})^2, \qquad
       L = L(x, y) + \frac{\lambda}{2} \sum_i \tilde F_i (\theta_i - \theta^*_i)^2, \;
       \tilde F \leftarrow \gamma \tilde F + F_k $$

    The offline sum is kept as one quadratic around the precision-weighted mean of the anchors plus a constant,
    which is the same function: cost and memory do not grow with the number of experiences. Works for class indices,
    and for numbers and several labels a row under mean squared error and binary cross-entropy of logits; under any
    other criterion take `fisher="empirical"` (see `operations._parts.fisher`).

    Args:
        strength: the paper's lambda.
        fisher: how targets are chosen in the Fisher diagonal: `exact`, `true`, `predicted`, `empirical` or `batch`.
        online: one running penalty instead of one per experience.
        decay: the online form's gamma; at 1 the Fisher diagonals add up, at 0 only the last experience's counts.
        samples: samples for the Fisher diagonal; default: all of the experience.
        normalize: what each experience's diagonal is divided by before it is merged: nothing, its `mean` over all
            parameters, or its `max` (so that it lies in 0..1). The strength then does not depend on the loss's scale.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD
            (`Stiffness`): a large strength then holds parameters fast, where it would make training diverge.
        batch_size: samples of each forward; with `fisher="batch"` the diagonal depends on it, else only time does.

    Source: Kirkpatrick et al. 2017, eq. 3; online: Schwarz et al. 2018, "Progress and compress", eq. 8 and 9, where
    each diagonal is normalised, without a formula; one quadratic for all: Huszar 2018, "Note on the quadratic penalties
    in elastic weight consolidation".
    """

    asks = "loss"
    role = "knowledge retention"
    needs = frozenset({"boundaries", "data"})
    state = ("importance", "anchor", "constant")
    scratch = ("_stiffness",)

    def __init__(
        self,
        strength: Strength = 100.0,
        fisher: Kind = "true",
        online: bool = False,
        decay: Share = 1.0,
        samples: Count | None = None,
        normalize: Normalize = "none",
        bounded: bool = True,
        batch_size: Count | None = None,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.fisher = fisher
        self.online = online
        self.decay = decay
        self.samples = samples
        self.normalize = normalize
        self.bounded = bounded
        self._stiffness = Stiffness(strength, bounded)
        self.batch_size = batch_size
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant = 0.0

    def begin(self, experience: Experience, learner: Services) -> None:
        """Refuse what no Fisher diagonal can be measured of, before the first step."""
        if len(experience.train):
            distribution(learner.criterion, experience.train.targets, self.fisher)

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Half the strength times the weighted squared distance."""
        if not self.anchor:
            return None
        stiffness = self._stiffness.of(learner, self.importance)
        return quadratic(learner, stiffness, self.anchor) + self.constant, 0.5 * self.strength

    def end(self, experience: Experience, learner: Services) -> None:
        """Measure the Fisher diagonal on the experience's data and move the anchor."""
        if total_over_ranks(len(experience.train), learner.device) == 0:
            return
        measured = fisher_diagonal(
            learner,
            experience.train,
            self.fisher,
            samples=self.samples,
            batch_size=self.batch_size,
            generator=learner.rng(f"fisher/{self.name}"),
        )
        measured = normalized(measured, self.normalize)
        with torch.no_grad():
            for name, parameter in learner.named_parameters().items():
                self._merge(name, measured[name], parameter.detach())

        self._stiffness.forget()

    def _merge(self, name: str, fisher: Tensor, parameter: Tensor) -> None:
        if name not in self.anchor:
            self.importance[name], self.anchor[name] = fisher, parameter.clone()
        elif self.online:
            self.importance[name] = self.decay * self.importance[name] + fisher
            self.anchor[name] = parameter.clone()
        else:
            before, total = self.importance[name], self.importance[name] + fisher
            share = torch.where(total > 0, fisher / total, 0.0)
            moved = parameter - self.anchor[name]
            self.constant += float((before * share * square(moved)).sum())
            self.anchor[name] = self.anchor[name] + share * moved
            self.importance[name] = total


def normalized(diagonal: dict[str, Tensor], by: Normalize) -> dict[str, Tensor]:
    """A Fisher diagonal divided by one number; as it is where that is zero.

    Args:
        diagonal: by parameter name.
        by: `mean` or `max` over all parameters, or `none`.

    Example:
        >>> normalized({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([1.0])}, "max")["a"]
        tensor([0.2500, 1.0000])
    """
    if by == "none" or not diagonal:
        return diagonal
    flat = torch.cat([value.flatten() for value in diagonal.values()])
    size = flat.mean() if by == "mean" else flat.amax()
    size = torch.where(size > 0, size, 1.0)
    return {name: value / size for name, value in diagonal.items()}
