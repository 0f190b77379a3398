"""FeCAM: Mahalanobis distances of frozen features, with a covariance for each class."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import NonNegative, Positive, Size
from holdfast.operations import Mahalanobis


@published(
    paper=(
        "Goswami et al., FeCAM: exploiting the heterogeneity of class distributions in exemplar-free continual"
        " learning, NeurIPS 2023"
    )
)
def fecam(
    power: Positive = 0.5, diagonal: NonNegative = 1.0, off_diagonal: NonNegative = 1.0, adapt: Size = 1
) -> Method:
    r"""The network is trained on the first experience and frozen; classes are Gaussians of their own shape.

    $$ z_k = - d_k^\top \hat\Sigma_k^{-1} d_k, \qquad
       d_k = \frac{\phi}{\lVert \phi \rVert} - \frac{\mu_k}{\lVert \mu_k \rVert}, \qquad \phi = h(x)^{p} $$

    Args:
        power: p of Tukey's ladder.
        diagonal: gamma_1, shrinkage of variances.
        off_diagonal: gamma_2, shrinkage of covariances.
        adapt: experiences that the network is trained in; 0 for a pretrained backbone.

    Differences: see the operation.
    """
    return Method(Mahalanobis(power=power, diagonal=diagonal, off_diagonal=off_diagonal, adapt=adapt))
