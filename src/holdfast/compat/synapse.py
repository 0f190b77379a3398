"""Synapse's pieces: tasks by name over any data set, and cross-entropy and accuracy among some of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from holdfast.core.errors import ConfigError, UsageError, unknown
from holdfast.core.experience import Experience, Stream
from holdfast.streams.loader import LoaderData, find_targets

IGNORED = -100
Reduction = Literal["mean", "sum", "none"]
Change = Callable[[Any], Any]


class TaskSubset(TorchDataset[tuple[Any, int]]):
    """Some items of a data set, with transforms of their own on top of the data set's.

    Args:
        dataset: items are `(input, target, ...)`.
        indices: of the items.
        transform: of inputs, or None.
        target_transform: of targets, or None.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Sequence[int],
        transform: Change | None = None,
        target_transform: Change | None = None,
    ) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        value, target = self.dataset[self.indices[index]][:2]
        value = value if self.transform is None else self.transform(value)
        return value, int(target if self.target_transform is None else self.target_transform(int(target)))


class Task(NamedTuple):
    """One task: its name, its data as torch data sets, and its targets."""

    key: str
    train_set: TaskSubset
    test_set: TaskSubset
    targets: tuple[int, ...]


class TaskDict(Mapping[str, Task]):
    """A mapping from task names to tasks, and the stream they make.

    It is made from two data sets, or as in Synapse from a folder: `TaskDict(root="datasets", key_to_targets=...)` of a
    subclass whose `_train_set` and `_test_set` make the data sets of `self.root`.

    Args:
        train_set: any map-style data set of `(input, target)`, for instance `torchvision.datasets.CIFAR100`; or the
            root, where a subclass makes the data sets.
        test_set: likewise; after a root the tasks may stand here.
        key_to_targets: task name -> its targets, in the order in which the tasks come. A target may be in several.
        key_to_transform: task name -> transform of its inputs, on top of the data set's own.
        key_to_target_transform: task name -> transform of its targets.
        root: folder of the data, for subclasses that make the data sets.

    Raises:
        ConfigError: for tasks without targets, targets named twice in a task, or that no item has.

    Example:
        >>> items = [(torch.full((2,), float(i)), i % 4) for i in range(20)]
        >>> tasks = TaskDict(items, items, {"even": [0, 2], "odd": [1, 3]})
        >>> list(tasks), len(tasks["odd"].train_set), tasks.num_targets
        (['even', 'odd'], 10, 4)
        >>> [experience.classes for experience in tasks.stream()]
        [(0, 1), (2, 3)]
    """

    def __init__(
        self,
        train_set: Any = None,
        test_set: Any = None,
        key_to_targets: Mapping[str, Sequence[int]] | None = None,
        key_to_transform: Mapping[str, Change] | None = None,
        key_to_target_transform: Mapping[str, Change] | None = None,
        *,
        root: str | Path | None = None,
    ) -> None:
        if isinstance(train_set, str | Path):
            root, train_set = train_set, None
            if key_to_targets is None:
                key_to_targets, test_set = test_set, None
        self.root = root
        train_set, test_set = self._sets(train_set, test_set)
        if not key_to_targets:
            raise ConfigError("a TaskDict got no tasks. Give key_to_targets={'1': [0, 1], '2': [2, 3]}.")
        for transforms in (key_to_transform or {}, key_to_target_transform or {}):
            for key in transforms:
                if key not in key_to_targets:
                    raise ConfigError(unknown("task", key, key_to_targets))
        sets = [(data, find_targets(data)) for data in (train_set, test_set)]
        present = set(sets[0][1].tolist())
        self._tasks: dict[str, Task] = {}
        for key, targets in key_to_targets.items():
            wanted = tuple(int(target) for target in targets)
            if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= present:
                raise ConfigError(
                    f"task {key!r} got the targets {list(targets)}. Give some of {sorted(present)[:12]}, each once."
                )
            change, target_change = (key_to_transform or {}).get(key), (key_to_target_transform or {}).get(key)
            train, test = (
                TaskSubset(
                    data, torch.isin(labels, torch.tensor(wanted)).nonzero().flatten().tolist(), change, target_change
                )
                for data, labels in sets
            )
            self._tasks[key] = Task(key, train, test, wanted)

    @property
    def _train_set(self) -> Any:
        """The training data set of `self.root`; a subclass makes it."""
        raise NotImplementedError

    @property
    def _test_set(self) -> Any:
        """The test data set of `self.root`; a subclass makes it."""
        raise NotImplementedError

    def _sets(self, train_set: Any, test_set: Any) -> tuple[Any, Any]:
        """The data sets given, and those that a subclass makes."""
        kind = type(self)
        for name, dataset in (("_train_set", train_set), ("_test_set", test_set)):
            if dataset is None and getattr(kind, name) is getattr(TaskDict, name):
                raise ConfigError(
                    f"{kind.__name__} got no {'training' if name == '_train_set' else 'test'} data. Give train_set and "
                    "test_set, or subclass TaskDict with the properties _train_set and _test_set."
                )
        made = self._train_set if train_set is None else train_set
        return made, self._test_set if test_set is None else test_set

    @property
    def num_targets(self) -> int:
        """Number of different targets over all tasks."""
        return len({target for task in self._tasks.values() for target in task.targets})

    def stream(
        self, paradigm: Literal["class", "task", "domain"] = "class", relabel: bool = True, workers: int = 0
    ) -> Stream:
        """The tasks as the experiences of a stream, read when they are needed.

        Args:
            paradigm: with "task", every experience has its number as task label.
            relabel: number the classes in the order in which they appear; False keeps the data set's targets.
            workers: processes that read.
        """
        changed = {
            key: [int(target if task.train_set.target_transform is None else task.train_set.target_transform(target))
                  for target in task.targets]
            for key, task in self._tasks.items()
        }  # fmt: skip
        seen = list(dict.fromkeys(target for targets in changed.values() for target in targets))
        labels = torch.full((max(seen) + 1,), -1, dtype=torch.int64)
        labels[torch.tensor(seen)] = torch.arange(len(seen)) if relabel else torch.tensor(seen)
        experiences = []
        for index, (key, task) in enumerate(self._tasks.items()):
            number = index if paradigm == "task" else None
            train, test = (
                LoaderData(part, _targets(part), workers=workers, task=number, label_map=labels)
                for part in (task.train_set, task.test_set)
            )
            classes = tuple(sorted(set(train.targets.tolist())))
            experiences.append(Experience(index, train, test, classes=classes, task=number, name=key))
        shape = tuple(next(iter(experiences[0].train)).inputs.shape[1:])  # type: ignore[union-attr]
        names = [str(target) for target in seen] if relabel else [str(target) for target in range(max(seen) + 1)]
        return Stream(experiences, shape, len(names), paradigm, name="tasks", class_names=tuple(names))

    def __getitem__(self, key: str) -> Task:
        if key not in self._tasks:
            raise KeyError(unknown("task", key, self._tasks))
        return self._tasks[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


def _targets(part: TaskSubset) -> list[int]:
    """Targets of a task's items, without reading the inputs."""
    targets = find_targets(part.dataset)[torch.tensor(part.indices, dtype=torch.int64)].tolist()
    return [int(t if part.target_transform is None else part.target_transform(t)) for t in targets]


# Losses among some of the classes ------------------------------------------------------------------------


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    keep: Sequence[int] | None = None,
    reduction: Reduction = "mean",
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Cross-entropy whose softmax runs over the classes in `keep` only; rows of other classes are left out.

    Args:
        logits: `[rows, classes]`.
        targets: `[rows]` class indices, int64.
        keep: class indices, each once; None keeps all.
        reduction: `mean` over the rows that count (0 if none does), `sum`, or `none`: `[rows]` with zeros elsewhere.
        weight: `[classes]` of each class, as `torch.nn.functional.cross_entropy` takes it; the mean is then weighted.
        label_smoothing: from 0 to 1, over the classes that are kept.
        ignore_index: rows with this target are left out.

    Raises:
        UsageError: for targets that are not class indices, or classes that repeat or have no output.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]])
        >>> masked_cross_entropy(logits, torch.tensor([0, 2]), keep=[0, 1])
        tensor(0.6931)
    """
    columns, labels = _kept(logits, targets, keep, ignore_index)
    if weight is not None and keep is not None:
        weight = weight[[int(label) for label in keep]]
    losses = F.cross_entropy(
        columns, labels, weight=weight, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    counted = labels != IGNORED
    if weight is None:
        return losses.sum() / counted.sum().clamp(min=1)
    total = (weight[labels.clamp(min=0)] * counted).sum()
    return losses.sum() / torch.where(total > 0, total, 1.0)


@torch.no_grad()
def masked_accuracy(
    logits: Tensor,
    targets: Tensor,
    keep: Sequence[int] | None = None,
    top_k: int = 1,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORED,
) -> Tensor:
    """Share of rows whose class is among the `top_k` largest outputs of the classes in `keep`.

    Args:
        logits: `[rows, classes]`.
        targets: `[rows]` class indices, int64.
        keep: class indices, each once; None keeps all. Rows of other classes are left out.
        top_k: how many outputs may hold the class.
        reduction: `mean` over the rows that count (0 if none does), `sum`, or `none`: `[rows]` of 0 and 1.
        ignore_index: rows with this target are left out.

    Raises:
        UsageError: as for `masked_cross_entropy`, and for more outputs than classes.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, 9.0], [1.0, 0.0, 9.0]])
        >>> masked_accuracy(logits, torch.tensor([0, 1])), masked_accuracy(logits, torch.tensor([0, 1]), keep=[0, 1])
        (tensor(0.), tensor(0.5000))
    """
    columns, labels = _kept(logits, targets, keep, ignore_index)
    if not 1 <= top_k <= columns.shape[1]:
        raise UsageError(
            f"top_k is {top_k} among {columns.shape[1]} classes. Give a number from 1 to {columns.shape[1]}."
        )
    hits = (columns.topk(top_k, dim=1).indices == labels.unsqueeze(1)).any(1).float()
    if reduction == "none":
        return hits
    return hits.sum() if reduction == "sum" else hits.sum() / (labels != IGNORED).sum().clamp(min=1)


def _kept(logits: Tensor, targets: Tensor, keep: Sequence[int] | None, ignored: int) -> tuple[Tensor, Tensor]:
    """The columns that count, and each row's place among them or `IGNORED`."""
    if targets.dtype != torch.int64 or targets.dim() != 1 or logits.dim() != 2:
        raise UsageError(
            f"got logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype}. "
            "Give logits [rows, classes] and int64 class indices [rows]."
        )
    left_out = targets == ignored
    if keep is None:
        return logits, targets.masked_fill(left_out, IGNORED)
    classes = [int(label) for label in keep]
    if len(set(classes)) < len(classes) or not classes or min(classes) < 0 or max(classes) >= logits.shape[1]:
        raise UsageError(f"keep is {classes} for {logits.shape[1]} outputs. Name some of the classes, each once.")
    places = torch.full((logits.shape[1],), IGNORED, dtype=torch.int64, device=logits.device)
    index = torch.tensor(classes, device=logits.device)
    places[index] = torch.arange(len(classes), device=logits.device)
    return logits[:, index], places[targets.masked_fill(left_out, 0)].masked_fill(left_out, IGNORED)
