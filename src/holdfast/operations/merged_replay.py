"""Merged replay: what is remembered joins the training data of the next experience, sample by sample."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from holdfast.core.experience import Data, Experience
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.streams.data import TensorData, concat


class MergedReplay(Operation):
    r"""Each experience after the first is trained on its own data and `repeat` copies of the memory, shuffled together.

    $$ D_t \leftarrow D_t \cup \underbrace{M \cup \dots \cup M}_{\text{repeat}} $$

    Old samples are so as frequent as they are many: a small memory is seen rarely, unless `repeat` is raised. Made
    for a memory that changes between experiences only (`RememberExemplars`); with `Remember` the joined samples
    pass by again and are offered to the memory again.

    Args:
        repeat: copies of the memory that join.

    Raises:
        ConfigError: no copies.

    Source: Rebuffi et al. 2017, "iCaRL: incremental classifier and representation learning", algorithm 3: "form
    combined training set".

    Example:
        >>> sorted(MergedReplay().needs)
        ['boundaries', 'replacement']
    """

    asks = "nothing"
    draws = True
    role = "knowledge retention"
    needs = frozenset({"boundaries", "replacement"})

    def __init__(self, repeat: Count = 1) -> None:
        super().__init__()
        self.repeat = repeat

    def begin(self, experience: Experience, learner: Services) -> Data | None:
        """The experience's data with the memory, once there is one."""
        if learner.memory is None or not len(learner.memory):
            return None
        rows = learner.memory.all()
        old = TensorData(rows["inputs"], cast(Tensor, rows["targets"]), task=cast("Tensor | None", rows.get("task")))
        device = getattr(experience.train, "device", None)
        return concat([experience.train, *[old if device is None else old.to(device)] * self.repeat])
