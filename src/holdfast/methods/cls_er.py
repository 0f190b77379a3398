"""Complementary learning system experience replay (CLS-ER)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import BelowOne, Count, NonNegative, UpToOne
from holdfast.operations import ComplementaryMemories, Remember


@published(
    paper="Arani, Sarfraz and Zonooz, Learning fast, learning slow: a general continual learning method based on "
    "complementary learning system, ICLR 2022"
)
def cls_er(
    capacity: Count = 200,
    size: Count = 32,
    weight: NonNegative = 0.15,
    plastic_decay: BelowOne = 0.999,
    plastic_rate: UpToOne = 0.9,
    stable_decay: BelowOne = 0.999,
    stable_rate: UpToOne = 0.7,
) -> Method:
    r"""Replay, held to the better of a fast and a slow running average of the model; the slow one answers.

    $$ L = \ell(x \cup x', y \cup y') + \lambda \, \lVert f_\theta(x') - z' \rVert_2^2 / C, \qquad
       \theta_P, \theta_S: \text{running averages of } \theta $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        weight: lambda, of the consistency loss.
        plastic_decay: of the fast average.
        plastic_rate: how often the fast average is updated, a probability.
        stable_decay: of the slow average.
        stable_rate: how often the slow average is updated, a probability.

    Differences: the mean over outputs in the squared distance, as in the authors' code; averaged models run in eval
    mode.
    """
    return Method(
        ComplementaryMemories(
            size=size,
            weight=weight,
            plastic_decay=plastic_decay,
            plastic_rate=plastic_rate,
            stable_decay=stable_decay,
            stable_rate=stable_rate,
        ),
        Remember(capacity=capacity),
    )
