"""Random projection and ridge regression: a classifier on frozen features, exact after every experience."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.ranges import Inside, Positive, Size
from holdfast.core.services import Services
from holdfast.operations._parts.scores import ClosedFormClassifier, Space

RIDGES = tuple(10.0**power for power in range(-8, 9))
"""The ridges that are tried, as in the paper."""


class RandomProjection(ClosedFormClassifier):
    r"""Features are widened by a fixed random layer, and a linear map to one-hot targets is solved from running sums.

    $$ h = \max(0, P^\top x), \qquad G = \sum_i h_i h_i^\top, \qquad C = \sum_i h_i y_i^\top, \qquad
       z = h^\top (G + \lambda I)^{-1} C $$

    Nothing is forgotten: the solution is that of all data at once, whatever the order. The ridge lambda is chosen at
    each experience among 17 powers of ten: fitted on the sums without a held-out share of the experience's rows, the
    one
    with the least squared error on that share is taken, and the share then joins the sums. The error comes from
    sums too, so no features are kept.

    Args:
        width: random features; 0 for none (ridge regression on the features as they are). The paper takes 10,000.
        held_out: share of each experience's rows that the ridge is chosen on.
        ridge: lambda, instead of choosing it.
        space: `features`, what enters the head, or the prepared `inputs`.
        adapt: experiences that the network is trained in, then it is frozen (the paper adapts in the first).

    Source: McDonnell et al. 2023, "RanPAC: random projections and pre-trained models for continual learning", eq. 3 to
    6
    and algorithm 1. Differences: the choice of the ridge sees the sums of earlier experiences too.

    Example:
        >>> RandomProjection(width=1000)
        RandomProjection(width=1000, held_out=0.2, ridge=None, space='features', adapt=0)
    """

    state = ("projection", "gram", "cross", "counts", "weight", "chosen")
    scratch = ("_held",)

    def __init__(
        self,
        width: Size = 500,
        held_out: Inside = 0.2,
        ridge: Positive | None = None,
        space: Space = "features",
        adapt: Size = 0,
    ) -> None:
        super().__init__(space, adapt)
        self.width = width
        self.held_out = held_out
        self.ridge = ridge
        self.projection: Tensor | None = None
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.counts: Tensor | None = None
        self.weight: Tensor | None = None
        self.chosen = 1.0 if ridge is None else ridge
        self._held: tuple[Tensor, Tensor] | None = None
        self._generator: torch.Generator | None = None

    def setup(self, learner: Services) -> None:
        """Take a generator for the projection and the held-out rows."""
        self._generator = learner.rng(f"projection/{self.name}")

    def absorb(self, x: Tensor, targets: Tensor, classes: int) -> None:
        """Add rows to the sums, a random share of them to those of the held-out rows."""
        if self.projection is None and self.width:
            self.projection = torch.randn(x.shape[1], self.width, generator=self._generator).to(x.device)
        h = self.widened(x)
        if self.gram is None or self.cross is None or self.counts is None:
            self.gram = torch.zeros(h.shape[1], h.shape[1], dtype=torch.float64, device=x.device)
            self.cross = torch.zeros(h.shape[1], 0, dtype=torch.float64, device=x.device)
            self.counts = torch.zeros(0, dtype=torch.float64, device=x.device)
        if self._held is None:
            self._held = torch.zeros_like(self.gram), torch.zeros_like(self.cross)
        missing = max(0, classes - self.counts.shape[0])
        self.cross, self.counts = F.pad(self.cross, (0, missing)), F.pad(self.counts, (0, missing))
        self._held = self._held[0], F.pad(self._held[1], (0, self.cross.shape[1] - self._held[1].shape[1]))
        rows = F.one_hot(targets, self.cross.shape[1]).to(h.dtype)
        self.counts += rows.sum(0)
        is_held_out = torch.rand(len(h), generator=self._generator).to(h.device) < (
            self.held_out if self.ridge is None else 0
        )
        self.gram += h[~is_held_out].T @ h[~is_held_out]
        self.cross += h[~is_held_out].T @ rows[~is_held_out]
        self._held[0].add_(h[is_held_out].T @ h[is_held_out])
        self._held[1].add_(h[is_held_out].T @ rows[is_held_out])

    def widened(self, x: Tensor) -> Tensor:
        """Random features `[rows, width]` of `x`."""
        return x if self.projection is None else (x @ self.projection).relu()

    def solve(self, learner: Services) -> None:
        """Choose the ridge, join the held-out rows to the sums, and solve."""
        assert self.gram is not None and self.cross is not None and self._held is not None
        if self.ridge is None and bool(self._held[0].any()):
            self.chosen = best_ridge(self.gram, self.cross, *self._held)
        self.gram += self._held[0]
        self.cross += self._held[1]
        self._held = None
        eye = torch.eye(self.gram.shape[0], dtype=self.gram.dtype, device=self.gram.device)
        self.weight = torch.linalg.solve(self.gram + self.chosen * eye, self.cross)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The linear map of the random features."""
        if self.weight is None or self.counts is None:
            return None
        return self.widened(x).to(self.weight.dtype) @ self.weight, self.counts > 0


def best_ridge(gram: Tensor, cross: Tensor, held_gram: Tensor, held_cross: Tensor) -> float:
    r"""The ridge with the least squared error on held-out rows, from sums alone.

    $$ \lVert Y - H W \rVert^2 = \operatorname{tr} Y^\top Y - 2 \operatorname{tr} W^\top C_h + \operatorname{tr} W^\top
    G_h W,
       \qquad W = Q (\Lambda + \lambda)^{-1} Q^\top C, \; G = Q \Lambda Q^\top $$

    Args:
        gram: G, `[width, width]`.
        cross: C, `[width, classes]`.
        held_gram: the held-out rows' G.
        held_cross: the held-out rows' C.
    """
    values, vectors = torch.linalg.eigh(gram)
    turned, projected_gram = vectors.T @ cross, vectors.T @ held_gram @ vectors
    quadratic, linear = projected_gram * (turned @ turned.T), (turned * (vectors.T @ held_cross)).sum(1)
    errors = []
    for ridge in RIDGES:
        inverse = 1 / (values.clamp(min=0) + ridge)
        errors.append(inverse @ quadratic @ inverse - 2 * inverse @ linear)
    return RIDGES[int(torch.stack(errors).argmin())]
