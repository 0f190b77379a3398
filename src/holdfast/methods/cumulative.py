"""Cumulative training: everything seen so far, again, at each experience."""

from holdfast.core.method import Method, published
from holdfast.operations import CumulativeData


@published(paper="the control of every paper on continual learning")
def cumulative() -> Method:
    """Train each experience on all data seen so far."""
    return Method(CumulativeData())
