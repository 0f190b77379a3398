"""Riemannian walk (RWalk)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import BelowOne, Count, Positive, Strength
from holdfast.operations import WalkPenalty


@published(paper="Chaudhry et al., Riemannian walk for incremental learning, ECCV 2018")
def rwalk(
    strength: Strength = 1.0,
    decay: BelowOne = 0.9,
    interval: Count = 10,
    damping: Positive = 1e-8,
    bounded: bool = True,
) -> Method:
    r"""A quadratic penalty weighted by a running Fisher diagonal and a score along the path of training.

    $$ L = \ell(x, y) + \lambda \sum_i (\bar F_i + \bar s_i) (\theta_i - \theta^*_i)^2 $$

    Args:
        strength: lambda.
        decay: weight of the old Fisher diagonal at each step (1 minus the paper's alpha).
        interval: steps between two updates of the score.
        damping: epsilon, which keeps the score finite.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD, so
            that no strength makes training diverge.

    Differences: without the paper's small replay memory (add `Replay` and `Remember`); the Fisher diagonal comes from
    batch gradients times the number of rows; the bound is ours, and acts where `lr * 2 lambda (F + s)` is above 1.
    """
    return Method(WalkPenalty(strength=strength, decay=decay, interval=interval, damping=damping, bounded=bounded))
