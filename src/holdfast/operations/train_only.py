"""Train only: the model learns from the first experiences and then stays as it is; a control."""

from __future__ import annotations

import torch

from holdfast.core.experience import Data, Experience
from holdfast.core.operation import Operation
from holdfast.core.ranges import Size
from holdfast.core.services import Services


class TrainOnly(Operation):
    """Experiences after the first few bring no data: no step is made on them.

    With one experience this is the control that shows what later experiences add; with none, the accuracy of
    chance. New outputs still grow, untrained. To freeze only a part of the model is another operation.

    Args:
        experiences: how many are trained on, from the first.

    Example:
        >>> TrainOnly(experiences=1)
        TrainOnly(experiences=1)
    """

    asks = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries", "replacement"})

    def __init__(self, experiences: Size = 1) -> None:
        super().__init__()
        self.experiences = experiences

    def begin(self, experience: Experience, learner: Services) -> Data | None:
        """Nothing to train on, once there were enough."""
        return None if experience.index < self.experiences else experience.train.subset(torch.arange(0))
