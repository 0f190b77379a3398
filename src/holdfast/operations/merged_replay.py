"""Merged replay: what is remembered joins the training data of the next experience, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from holdfast.core.experience import Batch, Data, Experience
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.memory.memories import ExperienceMemories
from holdfast.streams.data import TensorData, concat


class MergedReplay(Operation):
    r"""Each experience after the first is trained on its own data and `repeat` copies of the memory, shuffled together.

    $$ D_t \leftarrow D_t \cup \underbrace{M \cup \dots \cup M}_{\text{repeat}} $$

    Old samples are so as frequent as they are many: a small memory is seen rarely, unless `repeat` is raised. Made
    for a memory that changes between experiences only (`RememberExemplars`); with `Remember` the joined samples
    pass by again and are offered to the memory again. A memory of each experience's own samples
    (`GradientConstraints`) takes none of them again: they belong to the experience that they came in.

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
        merged = concat([experience.train, *[old if device is None else old.to(device)] * self.repeat])
        return Marked(merged, len(experience.train)) if isinstance(learner.memory, ExperienceMemories) else merged


class Marked(Data):
    """Data whose batches say which of their rows arrived with the experience: those from before are not `fresh`.

    Args:
        data: what arrived, then what was remembered.
        arrived: how many rows of it arrived; or `[rows]` bool, which did.
    """

    def __init__(self, data: Data, arrived: int | Tensor) -> None:
        self._data = data
        self._arrived = torch.arange(len(data)) < arrived if isinstance(arrived, int) else arrived

    def __len__(self) -> int:
        return len(self._data)

    @property
    def targets(self) -> Tensor:
        """All targets in order, `[len(self), ...]`, on the CPU."""
        return self._data.targets

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield the samples in `order` in batches, each with its `fresh` rows."""
        fresh = self._arrived[order.cpu()].split(batch_size)
        for batch, rows in zip(self._data.batches(order, batch_size), fresh):
            batch.fresh = rows
            yield batch

    def subset(self, index: Tensor) -> Marked:
        """The samples at `index`, sharing storage with this data."""
        return Marked(self._data.subset(index), self._arrived[index.cpu()])

    def to(self, device: torch.device | str) -> Marked:
        """This data with what it holds in memory on `device`."""
        return Marked(self._data.to(device), self._arrived)
