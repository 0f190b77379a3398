"""Progressive neural networks."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import LateralConnections, SeparateNetworks
from holdfast.operations.infer_task import inference


@published(paper="Rusu et al., Progressive neural networks, 2016")
def progressive(columns: Count = 10, infer_task: bool = False) -> Method:
    r"""A new network (column) for each task, which also reads the layers of all earlier ones.

    $$ h_i^{(k)} = f\Big( W_i^{(k)} h_{i-1}^{(k)} + \sum_{j < k} U_i^{(k:j)} h_{i-1}^{(j)} \Big) $$

    Args:
        columns: the most tasks there can be.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: linear connections, without the paper's adapters; none into convolutions. Each column starts from the
    same initial weights.
    """
    return Method(SeparateNetworks(), LateralConnections(columns=columns), *inference(infer_task))
