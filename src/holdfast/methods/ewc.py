"""Elastic weight consolidation (EWC), offline."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Strength
from holdfast.operations import FisherPenalty


@published(paper="Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017")
def ewc(
    strength: Strength = 100.0,
    fisher: Literal["exact", "true", "predicted", "empirical", "batch"] = "true",
    samples: Count | None = None,
    normalize: Literal["none", "mean", "max"] = "none",
    bounded: bool = True,
) -> Method:
    r"""One quadratic penalty per past experience, weighted by the Fisher diagonal.

    $$ L = \ell(x, y) + \frac{\lambda}{2} \sum_k \sum_i F_{k,i} (\theta_i - \theta^*_{k,i})^2 $$

    Args:
        strength: lambda.
        fisher: how the labels in the Fisher diagonal are chosen.
        samples: samples for the Fisher diagonal; default: all of the experience.
        normalize: what each Fisher diagonal is divided by: nothing, its `mean` or its `max` over all parameters.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD, so
            that no strength makes training diverge.

    Differences: the penalties are kept as one equal quadratic (Huszar 2018); the bound is ours, and
    acts where `lr * lambda * F` is above 1. Without it, SGD diverges where that is above 2.
    """
    return Method(
        FisherPenalty(strength=strength, fisher=fisher, samples=samples, normalize=normalize, bounded=bounded)
    )
