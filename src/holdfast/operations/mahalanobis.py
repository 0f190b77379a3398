"""Mahalanobis classifier: the nearest class mean, measured by each class's own covariance of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.ranges import NonNegative, Positive, Size
from holdfast.operations._parts.scores import ClosedFormClassifier, Space


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
        common: one covariance for all classes, the mean of theirs weighted by samples, instead of one each.
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
    scratch = (
        "_inverses",
        "_of",
    )

    def __init__(
        self,
        power: Positive = 0.5,
        diagonal: NonNegative = 1.0,
        off_diagonal: NonNegative = 1.0,
        common: bool = False,
        space: Space = "features",
        adapt: Size = 0,
    ) -> None:
        super().__init__(space, adapt)
        self.power = power
        self.diagonal = diagonal
        self.off_diagonal = off_diagonal
        self.common = common
        self.counts: Tensor | None = None
        self.means: Tensor | None = None
        self.scatter: Tensor | None = None
        self._inverses: dict[int, Tensor] = {}
        self._of: Tensor | None = None  # the scatter matrices that they were computed from

    def _ladder(self, x: Tensor) -> Tensor:
        return x if self.power == 1 else x.sign() * x.abs() ** self.power

    def absorb(self, x: Tensor, targets: Tensor, classes: int) -> None:
        """Add rows to their classes' means and scatter matrices."""
        x = self._ladder(x)
        size = x.shape[1]
        self._look()
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
            self._inverses.pop(0 if self.common else label, None)
        self._of = self.scatter

    def _look(self) -> None:
        """Forget inverses of other matrices: those from before a checkpoint was loaded, or on another device."""
        if self._of is not self.scatter:
            self._inverses, self._of = {}, self.scatter

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Minus the squared Mahalanobis distance to every class."""
        if self.counts is None or self.means is None or self.scatter is None:
            return None
        self._look()
        x, means = F.normalize(self._ladder(x), dim=1), F.normalize(self.means, dim=1)
        seen = self.counts > 0
        distances = [x.new_zeros(len(x))] * len(means)
        for label in seen.nonzero().view(-1).tolist():
            difference = x - means[label]
            distances[label] = ((difference @ self._inverse(label)) * difference).sum(1)
        return -torch.stack(distances, 1), seen

    def _inverse(self, label: int) -> Tensor:
        """The inverse correlation matrix of a class, computed when its rows have changed."""
        assert self.counts is not None and self.scatter is not None
        key = 0 if self.common else label
        if key not in self._inverses:
            if self.common:
                covariance = self.scatter.sum(0) / (self.counts.sum() - (self.counts > 0).sum()).clamp(min=1)
            else:
                covariance = self.scatter[label] / (self.counts[label] - 1).clamp(min=1)
            self._inverses[key] = self._invert(covariance)
        return self._inverses[key]

    def _invert(self, covariance: Tensor) -> Tensor:
        size = covariance.shape[0]
        eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
        variance = covariance.diagonal().mean()
        between = (covariance.sum() - covariance.trace()) / max(1, size * (size - 1))
        shrunk = covariance + self.diagonal * variance * eye + self.off_diagonal * between * (1 - eye)
        scale = shrunk.diagonal().clamp(min=1e-12).rsqrt()
        return torch.linalg.pinv(shrunk * scale.unsqueeze(0) * scale.unsqueeze(1), hermitian=True)
