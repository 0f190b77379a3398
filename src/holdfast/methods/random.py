"""Random: never train. The accuracy of chance, as a control."""

from holdfast.core.method import Method, published
from holdfast.operations import TrainOnly


@published(paper="the control of every paper on continual learning")
def random() -> Method:
    """Leave the model as it was initialised."""
    return Method(TrainOnly(experiences=0))
