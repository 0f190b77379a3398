"""Copy weights with re-initialisation (CWR, CWR+)."""

from holdfast.core.method import Method, published
from holdfast.operations import CopyWeights, FreezeBackbone


@published(paper="Maltoni and Lomonaco, Continuous learning in single-incremental-task scenarios, Neural Networks 2019")
def cwr(plus: bool = True) -> Method:
    r"""Layers below the head learn from the first experience only; the head learns each experience's classes apart.

    $$ w_c \leftarrow w_c - \bar w \;\text{for the classes } c \text{ of the experience}, \qquad
       w_c \;\text{of the others as kept} $$

    Args:
        plus: CWR+ starts the head at zero and subtracts the mean; else CWR, which does neither.

    Differences: none from van de Ven et al. 2021; see `copy_weights` for those from the paper.
    """
    return Method(FreezeBackbone(), CopyWeights(start="zero" if plus else "random", centred=plus))
