"""A view: chosen rows of a store that many experiences share, with their targets, task label and lazy transform."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, Self

import torch
from torch import Tensor

from holdfast.core.decide import note_on_host
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Batch, Data, Tree, tree_map
from holdfast.core.tree import tree_split
from holdfast.streams.transforms import Chain

CHUNK_BATCHES = 64
CHUNK_BYTES = 4 * 2**20
Rows = Tensor | range


class View(Data):
    """What the kinds of data here have in common: `rows` of a store, never a copy of it.

    Batches are gathered many at once: one gather for up to 64 batches (at most 4 MB of raw inputs), which are then
    handed out as slices of it. The targets are held per view, already relabelled, because they are small.

    Args:
        rows: rows of the store, as a range where they are contiguous.
        targets: one per row.
        task: the task label of all rows, one label per row where tasks are mixed, or None.
        transform: applied to gathered raw inputs, a batch at a time.
        device: where batches appear.
    """

    def __init__(
        self,
        rows: Rows,
        targets: Tensor,
        task: int | Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._rows = rows
        self._targets = targets.cpu()
        self._here = targets.to(device)
        self.task = task.to(device) if isinstance(task, Tensor) else task
        self.transform = transform
        self.device = torch.device(device)

    @property
    @abstractmethod
    def store(self) -> object:
        """What holds the inputs; two views of the same object share its memory."""

    @abstractmethod
    def _fetch(self, rows: Tensor) -> Tree:
        """Gather the raw inputs at these rows of the store, on `self.device`, not yet transformed."""

    @abstractmethod
    def _row_bytes(self) -> int:
        """Bytes of the raw inputs of one sample."""

    def __len__(self) -> int:
        return self._targets.shape[0]

    @property
    def targets(self) -> Tensor:
        """All targets in order, on the CPU."""
        return self._targets

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield the samples in `order` in batches of `batch_size`, the last one possibly smaller."""
        check_batch_size(batch_size)
        known, order = self._known(order), order.to(self.device)
        fitting = CHUNK_BYTES // max(1, batch_size * self._row_bytes())
        start = 0
        for part in chunks(order, batch_size * min(CHUNK_BATCHES, max(1, fitting))):
            targets = self._here.index_select(0, part)
            pieces = tree_split(self._inputs(part), batch_size)
            for piece, target, task in zip(pieces, tree_split(targets, batch_size), self._tasks(part, batch_size)):
                if known is not None:
                    note_on_host(target, known[start : start + len(target)])
                    start += len(target)
                yield Batch(piece, target, task)
            del pieces, piece  # else the old chunk stays while the next one is gathered

    def gather(self, index: Tensor) -> Batch:
        """The samples at `index` as one batch."""
        known, index = self._known(index), index.to(self.device)
        targets = self._here.index_select(0, index)
        note_on_host(targets, known)
        return Batch(self._inputs(index), targets, next(self._tasks(index, max(1, len(index)))))

    def _known(self, order: Tensor) -> Tensor | None:
        """The targets in `order` on the CPU, where the data is on another device and they cost no waiting for it."""
        apart = self.device.type != "cpu" and order.device.type == "cpu"
        return self._targets.index_select(0, order) if apart else None

    def subset(self, index: Tensor) -> Self:
        """The samples at `index` (int64, may repeat), sharing storage with this data."""
        return self.derive(index)

    def derive(
        self,
        index: Tensor | None = None,
        label_map: Tensor | None = None,
        target_shift: int = 0,
        task: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> Self:
        """Another view of the same store.

        Args:
            index: which of these samples, in which order; None takes all.
            label_map: new label of each old label (`label_map[old]`).
            target_shift: added to every label after the map.
            task: a task label; None keeps the present one.
            transform: applied after the present transform.
        """
        new = copy.copy(self)
        if index is not None:
            index = index.to(torch.int64).cpu()
            new._targets = self._targets.index_select(0, index)
            here = index.to(self.device)
            new._rows = compact(self._stored(here))
            new.task = self.task[here] if isinstance(self.task, Tensor) else self.task
        new._targets = relabel(new._targets, label_map, target_shift)
        new._here = new._targets.to(self.device)
        if task is not None:
            new.task = task
        if transform is not None:
            new.transform = transform if self.transform is None else Chain(self.transform, transform)
        return new

    def to(self, device: torch.device | str) -> Self:
        """This view with what it holds on `device`; views that share a store go on sharing it there."""
        new = copy.copy(self)
        new.device = torch.empty(0, device=device).device
        new._here = self._targets.to(device)
        if isinstance(self._rows, Tensor):
            new._rows = self._rows.to(device)
        if isinstance(self.task, Tensor):
            new.task = self.task.to(device)
        return new

    def stored(self) -> Tensor:
        """Its rows of the store, int64, on the CPU."""
        return self._stored(torch.arange(len(self), device=self.device)).cpu()

    def with_rows(self, rows: Tensor, targets: Tensor, task: int | Tensor | None = None) -> Self:
        """A view of the same store with the same transform.

        Args:
            rows: of the store, int64.
            targets: one per row.
            task: the task label of all rows, one label per row, or None.
        """
        new = copy.copy(self)
        new._rows = compact(rows.to(self.device))
        new._targets, new._here = targets.cpu(), targets.to(self.device)
        new.task = task
        return new

    def _stored(self, order: Tensor) -> Tensor:
        """Rows of the store for positions in this view."""
        if isinstance(self._rows, Tensor):
            return self._rows.index_select(0, order)
        return order + self._rows.start if self._rows.start else order

    def _inputs(self, order: Tensor) -> Tree:
        inputs = self._fetch(self._stored(order))
        return inputs if self.transform is None else tree_map(self.transform, inputs)

    def _tasks(self, order: Tensor, rows: int) -> Iterator[int | Tensor | None]:
        """The task label of each batch of `rows` rows."""
        if isinstance(self.task, Tensor):
            return iter(self.task.index_select(0, order).split(rows))
        return repeat(self.task)

    def joined(self, others: Sequence[View]) -> Self:
        """This view followed by others of the same store and transform."""
        every: list[View] = [self, *others]
        rows = torch.cat([view.stored() for view in every])
        return self.with_rows(rows, torch.cat([view.targets for view in every]), joined_task(every))


def joined_task(parts: Sequence[Data]) -> int | Tensor | None:
    """The task label of all parts: one, one per row where they differ, or None if a part has none."""
    labels: list[int | Tensor | None] = [getattr(part, "task", None) for part in parts]
    if any(label is None for label in labels):
        return None
    if not any(isinstance(label, Tensor) for label in labels) and len(set(labels)) == 1:
        return labels[0]
    columns = []
    for label, part in zip(labels, parts):
        device = getattr(part, "device", "cpu")
        columns.append(label if isinstance(label, Tensor) else torch.full((len(part),), label or 0, device=device))
    return torch.cat(columns)


def relabel(targets: Tensor, label_map: Tensor | None, shift: int) -> Tensor:
    """Targets after the map and the shift, or a DataError for a class the map does not know."""
    if label_map is not None:
        if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= len(label_map)):
            raise DataError(
                f"targets run from {int(targets.min())} to {int(targets.max())}, and the label map has "
                f"{len(label_map)} entries. Give one entry for every class."
            )
        targets = label_map.to(targets.device)[targets]
    return targets + shift if shift else targets


def chunks(order: Tensor, rows: int) -> Sequence[Tensor]:
    """`order` in pieces of `rows`; none at all when it is empty."""
    return order.split(rows) if len(order) else ()


def check_batch_size(batch_size: int) -> None:
    """Raise a ConfigError unless the batch size is at least one."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}. Give at least 1.")


def as_targets(targets: Any) -> Tensor:
    """Targets as a tensor on the CPU: int64 for whole numbers and booleans, float32 for others.

    Raises:
        DataError: they are not numbers.
    """
    if isinstance(targets, list) and targets and isinstance(targets[0], Tensor):
        targets = torch.stack(targets)
    try:
        tensor = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"targets of type {type(targets).__name__} are not numbers. Encode them first.") from error
    return tensor.cpu().to(torch.float32 if tensor.is_floating_point() else torch.int64)


def compact(rows: Tensor) -> Rows:
    """The rows as a range where they are consecutive, which costs no memory."""
    if len(rows) == 0:
        return range(0)
    if len(rows) > 1 and not bool((rows[1:] - rows[:-1] == 1).all()):
        return rows
    return range(int(rows[0]), int(rows[0]) + len(rows))
