"""SimpleCIL: class means of frozen features as the weights of a cosine classifier."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Size
from holdfast.operations import NearestClassMean


@published(paper="Zhou et al., Revisiting class-incremental learning with pre-trained models, IJCV 2024")
def simple_cil(adapt: Size = 0) -> Method:
    r"""A pretrained backbone stays as it is; each class is the mean of its features, compared by cosine.

    $$ z_k = \frac{h(x)^\top \mu_k}{\lVert h(x) \rVert \lVert \mu_k \rVert}, \qquad
       \mu_k = \frac{1}{n_k} \sum_{i: y_i = k} h(x_i) $$

    Args:
        adapt: experiences that the network is trained in first, all of it; 1 is adaptation in the first session.

    Differences: the paper's APER adapts by small added modules in the first session; here `adapt` trains the network.
    """
    return Method(NearestClassMean(metric="cosine", adapt=adapt))
