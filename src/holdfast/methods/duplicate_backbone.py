"""Duplicating and freezing the backbone at each task."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import LateralConnections, SeparateNetworks


@published(
    paper="Yan, Xie and He, DER: dynamically expandable representation for class incremental learning, CVPR 2021"
)
def duplicate_backbone(columns: Count = 10) -> Method:
    r"""Each task freezes the backbone and goes on with a copy; its outputs read the features of all of them.

    $$ f_t(x) = W_t \Big( \phi_t(x) + \sum_{j < t} A_{t,j} \, \phi_j(x) \Big), \qquad
       \phi_t \text{ starts as } \phi_{t-1} $$

    Args:
        columns: the most tasks there can be.

    Differences: for tasks with labels, where nothing is forgotten; the paper learns classes, with a memory, an
    auxiliary loss and pruning. The weights on a frozen copy's features are the product W A instead of columns of a
    wider head. The copy comes from CLMixer's `DuplicateNetworkBackboneOperation`; the paper starts a new backbone.
    """
    return Method(SeparateNetworks(start="last"), LateralConnections(columns=columns, into="head"))
