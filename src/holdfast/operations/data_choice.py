"""Which data an experience is trained on: everything at once, or everything so far."""

from __future__ import annotations

import torch

from holdfast.core.errors import UsageError
from holdfast.core.experience import Data, Experience, Stream
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.streams.data import concat


def _stream(experience: Experience) -> Stream:
    if experience.stream is None:
        raise UsageError(
            "the data of other experiences was asked for, but this one belongs to no stream. Pass one of a Stream."
        )
    if experience.train is not experience.stream[experience.index].train:
        raise UsageError(
            "two operations of this method choose the data, and the second would undo what the first chose. "
            "Put the one that takes data from the whole stream first, and keep one such operation."
        )
    return experience.stream


class JointData(Operation):
    """The first experience is trained on the data of the whole stream; the others on nothing.

    The upper end of the scale: what the model reaches when nothing arrives over time.

    Example:
        >>> JointData().needs == {"replacement", "stream"}
        True
    """

    asks = "nothing"
    role = "knowledge incorporation"
    needs = frozenset({"replacement", "stream"})
    once = "choose the data of an experience"

    def __init__(self) -> None:
        super().__init__()

    def begin(self, experience: Experience, learner: Services) -> Data:
        """All training data at first, none later."""
        whole = concat([other.train for other in _stream(experience)])
        return whole if experience.index == 0 else whole.subset(torch.arange(0))


class CumulativeData(Operation):
    """Each experience is trained on all data seen so far, its own included.

    Example:
        >>> CumulativeData().needs == {"replacement", "stream"}
        True
    """

    asks = "nothing"
    role = "knowledge incorporation"
    needs = frozenset({"replacement", "stream"})
    once = "choose the data of an experience"

    def __init__(self) -> None:
        super().__init__()

    def begin(self, experience: Experience, learner: Services) -> Data:
        """The training data up to and including this experience."""
        return concat([other.train for other in _stream(experience)[: experience.index + 1]])
