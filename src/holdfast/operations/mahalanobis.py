"""Mahalanobis classifier: the nearest class mean, measured by each class's own covariance of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.operation import require
from holdfast.operations.class_scores import Space
from holdfast.operations.closed_form import ClosedFormClassifier


class Mahalanobis(ClosedFormClassifier):
    r"""On frozen features, the class with the smallest Mahalanobis distance is predicted.

    $$ z_k = - d_k^\top \hat\Sigma_k^{-1} d_k, \qquad
       d_k = \frac{\phi}{\lVert \phi \rVert} - \frac{\mu_k}{\lVert \mu_k \rVert}, \qquad \phi = h(x)^{p} $$
    $$ \Sigma_k \leftarrow \Sigma_k + \gamma_1 V_1 I + \gamma_2 V_2 (1 - I), \qquad
       \hat\Sigma_{ij} = \frac{\Sigma_{ij}}{\sqrt{\Sigma_{ii} \Sigma_{jj}}} $$

    V1 is the mean variance and V2 the mean covariance of two features. The power p makes skewed features more Gaussian
    (Tukey's ladder); covariances are shrunk, then scaled to correlations, so that classes compare.

    Args:
        power: p; 1 leaves features as they are. Negative features keep their sign.
        diagonal: gamma_1.
        off_diagonal: gamma_2.
        common: one covariance for all classes, the mean of theirs weighed by samples, instead of one each.
        space: `features`, what enters the head, or the prepared `inputs`.
        adapt: experiences that the network is trained in, then it is frozen (the paper trains in the first).

    Source: Goswami et al. 2023, "FeCAM: exploiting the heterogeneity of class distributions in exemplar-free continual
    learning", section 4. Differences: the authors' code shrinks twice, this does so once; classes that come back
    add to their mean and covariance.

    Example:
        >>> Mahalanobis(power=0.5, common=True).needs == Mahalanobis().needs
        True
    """

    state = ("counts", "means", "scatter")

    def __init__(
        self,
        power: float = 0.5,
        diagonal: float = 1.0,
        off_diagonal: float = 1.0,
        common: bool = False,
        space: Space = "features",
        adapt: int = 0,
    ) -> None:
        super().__init__(space, adapt)
        require(power > 0, self.name, f"got power={power}. Give a positive number, 1 for none.")
        require(diagonal >= 0, self.name, f"got diagonal={diagonal}. Give a number of 0 or more.")
        require(off_diagonal >= 0, self.name, f"got off_diagonal={off_diagonal}. Give a number of 0 or more.")
        self.power = power
        self.diagonal = diagonal
        self.off_diagonal = off_diagonal
        self.common = common
        self.counts: Tensor | None = None
        self.means: Tensor | None = None
        self.scatter: Tensor | None = None
        self._precision: tuple[Tensor, Tensor] | None = None

    def _ladder(self, x: Tensor) -> Tensor:
        return x if self.power == 1 else x.sign() * x.abs() ** self.power

    def absorb(self, x: Tensor, targets: Tensor, classes: int) -> None:
        """Add rows to their classes' means and scatter matrices."""
        x = self._ladder(x)
        size = x.shape[1]
        if self.counts is None or self.means is None or self.scatter is None:
            self.counts, self.means, self.scatter = x.new_zeros(0), x.new_zeros(0, size), x.new_zeros(0, size, size)
        missing = max(0, classes - len(self.counts))
        self.counts, self.means = F.pad(self.counts, (0, missing)), F.pad(self.means, (0, 0, 0, missing))
        self.scatter = F.pad(self.scatter, (0, 0, 0, 0, 0, missing))
        for label in targets.unique().tolist():
            rows = x[targets == label]
            new, old = len(rows), self.counts[label].clone()
            mean = rows.mean(0)
            shift = mean - self.means[label]
            self.scatter[label] += (rows - mean).T @ (rows - mean) + torch.outer(shift, shift) * old * new / (old + new)
            self.means[label] += shift * new / (old + new)
            self.counts[label] += new
        self._precision = None

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Minus the squared Mahalanobis distance to every class."""
        if self.counts is None or self.means is None or self.scatter is None:
            return None
        if self._precision is None or self._precision[0] is not self.scatter:
            self._precision = self.scatter, self._inverted(self.counts, self.scatter)
        precision = self._precision[1]
        x, means = F.normalize(self._ladder(x), dim=1), F.normalize(self.means, dim=1)
        distances = []
        for label in range(len(means)):
            difference = x - means[label]
            distances.append(((difference @ precision[0 if self.common else label]) * difference).sum(1))
        return -torch.stack(distances, 1), self.counts > 0

    def _inverted(self, counts: Tensor, scatter: Tensor) -> Tensor:
        """Inverse correlation matrices `[classes or 1, features, features]`."""
        if self.common:
            covariance = (scatter.sum(0) / (counts.sum() - (counts > 0).sum()).clamp(min=1)).unsqueeze(0)
        else:
            covariance = scatter / (counts - 1).clamp(min=1).view(-1, 1, 1)
        return torch.stack([self._invert(matrix) for matrix in covariance])

    def _invert(self, covariance: Tensor) -> Tensor:
        size = covariance.shape[0]
        eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
        variance = covariance.diagonal().mean()
        between = (covariance.sum() - covariance.trace()) / max(1, size * (size - 1))
        shrunk = covariance + self.diagonal * variance * eye + self.off_diagonal * between * (1 - eye)
        scale = shrunk.diagonal().clamp(min=1e-12).rsqrt()
        return torch.linalg.pinv(shrunk * scale.unsqueeze(0) * scale.unsqueeze(1), hermitian=True)
