"""Weight alignment (WA)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Positive
from holdfast.operations import Distillation, JoinedReplay, Remember, WeightAlign


@published(paper="Zhao et al., Maintaining discrimination and fairness in class incremental learning, CVPR 2020")
def wa(
    capacity: Count = 200,
    size: Count = 32,
    temperature: Positive = 2.0,
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "balanced_reservoir",
) -> Method:
    r"""Replay and distillation, then new classes' weights are scaled to the mean length of the old ones'.

    $$ w_k \leftarrow \gamma w_k \;\text{for new } k, \qquad
       \gamma = \frac{\operatorname{mean}_{\text{old}} \lVert w_j \rVert}{\operatorname{mean}_{\text{new}} \lVert w_k
       \rVert} $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        temperature: of the distillation.
        policy: which samples are kept.

    Differences: a class-balanced reservoir instead of herded exemplars; the distillation is on current inputs and adds
    to
    the loss with weight 1, where the paper mixes the two by the share of old classes; no clipping of weights.
    """
    return Method(
        JoinedReplay(size=size),
        Distillation(temperature=temperature),
        Remember(capacity=capacity, policy=policy),
        WeightAlign(),
    )
