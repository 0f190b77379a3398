"""Dark experience replay (DER)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, NonNegative
from holdfast.operations import LogitReplay, Remember


@published(
    paper="Buzzega et al., Dark experience for general continual learning: a strong, simple baseline, NeurIPS 2020"
)
def der(capacity: Count = 200, size: Count = 32, alpha: NonNegative = 0.5) -> Method:
    r"""The model is held to the logits it gave when a sample arrived.

    $$ L = \ell(x, y) + \alpha \, \lVert h_\theta(x') - z' \rVert_2^2 / C, \qquad (x', z') \sim M $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        alpha: weight of the logits' distance.

    Differences: the mean over outputs instead of the paper's sum, as in the authors' code and for their alphas.
    """
    return Method(LogitReplay(size=size, weight=alpha), Remember(capacity=capacity))
