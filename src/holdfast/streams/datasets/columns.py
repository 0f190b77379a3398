"""Columns of a table: numbers with any decimal mark, dates, missing values, and the groups that a column makes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.streams.datasets.missing import ADVICE, absent

Period = Literal["year", "quarter", "month", "week", "day", "hour"]
Decimal = Literal["auto", ".", ","]

GAPS = frozenset(["", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "NaT", "?"])
"""Words that stand for a missing value."""

DOT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
COMMA = re.compile(r"[+-]?(\d+|[1-9]\d{0,2}(\.\d{3})+)(,\d*)?([eE][+-]?\d+)?|[+-]?,\d+([eE][+-]?\d+)?")
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(['\u2019 \u00a0\u2009\u202f]\d{3})+([.,]\d+)?")
"""Groups of three digits that nothing else can be; those by commas need a column that proves them (`GROUPS`)."""
GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+\.\d+|[+-]?[1-9]\d{0,2}(,\d{3}){2,}")
WITH_GROUPS = re.compile(r"[+-]?(\d+|[1-9]\d{0,2}(,\d{3})+)(\.\d*)?([eE][+-]?\d+)?|[+-]?\.\d+([eE][+-]?\d+)?")
DOTTED = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")
TIME = r"(?:[T ](\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?"
DATES = {
    "ymd": re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})" + TIME),
    "dmy": re.compile(r"(\d{1,2})[./-](\d{1,2})[./-](\d{4})" + TIME),
    "ym": re.compile(r"(\d{4})-(\d{2})"),
}


@dataclass
class Raw:
    """A table as it was read.

    Attributes:
        names: of the columns.
        values: of each column `[rows]`: words (objects, None where missing), floats (NaN) or dates (NaT).
        source: the file, or what else it came from, for messages.
        lines: the line of each row in a text file; None if there are none.
        decimal_commas: whether numbers may have decimal commas.
        part: whether these are some rows of a source, whose columns were made out by its first rows.
    """

    names: list[str]
    values: list[np.ndarray]
    source: str
    lines: list[int] | None = None
    decimal_commas: bool = False
    part: bool = False

    def __len__(self) -> int:
        return len(self.values[0]) if self.values else 0

    def at(self, row: int) -> str:
        """Where a row is, in words."""
        return f"{self.source}, row {row}" if self.lines is None else f"{self.source}, line {self.lines[row]}"

    def find(self, wanted: str | int) -> int:
        """The number of a column.

        Raises:
            ConfigError: for a column that there is not.
        """
        if isinstance(wanted, int):
            if not -len(self.names) <= wanted < len(self.names):
                raise ConfigError(
                    f"column {wanted} of a table with {len(self.names)} columns. Give a smaller number or a name."
                )
            return wanted % len(self.names)
        if wanted not in self.names:
            raise ConfigError(unknown("column", wanted, self.names))
        return self.names.index(wanted)

    def take(self, rows: np.ndarray) -> Raw:
        """Some of the rows."""
        lines = None if self.lines is None else [self.lines[row] for row in rows.tolist()]
        values = [column[rows] for column in self.values]
        return Raw(self.names, values, self.source, lines, self.decimal_commas, self.part)


def gaps(column: np.ndarray) -> np.ndarray:
    """Which values are missing, `[rows]` bool."""
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind == "M":
        return np.isnat(column)
    return np.array([value is None or str(value).strip() in GAPS for value in column], dtype=bool)


# Numbers and dates ---------------------------------------------------------------------------------------


def numbers(column: np.ndarray, decimal: str = ".") -> tuple[np.ndarray, np.ndarray]:
    """Words as float64, NaN where a value is missing, and which of them are no finite numbers.

    Args:
        column: words, or numbers already.
        decimal: "." or ","; with the latter, dots between groups of three digits are left out. With the former,
            commas are where the column proves that they stand between groups (1,234.5 or 1,234,567). Spaces and
            apostrophes between groups always are.

    Example:
        >>> numbers(np.array(["1.234,5", "", "x"], dtype=object), ",")
        (array([1234.5,    nan,    nan]), array([False, False,  True]))
    """
    if column.dtype.kind in "fM":
        values = column.astype(np.float64) if column.dtype.kind == "f" else np.full(len(column), np.nan)
        return values, np.isinf(values)
    if decimal == ".":
        try:
            quick = np.array([float(value) for value in column], dtype=np.float64)
            if np.isfinite(quick).all() and not any("_" in value for value in column):
                return quick, np.zeros(len(quick), dtype=bool)
        except (TypeError, ValueError):
            pass
    result, wrong = np.full(len(column), np.nan), ~gaps(column)
    rows = wrong.nonzero()[0].tolist()
    words = [str(column[row]).strip().replace("\u2212", "-") for row in rows]
    groups = decimal == "." and any(GROUPS.fullmatch(word) for word in words)
    pattern, between = (COMMA, ".") if decimal == "," else (WITH_GROUPS if groups else DOT, ",")
    for row, word in zip(rows, words):
        if GROUPED.fullmatch(word):
            word = re.sub(r"[^\d.,+-]", "", word)
        if pattern.fullmatch(word):
            result[row] = float(word.replace(between, "").replace(decimal, "."))
            wrong[row] = not np.isfinite(result[row])
    return result, wrong


def decimal_of(raw: Raw, decimal: Decimal, columns: Sequence[int]) -> str:
    """The decimal mark of a table: a comma where some column only makes numbers with one.

    Raises:
        DataError: where dots in numbers may be decimal ones or stand between groups of digits.
    """
    if decimal != "auto":
        return decimal
    words = {number: [str(word).strip() for word in raw.values[number]] for number in columns if raw.decimal_commas}
    words = {number: texts for number, texts in words.items() if raw.values[number].dtype.kind == "O"}
    for number, texts in words.items():
        with_commas = any("," in word for word in texts) and numbers(raw.values[number], ".")[1].any()
        if with_commas and not numbers(raw.values[number], ",")[1].any():
            break
    else:
        return "."
    for number, texts in words.items():
        row = next((row for row, word in enumerate(texts) if DOTTED.fullmatch(word)), None)
        if row is not None and not any("," in word for word in texts):
            raise DataError(
                f"{raw.at(row)}: other columns have decimal commas, and column {raw.names[number]!r} is {texts[row]!r}."
                " Write decimal=',' if its dots stand between groups of digits, else mend the column."
            )
    return ","


def dates(column: np.ndarray) -> np.ndarray | None:
    """Words as dates to the second, NaT where a value is missing; None where some word is no date.

    Known are 2024-01-31, 2024/01/31, 31.01.2024, 31/01/2024 and 01/31/2024 (by what fits the whole column), 2024-01,
    each but the last with a time.

    Raises:
        DataError: where day and month cannot be told apart.
    """
    if column.dtype.kind == "M":
        return column.astype("datetime64[s]")
    if column.dtype.kind != "O":
        return None
    present = ~gaps(column)
    words = [str(value).strip() for value in column[present]]
    for form, pattern in DATES.items():
        matches = [pattern.fullmatch(word) for word in words]
        if not words or not all(matches):
            continue
        parts = [[int(part) if part else 0 for part in match.groups()] for match in matches if match]
        if form == "dmy":
            parts = _day_first(parts, words)
        try:
            made = [datetime(*(part if form != "ym" else (*part, 1))) for part in parts]  # type: ignore[arg-type]
        except ValueError:
            return None
        result = np.full(len(column), np.datetime64("NaT"), dtype="datetime64[s]")
        result[present] = np.array([value.isoformat() for value in made], dtype="datetime64[s]")
        return result
    return None


def _day_first(parts: list[list[int]], words: Sequence[str]) -> list[list[int]]:
    """Year, month, day of dates that end in the year."""
    day_first = any(part[0] > 12 for part in parts) or "." in words[0]
    month_first = any(part[1] > 12 for part in parts)
    if not day_first and not month_first:
        raise DataError(f"of dates such as {words[0]!r} nobody can tell day and month apart. Write them as 2024-01-31.")
    return [[year, *((second, first) if day_first else (first, second)), *rest] for first, second, year, *rest in parts]


def refuse_word(raw: Raw, name: str, row: int) -> None:
    """Raise the error for a word in a column of numbers, or for a value that is missing."""
    value = raw.values[raw.find(name)][row]
    words = f"or write categories=[{name!r}] if its values are words"
    if raw.part:
        again = " The line has the names of columns: a file with another header is another source." * (value == name)
        words = f"or write a larger first=, so that the first rows have one, if its values are words.{again}".rstrip(
            "."
        )
    raise DataError(
        f"{raw.at(row)}: column {name!r} is {value!r}, which is not a finite number. Mend it, leave the column out with"
        f" drop=[{name!r}], {words}."
    )


def refuse_gap(raw: Raw, name: str, row: int, count: int) -> None:
    """Raise the error for missing values of a column."""
    value = raw.values[raw.find(name)][row]
    advice = f"Fill them in before, or leave the column out with drop=[{name!r}]." if raw.part else ADVICE
    raise DataError(
        f"{raw.at(row)}: column {name!r} is {value!r}, which is not a finite number ({count} of them are missing)."
        f" {advice}"
    )


# Groups --------------------------------------------------------------------------------------------------


def groups_of(raw: Raw, number: int, period: Period | None, decimal: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The group of each row by the values of a column, or the periods of its dates, and the groups' names in order.

    Numbers and dates are in their own order, words in that of their first rows.

    Raises:
        ConfigError: for periods of a column without dates.
        DataError: for a value that is missing.
    """
    name, column = raw.names[number], raw.values[number]
    gone = gaps(column)
    if gone.any():
        refuse_gap(raw, name, int(gone.argmax()), int(gone.sum()))
    values, wrong = numbers(column, decimal)
    when = dates(column) if wrong.any() or column.dtype.kind == "M" else None
    if period is not None and when is None:
        raise ConfigError(f"period is {period!r}, and column {name!r} has no dates. Leave period out.")
    if when is not None:
        labels = _periods(when, period)
        names, codes = np.unique(labels, return_inverse=True)
        return codes, tuple(str(entry) for entry in names)
    if not wrong.any():
        distinct, codes = np.unique(values, return_inverse=True)
        return codes, tuple(f"{value:.0f}" if value.is_integer() else f"{value:g}" for value in distinct.tolist())
    words = [str(value).strip() for value in column]
    order = {word: position for position, word in enumerate(dict.fromkeys(words))}
    return np.array([order[word] for word in words]), tuple(order)


