"""Freezing the backbone after the first experience."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Size
from holdfast.operations import FreezeBackbone


@published(paper="a control: linear probes on what the first experience taught")
def freeze_backbone(after: Size = 1) -> Method:
    r"""After so many experiences only the head learns.

    $$ \theta_{\text{backbone}}^{(t)} = \theta_{\text{backbone}}^{(n)} \quad \text{for } t > n $$

    Args:
        after: the number of experiences n that the backbone learns from.
    """
    return Method(FreezeBackbone(after=after))
