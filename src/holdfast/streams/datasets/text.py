"""Tables in text files: their encoding, what stands between values, and the line that each row came from."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError
from holdfast.streams.datasets.columns import Raw

DELIMITERS = (";", "\t", "|", ",", " ")
"""What may stand between values, tried in this order: commas may be decimal ones, and spaces stand in words."""

MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks, as spreadsheets write them."""


def read_table(path: Path, delimiter: str = "auto", header: bool = True) -> Raw:
    """The columns of a text file, plain or gzipped, as words.

    Args:
        path: of the file.
        delimiter: between values; "auto" finds out which of semicolon, tab, bar, comma and space cuts all lines alike.
        header: whether the first line has the column names; else they are "0", "1", ...

    Raises:
        DataError: no such file, one that is not text, has no samples, lines of other lengths, or two columns of a name.
    """
    text = _text(path)
    if delimiter == "auto":
        delimiter = _delimiter(text, header)
    rows, lines = _rows(path, text, delimiter)
    columns = [column.strip() for column in rows.pop(0)] if header and rows else []
    lines = lines[1:] if header else lines
    if not rows:
        raise DataError(f"{path} has no samples. Give a table with at least one line of values.")
    columns = columns or [str(number) for number in range(len(rows[0]))]
    for row, line in zip(rows, lines):
        if len(row) != len(columns):
            raise DataError(f"{path}, line {line}: {len(row)} values for {len(columns)} columns. Mend the line.")
    values = [np.array(column, dtype=object) for column in zip(*rows)]
    kept = [number for number, name in enumerate(columns) if name or any(value.strip() for value in values[number])]
    if kept[:1] == [0] and not columns[0] and _counts(values[0]):
        warnings.warn(f"{path}: the first column has no name and counts the lines, so it is left out.", stacklevel=4)
        kept = kept[1:]
    if len(kept) == 1 and len(columns) == 1:
        raise DataError(
            f"{path} has one column only, {columns[0]!r}, if values are separated by {delimiter!r}. Write what stands"
            " between them with delimiter=."
        )
    names = [columns[number] or f"column {number + 1}" for number in kept]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise DataError(f"{path} has two columns called {double!r}. Give each column a name of its own.")
    return Raw(names, [values[number] for number in kept], str(path), lines, decimal_commas=delimiter != ",")


def _counts(column: np.ndarray) -> bool:
    """Whether a column is 0, 1, 2, ... or 1, 2, 3, ...: the index that pandas writes."""
    words = [str(value).strip() for value in column]
    return any(words == [str(number) for number in range(start, start + len(words))] for start in (0, 1))


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give the path of a table.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}. Give a text file, plain or gzipped.") from error
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")  # what Windows programs write
    if "\0" in text:
        raise DataError(f"{path} cannot be read as a table: it is not text. Give a text file, plain or gzipped.")
    return text


def _delimiter(text: str, header: bool) -> str:
    """What cuts the first lines into equally many values, more than one."""
    start = text[: 2**16]
    whole = len(start) == len(text)
    for candidate in DELIMITERS:
        try:
            rows = [row for row in csv.reader(io.StringIO(start), delimiter=candidate, skipinitialspace=True) if row]
        except csv.Error:
            continue
        rows = (rows if whole else rows[:-1])[:50]
        if rows and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return candidate
    first = next((line for line in start.splitlines() if line.strip()), "")
    return max(DELIMITERS[:4], key=first.count) if header and any(map(first.count, DELIMITERS[:4])) else ","


def _rows(path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """The rows that are not empty, and the line each of them ends in."""
    rows, lines = [], []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter == " ")
        for row in reader:
            if row and not (len(row) == 1 and not row[0].strip()):
                rows.append(row[:-1] if delimiter == " " and row[-1] == "" else row)
                lines.append(reader.line_num)
    except (csv.Error, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a table separated by {delimiter!r}: {error}. Write delimiter= with one"
            " character."
        ) from error
    return rows, lines


def from_lists(names: Sequence[str], columns: Sequence[Sequence[object]], source: str) -> Raw:
    """A table of lists, as a program's own file format gives them: numbers, words, dates, and None where missing."""
    return Raw(list(names), [as_column(list(column)) for column in columns], source)


def as_column(values: Sequence[object]) -> np.ndarray:
    """Values of one column as an array: floats with NaN, dates with NaT, else words with None."""
    filled = [value for value in values if value is not None]
    if filled and all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in filled):
        return np.array([np.nan if value is None else float(value) for value in values])  # type: ignore[arg-type]
    if filled and all(hasattr(value, "isoformat") for value in filled):
        return np.array([None if value is None else value.isoformat() for value in values], dtype="datetime64[s]")  # type: ignore[attr-defined]
    return np.array([None if value is None else str(value) for value in values], dtype=object)
