"""The data of one experience: tensors in memory gathered by index, a `DataLoader` for the rest, and their union."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from holdfast.core.errors import ConfigError, DataError, UsageError
from holdfast.core.experience import Data, Experience, Stream, Tree, tree_cat, tree_map
from holdfast.streams.collated import CollatedData, Split, split_batch
from holdfast.streams.loader import LoaderData, joined, sampled
from holdfast.streams.views import View, as_targets, compact, joined_task, relabel

__all__ = ["LoaderData", "Pairs", "TensorData", "UnionData", "View", "as_data", "concat", "stream_of"]

Pairs = Data | Dataset[Any] | DataLoader[Any] | Iterable[Any] | tuple[Tensor, Tensor]
"""Data in any usual form: ours, a torch data set or loader, a list of batches, or one batch `(inputs, targets)`."""


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
        store = self._copies.get(key)
        if store is None:
            store = Store(tree_map(lambda leaf: leaf.to(device), self.inputs))
            store._copies = self._copies
            self._copies[key] = store
        return store

    def take(self, rows: Tensor) -> Tree:
        """A copy of these rows."""
        if isinstance(self.inputs, Tensor) and isinstance(self._flat, Tensor):
            return self._flat.index_select(0, rows).view(len(rows), *self.inputs.shape[1:])
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


def as_data(data: Pairs, split: Split | None = None) -> Data:
    """Data in any usual form as ours.

    Args:
        data: ours; a map-style torch data set, or a loader of one, with a collate function of its own too (a list of
            items goes through that each time); an iterable of batches, `(inputs, targets, ...)` or mappings, such as a
            list or a loader of an iterable data set, which is read into memory; or one batch.
        split: takes inputs and targets out of a batch; default: its first two entries, or of a mapping its `labels`,
            `targets`, `target`, `label` or `y`, and the rest as inputs.

    Raises:
        DataError: for anything but batches, or batches whose inputs cannot be joined.

    Example:
        >>> batches = [(torch.zeros(3, 2), torch.tensor([0, 1, 0])), (torch.ones(1, 2), torch.tensor([1]))]
        >>> as_data(batches).targets.tolist(), as_data(batches[0]).targets.tolist()
        ([0, 1, 0, 1], [0, 1, 0])
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return TensorData(data[0], data[1])
    if isinstance(data, DataLoader):
        if data.collate_fn is default_collate and split is None:
            try:
                return LoaderData(data)
            except DataError:  # batches that are more than their items: read as they come
                return _of_batches(data, split or _parts)
        chosen = sampled(data)
        return (
            _of_batches(data, split or _parts)
            if chosen is None
            else CollatedData(chosen, data.collate_fn, split or _parts)
        )
    if isinstance(data, Dataset) and hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return LoaderData(data)
    return _of_batches(data, split or _parts)  # type: ignore[arg-type]


def stream_of(experiences: Sequence[Pairs], tests: Sequence[Pairs] | None = None, name: str = "data") -> Stream:
    """The stream of data that somebody has in experiences already, as they are.

    Args:
        experiences: the training data of each, in any usual form: data sets, loaders, lists of batches.
        tests: the test data of each; None for none.
        name: for reports.

    Raises:
        DataError: for no experience, not one test set for each, or anything but data.

    Example:
        >>> batch = (torch.zeros(3, 2), torch.tensor([0, 1, 0]))
        >>> stream = stream_of([[batch], [(torch.ones(1, 2), torch.tensor([2]))]], tests=[[batch], [batch]])
        >>> stream.classes, [experience.classes for experience in stream], stream.input_shape
        (3, [(0, 1), (2,)], (2,))
    """
    if not experiences or (tests is not None and len(tests) != len(experiences)):
        count = "none" if tests is None else len(tests)
        raise DataError(f"there are {len(experiences)} experiences and {count} tests. Give one test for each, or none.")
    train = [as_data(one) for one in experiences]
    test = [None] * len(train) if tests is None else [as_data(one) for one in tests]
    single = not train[0].targets.is_floating_point() and train[0].targets.dim() == 1
    highest = max(int(data.targets.max()) for data in (*train, *filter(None, test))) if single else -1
    first = train[0].gather(torch.tensor([0])).inputs
    made = [
        Experience(
            index,
            data,
            test[index],
            classes=tuple(data.targets.unique().tolist()) if single else (),
            name=f"{index + 1} of {len(train)}",
        )
        for index, data in enumerate(train)
    ]
    shape = tuple(first.shape[1:]) if isinstance(first, Tensor) else ()
    names = tuple(str(label) for label in range(highest + 1))
    return Stream(made, shape, highest + 1, "class" if single else "domain", name=name, class_names=names)


