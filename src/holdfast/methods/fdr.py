"""Function distance regularisation (FDR)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, NonNegative
from holdfast.operations import FunctionDistance, FunctionDistanceStep, RememberExemplars


@published(paper="Benjamin, Rolnick and Kording, Measuring and regularizing networks in function space, ICLR 2019")
def fdr(
    capacity: Count = 200,
    size: Count = 32,
    alpha: NonNegative = 0.5,
    selection: Literal["random", "herding", "closest"] = "random",
    together: bool = True,
) -> Method:
    r"""On remembered samples the model keeps the probabilities that it gave when their experience ended.

    $$ L = \ell(x, y) + \alpha \, \frac{1}{m} \sum_{j=1}^{m} \lVert p_\theta(x'_j) - p'_j \rVert_2, \qquad
       p = \operatorname{softmax}(h), \qquad (x', h') \sim M $$

    Args:
        capacity: samples in the memory, shared by the classes of all experiences.
        size: old samples per step.
        alpha: weight of the distance.
        selection: which samples of a class are kept at the end of an experience.
        together: one step of the sum, or one of each in turn, the second by plain gradient descent.

    Differences: Buzzega et al. 2020 make a step of each (`together=False`), and leave alpha out of the second
    (`alpha=1.0`). The distance is a mean over rows, as theirs.
    """
    kind = FunctionDistance if together else FunctionDistanceStep
    return Method(
        kind(size=size, weight=alpha),
        RememberExemplars(capacity=capacity, selection=selection, by="experience"),
    )
