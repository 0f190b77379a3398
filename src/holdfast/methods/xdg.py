"""Context-dependent gating (XdG)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import BelowOne
from holdfast.operations import ContextGates
from holdfast.operations.infer_task import inference


@published(paper="Masse et al., Alleviating catastrophic forgetting using context-dependent gating, PNAS 2018")
def xdg(fraction: BelowOne = 0.8, infer_task: bool = False) -> Method:
    r"""A random fraction of every hidden layer's units is switched off, another one for each task.

    $$ h_l \leftarrow g_l^t \odot h_l, \qquad g_{l,i}^t \in \{0, 1\} $$

    Args:
        fraction: of the units that are switched off.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: gating alone; the paper's best results add EWC or SI (`Method(ContextGates(), PathPenalty())`).
    """
    return Method(ContextGates(fraction=fraction), *inference(infer_task))
