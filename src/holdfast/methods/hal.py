"""Hindsight anchor learning (HAL)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import BelowOne, Count, NonNegative
from holdfast.operations import HindsightAnchors, JoinedReplay, Remember


@published(paper="Chaudhry et al., Using hindsight to anchor past knowledge in continual learning, AAAI 2021")
def hal(
    capacity: Count = 200,
    size: Count = 32,
    weight: NonNegative = 0.1,
    beta: BelowOne = 0.5,
    gamma: NonNegative = 0.1,
    steps: Count = 100,
    policy: Literal["balanced_reservoir", "reservoir", "ring", "first"] = "balanced_reservoir",
) -> Method:
    r"""Replay, and a step may hardly change the answers on points that would be forgotten most.

    $$ \theta \leftarrow \theta - \alpha \nabla_\theta \Big( \ell(B \cup B_M)
       + \lambda \, \lVert f_\theta(e) - f_{\tilde\theta}(e) \rVert_2^2 / C \Big), \qquad
       \tilde\theta = \theta - \alpha \nabla_\theta \ell(B \cup B_M) $$
    $$ e = \arg\max_e \; \ell(f_{\theta_M}(e), y) - \ell(f_\theta(e), y)
       - \gamma \, \lVert \phi(e) - \bar\phi \rVert_2^2 $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        weight: lambda, of the anchors' term.
        beta: of the running mean of features.
        gamma: how strongly an anchor's features are held to that mean.
        steps: of gradient ascent that move an anchor.
        policy: which samples are kept.

    Differences: classes have about equal shares of one reservoir; the paper has a ring for each class. The fine-tuning
    that forgets takes one pass over the memory in batches of 128.
    """
    return Method(
        JoinedReplay(size=size),
        HindsightAnchors(weight=weight, decay=beta, closeness=gamma, steps=steps),
        Remember(capacity=capacity, policy=policy),
    )
