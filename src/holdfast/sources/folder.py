"""A folder to which somebody adds files, each read once."""

from __future__ import annotations

import threading
import time as clock
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.ranges import Count, Positive
from holdfast.core.tree import Tree
from holdfast.sources.pieces import SLICE, Mark, Pieces, load_arrays
from holdfast.sources.tables import Parquet
from holdfast.sources.text import Csv
from holdfast.streams.datasets.text import read_table


class Folder(Pieces):
    """A folder to which somebody adds files, each read once it is complete, in the order of their names.

    Files are `.npz` (an array of inputs and one of targets), `.csv` or `.parquet` (columns as in the first). One whose
    name sorts before one that was read is not read any more; a file is best written under another name and renamed, as
    one that cannot be read is tried again until `timeout`. The source ends when a file called `end` is there and all
    others were read, or when nothing new came for `timeout` seconds.

    Args:
        path: of the folder.
        pattern: of the files' names.
        inputs: name of the array of inputs in a `.npz` file.
        targets: name of the array of targets in it.
        target: name or position of the column to predict in a table.
        classes: how many there are, or their labels in order; needed for class labels.
        end: name of the file that says that nothing more comes.
        timeout: seconds without a new file before the wait ends.
        on_silence: what that is: an error, or the end.
        batch_size: rows of a batch.

    Raises:
        DataError: no such folder, a file that cannot be read, or nothing new for too long.
    """

    live = True

    def __init__(
        self,
        path: str,
        pattern: str = "*.npz",
        inputs: str = "x",
        targets: str = "y",
        target: str | int = -1,
        classes: int | list[str] | None = None,
        end: str = "END",
        timeout: Positive = 60.0,
        on_silence: Literal["raise", "end"] = "raise",
        batch_size: Count = 32,
    ) -> None:
        super().__init__(batch_size)
        if on_silence not in ("raise", "end"):
            raise ConfigError(f"on_silence is {on_silence!r}. Write raise or end.")
        self.path = Path(path)
        self.pattern = pattern
        self.inputs = inputs
        self.targets = targets
        self.target = target
        self.labels = classes
        self.classes = len(classes) if isinstance(classes, list) else classes
        self.end = end
        self.timeout = timeout
        self.on_silence = on_silence
        self._halted = threading.Event()
        self._table: Csv | Parquet | None = None
        if not self.path.is_dir():
            raise DataError(f"there is no folder {path}. Make it before the training, and write files into it.")

    def pieces(self, mark: Mark) -> Iterator[tuple[Mark, Tree, Tensor]]:
        """The rows of each file."""
        last, again = ("", False) if mark is None else (str(mark["file"]), True)
        until = clock.monotonic() + self.timeout
        problem = ""
        while not self._halted.is_set():
            over = (self.path / self.end).exists()
            names = sorted(file.name for file in self.path.glob(self.pattern) if file.name != self.end)
            new = [name for name in names if name > last or (again and name == last)]
            problem = ""
            for name in new:
                try:
                    inputs, targets = self._read(self.path / name)
                except DataError as error:
                    problem = str(error)
                    break
                last, again = name, False
                until = clock.monotonic() + self.timeout
                yield {"file": name}, inputs, targets
            if over and not new:
                return
            if clock.monotonic() > until:
                if self.on_silence == "end" and not problem:
                    return
                raise DataError(
                    f"{problem or f'no new file came into {self.path}'} for {self.timeout:g} seconds. Look whether what"
                    f" writes them still runs; a file called {self.end} says that nothing more comes."
                )
            if problem or not new:
                self._halted.wait(SLICE)

    def _read(self, file: Path) -> tuple[Tree, Tensor]:
        if file.suffix == ".npz":
            arrays = load_arrays(file, [self.inputs, self.targets])
            x, y = torch.from_numpy(arrays[self.inputs]), torch.from_numpy(arrays[self.targets])
            if len(x) != len(y):
                raise DataError(f"{file} has {len(x)} inputs and {len(y)} targets.")
            return x, y if y.is_floating_point() else y.long()
        if self._table is None:
            kind: Any = "classification" if self.labels is not None else "regression"
            first = min(entry for entry in self.path.glob(self.pattern) if entry.name != self.end)
            table = Parquet if file.suffix == ".parquet" else Csv
            self._table = table(str(first), target=self.target, classes=self.labels, kind=kind)
        if isinstance(self._table, Csv):
            return self._table.read(read_table(file))
        parts = [self._table.read(raw) for raw in self._table.others(file)]
        if not parts:
            raise DataError(f"{file} has no rows.")
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def halt(self) -> None:
        """Stop waiting for further files."""
        self._halted.set()
