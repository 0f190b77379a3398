"""Context-dependent gating (XdG)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import BelowOne
from holdfast.operations import ContextGates


@published(paper="Masse et al., Alleviating catastrophic forgetting using context-dependent gating, PNAS 2018")
def xdg(fraction: BelowOne = 0.8) -> Method:
    r"""A random fraction of every hidden layer's units is switched off, another one for each task.

    $$ h_l \leftarrow g_l^t \odot h_l, \qquad g_{l,i}^t \in \{0, 1\} $$

    Args:
        fraction: of the units that are switched off.

    Differences: gating alone; the paper's best results add EWC or SI (`Method(ContextGates(), PathPenalty())`).
    """
    return Method(ContextGates(fraction=fraction))