def _parts(batch: Any) -> tuple[Tree, Tensor]:
    return (batch[0], batch[1]) if isinstance(batch, tuple | list) and len(batch) > 1 else split_batch(batch)


def _of_batches(batches: Iterable[Any], split: Split) -> TensorData:
    inputs, targets = [], []
    if not isinstance(batches, Iterable):
        raise DataError(f"got {type(batches).__name__} as data. Give a data set, a loader or a list of batches.")
    for batch in batches:
        try:
            one, of = split(batch)
        except UsageError:
            of = None
        if not isinstance(of, Tensor) or of is batch:
            raise DataError(f"a batch is a {type(batch).__name__}. Give batches (inputs, targets) of tensors.")
        inputs.append(one)
        targets.append(of)
    if not inputs:
        raise DataError("the data has no batch. Give at least one (inputs, targets).")
    try:
        return TensorData(tree_cat(inputs), torch.cat(targets))
    except (RuntimeError, TypeError, KeyError) as error:
        raise DataError(f"batches of different shapes cannot be joined: {error}. Pad them to one length.") from error


def _leaves(tree: Tree) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return list(tree if isinstance(tree, tuple) else tree.values())


def _flatten(leaf: Tensor) -> Tensor:
    return leaf.flatten(1) if leaf.dim() > 2 and leaf.is_contiguous() else leaf


# Unions -------------------------------------------------------------------------------------------------


class UnionData(View):
    """Several data one after the other; a chunk of batches is gathered part by part and put in order.

    Args:
        parts: the data, of equal input shapes and on one device.
    """

    def __init__(self, parts: Sequence[Data]) -> None:
        self._parts = list(parts)
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        targets = torch.cat([part.targets for part in parts])
        device = getattr(parts[0], "device", "cpu")
        self._original = targets
        super().__init__(range(len(targets)), targets, joined_task(parts), None, device)
        self._original_task = self.task

    @property
    def store(self) -> Any:
        """The parts."""
        return self._parts

    def unpacked(self) -> Sequence[Data]:
        """Its parts where nothing was derived from it, else itself alone."""
        same = self._targets is self._original and self.transform is None and self.task is self._original_task
        return self._parts if same else [self]

    def to(self, device: torch.device | str) -> Self:
        """This union with every part on `device`."""
        new = super().to(device)
        new._parts = [part.to(device) for part in self._parts]
        return new

    def _fetch(self, rows: Tensor) -> Tree:
        ends = self._ends.to(rows.device)
        owner = torch.bucketize(rows, ends, right=True)
        pieces = []
        places = []
        for number, part in enumerate(self._parts):
            positions = (owner == number).nonzero().flatten()
            if len(positions) == 0 and (number or len(rows)):
                continue
            start = int(self._ends[number]) - len(part)
            pieces.append(part.gather(rows[positions] - start).inputs)
            places.append(positions)
        if len(places) == 1:
            return pieces[0]
        back = torch.cat(places).argsort()
        return tree_map(lambda leaf: leaf.index_select(0, back), tree_cat(pieces))

    def _row_bytes(self) -> int:
        return max((part._row_bytes() for part in self._parts if isinstance(part, View)), default=4096)

    def __repr__(self) -> str:
        return f"UnionData({len(self)} samples in {len(self._parts)} parts)"


def concat(parts: Sequence[Data]) -> Data:
    """The union of several data, in order, sharing what they hold.

    Views of one store with the same transform become one view of it, which is as fast as any. Others are gathered
    part by part. Where the parts have different task labels, batches have one label per row.

    Args:
        parts: at least one.

    Raises:
        ConfigError: no part.

    Example:
        >>> data = TensorData(torch.zeros(4, 2), torch.arange(4))
        >>> concat([data.subset(torch.tensor([3, 1])), data]).targets
        tensor([3, 1, 0, 1, 2, 3])
    """
    flat = [inner for part in parts for inner in (part.unpacked() if isinstance(part, UnionData) else [part])]
    if not flat:
        raise ConfigError("concat of no data. Give at least one.")
    first = flat[0]
    if len(flat) == 1:
        return first
    views = [part for part in flat if isinstance(part, View)]
    if len(views) == len(flat) and all(view.transform == views[0].transform for view in views):
        if all(type(view) is type(first) and view.store is views[0].store for view in views):
            return views[0].joined(views[1:])
        loaders = [view for view in views if isinstance(view, LoaderData)]
        if len(loaders) == len(flat):
            return joined(loaders)
    return UnionData(flat)
