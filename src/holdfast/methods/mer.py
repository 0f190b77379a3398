"""Meta-experience replay (MER)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, UpToOne
from holdfast.operations import MetaReplay, Remember


@published(
    paper="Riemer et al., Learning to learn without forgetting by maximizing transfer and minimizing interference, "
    "ICLR 2019"
)
def mer(
    capacity: Count = 200,
    size: Count = 10,
    batches: Count = 1,
    beta: UpToOne = 1.0,
    gamma: UpToOne = 1.0,
    together: bool = True,
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "reservoir",
) -> Method:
    r"""Batches of old samples and the current one are learned one after the other, and a part of the way is gone.

    $$ \theta_{b} = \theta_{b-1} + \beta \, (\theta_{b-1}^{(k)} - \theta_{b-1}), \qquad
       \theta \leftarrow \theta_0 + \gamma \, (\theta_s - \theta_0) $$

    Args:
        capacity: samples in the memory.
        size: old samples in each batch.
        batches: in each step, s.
        beta: the part of the way through a batch that is gone.
        gamma: the part of the way through a step that is gone.
        together: one step of the optimiser for each batch, or one for each sample of it (the paper's algorithm 1).
        policy: which samples are kept.

    Differences: `together` by default, as Buzzega et al. 2020 run it; all but the first step of each are plain gradient
    descent, whatever the optimiser. The paper has one current sample a step: train with a batch size of 1.
    """
    return Method(
        MetaReplay(size=size, batches=batches, within=beta, across=gamma, together=together),
        Remember(capacity=capacity, policy=policy),
    )
