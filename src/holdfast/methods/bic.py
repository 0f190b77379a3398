"""Bias correction (BiC)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Positive
from holdfast.operations import BiasCorrection, Distillation, JoinedReplay, Remember


@published(paper="Wu et al., Large scale incremental learning, CVPR 2019")
def bic(
    capacity: Count = 200,
    size: Count = 32,
    held_out: Count = 20,
    temperature: Positive = 2.0,
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "balanced_reservoir",
) -> Method:
    r"""Replay and distillation, then two numbers set new classes' outputs right, fitted on held-out samples.

    $$ q_k = \alpha \, o_k + \beta \;\text{for new } k, \qquad q_k = o_k \;\text{for old } k $$

    Args:
        capacity: samples in the memory, the held-out ones not counted.
        size: old samples per step.
        held_out: samples per class that are kept for the fit.
        temperature: of the distillation.
        policy: which samples are kept in the memory.

    Differences: a class-balanced reservoir instead of herded exemplars; the held-out samples are apart from the
    memory; the distillation is on current inputs and adds to the loss with weight 1.
    """
    return Method(
        BiasCorrection(held_out=held_out),
        JoinedReplay(size=size),
        Distillation(temperature=temperature),
        Remember(capacity=capacity, policy=policy),
    )
