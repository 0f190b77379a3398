"""Fix: train on the first experience only. A control."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Size
from holdfast.operations import TrainOnly


@published(paper="the control of every paper on continual learning")
def fix(experiences: Size = 1) -> Method:
    """Train on the first experience and never again: no forgetting, and nothing new.

    Args:
        experiences: how many are trained on, from the first.
    """
    return Method(TrainOnly(experiences=experiences))
