"""Tables: comma-separated files and data frames."""

from __future__ import annotations

import csv as reader
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.needs import declares
from holdfast.core.ranges import BelowOne, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import Kind, of_tensors


@declares(inputs="vectors")
@ranged
def csv(
    path: str,
    target: str | int = -1,
    features: list[str] | None = None,
    test_fraction: BelowOne = 0.25,
    ordered: bool = True,
    test_at: Literal["spread", "end"] = "spread",
    standardise: bool = True,
    kind: Kind = "classification",
    name: str | None = None,
    delimiter: str = ",",
    header: bool = True,
    split_seed: int = 0,
) -> Dataset:
    """A comma-separated file, plain or gzipped, with one sample per line.

    Features become float32 and are standardised by mean and standard deviation of the training part only. Class
    labels may be whole numbers or words. Every value that is no number is an error with its line.

    Args:
        path: of the file.
        target: name or position of the column to predict; -1 is the last.
        features: names of the columns to use; None takes all others.
        test_fraction: of the lines that become test data.
        ordered: true keeps the order of the lines (time); false draws test lines at random from each class.
        test_at: for ordered data, "spread" takes every k-th line, "end" the last ones.
        standardise: whether features are standardised.
        kind: "classification" or "regression".
        name: for reports; None takes the file's name.
        delimiter: between values.
        header: whether the first line has the column names; else they are "0", "1", ...
        split_seed: of random test lines.

    Errors:
        DataError: no such file, a line of another length, a value that is no number.
        ConfigError: an unknown column.
    """
    file = Path(path)
    columns, rows = _read(file, delimiter, header)
    place = _column(target, columns)
    chosen = [number for number in range(len(columns)) if number != place]
    if features is not None:
        chosen = [_column(feature, columns) for feature in features]
    matrix = np.empty((len(rows), len(chosen)), dtype=np.float32)
    for position, number in enumerate(chosen):
        matrix[:, position] = _numbers(rows, number, columns[number], file, header)
    labels: Any = [row[place] for row in rows]
    if kind == "regression":
        labels = _numbers(rows, place, columns[place], file, header)
    else:
        labels = _labels(labels)
    title = name or file.name.removesuffix(".gz").removesuffix(".csv")
    return _table(title, matrix, labels, test_fraction, ordered, test_at, standardise, kind, split_seed)


def frame(
    dataframe: Any,
    target: str,
    features: Sequence[str] | None = None,
    test_fraction: float = 0.25,
    ordered: bool = True,
    test_at: Literal["spread", "end"] = "spread",
    standardise: bool = True,
    kind: Kind = "classification",
    name: str = "frame",
    split_seed: int = 0,
) -> Dataset:
    """A pandas data frame (Python only), treated as `csv` treats a file.

    Args:
        dataframe: one sample per row.
        target: name of the column to predict.
        features: names of the columns to use; None takes all others.
        test_fraction: of the rows that become test data.
        ordered: true keeps the order of the rows (time); false draws test rows at random from each class.
        test_at: for ordered data, "spread" takes every k-th row, "end" the last ones.
        standardise: whether features are standardised.
        kind: "classification" or "regression".
        name: for reports.
        split_seed: of random test rows.

    Errors:
        ConfigError: an unknown column.
        DataError: a column with values that are missing or no numbers.
    """
    columns = [str(column) for column in dataframe.columns]
    place = _column(target, columns)
    chosen = [column for column in columns if column != columns[place]] if features is None else list(features)
    matrix = np.empty((len(dataframe), len(chosen)), dtype=np.float32)
    for position, feature in enumerate(chosen):
        values = dataframe.iloc[:, _column(feature, columns)]
        try:
            matrix[:, position] = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"column {feature!r} has values that are no numbers. Encode it, or leave it out."
            ) from error
        if not np.isfinite(matrix[:, position]).all():
            raise DataError(f"column {feature!r} has missing or infinite values. Fill them, or leave it out.")
    labels = dataframe.iloc[:, place]
    if labels.isna().any():
        raise DataError(f"column {target!r} has missing values. Remove those rows.")
    found = labels.to_numpy()
    return _table(name, matrix, found, test_fraction, ordered, test_at, standardise, kind, split_seed)


def _table(
    name: str,
    matrix: np.ndarray,
    labels: Any,
    test_fraction: float,
    ordered: bool,
    test_at: Literal["spread", "end"],
    standardise: bool,
    kind: Kind,
    split_seed: int,
) -> Dataset:
    if test_at not in ("spread", "end"):
        raise ConfigError(f"test_at is {test_at!r}. Give 'spread' or 'end'.")
    return of_tensors(
        name,
        torch.from_numpy(matrix),
        labels,
        test_fraction=test_fraction,
        split_seed=split_seed,
        kind=kind,
        ordered=test_at if ordered else "no",
        normalise=standardise,
    )


def _read(path: Path, delimiter: str, header: bool) -> tuple[list[str], list[list[str]]]:
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give the path of a table.")
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            rows = [row for row in reader.reader(file, delimiter=delimiter) if row]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}. Give a text file, plain or gzipped.") from error
    columns = [column.strip() for column in rows.pop(0)] if header and rows else []
    if not rows:
        raise DataError(f"{path} has no samples. Give a table with at least one line of values.")
    columns = columns or [str(number) for number in range(len(rows[0]))]
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise DataError(
                f"{path}, line {number + 1 + header}: {len(row)} values for {len(columns)} columns. Mend the line."
            )
    return columns, rows


def _numbers(rows: list[list[str]], place: int, name: str, path: Path, header: bool) -> np.ndarray:
    try:
        values = np.array([float(row[place]) for row in rows], dtype=np.float32)
    except ValueError:
        values = np.full(len(rows), np.nan, dtype=np.float32)
    if not np.isfinite(values).all():
        for number, row in enumerate(rows):
            if not _finite(row[place]):
                raise DataError(
                    f"{path}, line {number + 1 + header}: column {name!r} is {row[place]!r}, "
                    "which is no finite number. "
                    "Mend it, or leave the column out with features=."
                )
    return values


def _finite(text: str) -> bool:
    try:
        return bool(np.isfinite(np.float32(text)))
    except ValueError:
        return False


def _labels(values: list[str]) -> list[int] | list[str]:
    """Labels as whole numbers where all of them are, so that 10 comes after 9."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return [value.strip() for value in values]
    if all(number.is_integer() for number in numbers):
        return [int(number) for number in numbers]
    return [value.strip() for value in values]


def _column(wanted: str | int, columns: Sequence[str]) -> int:
    if isinstance(wanted, int):
        if not -len(columns) <= wanted < len(columns):
            raise ConfigError(
                f"column {wanted} of a table with {len(columns)} columns. Give a smaller number or a name."
            )
        return wanted % len(columns)
    if wanted not in columns:
        raise ConfigError(unknown("column", wanted, columns))
    return columns.index(wanted)
