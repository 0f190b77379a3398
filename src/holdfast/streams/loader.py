"""Any map-style torch data set behind a `DataLoader`, for what does not fit in memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from holdfast.core.decide import note_on_host
from holdfast.core.errors import DataError
from holdfast.core.experience import Batch, Tree, tree_map
from holdfast.streams.views import View, as_targets, check_batch_size, compact, joined_task, relabel

TARGETS = ("label", "labels", "target", "targets")
"""Keys of the target in items that are mappings."""


class LoaderData(View):
    """Samples read from a map-style data set when they are needed.

    Items are `(input, target, ...)`, mappings with a `label` (or `labels`, `target`, `targets`), or the input alone.
    Inputs may be tensors, arrays, PIL images (which become uint8 `[channels, height, width]`), or tuples and mappings
    of these. Targets are taken from `targets`, or from the data set's `targets` or `labels` where it has them and its
    items agree, and only otherwise by reading every item once. The order is given from outside, so the loader never
    touches the global random state; what workers draw depends on the order only.

    Args:
        dataset: anything with `__len__` and `__getitem__`; or a `DataLoader` of such, whose batch size and order do not
            matter here, and whose sampler may leave samples out.
        targets: one per item of `dataset`; None finds them.
        index: rows to take, int64; None takes all.
        workers: processes that read; 0 reads in this one.
        task: the task label of all rows, or None.
        transform: a function of raw inputs, applied to collated batches.
        label_map: new label of each label.

    Raises:
        DataError: for data without length or items, a loader with a collate function or sampler of its own, items
            without a target, a `TensorDataset` of which the targets cannot be told, or another number of targets.

    Example:
        >>> items = [(torch.full((2,), float(i)), i % 2) for i in range(5)]
        >>> [batch.targets.tolist() for batch in LoaderData(items).batches(torch.tensor([4, 3, 1]), 2)]
        [[0, 1], [1]]
    """

    def __init__(
        self,
        dataset: Any,
        targets: Any = None,
        index: Tensor | None = None,
        workers: int = 0,
        task: int | Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        label_map: Tensor | None = None,
    ) -> None:
        if isinstance(dataset, DataLoader):
            workers = workers or dataset.num_workers
            dataset = unloaded(dataset)
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(
                f"data of type {type(dataset).__name__} has no length or no items to be asked for, so it cannot be gone"
                " over in another order. Read what is needed into a list of (input, target) first."
            )
        all_targets = find_targets(dataset) if targets is None else as_targets(targets)
        if len(all_targets) != len(dataset):
            raise DataError(f"there are {len(dataset)} items and {len(all_targets)} targets. Give one target per item.")
        index = None if index is None else index.to(torch.int64).cpu()
        rows = range(len(all_targets)) if index is None else compact(index)
        all_targets = all_targets if index is None else all_targets[index]
        super().__init__(rows, relabel(all_targets, label_map, 0), task, transform)
        self._dataset = dataset
        self.workers = workers
        self._bytes: int | None = None

    @property
    def store(self) -> Any:
        """The torch data set."""
        return self._dataset

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield the samples in `order` in batches of `batch_size`, read by `workers` processes."""
        check_batch_size(batch_size)
        if len(order) == 0:
            return
        known, order = self._known(order), order.to(self.device)
        stored = self._stored(order).cpu()
        # Without a generator of its own a DataLoader draws from the global random state, even with no workers.
        generator = torch.Generator().manual_seed(_seed_of(stored))
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=[part.tolist() for part in stored.split(batch_size)],
            num_workers=self.workers,
            collate_fn=collate,
            generator=generator,
            pin_memory=self.device.type == "cuda",
        )
        tasks = self._tasks(order, batch_size)
        noted = repeat(None) if known is None else known.split(batch_size)
        for inputs, part, labels, task in zip(loader, order.split(batch_size), noted, tasks):
            moved = self._moved(inputs)
            if self.transform is not None:
                moved = tree_map(self.transform, moved)
            targets = self._here.index_select(0, part)
            note_on_host(targets, labels)
            yield Batch(moved, targets, task)

    def _fetch(self, rows: Tensor) -> Tree:
        if len(rows) == 0:
            return tree_map(lambda leaf: leaf[:0], self._moved(collate([self._dataset[0]])))
        return self._moved(collate([self._dataset[row] for row in rows.tolist()]))

    def _stored_rows(self) -> Sequence[int]:
        return self._rows if isinstance(self._rows, range) else self._rows.tolist()

    def _moved(self, inputs: Tree) -> Tree:
        if self.device.type == "cpu":
            return inputs
        return tree_map(lambda leaf: leaf.to(self.device, non_blocking=True), inputs)

    def _row_bytes(self) -> int:
        if self._bytes is None:
            item = collate([self._dataset[0]]) if len(self._dataset) else torch.empty(1)
            leaves = [item] if isinstance(item, Tensor) else list(item.values() if isinstance(item, Mapping) else item)
            self._bytes = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        return self._bytes

    def __repr__(self) -> str:
        return f"LoaderData({len(self)} of {len(self._dataset)} items, workers={self.workers}, task={self.task})"


def unloaded(loader: DataLoader[Any]) -> Any:
    """The data set that a loader reads, without what its sampler leaves out.

    Raises:
        DataError: for a loader whose batches are not those items.
    """
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(
            "the loader reads an IterableDataset, which has no items to be asked for. Read what is needed into a list"
            " of (input, target) first."
        )
    if loader.collate_fn is not default_collate:
        raise DataError(
            "the loader has a collate function of its own, which makes its batches something else than its items. Give"
            " LoaderData a data set whose items are (input, target), of one shape."
        )
    chosen = sampled(loader)
    if chosen is None:
        raise DataError(
            f"the loader has a {type(sampler).__name__}, which chooses samples in a way that is not known here. Give"
            " LoaderData the data set, with index= for a part of it."
        )
    return chosen


