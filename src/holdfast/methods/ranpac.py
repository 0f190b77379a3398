"""RanPAC: random projection and ridge regression on frozen features."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Size
from holdfast.operations import RandomProjection


@published(paper="McDonnell et al., RanPAC: random projections and pre-trained models, NeurIPS 2023")
def ranpac(width: Size = 500, adapt: Size = 0) -> Method:
    r"""A linear classifier on random features of a frozen backbone, exact after every experience.

    $$ h = \max(0, P^\top x), \qquad z = h^\top \Big( \sum_i h_i h_i^\top + \lambda I \Big)^{-1} \sum_i h_i y_i^\top $$

    Args:
        width: random features; the paper takes 10,000.
        adapt: experiences that the network is trained in first; 1 is adaptation in the first session.

    Differences: the paper adapts small added modules in the first session; here `adapt` trains the network.
    """
    return Method(RandomProjection(width=width, adapt=adapt))
