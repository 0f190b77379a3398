"""The labels trick: cross-entropy over the classes of the current experience or batch only."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.operations import MaskedCrossEntropy


@published(paper="Zeno et al., Task agnostic continual learning using online variational Bayes, 2018")
def labels_trick(over: Literal["experience", "batch", "seen"] = "experience") -> Method:
    r"""Plain training, but no step pushes down the outputs of classes that it has no samples of.

    $$ L(x, y) = - \log \frac{e^{z_y}}{\sum_{k \in A} e^{z_k}} $$

    Args:
        over: the classes A that compete: of the experience, of the batch, or seen so far.

    Differences: none; over the experience as in van de Ven, Li and Tolias 2021.
    """
    return Method(MaskedCrossEntropy(over=over))
