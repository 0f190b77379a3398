"""Weighted cross-entropy: rare classes count as much as frequent ones."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.ranges import NonNegative
from holdfast.core.services import Services
from holdfast.operations._parts.rows import OwnCriterion

Scheme = Literal["inverse", "complement"]


class WeightedCrossEntropy(OwnCriterion):
    r"""Cross-entropy with one weight per class, from how often it occurs in its experience.

    $$ L = \frac{\sum_i w_{y_i} \, \ell(z_i, y_i)}{\sum_i w_{y_i}}, \qquad
       w_k = \frac{N}{K n_k} \;\text{(inverse)} \quad\text{or}\quad w_k = 2 - \frac{n_k}{\max_j n_j}
       \;\text{(complement)} $$

    They are taken when an experience begins, with N samples of K classes, n_k of them of class k. A class that the
    experience has no sample of, as replayed ones may be, keeps the weight of the last one that had (inverse; 1 where
    none had), or weighs 2, as the formula says for $n_k = 0$ (complement).

    Args:
        scheme: `inverse` frequency, or the `complement` of the relative one.
        weight: factor of the loss, where several add.
        double_softmax: whether the outputs are put through a softmax before, as CLMixer does.

    Source: `inverse`: King and Zeng 2001, "Logistic regression in rare events data", section 4 (weighting);
    `complement`: CLMixer's weighted cross-entropy. Differences: CLMixer applies it to a softmax; here outputs are
        logits (`double_softmax` does as it does).

    Example:
        >>> WeightedCrossEntropy()
        WeightedCrossEntropy(scheme='inverse', weight=1.0, double_softmax=False)
    """

    needs = OwnCriterion.needs | {"classes", "boundaries"}
    state = ("weights",)

    def __init__(self, scheme: Scheme = "inverse", weight: NonNegative = 1.0, double_softmax: bool = False) -> None:
        super().__init__(weight)
        self.scheme = scheme
        self.double_softmax = double_softmax
        self.weights: Tensor | None = None

    def begin(self, experience: Experience, learner: Services) -> None:
        """Count the classes of the experience's data."""
        if len(experience.train) == 0:
            return
        counts = torch.bincount(experience.train.targets).to(torch.get_default_dtype())
        present = counts > 0
        if self.scheme == "complement":
            self.weights = (2 - counts / counts.max()).to(learner.device)
            return
        scaled = counts.sum() / (present.sum() * counts.clamp(min=1))
        weights = torch.ones(0) if self.weights is None else self.weights.cpu()
        weights = F.pad(weights, (0, max(0, len(scaled) - len(weights))), value=1.0)
        weights[: len(scaled)] = torch.where(present, scaled, weights[: len(scaled)])
        self.weights = weights.to(learner.device)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weighted mean cross-entropy of `outputs` `[rows, classes]` under class indices `[rows]`."""
        outputs = outputs.softmax(1) if self.double_softmax else outputs
        return F.cross_entropy(outputs, targets, weight=self._weights_of(outputs))

    def by_row(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each row times the weight of its class, `[rows]`."""
        outputs = outputs.softmax(1) if self.double_softmax else outputs
        return F.cross_entropy(outputs, targets, weight=self._weights_of(outputs), reduction="none")

    def _weights_of(self, outputs: Tensor) -> Tensor | None:
        if self.weights is None:
            return None
        width = outputs.shape[1]
        uncounted = 1.0 if self.scheme == "inverse" else 2.0
        weights = F.pad(self.weights, (0, max(0, width - self.weights.shape[0])), value=uncounted)[:width]
        return weights.to(outputs.dtype)
