"""Memory aware synapses (MAS)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Strength
from holdfast.operations import SensitivityPenalty


@published(paper="Aljundi et al., Memory aware synapses: learning what (not) to forget, ECCV 2018")
def mas(
    strength: Strength = 1.0,
    samples: Count | None = None,
    over: Literal["sample", "batch"] = "sample",
    batch_size: Count = 128,
    bounded: bool = True,
) -> Method:
    r"""A quadratic penalty weighted by how much each parameter moves the outputs; it needs no labels.

    $$ L = \ell(x, y) + \lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad
       \Omega_i \leftarrow \Omega_i + \frac{1}{N} \sum_n \Big| \partial_{\theta_i} \lVert f_\theta(x_n) \rVert_2^2
       \Big| $$

    Args:
        strength: lambda.
        samples: samples to measure the importance on; default: all of the experience.
        over: magnitude of the gradient of each `sample` (the paper's), or of each `batch`.
        batch_size: samples of each of these batches.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD, so
            that no strength makes training diverge.

    Differences: the gradient of each sample's own squared norm, as in the paper; several implementations take that of a
    batch's mean over samples and outputs (`over="batch"`), so that their lambdas are larger. The bound is ours, and
    acts where `lr * 2 lambda Omega` is above 1; without it, SGD diverges where that is above 2.
    """
    return Method(
        SensitivityPenalty(strength=strength, over=over, samples=samples, batch_size=batch_size, bounded=bounded)
    )