def check_groups(name: str, rows: int, by: Any, test_rows: int | None, test_by: Any) -> None:
    """Refuse groups that do not go with the rows."""
    if by is None and test_by is None:
        return
    if by is None or (test_rows is not None) != (test_by is not None):
        lacking = "test" if by is not None else "training"
        raise ConfigError(f"{name}: the groups of the {lacking} data are not there. Give by and test_by.")
    for part, count, values in (("training", rows, by), ("test", test_rows, test_by)):
        if values is not None and count != len(values):
            raise ConfigError(f"{name}: {len(values)} groups for {count} {part} inputs. Give one for each.")


def grouped_by(name: str, by: Any, test_by: Any = None) -> tuple[Tensor | None, Tensor | None, tuple[str, ...]]:
    """The group of each training row and of each test row, and the names of the groups in order.

    Args:
        name: for messages.
        by: one value per training row: numbers are in their own order, words in that of their first rows.
        test_by: the same for the test rows.

    Raises:
        DataError: for a value that is missing, or a group of the test data alone.
    """
    if by is None:
        return None, None, ()
    columns = [
        np.asarray(values.cpu() if isinstance(values, Tensor) else values)
        for values in (by, test_by)
        if values is not None
    ]
    if any(column.ndim != 1 or bool(absent(column).any()) for column in columns):
        raise DataError(
            f"{name}: the groups have values that are missing, or are no list. Give one value for each row."
        )
    group_names = [_group_name(value) for value in columns[0].tolist()]
    order = (
        list(dict.fromkeys(group_names))
        if columns[0].dtype.kind in "OUS"
        else [_group_name(one) for one in np.unique(columns[0]).tolist()]
    )
    number_of = {word: number for number, word in enumerate(order)}
    codes = [
        torch.tensor([number_of.get(_group_name(value), -1) for value in column.tolist()], dtype=torch.int64)
        for column in columns
    ]
    if len(codes) > 1 and bool((codes[1] < 0).any()):
        strange = _group_name(columns[1].tolist()[int((codes[1] < 0).int().argmax())])
        raise DataError(f"{name}: the test data have the group {strange!r}, which no training sample has. Remove it.")
    return codes[0], codes[1] if len(codes) > 1 else None, tuple(order)


def _group_name(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _periods(when: np.ndarray, period: Period | None) -> np.ndarray:
    """Dates as words that sort by time."""
    if period == "quarter":
        months = when.astype("datetime64[M]").astype(int)
        return np.array([f"{1970 + month // 12} Q{month % 12 // 3 + 1}" for month in months.tolist()])
    if period == "week":
        calendar = [datetime.fromisoformat(str(value)).isocalendar() for value in when]
        return np.array([f"{one.year} W{one.week:02d}" for one in calendar])
    units = {"year": "Y", "month": "M", "day": "D", "hour": "h"}
    whole = bool((when.astype("datetime64[D]") == when).all())
    unit = "D" if period is None and whole else "s" if period is None else units[period]
    return np.datetime_as_string(when.astype(f"datetime64[{unit}]"), unit=unit)  # type: ignore[call-overload]
