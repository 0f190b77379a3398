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
    average: Literal["rows", "none"] = "rows",
) -> Method:
    r"""Old samples from a reservoir join every batch; the loss is one mean over both.

    $$ \text{rows: } L = \frac{1}{n + m} \Big( \sum_{i=1}^{n} \ell(x_i, y_i) + \sum_{j=1}^{m} \ell(x'_j, y'_j) \Big),
       \qquad \text{none: } L = \frac{1}{n} \sum_{i=1}^{n} \ell(x_i, y_i) + \frac{1}{m} \sum_{j=1}^{m} \ell(x'_j, y'_j),
       \qquad (x', y') \sim M $$

    With as many old samples as current ones (n = m) the second is twice the first, so a step is twice as long. `mir`
    has the same two forms; its default is the second. Compare methods with the same form.

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        policy: which samples are kept.
        average: `rows` takes one mean over current and old rows, `none` adds the mean of each.

    Differences: none from Buzzega et al. 2020's use of it (`published_results`, table A).
    """
    return Method(JoinedReplay(size=size, average=average), Remember(capacity=capacity, policy=policy))
