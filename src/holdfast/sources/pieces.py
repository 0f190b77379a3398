"""Sources that read one piece after another, and the one that replays arrays of a file in the order of time."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import DAMAGED_ARRAYS, ConfigError, DataError, unknown
from holdfast.core.experience import Batch
from holdfast.core.ranges import Count
from holdfast.core.source import BLOCK, Arrays, Source
from holdfast.core.tree import Tree, tree_map, tree_split

Mark = dict[str, Any] | None
"""Plain values that name a piece; None before the first."""

SLICE = 0.05
"""Seconds between two looks at what is being written."""


class Pieces(Source):
    """Base of the sources that read piece after piece: files, blocks of a file, iterations of a simulation.

    A subclass gives pieces of any number of rows, each with a mark, a few plain values from which reading can begin at
    that piece again. They are cut into batches here, each within one piece, so that what is there is given at once.

    Args:
        batch_size: rows of a batch; the last one of a piece may be smaller.
    """

    seekable = True

    def __init__(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"{type(self).__name__} got batch_size={batch_size}. Give at least 1.")
        self.batch_size = batch_size
        self._served = self._row = self._size_of_piece = self._count = 0
        self._left: Iterator[Tensor] = iter(())
        self._mark: Mark = None
        self._reading: Iterator[Batch] | None = None

    @abstractmethod
    def pieces(self, mark: Mark) -> Iterator[tuple[Mark, Tree, Tensor]]:
        """From the piece that `mark` names on, or from the first: mark, inputs `[rows, ...]` and targets of each."""

    def batches(self) -> Iterator[Batch]:
        """Rows in batches, from the current position on."""
        if self._reading is None:
            self._reading = self._cut()
        yield from itertools.chain(self._reading)  # the chain has no `close`: who stops asking does not end the reading

    def _cut(self) -> Iterator[Batch]:
        skip, size = self._row, self.batch_size
        for mark, inputs, targets in self.pieces(self._mark):
            rows, first, skip = len(targets), skip, 0
            self._mark, self._row, self._size_of_piece = mark, first, rows
            for start in range(first, rows, BLOCK * size):
                block = slice(start, start + BLOCK * size)
                parts = tree_split(tree_map(lambda leaf, block=block: leaf[block], inputs), size)  # type: ignore[misc]
                answers: Any = parts if targets is inputs else tree_split(targets[block], size)
                # To read a batch of a small table takes as long as a few lines of Python: what is left of them, and no
                # line here, tells the position.
                self._count, self._left = len(answers), iter(answers)
                yield from map(Batch, parts, self._left)
                self._served, self._count = self._served + self._count, 0
                self._row = min(block.stop, rows)

    def close(self) -> None:
        """Leave the piece that is being read."""
        if self._reading is not None and hasattr(self._reading, "close"):
            self._reading.close()

    def position(self) -> dict[str, Any]:
        """Batches given, the mark of the piece that is being read, and how many of its rows were given."""
        count = 0 if not self._count else self._count - length_hint(self._left)
        row = min(self._row + count * self.batch_size, self._size_of_piece) if count else self._row
        return {"batches": self._served + count, "piece": self._mark, "row": row}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a batch; see `Source.seek`."""
        if not self.seekable:
            super().seek(position)
        self._served, self._mark, self._row = int(position["batches"]), position["piece"], int(position["row"])
        self._reading, self._count = None, 0


class Replay(Arrays):
    """Arrays of a file, replayed in the order in which they were measured.

    Args:
        path: of a `.npz` file with an array of inputs and one of targets, a row for each sample.
        inputs: name of the array of inputs, `[rows, ...]`.
        targets: name of the array of targets: class indices, or numbers.
        time: name of the array of times, `[rows]`, by which rows are ordered; equal times keep their order. None takes
            the rows as they are.
        passes: over the data; null for no end.
        batch_size: rows of a batch.
        drifts: how many rows come before each known change of the data.

    Raises:
        DataError: no such file or array, or arrays with different numbers of rows.
    """

    def __init__(
        self,
        path: str,
        inputs: str = "x",
        targets: str = "y",
        time: str | None = None,
        passes: Count | None = 1,
        batch_size: Count = 32,
        drifts: list[int] | None = None,
    ) -> None:
        arrays = load_arrays(Path(path), [inputs, targets, *([] if time is None else [time])])
        x, y = torch.from_numpy(arrays[inputs]), torch.from_numpy(arrays[targets])
        if time is not None:
            times = arrays[time]
            if times.shape != (len(y),):
                raise DataError(
                    f"{path}: {time!r} has shape {times.shape} for {len(y)} rows. Give a time for each row."
                )
            order = torch.from_numpy(np.argsort(times, kind="stable"))
            x, y = x[order], y[order]
        if not y.is_floating_point():
            y = y.long()
            self.classes = int(y.max()) + 1
        super().__init__(x, y, batch_size=batch_size, passes=passes)
        self.drifts = drifts or []


def load_arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Some arrays of a `.npz` file, floats as float32.

    Raises:
        DataError: no such file, one of another format, or no such array.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give the path of a .npz file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                if name not in file.files:
                    raise DataError(f"{path}: " + unknown("array", name, file.files))
            arrays = {name: file[name] for name in names}
    except DAMAGED_ARRAYS as error:
        raise DataError(f"{path} holds no arrays: {error}. Give a file that numpy.savez wrote.") from error
    return {
        name: array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
        for name, array in arrays.items()
    }
