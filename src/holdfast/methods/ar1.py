"""AR1: outputs trained apart, and a penalty on the layers below."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Positive, Strength
from holdfast.operations import CopyWeights, PathPenalty


@published(paper="Maltoni and Lomonaco, Continuous learning in single-incremental-task scenarios, Neural Networks 2019")
def ar1(strength: Strength = 1.0, damping: Positive = 0.1, limit: Positive | None = 0.1) -> Method:
    r"""CWR+ for the head: it starts every experience at zero; SI with bounded importance for all layers below.

    $$ L = \ell(x, y) + c \sum_{i \notin \text{head}} \min(\Omega_i, \Omega_{\max}) (\theta_i - \theta^*_i)^2, \qquad
       w_c \leftarrow w_c - \bar w \;\text{for the classes } c \text{ of the experience} $$

    Args:
        strength: c.
        damping: xi of SI.
        limit: Omega_max; None leaves importance free.

    Differences: the path's integral is divided by the squared distance plus xi, as in SI (the paper clips the sum
    over batches); see `copy_weights` for the head.
    """
    return Method(
        PathPenalty(strength=strength, damping=damping, limit=limit, head=False, bounded=False), CopyWeights()
    )
