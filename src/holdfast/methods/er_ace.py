"""Experience replay with asymmetric cross-entropy (ER-ACE)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import AsymmetricCrossEntropy, Remember, Replay


@published(
    paper="Caccia et al., New insights on reducing abrupt representation change in online continual learning, ICLR 2022"
)
def er_ace(
    capacity: Count = 200,
    size: Count = 32,
    among: Literal["batch", "experience"] = "batch",
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "reservoir",
) -> Method:
    r"""What arrives competes among its own classes only; what is replayed competes among all.

    $$ L = \ell(x, y; \{y\}) + \ell(x', y'; \text{all}), \qquad (x', y') \sim M $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        among: the classes that current samples compete with: those of the `batch`, or of the `experience`.
        policy: which samples are kept.

    Differences: in effect from the first step; replay's softmax runs over all outputs of the head, classes not seen
    yet included where the head has them from the start. The two losses are added, as in the paper. In the reader's
    own loop the loss passed to `backward` is replaced.
    """
    return Method(AsymmetricCrossEntropy(among=among), Replay(size=size), Remember(capacity=capacity, policy=policy))
