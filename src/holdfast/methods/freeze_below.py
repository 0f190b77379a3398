"""Fine-tuning with the lower layers frozen after the first experience."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Size
from holdfast.operations import FreezeBelow


@published(paper="Hemati et al., Partial hypernetworks for continual learning, CoLLAs 2023 (its control)")
def freeze_below(cut: int | str = 1, after: Size = 1) -> Method:
    r"""Stages below a cut learn from the first experience only; the others are fine-tuned.

    $$ \psi^{(t)} = \psi^{(n)} \quad \text{for } t > n $$

    Args:
        cut: how many stages lie below, or the name of the last of them.
        after: the number of experiences n that they learn from.

    Differences: running statistics below the cut stay, too.
    """
    return Method(FreezeBelow(cut=cut, after=after))
