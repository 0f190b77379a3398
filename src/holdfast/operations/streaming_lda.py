"""Streaming linear discriminant analysis: class means and one covariance, learnt in one pass and without a gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience, Tree
from holdfast.core.operation import Operation
from holdfast.core.ranges import Share
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.rows import require_outputs
from holdfast.operations._parts.scores import Space, as_outputs, vectors


class StreamingLDA(Operation):
    r"""Gaussian classes that share a covariance; the model predicts by them, and its weights never move.

    $$ z_k = \mu_k^\top \Lambda x - \frac{1}{2} \mu_k^\top \Lambda \mu_k, \qquad
       \Lambda = \big[ (1 - \epsilon) \Sigma + \epsilon I \big]^{+} $$

    Means and covariance are those of all samples seen, whatever their order and batches: with n of a batch's samples
    in class k, their mean m, and c samples of that class before,

    $$ S \leftarrow S + \sum_{i} (x_i - m_{y_i})(x_i - m_{y_i})^\top + \sum_k \frac{c_k n_k}{c_k + n_k}
       (m_k - \mu_k)(m_k - \mu_k)^\top, \qquad \Sigma = S / N $$

    When the first experience ends its covariance is shrunk towards a multiple of the identity by the oracle
    approximating estimator; from then on it is only added to. In a stream without boundaries it stays as measured.
    A sample that is shown again (a second epoch) counts again, so one epoch is enough.

    Args:
        space: `inputs`, the prepared inputs; or `features`, what enters the head of a (pretrained) backbone, which
            costs a
            second forward a step.
        shrinkage: the paper's epsilon.

    Source: Hayes and Kanan 2020, "Lifelong machine learning with deep streaming linear discriminant analysis", eq. 2
    to 4; on raw pixels: van de Ven, Li and Tolias 2021, "Class-incremental learning with generative classifiers";
    the first covariance: Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", eq. 23.
    Differences: a sample's distance to its class's mean is weighted exactly, by c / (c + 1); the paper weighs by
    N / (N + 1) over all classes, so that a class's first sample enters with its distance to zero.

    Example:
        >>> StreamingLDA(space="features")
        StreamingLDA(space='features', shrinkage=0.0001)
    """

    alone = "makes its whole step itself, from statistics of every sample"
    role = "knowledge incorporation"
    captured = "makes its whole step itself, class by class on the host"
    needs = frozenset({"classes"})
    state = ("counts", "means", "scatter", "shrunk")
    scratch = ("_map",)

    def __init__(self, space: Space = "inputs", shrinkage: Share = 1e-4) -> None:
        super().__init__()
        self.space = space
        self.shrinkage = shrinkage
        self.counts: Tensor | None = None
        self.means: Tensor | None = None
        self.scatter: Tensor | None = None
        self.shrunk = False
        self._map: tuple[Tensor, Tensor, Tensor] | None = None

    def take_step(self, step: Step, learner: Services, optimizer: torch.optim.Optimizer) -> None:
        """Learn from the rows; the optimiser steps without any gradient: nothing moves but what a scheduler counts."""
        self._learn(step, learner)
        for parameter in learner.trainable.optimized():
            parameter.grad = None
        optimizer.step()

    def gradient(self, step: Step, learner: Services) -> None:
        """In a loop that moves the optimiser itself: leave it no gradient, so that nothing moves."""
        for parameter in learner.trainable.optimized():
            parameter.grad = None

    def observe(self, step: Step, learner: Services) -> None:
        """In a loop that moves the optimiser itself: learn from the rows."""
        self._learn(step, learner)

    def _learn(self, step: Step, learner: Services) -> None:
        self.learn(vectors(learner, step.inputs, self.space), step.targets, require_outputs(step).shape[1])

    @torch.no_grad()
    def learn(self, x: Tensor, targets: Tensor, classes: int) -> None:
        """Add rows to means and covariance.

        Args:
            x: `[rows, features]`.
            targets: `[rows]` classes.
            classes: how many there are, at least; known without looking at the targets.
        """
        counts, means, scatter = self._books(x.shape[1], classes, x.device)
        rows = F.one_hot(targets, counts.shape[0]).to(x.dtype)
        new = rows.sum(0)
        mean = (rows.T @ x) / new.clamp(min=1).unsqueeze(1)
        centred = x - mean[targets]
        shift = mean - means
        share = new / (counts + new).clamp(min=1)
        jump = shift * (counts * share).sqrt().unsqueeze(1)
        scatter += centred.T @ centred
        scatter += jump.T @ jump
        means += shift * share.unsqueeze(1)
        counts += new
        self._map = None

    def _books(self, features: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Counts, means and scatter, as wide as there are classes; in double precision, as they sum over the stream."""
        if self.counts is None or self.means is None or self.scatter is None:
            self.counts = torch.zeros(classes, dtype=torch.float64, device=device)
            self.means = torch.zeros(classes, features, dtype=torch.float64, device=device)
            self.scatter = torch.zeros(features, features, dtype=torch.float64, device=device)
        missing = classes - self.counts.shape[0]
        if missing > 0:
            self.counts = F.pad(self.counts, (0, missing))
            self.means = F.pad(self.means, (0, 0, 0, missing))
        return self.counts, self.means, self.scatter

    def end(self, experience: Experience, learner: Services) -> None:
        """After the first experience that brought data: shrink its covariance."""
        if self.shrunk or self.scatter is None or self.counts is None:
            return
        total = self.counts.sum()
        self.scatter = oas(self.scatter / total, total) * total
        self.shrunk, self._map = True, None

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """Log-probabilities up to a constant, in place of the model's outputs."""
        if self.counts is None or self.means is None or self.scatter is None:
            return outputs
        if self._map is None or self._map[0] is not self.scatter:  # which a loaded or moved one is not
            sigma = self.scatter / self.counts.sum()
            eye = torch.eye(sigma.shape[0], dtype=sigma.dtype, device=sigma.device)
            precision = torch.linalg.pinv((1 - self.shrinkage) * sigma + self.shrinkage * eye, hermitian=True)
            weight = self.means @ precision
            self._map = self.scatter, weight, -0.5 * (weight * self.means).sum(1)
        _, weight, bias = self._map
        scores = vectors(learner, inputs, self.space).to(weight.dtype) @ weight.T + bias
        return as_outputs(scores, self.counts > 0, outputs)


def oas(covariance: Tensor, samples: Tensor | float) -> Tensor:
    r"""A covariance shrunk towards a multiple of the identity by the oracle approximating estimator.

    $$ (1 - \rho) S + \rho \frac{\operatorname{tr} S}{p} I, \qquad
       \rho = \min\Big(1, \frac{(1 - 2/p) \operatorname{tr}(S^2) + \operatorname{tr}^2(S)}
       {(n + 1 - 2/p) \, (\operatorname{tr}(S^2) - \operatorname{tr}^2(S)/p)} \Big) $$

    Args:
        covariance: S, `[p, p]`, of centred samples.
        samples: n.

    Source: Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", eq. 23.

    Example:
        >>> oas(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 9.0)
        tensor([[1.5000, 0.0000],
                [0.0000, 1.5000]])
    """
    p = covariance.shape[0]
    trace, square = covariance.trace(), covariance.square().sum()
    spread = (samples + 1 - 2 / p) * (square - trace.square() / p)
    rho = (((1 - 2 / p) * square + trace.square()) / spread).clamp(max=1)
    rho = torch.where(spread > 0, rho, torch.ones_like(rho))
    eye = torch.eye(p, dtype=covariance.dtype, device=covariance.device)
    return (1 - rho) * covariance + rho * (trace / p) * eye
