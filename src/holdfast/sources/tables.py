"""Sources of tables, text files and Parquet files, however long: a block of rows is read at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, needs_extra, unknown
from holdfast.core.ranges import Count
from holdfast.core.tree import Tree
from holdfast.sources.pieces import Mark, Pieces
from holdfast.streams.datasets.columns import Raw, decimal_of, numbers, refuse_gap, refuse_word
from holdfast.streams.datasets.encoding import Encoding, feature_of
from holdfast.streams.datasets.text import as_column

Kind = Literal["classification", "regression"]

BLOCK = 1024
"""Rows of a table that are read at once."""


class Table(Pieces):
    """Base of the sources of tables: columns of numbers, words and dates become features, one column is the target.

    Args:
        path: of the file.
        target: name or position of the column to predict; -1 is the last.
        features: names of the columns to use; None takes all others.
        drop: names of columns to leave out.
        classes: the labels in order of their index, or how many there are if they are 0, 1, 2, ...; None reads the
            column once beforehand.
        kind: `classification`, or `regression` where the target is a number.
        standardise: whether features are standardised, by mean and standard deviation of the first rows.
        first: rows from which the features are made out: means, deviations, the words of a column of words.
        batch_size: rows of a batch.
        drifts: how many rows come before each known change of the data, for the measures of detectors.
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
        batch_size: Count = 32,
        drifts: Sequence[int] = (),
    ) -> None:
        super().__init__(batch_size)
        if kind not in ("classification", "regression"):
            raise ConfigError(f"kind is {kind!r}. Give 'classification' or 'regression'.")
        self.path = Path(path)
        self.kind = kind
        self.drifts = list(drifts)
        if not self.path.exists():
            raise DataError(f"there is no file {path}. Give the path of a table.")
        head = self._head(first)
        number = head.find(target)
        names = features or [name for column, name in enumerate(head.names) if column != number]
        chosen = [head.find(name) for name in names if name not in set(drop or ())]
        for name in drop or ():
            head.find(name)
        if not chosen or number in chosen:
            raise ConfigError(f"{path}: no column is left to learn from, or the target is one of them. Decide.")
        decimal = decimal_of(head, "auto", [number, *chosen])
        rows = np.arange(len(head))
        self.encoding = Encoding(
            tuple(feature_of(head, one, decimal, False, rows) for one in chosen), head.names[number], decimal
        )
        matrix = self._matrix(head)
        if standardise:
            mean, deviation = matrix.mean(0), matrix.std(0)
            deviation[deviation < 1e-12] = 1.0
            self.encoding = replace(self.encoding, shift=tuple(mean.tolist()), scale=tuple(deviation.tolist()))
        self.input_shape = (matrix.shape[1],)
        self.labels = self._labels(classes) if kind == "classification" else None
        self.classes = 1 if self.labels is None else len(self.labels)
        self.class_names = tuple(self.labels or ())
        self.table = self.encoding.describe()

    @abstractmethod
    def tables(self, mark: Mark) -> Iterator[tuple[Mark, Raw]]:
        """The rows in blocks, from the block that `mark` names on."""

    def _head(self, rows: int) -> Raw:
        """The first rows."""
        blocks, rows_read = [], 0
        for _, raw in self.tables(None):
            blocks.append(raw)
            rows_read += len(raw)
            if rows_read >= rows:
                break
        if not blocks:
            raise DataError(f"{self.path} has no rows. Give a table with at least one.")
        columns = [
            np.concatenate([raw.values[column] for raw in blocks])[:rows] for column in range(len(blocks[0].names))
        ]
        lines = None if blocks[0].lines is None else [line for raw in blocks for line in raw.lines or ()][:rows]
        return Raw(blocks[0].names, columns, blocks[0].source, lines, blocks[0].decimal_commas)

    def _matrix(self, raw: Raw) -> np.ndarray:
        matrix = self.encoding.matrix(raw)
        gone = np.isnan(matrix)
        if gone.any():
            row, column = np.argwhere(gone)[0]
            name = self.encoding.outputs[column].split("=")[0]
            refuse_gap(raw, name if name in raw.names else self.encoding.features[0].name, int(row), int(gone.sum()))
        return matrix

    def _labels(self, classes: int | list[str] | None) -> dict[str, int]:
        """Label -> class index."""
        if isinstance(classes, int):
            return {str(number): number for number in range(classes)}
        if classes is not None:
            return {str(label): number for number, label in enumerate(classes)}
        words: set[str] = set()
        for _, raw in self.tables(None):
            words |= set(_words(raw.values[raw.find(self.encoding.target)]))
        if len(words) > 1000:
            raise DataError(
                f"{self.path}: column {self.encoding.target!r} has {len(words)} different labels. For numbers write"
                " kind=regression; else name the classes."
            )
        order = sorted(words, key=lambda word: (0, float(word), word) if _is_number(word) else (1, 0.0, word))
        return {word: number for number, word in enumerate(order)}

    def _targets(self, raw: Raw) -> Tensor:
        column = raw.values[raw.find(self.encoding.target)]
        if self.labels is None:
            values, wrong = numbers(column, self.encoding.decimal)
            if wrong.any() or np.isnan(values).any():
                refuse_word(raw, self.encoding.target, int((wrong | np.isnan(values)).argmax()))
            return torch.from_numpy(values.astype(np.float32)).unsqueeze(1)
        words = _words(column)
        for row, word in enumerate(words):
            if word not in self.labels:
                raise DataError(f"{raw.at(row)}: " + unknown("label", word, self.labels))
        return torch.tensor([self.labels[word] for word in words], dtype=torch.int64)

    def pieces(self, mark: Mark) -> Iterator[tuple[Mark, Tree, Tensor]]:
        """Blocks of rows as features and targets."""
        for at, raw in self.tables(mark):
            if len(raw):
                yield at, *self.read(raw)

    def read(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Features `[rows, features]` and targets of a block, or of another table with the same columns."""
        return self.encoding.features_from(self._matrix(raw)), self._targets(raw)


def _words(column: np.ndarray) -> list[str]:
    """Labels as words; 1.0 is the label 1."""
    if column.dtype.kind == "f":
        return [f"{value:.0f}" if float(value).is_integer() else str(value) for value in column.tolist()]
    return ["" if value is None else str(value).strip() for value in column.tolist()]


def _is_number(word: str) -> bool:
    try:
        return np.isfinite(float(word))  # type: ignore[return-value]
    except ValueError:
        return False


class Parquet(Table):
    """A Parquet file, row by row in its order, a block at a time. Needs pyarrow, which the extra `parquet` brings.

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
        batch_size: rows of a batch.
        drifts: how many rows come before each known change of the data.

    Raises:
        DataError: no such file, or a row that does not fit.
        ConfigError: for an unknown column.
        ImportError: where pyarrow is not installed.
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
        batch_size: Count = 32,
        drifts: list[int] | None = None,
    ) -> None:
        super().__init__(path, target, features, drop, classes, kind, standardise, first, batch_size, drifts or ())

    def tables(self, mark: Mark) -> Iterator[tuple[Mark, Raw]]:
        """Blocks of rows, none longer than a row group."""
        try:
            import pyarrow.parquet as reader  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise needs_extra("a Parquet file", "pyarrow", "parquet") from error
        size = max(BLOCK // self.batch_size, 1) * self.batch_size
        try:
            with reader.ParquetFile(self.path) as file:
                first = 0 if mark is None else int(mark["block"])
                for number, block in enumerate(file.iter_batches(size)):
                    if number < first:
                        continue
                    columns = [as_column(column.to_pylist()) for column in block.columns]
                    yield {"block": number}, Raw(block.schema.names, columns, str(self.path))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is no Parquet file: {error}. Get it again.") from error