def sampled(loader: DataLoader[Any]) -> Any:
    """The items that a loader reads, each once; None where they are not known, or cannot be asked for."""
    if isinstance(loader.dataset, IterableDataset):
        return None
    if isinstance(loader.sampler, SubsetRandomSampler):
        return Subset(loader.dataset, [int(index) for index in loader.sampler.indices])
    return loader.dataset if isinstance(loader.sampler, SequentialSampler | RandomSampler) else None


def find_targets(dataset: Any) -> Tensor:
    """The targets of a map-style data set, without reading its inputs where it says them otherwise.

    Raises:
        DataError: for items without a target, or tensors of which the targets cannot be told.
    """
    if isinstance(dataset, Subset):
        return find_targets(dataset.dataset)[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([find_targets(part) for part in dataset.datasets])
    if isinstance(dataset, TensorDataset):
        return as_targets(_second(dataset))
    for name in ("targets", "labels", "_labels"):
        values = getattr(dataset, name, None)
        if values is not None and not callable(values) and len(values) == len(dataset):
            change = getattr(dataset, "target_transform", None)
            targets = as_targets(values if change is None else [change(target) for target in values])
            if _agree(dataset, targets):
                return targets
    with untouched():
        return as_targets([_target(dataset[row], row) for row in range(len(dataset))])


def _second(dataset: TensorDataset) -> Tensor:
    """The targets among the tensors of a data set: the second, as items are `(input, target, ...)`."""
    tensors = dataset.tensors
    if len(tensors) < 2:
        raise DataError("the TensorDataset has one tensor, and no targets. Give targets=, or TensorDataset(x, y).")
    second = tensors[1]
    if len(tensors) > 2 and second.dim() > 1 and second[:1].numel() > 1:
        raise DataError(
            f"the TensorDataset has {len(tensors)} tensors of the shapes {[tuple(t.shape) for t in tensors]}, and the"
            " second is no target for each row. Give targets=, or items ((first input, second input), target)."
        )
    return second


def _agree(dataset: Any, targets: Tensor) -> bool:
    """Whether the first and the last item have the targets that the data set says."""
    with untouched():
        for row in {0, len(targets) - 1} if len(targets) else ():
            try:
                target = _target(dataset[row], row)
                if not bool((torch.as_tensor(target).cpu() == targets[row]).all()):
                    return False
            except DataError:  # items are inputs alone
                return True
            except (TypeError, ValueError, RuntimeError):  # words, or another shape
                return False
    return True


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Leaves the global random states as they were, whatever a data set's own transforms draw."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def collate(items: Sequence[Any]) -> Tree:
    """The inputs of several items as one batch: `[rows, ...]`."""
    return _stack([_input(item) for item in items])


def _input(item: Any) -> Any:
    """The input of an item: its first entry, or what a mapping holds beside the target."""
    if isinstance(item, Mapping):
        rest = {key: value for key, value in item.items() if key not in TARGETS}
        return next(iter(rest.values())) if len(rest) == 1 and len(item) > 1 else rest
    return item[0] if isinstance(item, (tuple, list)) else item


def _stack(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _stack([value[key] for value in values]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_stack(column) for column in zip(*values))
    tensors = [to_tensor(value) for value in values]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"samples of one batch have the shapes {sorted(shapes)[:4]}. Give all samples one shape, "
            "for images with the parameter size."
        )
    kinds = {str(tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        raise DataError(
            f"samples of one batch have the types {sorted(kinds)}. Convert them to one: bytes run to 255, floats mostly"
            " to 1."
        )
    return torch.stack(tensors)


def to_tensor(value: Any) -> Tensor:
    """One input as a tensor; a PIL image as uint8 `[channels, height, width]`."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "getbands"):
        pixels = torch.from_numpy(np.array(value))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
    tensor = torch.as_tensor(value)
    return tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor


def _target(item: Any, row: int) -> Any:
    if isinstance(item, Mapping):
        key = next((key for key in TARGETS if key in item), None)
        if key is None:
            raise DataError(f"item {row} has {sorted(item)}, and no {TARGETS[0]!r}. Give targets=.")
        return item[key]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"item {row} has no target. Give targets=, or items that are (input, target).")
    if isinstance(item[0], int | np.integer) and not isinstance(item[1], int | float | np.number):
        raise DataError(
            f"item {row} begins with the number {item[0]}, and {type(item[1]).__name__} stands where its target should."
            " Give targets=, or items that are (input, target)."
        )
    return item[1]


def joined(parts: Sequence[LoaderData]) -> LoaderData:
    """Several loader data of one transform as one, so that their items are read by the same workers."""
    first = parts[0]
    items: ConcatDataset[Any] = ConcatDataset([Subset(part._dataset, list(part._stored_rows())) for part in parts])
    targets = torch.cat([part.targets for part in parts])
    workers = max(part.workers for part in parts)
    return LoaderData(items, targets, None, workers, joined_task(parts), first.transform).to(first.device)


def _seed_of(order: Tensor) -> int:
    weights = torch.arange(1, len(order) + 1) % 8191
    return int(((order % 1_000_003) * weights).sum()) % 2**31
