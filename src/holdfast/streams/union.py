"""The union of several data, for joint and cumulative training, without copying what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Tree, tree_cat, tree_map
from holdfast.streams.loader import LoaderData, joined
from holdfast.streams.views import View, joined_task


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
            place = (owner == number).nonzero().flatten()
            if len(place) == 0 and (number or len(rows)):
                continue
            start = int(self._ends[number]) - len(part)
            pieces.append(part.gather(rows[place] - start).inputs)
            places.append(place)
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
        >>> from holdfast.streams.data import TensorData
        >>> data = TensorData(torch.zeros(4, 2), torch.arange(4))
        >>> concat([data.subset(torch.tensor([3, 1])), data]).targets
        tensor([3, 1, 0, 1, 2, 3])
    """
    flat = [inner for part in parts for inner in _unpack(part)]
    if not flat:
        raise ConfigError("concat of no data. Give at least one.")
    first = flat[0]
    if len(flat) == 1:
        return first
    views = [part for part in flat if isinstance(part, View)]
    if len(views) == len(flat) and all(view.transform == views[0].transform for view in views):
        if all(type(view) is type(first) and view.store is views[0].store for view in views):
            return views[0]._joined(views[1:])
        loaders = [view for view in views if isinstance(view, LoaderData)]
        if len(loaders) == len(flat):
            return joined(loaders)
    return UnionData(flat)


def _unpack(part: Data) -> Sequence[Data]:
    """The parts of a union that nothing was derived from, else the data itself."""
    if isinstance(part, UnionData) and part._targets is part._original and part.transform is None:
        return part._parts if part.task is part._original_task else [part]
    return [part]
