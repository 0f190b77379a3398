"""Elastic weight consolidation (EWC), online."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Share, Strength
from holdfast.operations import FisherPenalty


@published(paper="Schwarz et al., Progress & compress: a scalable framework for continual learning, ICML 2018")
def ewc_online(
    strength: Strength = 100.0,
    decay: Share = 1.0,
    fisher: Literal["exact", "true", "predicted", "empirical", "batch"] = "true",
    samples: Count | None = None,
    normalize: Literal["none", "mean", "max"] = "none",
    bounded: bool = True,
) -> Method:
    r"""One running quadratic penalty around the latest parameters.

    $$ L = \ell(x, y) + \frac{\lambda}{2} \sum_i \tilde F_i (\theta_i - \theta^*_i)^2, \qquad
       \tilde F \leftarrow \gamma \tilde F + F_k $$

    Args:
        strength: lambda.
        decay: gamma; at 1 the Fisher diagonals add up, at 0 only the last experience's counts.
        fisher: how the labels in the Fisher diagonal are chosen.
        samples: samples for the Fisher diagonal; default: all of the experience.
        normalize: what each Fisher diagonal is divided by: nothing, its `mean` or its `max` over all parameters.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD, so
            that no strength makes training diverge.

    Differences: the paper normalises each Fisher diagonal; here it is as measured, as in van de Ven et al. 2022, unless
    `normalize` says otherwise. The bound is ours, and acts where `lr * lambda * F` is above 1.
    """
    return Method(
        FisherPenalty(
            strength=strength,
            fisher=fisher,
            online=True,
            decay=decay,
            samples=samples,
            normalize=normalize,
            bounded=bounded,
        )
    )
