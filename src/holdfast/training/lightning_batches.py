"""Inputs and targets of what a Lightning trainer's loaders give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.experience import Data, Tree
from holdfast.streams.data import LoaderData

Split = Callable[[Any], tuple[Tree, Tensor]]

TARGETS = ("labels", "targets", "target", "label", "y")
"""Where a batch that is a mapping has its targets."""


def split_batch(batch: Any) -> tuple[Tree, Tensor]:
    """Inputs and targets of a batch as most loaders make them."""
    if isinstance(batch, Mapping):
        found = next((name for name in TARGETS if name in batch), None)
        if found is not None:
            return {name: value for name, value in batch.items() if name != found}, batch[found]
    elif isinstance(batch, list | tuple) and len(batch) >= 2:
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return (dict(inputs) if isinstance(inputs, Mapping) else inputs), batch[-1]
    elif isinstance(batch, Tensor):
        return batch, batch
    raise UsageError(
        f"a batch of type {type(batch).__name__} does not say which part is the targets. "
        "Pass ContinualCallback(..., batch=lambda batch: (inputs, targets))."
    )


class Items:
    """A data set whose items are `(inputs, target)`, whatever they were.

    Args:
        dataset: anything with `__len__` and `__getitem__`.
        split: takes inputs and target out of an item, as it does of a batch.
    """

    def __init__(self, dataset: Any, split: Split) -> None:
        self.dataset = dataset
        self.split = split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tree, Tensor]:
        return self.split(self.dataset[index])


def data_of(trainer: Any, split: Split) -> Data | None:
    """The data set behind the training loader, if it can be gone over again.

    Args:
        trainer: that trains.
        split: takes inputs and targets out of a batch.
    """
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if isinstance(dataset, Data) or dataset is None:
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return None
    pairs = split is split_batch and len(dataset) and isinstance(dataset[0], list | tuple) and len(dataset[0]) == 2
    return LoaderData(dataset if pairs else Items(dataset, split))
