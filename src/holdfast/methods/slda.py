"""Streaming linear discriminant analysis (SLDA)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Share
from holdfast.operations import StreamingLDA


@published(
    paper="Hayes and Kanan, Lifelong machine learning with deep streaming linear discriminant analysis, CVPR-W 2020; "
    "van de Ven, Li and Tolias, Class-incremental learning with generative classifiers, CVPR-W 2021"
)
def slda(space: Literal["features", "inputs"] = "inputs", shrinkage: Share = 1e-4) -> Method:
    r"""Gaussian classes that share a covariance, learnt in one pass; no weight of the model ever moves.

    $$ z_k = \mu_k^\top \Lambda x - \frac{1}{2} \mu_k^\top \Lambda \mu_k, \qquad
       \Lambda = \big[ (1 - \epsilon) \Sigma + \epsilon I \big]^{+} $$

    Train with one epoch; batch size, optimiser and order of samples do not matter. On raw inputs any model will do, the
    smallest is `linear`; on features it is the backbone that matters.

    Args:
        space: `inputs` (van de Ven et al.), or `features` of a pretrained backbone (Hayes and Kanan).
        shrinkage: epsilon.

    Differences: the covariance is that of all samples, whatever their order (see the operation).
    """
    return Method(StreamingLDA(space=space, shrinkage=shrinkage))
