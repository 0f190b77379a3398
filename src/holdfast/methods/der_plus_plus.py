"""Dark experience replay with labels (DER++)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, NonNegative
from holdfast.operations import LogitReplay, Remember, Replay


@published(
    paper="Buzzega et al., Dark experience for general continual learning: a strong, simple baseline, NeurIPS 2020"
)
def der_plus_plus(capacity: Count = 200, size: Count = 32, alpha: NonNegative = 0.5, beta: NonNegative = 0.5) -> Method:
    r"""DER, and the labels of a second, independent draw.

    $$ L = \ell(x, y) + \alpha \, \lVert h_\theta(x') - z' \rVert_2^2 / C + \beta \, \ell(x'', y''),
       \qquad (x', z'), (x'', y'') \sim M $$

    Args:
        capacity: samples in the memory.
        size: old samples per draw; there are two draws per step.
        alpha: weight of the logits' distance.
        beta: weight of the loss on old labels.

    Differences: the mean over outputs instead of the paper's sum, as in the authors' code and for their alphas.
    """
    return Method(LogitReplay(size=size, weight=alpha), Replay(size=size, weight=beta), Remember(capacity=capacity))
