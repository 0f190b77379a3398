"""Averaged gradient episodic memory (A-GEM)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import GradientProjection, Remember


@published(paper="Chaudhry et al., Efficient lifelong learning with A-GEM, ICLR 2019")
def agem(
    capacity: Count = 200,
    size: Count = 64,
    per_layer: bool = False,
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "reservoir",
) -> Method:
    r"""A step may not raise the loss on a reference batch from the memory.

    $$ g \leftarrow g - \min\Big(0, \frac{g^\top g_{\text{ref}}}{g_{\text{ref}}^\top g_{\text{ref}}}\Big)
    g_{\text{ref}} $$

    Args:
        capacity: samples in the memory.
        size: samples in the reference batch.
        per_layer: project each parameter tensor on its own.
        policy: which samples are kept.

    Differences: the memory is a reservoir over all data seen (Buzzega et al. 2020), current experience included;
    the paper fills a ring per task and leaves the current task out.
    """
    return Method(GradientProjection(size=size, per_layer=per_layer), Remember(capacity=capacity, policy=policy))
