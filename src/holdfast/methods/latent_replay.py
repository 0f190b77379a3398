"""Latent replay: the memory holds what comes out of the frozen lower layers."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Strength
from holdfast.operations import LatentReplay


@published(paper="Pellegrini et al., Latent replay for real-time continual learning, IROS 2020")
def latent_replay(
    capacity: Count = 200,
    cut: int | str | None = None,
    size: Count = 64,
    weight: Strength = 1.0,
    policy: Literal["reservoir", "balanced_reservoir"] = "reservoir",
) -> Method:
    r"""The layers below a cut are frozen after the first experience; their outputs are remembered instead of inputs.

    $$ L = L(f(x), y) + w \, L(f_{\text{above}}(z'), y'), \qquad (z', y') \sim M, \; z = f_{\text{below}}(x) $$

    Args:
        capacity: number of latents kept.
        cut: how many stages lie below, or the name of the last of them; None takes all but the output layer.
        size: latents drawn for each step.
        weight: w.
        policy: `reservoir`, or `balanced_reservoir` (classes held evenly).

    Differences: the layers below are frozen, not slowed down; see `operations.LatentReplay`.
    """
    return Method(LatentReplay(capacity=capacity, cut=cut, size=size, weight=weight, policy=policy))
