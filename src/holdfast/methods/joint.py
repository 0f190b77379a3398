"""Joint training: all data at once. The upper end of the scale."""

from holdfast.core.method import Method, published
from holdfast.operations import JointData


@published(paper="the control of every paper on continual learning")
def joint() -> Method:
    """Train once on the data of all experiences together."""
    return Method(JointData())
