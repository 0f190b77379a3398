"""Experience replay (ER)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import JoinedReplay, Remember


@published(
    paper=(
        "Riemer et al., Learning to learn without forgetting, ICLR 2019; Chaudhry et al., On tiny episodic memories,"
        " 2019"
    )
)
def er(
    capacity: Count = 200,
    size: Count = 32,
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "reservoir",
) -> Method:
    r"""Old samples from a reservoir join every batch; the loss is one mean over both.

    $$ L = \frac{1}{n + m} \Big( \sum_i \ell(x_i, y_i) + \sum_j \ell(x'_j, y'_j) \Big), \qquad (x', y') \sim M $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        policy: which samples are kept.

    Differences: none from Buzzega et al. 2020's use of it (`published_results`, table A).
    """
    return Method(JoinedReplay(size=size), Remember(capacity=capacity, policy=policy))
