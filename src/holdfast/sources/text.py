"""A text file as a source: its lines in their order, also while they are still being written."""

from __future__ import annotations

import csv as reader_of_csv
import gzip
import io
import os
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.ranges import Count, Positive
from holdfast.core.tree import Tree
from holdfast.sources.pieces import SLICE, Mark
from holdfast.sources.tables import BLOCK, Kind, Table
from holdfast.streams.datasets.columns import Raw


class Csv(Table):
    """A text file, row by row in its order, a block at a time: plain or gzipped, however long.

    What the columns are is read off the first rows. A row that does not fit them later on is an error with its line.
    With `follow` the file may still be written: the source waits for further lines, up to `timeout` seconds, and ends
    then, or that is an error, as a writer that died looks like one that is done. Half a line is never given; where one
    is left at the end, that is said. A file that becomes shorter, or is replaced by another, is an error.

    Args:
        path: of the file.
        target: name or position of the column to predict; -1 is the last.
        features: names of the columns to use; None takes all others.
        drop: names of columns to leave out.
        classes: the labels in order of their index, or how many there are if they are 0, 1, 2, ...; None reads the
            column once beforehand.
        kind: `classification`, or `regression` where the target is a number.
        standardise: whether features are standardised, by mean and standard deviation of the first rows.
        first: rows from which the features are made out.
        delimiter: between values; `auto` finds it out.
        follow: whether lines may still come.
        timeout: seconds without a further line before the wait for one ends.
        on_silence: what that is: the end, or an error.
        batch_size: rows of a batch.
        drifts: how many rows come before each known change of the data.

    Raises:
        DataError: no such file, a row that does not fit, a label that is not among the classes.
        ConfigError: for an unknown column.
    """

    def __init__(
        self,
        path: str,
        target: str | int = -1,
        features: list[str] | None = None,
        drop: list[str] | None = None,
        classes: int | list[str] | None = None,
        kind: Kind = "classification",
        standardise: bool = True,
        first: Count = 1000,
        delimiter: str = "auto",
        follow: bool = False,
        timeout: Positive = 60.0,
        on_silence: Literal["end", "raise"] = "end",
        batch_size: Count = 32,
        drifts: list[int] | None = None,
    ) -> None:
        if on_silence not in ("end", "raise"):
            raise ConfigError(f"on_silence is {on_silence!r}. Write end or raise.")
        if follow and path.endswith(".gz"):
            raise ConfigError(f"{path} is compressed, and cannot be followed. Let its writer write plain lines.")
        self.delimiter = delimiter
        self.on_silence = on_silence
        self.live = follow
        self.timeout = timeout
        self._halted = threading.Event()
        self._following = False
        super().__init__(path, target, features, drop, classes, kind, standardise, first, batch_size, drifts or ())
        self._following = follow

    def tables(self, mark: Mark) -> Iterator[tuple[Mark, Raw]]:
        """Blocks of lines."""
        for at, lines, names, delimiter in self._blocks(mark):
            yield at, self._raw(lines, names, delimiter, at["line"])

    def pieces(self, mark: Mark) -> Iterator[tuple[Mark, Tree, Tensor]]:
        """Blocks of rows as features and targets; those of numbers alone are read by numpy, several times as fast."""
        for at, lines, names, delimiter in self._blocks(mark):
            made = self._quickly(lines, names, delimiter)
            if made is None:
                raw = self._raw(lines, names, delimiter, at["line"])
                if not len(raw):
                    continue
                made = self.read(raw)
            yield at, *made

    def _blocks(self, mark: Mark) -> Iterator[tuple[dict[str, int], list[bytes], list[str], str]]:
        opened = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opened(self.path, "rb") as file:
                header = file.readline()
                delimiter = self.delimiter
                if delimiter == "auto":
                    delimiter = max((";", "\t", "|", ","), key=header.decode("utf-8-sig", "replace").count)
                names = [name.strip() for name in header.decode("utf-8-sig", "replace").strip().split(delimiter)]
                names = [name.strip('"') for name in names]
                line = 1
                if mark is not None:
                    file.seek(mark["byte"])
                    line = mark["line"]
                for at, lines in self._lines(file, line):
                    yield at, lines, names, delimiter
        except (OSError, EOFError) as error:
            raise DataError(
                f"{self.path} cannot be read as a table: {error}. Give a text file, plain or gzipped."
            ) from error

    def _lines(self, file: Any, line: int) -> Iterator[tuple[dict[str, int], list[bytes]]]:
        size = max(BLOCK // self.batch_size, 1) * self.batch_size
        until = time.monotonic() + self.timeout
        while True:
            at = {"byte": file.tell(), "line": line}
            lines: list[bytes] = []
            text = b""
            while len(lines) < size:
                text = file.readline()
                if not text or (self._following and not text.endswith(b"\n")):
                    file.seek(-len(text), io.SEEK_CUR) if text else None
                    break
                lines.append(text)
            if lines:
                yield at, lines
                line += len(lines)
                until = time.monotonic() + self.timeout
            elif not self._following or self._halted.is_set():
                return
            elif time.monotonic() > until:
                return self._silence(line, len(text))
            else:
                self._still_there(file, at["byte"])
                self._halted.wait(SLICE)

    def _silence(self, line: int, half: int) -> None:
        """What it is that no further line came: the end or an error, and in both cases whether half a line is left."""
        left = f", and line {line + 1} is only half there ({half} bytes), as of a writer that died" if half else ""
        if self.on_silence == "raise":
            raise DataError(
                f"no further line came into {self.path} for {self.timeout:g} seconds{left}. Look whether what writes it"
                " still runs, or write on_silence=end to take that as the end."
            )
        if half:
            warnings.warn(
                f"{self.path} is taken to be complete, as nothing came for {self.timeout:g} seconds{left}; that line is"
                " left out.",
                stacklevel=2,
            )

    def _still_there(self, file: Any, byte: int) -> None:
        """Insist that the file is the one that was opened, and as long as what was read of it."""
        opened = os.fstat(file.fileno())
        try:
            now = self.path.stat()
        except FileNotFoundError:
            now = None
        if opened.st_size < byte:
            wrong = f"has become shorter, {opened.st_size} bytes, than what was read of it, {byte}"
        elif now is None or (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
            wrong = f"was {'removed' if now is None else 'replaced by another file'} while it was followed"
        else:
            return
        raise DataError(f"{self.path} {wrong}. Append to the file, or write others into a folder (source=folder).")

    def _quickly(self, lines: list[bytes], names: list[str], delimiter: str) -> tuple[Tensor, Tensor] | None:
        """Features and targets of a block of finite numbers; None where some of it is anything else."""
        wanted, between = self.columns_of_numbers, delimiter.encode()
        if wanted is None or any(line.count(between) != len(names) - 1 for line in lines):
            return None
        columns = [names.index(name) for name in wanted]
        try:
            matrix = np.loadtxt(lines, delimiter=delimiter, usecols=columns, comments=None, ndmin=2, encoding="latin1")
        except ValueError:
            return None
        return self.of_numbers(list(matrix.T)) if len(matrix) == len(lines) else None

    def _raw(self, lines: list[bytes], names: list[str], delimiter: str, line: int) -> Raw:
        text = [one.decode("utf-8", "replace") for one in lines]
        rows, where = [], []
        for number, row in enumerate(self._split(text, delimiter, line), start=line + 1):
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{self.path}, line {number}: {len(row)} values for {len(names)} columns. Mend the line."
                )
            rows.append(row)
            where.append(number)
        columns = zip(*rows) if rows else [[] for _ in names]
        values = [np.array(column, dtype=object) for column in columns]
        return Raw(names, values, str(self.path), where, decimal_commas=delimiter != ",", part=True)

    def _split(self, lines: list[str], delimiter: str, line: int) -> Iterator[list[str]]:
        """The values of each line."""
        rows = reader_of_csv.reader(lines, delimiter=delimiter)
        try:
            yield from rows
        except reader_of_csv.Error as error:
            raise DataError(
                f"{self.path}, line {line + rows.line_num}: this is no line of a table ({error}). Give a text file."
            ) from error

    def halt(self) -> None:
        """Stop waiting for further lines."""
        self._halted.set()
