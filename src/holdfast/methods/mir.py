"""Maximally interfered retrieval (MIR)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Positive
from holdfast.operations import InterferedReplay, Remember


@published(paper="Aljundi et al., Online continual learning with maximally interfered retrieval, NeurIPS 2019")
def mir(
    capacity: Count = 200,
    size: Count = 10,
    candidates: Count = 50,
    rate: Positive | None = None,
    average: Literal["none", "rows"] = "none",
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "reservoir",
) -> Method:
    r"""Of the old samples drawn, those are replayed whose loss the coming step would raise most.

    $$ \theta^v = \theta - \alpha \nabla_\theta L(x, y), \qquad
       s(x', y') = \ell(f_{\theta^v}(x'), y') - \ell(f_\theta(x'), y') $$

    $$ \text{none: } L = \frac{1}{n} \sum_{i=1}^{n} \ell(x_i, y_i) + \frac{1}{m} \sum_{j=1}^{m} \ell(x'_j, y'_j),
       \qquad \text{rows: } L = \frac{1}{n + m} \Big( \sum_{i=1}^{n} \ell(x_i, y_i) + \sum_{j=1}^{m} \ell(x'_j, y'_j)
       \Big) $$

    With as many old samples as current ones (n = m) the first is twice the second, so a step is twice as long. `er`
    has the same two forms; its default is the second. Compare methods with the same form.

    Args:
        capacity: samples in the memory.
        size: old samples replayed per step.
        candidates: old samples drawn per step, of which `size` are replayed.
        rate: alpha, the learning rate of the virtual step; default: the optimiser's.
        average: `none` adds the two losses, `rows` takes one mean over current and old rows.
        policy: which samples are kept.

    Differences: interference is measured in eval mode, by a step of plain gradient descent.
    """
    return Method(
        InterferedReplay(size=size, candidates=candidates, rate=rate, average=average),
        Remember(capacity=capacity, policy=policy),
    )
