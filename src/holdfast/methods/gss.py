"""Gradient based sample selection (GSS), greedy."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import JoinedReplay, RememberDiverse


@published(paper="Aljundi et al., Gradient based sample selection for online continual learning, NeurIPS 2019")
def gss(
    capacity: Count = 200, size: Count = 32, compare: Count = 10, over: Literal["sample", "batch"] = "sample"
) -> Method:
    r"""Replay from a memory that keeps samples whose gradients point apart.

    $$ c = 1 + \max_{i \in S} \cos(g, g_i), \qquad \text{if } c < 1: \; i \sim C_i / {\textstyle \sum_j C_j}, \;
       \text{replace } i \text{ with probability } C_i / (C_i + c) $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        compare: samples of the memory that each new one is compared with, the paper's n.
        over: whether a `sample` is offered by its own score, or all those of a `batch` by the score of its mean loss.

    Differences: one subset to compare with per batch; gradients in eval mode. Replayed samples join the batch in
    one mean over all rows.
    """
    return Method(JoinedReplay(size=size), RememberDiverse(capacity=capacity, compare=compare, over=over))
