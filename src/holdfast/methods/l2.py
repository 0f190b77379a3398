"""L2: the control of the quadratic penalties."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Strength
from holdfast.operations import AnchorPenalty


@published(
    paper="Hsu et al., Re-evaluating continual learning scenarios, 2018; Kirkpatrick et al., PNAS 2017 (control)"
)
def l2(strength: Strength = 0.01) -> Method:
    r"""Every parameter is pulled back to where the last experience left it, all alike.

    $$ L = \ell(x, y) + \lambda \sum_i (\theta_i - \theta^*_i)^2 $$

    Args:
        strength: lambda.

    Differences: none from Hsu et al. 2018, whose factor this is (no 1/2).
    """
    return Method(AnchorPenalty(strength=strength))
