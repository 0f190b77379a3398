"""Items that a collate function makes into batches, such as texts padded to the longest of their batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from holdfast.core.errors import DataError, UsageError
from holdfast.core.experience import Batch, Data, Tree, tree_map
from holdfast.core.tree import tree_cat_padded
from holdfast.streams.loader import untouched
from holdfast.streams.views import as_targets, check_batch_size

Split = Callable[[Any], tuple[Tree, Tensor]]

TARGETS = ("labels", "targets", "target", "label", "y")
"""Where a batch that is a mapping has its targets."""

IGNORED = -100
"""The label that targets of different lengths are padded with: it counts for nothing under cross-entropy."""


def split_batch(batch: Any) -> tuple[Tree, Tensor]:
    """Inputs and targets of a batch as most loaders make them.

    Raises:
        UsageError: for a batch that does not say which part is the targets.

    Example:
        >>> inputs, targets = split_batch({"ids": torch.ones(2, 3), "mask": torch.ones(2, 3), "labels": torch.ones(2)})
        >>> sorted(inputs), targets.shape
        (['ids', 'mask'], torch.Size([2]))
    """
    if isinstance(batch, Mapping):
        target_name = next((name for name in TARGETS if name in batch), None)
        if target_name is not None:
            return {name: value for name, value in batch.items() if name != target_name}, batch[target_name]
    elif isinstance(batch, list | tuple) and len(batch) >= 2:
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return (dict(inputs) if isinstance(inputs, Mapping) else inputs), batch[-1]
    elif isinstance(batch, Tensor):
        return batch, batch
    raise UsageError(
        f"a batch of type {type(batch).__name__} does not say which part is the targets. "
        "Pass batch=lambda batch: (inputs, targets)."
    )


class CollatedData(Data):
    """Items of a map-style data set, made into batches by the collate function that they come with.

    Batches may differ in length, and hold the targets that the function makes. `targets` are found by going over all
    items once, when they are asked for, and padded with -100 to the longest.

    Args:
        dataset: anything with `__len__` and `__getitem__`.
        collate: from a list of items to a batch.
        split: takes inputs and targets out of a batch.
        index: which items, int64; None takes all.
        device: where batches appear.

    Example:
        >>> items = [{"ids": [1] * length, "labels": length % 2} for length in (2, 3, 1)]
        >>> def collate(items):
        ...     longest = max(len(item["ids"]) for item in items)
        ...     ids = torch.tensor([item["ids"] + [0] * (longest - len(item["ids"])) for item in items])
        ...     return {"ids": ids, "labels": torch.tensor([item["labels"] for item in items])}
        >>> data = CollatedData(items, collate)
        >>> data.targets.tolist(), [tuple(batch.inputs["ids"].shape) for batch in data.batches(torch.arange(3), 2)]
        ([0, 1, 1], [(2, 3), (1, 1)])
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        split: Split = split_batch,
        index: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(
                f"data of type {type(dataset).__name__} has no length or no items to be asked for, so it cannot be gone"
                " over in another order. Read what is needed into a list first."
            )
        self._dataset = dataset
        self._collate = collate
        self._split = split
        self._index = torch.arange(len(dataset)) if index is None else index.to(torch.int64).cpu()
        self._device = torch.device(device)
        self._targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def targets(self) -> Tensor:
        """All targets in order, `[len(self), ...]`, on the CPU."""
        if self._targets is None:
            parts = [batch.targets.cpu() for batch in self.batches(torch.arange(len(self)), 256)]
            joined = tree_cat_padded(parts, lambda *_: IGNORED, "targets") if parts else torch.empty(0)
            assert isinstance(joined, Tensor)
            self._targets = joined
        return self._targets

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield the samples in `order` in batches of `batch_size`, the last one possibly smaller."""
        check_batch_size(batch_size)
        device = self._device
        for rows in self._index[order.cpu()].split(batch_size) if len(order) else ():
            with untouched():
                inputs, targets = self._split(self._collate([self._dataset[row] for row in rows.tolist()]))
            yield Batch(tree_map(lambda leaf: leaf.to(device), inputs), as_targets(targets).to(device))

    def subset(self, index: Tensor) -> Self:
        """The samples at `index` (int64, may repeat), sharing the data set."""
        new = copy.copy(self)
        index = index.to(torch.int64).cpu()
        new._index = self._index[index]
        new._targets = None if self._targets is None else self._targets[index]
        return new

    def to(self, device: torch.device | str) -> Self:
        """This data, with batches on `device`."""
        new = copy.copy(self)
        new._device = torch.device(device)
        return new

    def __repr__(self) -> str:
        return f"CollatedData({len(self)} of {len(self._dataset)} items)"
