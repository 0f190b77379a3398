"""What arrives: batches, the data of one experience, experiences, and the stream that holds them in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

import torch
from torch import Tensor

Tree = Union[Tensor, tuple[Tensor, ...], Mapping[str, Tensor]]  # noqa: UP007
"""Model inputs: one tensor, a tuple passed as positional arguments, or a mapping passed as keyword arguments."""


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply `function` to every tensor of `tree`, keeping its shape of containers."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: function(value) for key, value in tree.items()}
    return tuple(function(value) for value in tree)


def tree_rows(tree: Tree) -> int:
    """The number of samples (first dimension) in `tree`."""
    if isinstance(tree, Tensor):
        return tree.shape[0]
    first = next(iter(tree.values())) if isinstance(tree, Mapping) else tree[0]
    return first.shape[0]


def tree_cat(trees: Sequence[Tree]) -> Tree:
    """Join trees of equal structure along the sample dimension."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(trees)  # type: ignore[arg-type]
    if isinstance(first, Mapping):
        return {key: torch.cat([tree[key] for tree in trees]) for key in first}  # type: ignore[index, misc, call-overload]
    return tuple(torch.cat([tree[i] for tree in trees]) for i in range(len(first)))  # type: ignore[index, misc]


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
        task: the task label of all rows, `[rows]` labels where tasks are mixed, or None where there are none.
        appended: rows that operations want to go through the *same* forward, by operation name; each a
            mapping with at least `inputs` and `targets`. Their outputs reach the operation in `step.extras`.
    """

    inputs: Tree
    targets: Tensor
    task: int | Tensor | None = None
    appended: dict[str, dict[str, Any]] | None = None

    def append(self, name: str, rows: dict[str, Any]) -> Batch:
        """This batch with `rows` (at least `inputs` and `targets`) joined to its forward, under `name`."""
        return Batch(self.inputs, self.targets, self.task, {**(self.appended or {}), name: rows})


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
    """

    experiences: list[Experience]
    input_shape: tuple[int, ...]
    classes: int
    paradigm: str = "class"
    prepare: Callable[[Tensor, bool, torch.Generator | None], Tensor] | None = None
    name: str = "stream"
    class_names: tuple[str, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)

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
        return targets[:1].numel() if targets.is_floating_point() else 0

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {len(self)} experiences, {self.classes} classes, {self.paradigm}-incremental)"
