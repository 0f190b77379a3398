"""Sources that read one piece after another, and the one that replays arrays of a file in the order of time."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.experience import Batch
from holdfast.core.ranges import Count
from holdfast.core.source import Arrays, Source
from holdfast.core.tree import Tree, tree_map

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
        self._served = self._row = 0
        self._mark: Mark = None
        self._reading: Iterator[Batch] | None = None

    @abstractmethod
    def pieces(self, mark: Mark) -> Iterator[tuple[Mark, Tree, Tensor]]:
        """From the piece that `mark` names on, or from the first: mark, inputs `[rows, ...]` and targets of each."""

    def batches(self) -> Iterator[Batch]:
        """Rows in batches, from the current position on."""
        if self._reading is None:
            self._reading = self._cut()
        while (batch := next(self._reading, None)) is not None:  # whoever stops asking must not end the reading
            yield batch

    def _cut(self) -> Iterator[Batch]:
        skip = self._row
        for mark, inputs, targets in self.pieces(self._mark):
            self._mark, self._row = mark, skip
            for start in range(skip, len(targets), self.batch_size):
                stop = min(start + self.batch_size, len(targets))
                self._served, self._row = self._served + 1, stop
                yield Batch(tree_map(lambda leaf: leaf[start:stop], inputs), targets[start:stop])  # noqa: B023
            skip = 0

    def close(self) -> None:
        """Leave the piece that is being read."""
        if self._reading is not None and hasattr(self._reading, "close"):
            self._reading.close()

    def position(self) -> dict[str, Any]:
        """Batches given, the mark of the piece that is being read, and how many of its rows were given."""
        return {"batches": self._served, "piece": self._mark, "row": self._row}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a batch; see `Source.seek`."""
        if not self.seekable:
            super().seek(position)
        self._served, self._mark, self._row = int(position["batches"]), position["piece"], int(position["row"])
        self._reading = None


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
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} holds no arrays: {error}. Give a file that numpy.savez wrote.") from error
    return {
        name: array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
        for name, array in arrays.items()
    }
