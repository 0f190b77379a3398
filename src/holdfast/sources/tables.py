"""Sources of tables, text files and Parquet files, however long: a block of rows is read at a time."""

from __future__ import annotations

import copy
import functools
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

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

MOST, VALUES = 65536, 2**19
"""Rows, and values, of a Parquet file that are read at once, at most; to read small blocks takes twice as long."""

NUMBERS = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)) | {"float", "double"}
"""Types of Arrow's columns that are numbers to NumPy as they are."""


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
        return Raw(blocks[0].names, columns, blocks[0].source, lines, blocks[0].decimal_commas, part=True)

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
        for column in self.target_column():
            words |= set(_words(column))
        if len(words) > 1000:
            raise DataError(
                f"{self.path}: column {self.encoding.target!r} has {len(words)} different labels. For numbers write"
                " kind=regression; else name the classes."
            )
        if all(map(_is_number, words)) and not all(float(word).is_integer() for word in words):
            raise DataError(
                f"{self.path}: the labels in column {self.encoding.target!r} are fractions. For numbers write"
                " kind=regression; else name the column of labels (target), or the classes."
            )
        order = sorted(words, key=lambda word: (0, float(word), word) if _is_number(word) else (1, 0.0, word))
        return {word: number for number, word in enumerate(order)}

    def target_column(self) -> Iterator[np.ndarray]:
        """The column to predict, a block at a time."""
        for _, raw in self.tables(None):
            yield raw.values[raw.find(self.encoding.target)]

    def of_numbers(self, columns: Sequence[np.ndarray]) -> tuple[Tensor, Tensor] | None:
        """Features and targets of columns of numbers, those that `columns_of_numbers` names.

        None where a value is not finite or a label is not among the classes, which `read` then tells.
        """
        *features, last = [column.astype(np.float64, copy=False) for column in columns]
        if not all(math.isfinite(column.sum()) for column in (*features, last)):
            return None
        codes, moved = self._codes, list(zip(self.encoding.shift, self.encoding.scale))
        if self.labels is None:
            targets = last.astype(np.float32)[:, None]
        else:
            assert codes is not None
            if not ((last == np.round(last)) & (last >= 0) & (last < len(codes))).all():
                return None
            targets = codes[last.astype(np.int64)]
            if targets.min() < 0:
                return None
        inputs = np.empty((len(last), len(features)), dtype=np.float32)
        for index, column in enumerate(features):  # a column at a time stays in the processor's cache
            inputs[:, index] = (column - moved[index][0]) / moved[index][1] if moved else column
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    @functools.cached_property
    def columns_of_numbers(self) -> list[str] | None:
        """Names of the features' columns and of the target's, if all of them can be read as numbers."""
        encoding = self.encoding
        plain = encoding.decimal == "." and all(one.kind == "number" for one in encoding.features)
        if not plain or encoding.means or self._codes is None:
            return None
        return [*(one.name for one in encoding.features), encoding.target]

    @functools.cached_property
    def _codes(self) -> np.ndarray | None:
        """The class of each label that is a small whole number, -1 for others; None where labels are anything else."""
        labels = self.labels or {}
        if not all(word.isascii() and word.isdigit() and str(int(word)) == word and len(word) < 6 for word in labels):
            return None
        codes = np.full(1 + max(map(int, labels), default=0), -1)
        for word, number in labels.items():
            codes[int(word)] = number
        return codes

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
        for at, block in self._blocks(mark, None, BLOCK):
            yield at, self._raw(block)

    def pieces(self, mark: Mark) -> Iterator[tuple[Mark, Tree, Tensor]]:
        """Blocks of rows as features and targets; columns of numbers alone are not gone through value by value."""
        names = self.columns_of_numbers
        for at, block in self._blocks(mark, names, MOST):
            made = None if names is None else self._quickly(block, names)
            if made is None and len(block):
                made = self.read(self._raw(block))
            if made is not None:
                yield at, *made

    def others(self, path: Path) -> Iterator[Raw]:
        """The rows of another file with the same columns, in blocks, as `read` takes them."""
        other = copy.copy(self)
        other.path = path
        for _, raw in other.tables(None):
            yield raw

    def target_column(self) -> Iterator[np.ndarray]:
        """The column to predict, a block at a time, and no other."""
        for _, block in self._blocks(None, [self.encoding.target], MOST):
            yield _column(block.columns[0])

    def _quickly(self, block: Any, names: list[str]) -> tuple[Tensor, Tensor] | None:
        """Features and targets of a block of numbers; None where some of it is anything else."""
        if not len(block) or block.num_columns != len(names):  # two columns of one name
            return None
        columns = [block.column(name) for name in names]
        if not all(_plain(one) for one in columns):
            return None
        return self.of_numbers([one.to_numpy() for one in columns])

    def _raw(self, block: Any) -> Raw:
        return Raw(block.schema.names, [_column(one) for one in block.columns], str(self.path), part=True)

    def _blocks(self, mark: Mark, names: list[str] | None, most: int) -> Iterator[tuple[Mark, Any]]:
        """Record batches of pyarrow with `most` rows, or fewer where they are long; of some of the columns."""
        try:
            import pyarrow.parquet as reader  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise needs_extra("a Parquet file", "pyarrow", "parquet") from error
        if mark is not None and "rows" not in mark:
            raise DataError(
                f"{self.path}: the position in the checkpoint counts blocks, as an earlier version did, and not rows."
                " Go on with that version, or start again."
            )
        first = 0 if mark is None else int(mark["rows"])
        try:
            with reader.ParquetFile(self.path) as file:
                most = max(BLOCK, min(most, VALUES // max(1, file.metadata.num_columns)))
                before, size = 0, max(most // self.batch_size, 1) * self.batch_size
                for block in file.iter_batches(size, columns=names):
                    if before >= first:
                        yield {"rows": before}, block
                    before += len(block)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is no Parquet file: {error}. Get it again.") from error


def _plain(column: Any) -> bool:
    """Whether a column of pyarrow is numbers, all of them there."""
    return not column.null_count and str(column.type) in NUMBERS


def _column(column: Any) -> np.ndarray:
    """A column of pyarrow as `Raw` has it."""
    return column.to_numpy().astype(np.float64) if _plain(column) else as_column(column.to_pylist())
