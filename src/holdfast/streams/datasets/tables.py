"""Tables: text files, data frames and Parquet files, with numbers, dates and categories, in groups if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from holdfast.core.errors import DataError, needs_extra
from holdfast.core.needs import declares
from holdfast.core.ranges import BelowOne, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import Kind
from holdfast.streams.datasets.columns import Decimal, Period, Raw
from holdfast.streams.datasets.encoding import Columns, Sharing, dataset_of
from holdfast.streams.datasets.missing import Missing
from holdfast.streams.datasets.text import as_column, from_lists, read_table


@declares(inputs="vectors")
@ranged
def csv(
    path: str,
    target: str | int = -1,
    features: list[str] | None = None,
    drop: list[str] | None = None,
    by: str | None = None,
    period: Period | None = None,
    categories: list[str] | None = None,
    missing: Missing = "refuse",
    test_fraction: BelowOne = 0.25,
    ordered: bool = True,
    test_at: Literal["spread", "end"] = "spread",
    standardise: bool | Literal["first"] = True,
    kind: Kind = "classification",
    name: str | None = None,
    delimiter: str = "auto",
    decimal: Decimal = "auto",
    header: bool = True,
    split_seed: int = 0,
) -> Dataset:
    """A text file with one sample per line, plain or gzipped, as spreadsheets and programs write it.

    Numbers become float32 features, standardised by mean and standard deviation of training samples only. Dates become
    the days since 1970. Columns of words become a feature for each word, which is 1 for the word that it is: words of
    the training lines, with `by` those of the first group; words that come later are zeros in all of them, and are
    named in a warning. Byte order marks, semicolons and decimal commas are found out. Class labels may be whole numbers
    or words. Every value that is something else than its column is an error with its line.

    Args:
        path: of the file.
        target: name or position of the column to predict; -1 is the last.
        features: names of the columns to use; None takes all others.
        drop: names of columns to leave out.
        by: name of a column whose values cut the lines into groups, for the stream `grouped`: an experience for each
            value, numbers and dates in their order, words in that of their first lines. It is no feature.
        period: with dates in that column, the groups are years, quarters, months, weeks, days or hours.
        categories: names of columns whose values are words, even if they look like numbers.
        missing: "refuse" lines with a missing value, fill in the "mean" of the column over the training lines, or
            "drop" those lines. A label that is missing is never filled in.
        test_fraction: of the lines, of each group, that become test data.
        ordered: true keeps the order of the lines (time); false draws test lines at random from each class.
        test_at: for ordered data, "spread" takes every k-th line, "end" the last ones.
        standardise: whether features are standardised, by all training lines; "first" by those of the first group.
        kind: "classification" or "regression".
        name: for reports; None takes the file's name.
        delimiter: between values; "auto" finds it out.
        decimal: the decimal mark; "auto" takes a comma where the file has numbers with one, and no commas between
            values.
        header: whether the first line has the column names; else they are "0", "1", ...
        split_seed: of random test lines.

    Raises:
        DataError: no such file, a line of another length, a value that is missing or no number.
        ConfigError: an unknown column, or periods without dates.
    """
    file = Path(path)
    raw = read_table(file, delimiter, header)
    title = name or file.name.removesuffix(".gz").removesuffix(".csv")
    columns = Columns(target, features, drop, by, period, categories, decimal)
    return dataset_of(
        raw, title, columns, Sharing(test_fraction, ordered, test_at, split_seed), missing, standardise, kind
    )


@declares(inputs="vectors")
@ranged
def parquet(
    path: str,
    target: str | int = -1,
    features: list[str] | None = None,
    drop: list[str] | None = None,
    by: str | None = None,
    period: Period | None = None,
    categories: list[str] | None = None,
    missing: Missing = "refuse",
    test_fraction: BelowOne = 0.25,
    ordered: bool = True,
    test_at: Literal["spread", "end"] = "spread",
    standardise: bool | Literal["first"] = True,
    kind: Kind = "classification",
    name: str | None = None,
    split_seed: int = 0,
) -> Dataset:
    """A Parquet file, treated as `csv` treats a text file. Needs pyarrow, which the extra `parquet` brings.

    Args:
        path: of the file.
        target: name or position of the column to predict; -1 is the last.
        features: names of the columns to use; None takes all others.
        drop: names of columns to leave out.
        by: name of a column whose values cut the rows into groups, for the stream `grouped`.
        period: with dates in that column, the groups are years, quarters, months, weeks, days or hours.
        categories: names of columns whose values are words, even if they are numbers.
        missing: "refuse" rows with a missing value, fill in the "mean" of the column, or "drop" those rows.
        test_fraction: of the rows, of each group, that become test data.
        ordered: true keeps the order of the rows (time); false draws test rows at random from each class.
        test_at: for ordered data, "spread" takes every k-th row, "end" the last ones.
        standardise: whether features are standardised, by all training rows; "first" by those of the first group.
        kind: "classification" or "regression".
        name: for reports; None takes the file's name.
        split_seed: of random test rows.

    Raises:
        DataError: no such file, or a value that is missing or no number.
        ConfigError: an unknown column, or periods without dates.
        ImportError: pyarrow is not installed.
    """
    raw = read_parquet(path)
    columns = Columns(target, features, drop, by, period, categories, ".")
    sharing = Sharing(test_fraction, ordered, test_at, split_seed)
    return dataset_of(raw, name or Path(path).stem, columns, sharing, missing, standardise, kind)


def read_parquet(path: str) -> Raw:
    """The columns of a Parquet file.

    Args:
        path: of the file.

    Raises:
        DataError: no such file, or one that is not a Parquet file.
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as reader  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise needs_extra("parquet", "pyarrow", "parquet") from error
    if not Path(path).is_file():
        raise DataError(f"there is no file {path}. Give the path of a Parquet file.")
    try:
        table = reader.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no Parquet file: {error}. Get it again.") from error
    raw = from_lists(table.column_names, [column.to_pylist() for column in table.columns], path)
    return raw


