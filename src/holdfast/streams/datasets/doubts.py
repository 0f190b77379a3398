"""What in a table is hardly meant as it stands: numbers in words, a label for each row, names that differ by case."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from holdfast.core.errors import DataError
from holdfast.streams.datasets.columns import DATES, Raw, gaps

FEW_WORDS = 10
"""Different words of a column that are taken for words, whatever they look like: 10W, 20W, 40W."""

MEASURED = re.compile(r"[(<>~≈=$€£¥+\u2212-]*\s*\d[\d.,'’\s]*(e[+-]?\d+)?\s*[-)]*\s*[^\s\d,;]{0,6}", re.IGNORECASE)
"""A number with a unit, a currency, groups of digits, or a comparison."""

CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*([ap]\.?m\.?)?", re.IGNORECASE)
LISTED = re.compile(r"\[.*\d.*\]|\(.*\d.*,.*\)", re.DOTALL)

MARKS = (-9999.0, -999.0, -99.0, 999.0, 9999.0, 99999.0, -99999.0)
"""Numbers that instruments write where they have no value."""


def check_words(raw: Raw, name: str, column: np.ndarray, rows: int) -> None:
    """Doubt a column of words that nobody said is one.

    Args:
        raw: the table.
        name: of the column.
        column: its values.
        rows: of the table that have a value.

    Raises:
        DataError: for numbers, dates or times that are written as this library does not read them.
    """
    counts = Counter(str(value).strip() for value in column[~gaps(column)])
    words = list(counts)
    advice = f"Leave it out with drop=[{name!r}], or write categories=[{name!r}] if its values are words."
    if words and all(any(form.fullmatch(word) for form in DATES.values()) for word in words):
        raise DataError(
            f"{raw.source}: column {name!r} has dates of several forms, such as {words[0]!r} and {words[-1]!r}, or"
            f" impossible ones. Write all of them as 2024-01-31. {advice}"
        )
    if len(words) > FEW_WORDS:
        alike = [word for word in words if any(form.fullmatch(word) for form in (MEASURED, CLOCK, LISTED))]
        if len(alike) > 0.9 * len(words):
            raise DataError(
                f"{raw.source}: column {name!r} has {len(words)} values such as {alike[0]!r}, which are numbers or"
                f" times to a reader, and words here. Write plain numbers (1234.5), without unit or currency. {advice}"
            )
        if len(words) > rows / 2:
            warnings.warn(
                f"{raw.source}: column {name!r} has {len(words)} different words in {rows} lines, so that a line's word"
                f" says nothing about another. drop=[{name!r}] leaves it out.",
                stacklevel=5,
            )
    warn_of_case(words, f"{raw.source}: the words", f"of column {name!r}")


def warn_of_case(words: Iterable[str], start: str, end: str = "") -> None:
    """Say which names are several though they differ by upper and lower case only."""
    known: dict[str, str] = {}
    for word in words:
        other = known.setdefault(word.strip().casefold(), word)
        if other != word:
            told = f"{start} {other!r} and {word!r} {end}".rstrip()
            warnings.warn(f"{told} differ by case or spaces only, and count as two.", stacklevel=6)
            return


def check_numbers(raw: Raw, name: str, values: np.ndarray) -> None:
    """Doubt a column of numbers: one that counts the lines, or has a number where others write nothing."""
    present = values[np.isfinite(values)]
    if len(present) < 20:
        return
    if bool((np.diff(present) == 1).all()):
        warnings.warn(
            f"{raw.source}: column {name!r} counts the lines, and is learned from like a measurement."
            f" drop=[{name!r}] leaves it out.",
            stacklevel=5,
        )
        return
    for mark in MARKS:
        other = present[present != mark]
        times = len(present) - len(other)
        if times < 2 or len(other) <= times:
            continue
        spread = np.ptp(other)
        if not other.min() - spread <= mark <= other.max() + spread:
            warnings.warn(
                f"{raw.source}: column {name!r} is {mark:g} in {times} lines, far from its other values, as where there"
                " is no value. If so, empty these cells, and write missing='mean' or missing='drop'.",
                stacklevel=5,
            )


def check_labels(raw: Raw, name: str, labels: Sequence[object], numeric: bool) -> None:
    """Refuse labels of which hardly two rows have the same: another column was meant, or a regression.

    Raises:
        DataError: for these.
    """
    distinct = len(set(labels))
    if distinct > FEW_WORDS and distinct > len(labels) / 2:
        otherwise = ", or write kind='regression' for numbers" if numeric else ""
        raise DataError(
            f"{raw.source}: the target {name!r} has {distinct} different labels in {len(labels)} rows. Name the column"
            f" of the labels with target={otherwise}; or categories=[{name!r}], if these are the classes."
        )


def offsets(values: np.ndarray) -> np.ndarray:
    """What to take off each column before it becomes float32: its mean where that loses digits, else 0.

    Seconds since 1970 are 128 apart in float32, serial numbers all alike.

    Args:
        values: `[rows, columns]` float64 of training rows; NaN where one is missing.

    Example:
        >>> offsets(np.array([[1.0, 1.7e9], [2.0, 1.7e9 + 1], [3.0, 1.7e9 + 2]])).tolist()
        [0.0, 1700000001.0]
    """
    result = np.zeros(values.shape[1])
    for number, column in enumerate(values[:10_000].T):
        present = np.unique(column[np.isfinite(column)])
        with np.errstate(over="ignore"):
            if len(np.unique(present.astype(np.float32))) < 0.9 * len(present):
                result[number] = present.mean()
    return result
