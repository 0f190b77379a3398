"""What arrives: batches, the data of one experience, experiences, and the stream that holds them in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.core.tree import Plain, Tree, tree_cat, tree_map, tree_rows

__all__ = ["Batch", "Data", "Experience", "Stream", "Tree", "task_column", "tree_cat", "tree_map", "tree_rows"]


Extras = dict[str, Any]
"""Side results of a forward (masks, chosen prompts, outputs of appended rows), by the name of the operation."""


def task_column(task: int | Tensor, rows: int, device: torch.device) -> Tensor:
    """The task label of each of `rows` samples, `[rows]` int64."""
    return task if isinstance(task, Tensor) else torch.full((rows,), task, dtype=torch.int64, device=device)


@dataclass(slots=True)
class Batch:
    """Samples that go through the model together.

    Attributes:
        inputs: raw inputs, `[rows, ...]`; images are usually uint8 and become floats in `Learner.prepare`.
        targets: `[rows]` class indices (int64), or `[rows, ...]` floats for regression and multi-label targets. None
            before the forward of a loop that is not ours; who looks at them there declares the need `targets`.
        task: the task label of all rows, `[rows]` labels where tasks are mixed, or None if there are none.
        appended: rows that operations want to go through the *same* forward, by operation name; each a
            mapping with at least `inputs` and `targets`. Their outputs reach the operation in `step.extras`.
        fresh: `[rows]` bool, which rows are trained on for the first time, where a source gives some again; those alone
            are remembered, and count as predicted before they were trained on. None: all of them.
        held_out: rows that arrived with these and are not to be trained on (see `holdfast.sources.HoldOut`).
    """

    inputs: Tree
    targets: Tensor
    task: int | Tensor | None = None
    appended: dict[str, Extras] | None = None
    fresh: Tensor | None = None
    held_out: Batch | None = None

    def append(self, name: str, rows: Extras) -> Batch:
        """This batch with `rows` (at least `inputs` and `targets`) joined to its forward, under `name`."""
        return Batch(self.inputs, self.targets, self.task, {**(self.appended or {}), name: rows}, self.fresh)

    def joined(self, device: torch.device) -> tuple[Tree, int | Tensor | None]:
        """Inputs and tasks of the current and the appended rows, for one forward on `device`."""
        appended = self.appended or {}
        inputs = tree_cat([self.inputs, *[rows["inputs"] for rows in appended.values()]])
        if self.task is None or not all("task" in rows for rows in appended.values()):
            return inputs, self.task
        current = task_column(self.task, tree_rows(self.inputs), device)
        return inputs, torch.cat([current, *(rows["task"] for rows in appended.values())])

    def parted(self, outputs: Tensor) -> tuple[Tensor, Extras]:
        """Outputs of the current rows, and each operation's appended rows with their `outputs`."""
        appended = self.appended or {}
        sizes = [tree_rows(self.inputs)]
        for rows in appended.values():  # loops, and not comprehensions: this is done at every step
            sizes.append(tree_rows(rows["inputs"]))
        parts = torch.split_with_sizes(outputs, sizes)
        extras: Extras = {}
        for name, part in zip(appended, parts[1:]):
            extras[name] = {**appended[name], "outputs": part}
        return parts[0], extras


class Data(ABC):
    """A finite set of samples that can be visited in any order, as often as wanted.

    Two kinds exist: tensors in memory gathered by index (`streams.data.TensorData`), and any map-style
    data set behind a `DataLoader` (`streams.data.LoaderData`) for what does not fit.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """All targets in order, `[len(self), ...]`, on the CPU."""

    @abstractmethod
    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield the samples in `order` (int64 indices into this data) in batches, the last one possibly smaller."""

    @abstractmethod
    def subset(self, index: Tensor) -> Data:
        """The samples at `index` (int64, may repeat), sharing storage with this data."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Data:
        """This data with what it holds in memory on `device`; nothing is copied where it is there already."""

    def gather(self, index: Tensor) -> Batch:
        """The samples at `index` as one batch."""
        return next(self.batches(index, max(1, len(index))))

    def __iter__(self) -> Iterator[Batch]:
        """Batches of 256 in order: for a look, or for a pass without an optimiser."""
        return self.batches(torch.arange(len(self)), 256)


@dataclass(slots=True)
class Experience:
    """One stretch of a stream: what arrives between two boundaries.

    Attributes:
        index: position in its stream, from 0.
        train: training data.
        test: test data of the same distribution.
        validation: held-out part of the training data, or None.
        classes: the class indices present in `train`, ascending; empty for regression.
        task: the task label where the stream is task-labelled, else None.
        name: for reports.
        stream: the stream it belongs to.
    """

    index: int
    train: Data
    test: Data | None = None
    validation: Data | None = None
    classes: tuple[int, ...] = ()
    task: int | None = None
    name: str = ""
    stream: Stream | None = None

    def tasks(self) -> dict[int, tuple[int, ...]] | None:
        """The classes of each task whose classes are all among this experience's, where data mixes several."""
        if self.task is None or self.stream is None:
            return None
        mine = set(self.classes)
        return {
            other.task: other.classes for other in self.stream if other.task is not None and mine >= set(other.classes)
        }


@dataclass
class Stream(Sequence[Experience]):
    """Experiences in order, with what a model and a report must know of them.

    Attributes:
        experiences: in order.
        input_shape: shape of one sample as the model sees it, for instance `(1, 28, 28)` or `(64,)`.
        classes: total number of classes over the whole stream (0 for regression).
        paradigm: `"class"`, `"domain"` or `"task"` incremental.
        prepare: turns raw inputs into floats: `prepare(inputs, training, generator)`. None leaves them as they are.
        name: of the stream, for reports.
        class_names: one per class, in index order.
        description: the scenario as plain JSON values, enough to build it again.
        table: how the columns of a table become the inputs, as plain JSON values; None where they are no table's.
    """

    experiences: list[Experience]
    input_shape: tuple[int, ...]
    classes: int
    paradigm: str = "class"
    prepare: Callable[[Tensor, bool, torch.Generator | None], Tensor] | None = None
    name: str = "stream"
    class_names: tuple[str, ...] = ()
    description: Plain = field(default_factory=dict)
    table: dict[str, object] | None = None

    def __post_init__(self) -> None:
        for experience in self.experiences:
            experience.stream = self

    def __len__(self) -> int:
        return len(self.experiences)

    def __getitem__(self, index: Any) -> Any:
        return self.experiences[index]

    def first(self, count: int | None) -> Stream:
        """The stream of the first `count` experiences, its classes as before; itself where it has no more."""
        if count is None or count >= len(self):
            return self
        kept = [replace(experience) for experience in self.experiences[:count]]
        return replace(self, experiences=kept)

    @property
    def outputs(self) -> int:
        """How many outputs a model of this stream needs: one per class, or one per number of a target."""
        if self.classes or not self.experiences:
            return self.classes
        targets = self.experiences[0].train.targets
        return targets.shape[1:].numel() if targets.is_floating_point() else 0

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {len(self)} experiences, {self.classes} classes, {self.paradigm}-incremental)"