def frame(
    dataframe: Any,
    target: str,
    features: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    by: str | None = None,
    period: Period | None = None,
    categories: Sequence[str] | None = None,
    missing: Missing = "refuse",
    test_fraction: float = 0.25,
    ordered: bool = True,
    test_at: Literal["spread", "end"] = "spread",
    standardise: bool | Literal["first"] = True,
    kind: Kind = "classification",
    name: str = "frame",
    split_seed: int = 0,
) -> Dataset:
    """A data frame of pandas or polars, or a mapping of lists (Python only), treated as `csv` treats a file.

    Args:
        dataframe: one sample per row.
        target: name of the column to predict.
        features: names of the columns to use; None takes all others.
        drop: names of columns to leave out.
        by: name of a column whose values cut the rows into groups, for the stream `grouped`.
        period: with dates in that column, the groups are years, quarters, months, weeks, days or hours.
        categories: names of columns whose values are words, even if they are numbers.
        missing: "refuse" rows with a missing value, fill in the "mean" of the column, or "drop" those rows.
        test_fraction: of the rows, of each group, that become test data.
        ordered: true keeps the order of the rows (time); false draws test rows at random from each class.
        test_at: for ordered data, "spread" takes every k-th row, "end" the last ones.
        standardise: whether features are standardised, by all training rows; "first" by those of the first group.
        kind: "classification" or "regression".
        name: for reports.
        split_seed: of random test rows.

    Raises:
        ConfigError: an unknown column, or periods without dates.
        DataError: a column with values that are missing, or words among numbers.
    """
    raw = read_frame(dataframe, name)
    columns = Columns(target, features, drop, by, period, categories, ".")
    sharing = Sharing(test_fraction, ordered, test_at, split_seed)
    return dataset_of(raw, name, columns, sharing, missing, standardise, kind)


def read_frame(dataframe: Any, name: str = "frame") -> Raw:
    """The columns of a data frame of pandas or polars, or of a mapping of lists.

    Args:
        dataframe: one sample per row.
        name: for messages.
    """
    names = list(dataframe.keys()) if isinstance(dataframe, dict) else list(dataframe.columns)
    return Raw([str(column) for column in names], [_series(dataframe[column]) for column in names], name)


def _series(values: Any) -> np.ndarray:
    """One column of a data frame: floats, dates, or words with None."""
    array = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    if array.dtype.kind == "M":
        return array.astype("datetime64[s]")
    return as_column([None if value is None or value != value or str(value) == "<NA>" else value for value in array])
