"""The data of one experience: tensors in memory gathered by index, a `DataLoader` for the rest, and their union."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Tree, tree_map
from holdfast.streams.loader import LoaderData
from holdfast.streams.union import UnionData, concat
from holdfast.streams.views import View, as_targets, compact, relabel

__all__ = ["LoaderData", "TensorData", "UnionData", "View", "concat"]


class Store:
    """Tensors with one row per sample, and where their copies on other devices are."""

    def __init__(self, inputs: Tree) -> None:
        leaves = _leaves(inputs)
        if not leaves or len({leaf.shape[0] for leaf in leaves}) != 1:
            raise DataError(
                f"the inputs have {[leaf.shape[0] for leaf in leaves]} rows. Every input tensor needs the same number."
            )
        self.inputs = inputs
        self.rows = leaves[0].shape[0]
        self.row_bytes = sum(leaf.element_size() * (leaf.numel() // max(1, self.rows)) for leaf in leaves)
        self._copies: WeakValueDictionary[str, Store] = WeakValueDictionary({str(leaves[0].device): self})
        # A gather of rows from a matrix is several times faster than from a tensor of more dimensions.
        self._flat = tree_map(_flatten, inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.inputs,)

    def on(self, device: torch.device | str) -> Store:
        """This store on `device`; one copy serves every view, and goes when the last of them does."""
        key = str(torch.empty(0, device=device).device)
        found = self._copies.get(key)
        if found is None:
            found = Store(tree_map(lambda leaf: leaf.to(device), self.inputs))
            found._copies = self._copies
            self._copies[key] = found
        return found

    def take(self, rows: Tensor) -> Tree:
        """A copy of these rows."""
        if isinstance(self.inputs, Tensor) and isinstance(self._flat, Tensor):
            return self._flat.index_select(0, rows).view(-1, *self.inputs.shape[1:])
        return tree_map(lambda leaf: leaf.index_select(0, rows), self.inputs)


class TensorData(View):
    """Samples held in memory, gathered by index and never copied to make a subset.

    Args:
        inputs: raw inputs, `[rows, ...]` (a tensor, a tuple or a mapping of them); images as uint8.
        targets: one per row: class indices, or floats `[rows, ...]` for regression.
        index: rows to take, int64; None takes all.
        task: the task label of all rows, one per row taken, or None.
        transform: a function of raw inputs, applied to gathered batches (`streams.transforms`).
        target_shift: added to every label.
        label_map: new label of each label (`label_map[old]`), before the shift.

    Raises:
        DataError: the numbers of inputs and targets differ, or a target has no entry in the label map.

    Example:
        >>> data = TensorData(torch.arange(6).view(6, 1), torch.tensor([0, 1, 0, 1, 0, 1]), target_shift=2)
        >>> [batch.targets.tolist() for batch in data.subset(torch.tensor([5, 0, 1])).batches(torch.arange(3), 2)]
        [[3, 2], [3]]
    """

    def __init__(
        self,
        inputs: Tree,
        targets: Any,
        index: Tensor | None = None,
        task: int | Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        target_shift: int = 0,
        label_map: Tensor | None = None,
    ) -> None:
        store = Store(inputs)
        targets = as_targets(targets)
        if len(targets) != store.rows:
            raise DataError(f"there are {store.rows} inputs and {len(targets)} targets. Give one target per input.")
        if index is None:
            rows: Tensor | range = range(store.rows)
        else:
            index = index.to(torch.int64).cpu()
            targets, rows = targets[index], compact(index)
        device = _leaves(inputs)[0].device
        if isinstance(rows, Tensor):
            rows = rows.to(device)
        super().__init__(rows, relabel(targets, label_map, target_shift), task, transform, device)
        self._store = store

    @property
    def store(self) -> Store:
        """The tensors, shared by every view of them."""
        return self._store

    def to(self, device: torch.device | str) -> Self:
        """This data on `device`: the whole store moves, once for all the views that share it."""
        new = super().to(device)
        new._store = self._store.on(device)
        return new

    def _fetch(self, rows: Tensor) -> Tree:
        return self._store.take(rows)

    def _row_bytes(self) -> int:
        return self._store.row_bytes

    def __repr__(self) -> str:
        return f"TensorData({len(self)} of {self._store.rows} rows, task={self.task}, transform={self.transform})"


def materialise(data: View) -> TensorData:
    """The same samples with their transform already applied, in a store of their own."""
    parts = [batch.inputs for batch in data.batches(torch.arange(len(data)), 1024)]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) != len(parts) or not parts:
        raise ConfigError("only data with samples, of one input tensor each, can be transformed beforehand.")
    return TensorData(torch.cat(tensors), data.targets, task=data.task)


def _leaves(tree: Tree) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return list(tree if isinstance(tree, tuple) else tree.values())


def _flatten(leaf: Tensor) -> Tensor:
    return leaf.flatten(1) if leaf.dim() > 2 and leaf.is_contiguous() else leaf
