"""The matrices of a run (accuracy or loss on each experience after learning each one) and their CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError
from holdfast.metrics.log import Event, Log, read_log, replace_file


def accuracy_matrix(events: Iterable[Event], aware: bool = False, split: str = "test") -> np.ndarray:
    """Accuracy on each experience after learning each one: `A[i, j] = correct / samples`, in 0..1.

    The share of right answers among all samples, whatever the batches they came in.

    Args:
        events: the log.
        aware: count an answer as right when it is the best among the classes of experience j only (`correct_task`).
        split: `"test"` or `"validation"`.

    Returns:
        `[T, T]` float64, row i after learning experience i; NaN where not evaluated (or if there is no accuracy).

    Example:
        >>> accuracy_matrix([{"event": "evaluate", "after": 0, "experience": 0, "split": "test",
        ...                   "samples": 4, "correct": 3}])
        array([[0.75]])
    """
    return _fill(events, split, _accuracy(aware, split))[1:]


def loss_matrix(events: Iterable[Event], split: str = "test") -> np.ndarray:
    """Mean loss on each experience after learning each one: `L[i, j]`, `[T, T]`, NaN where not evaluated.

    Args:
        events: the log.
        split: `"test"` or `"validation"`.
    """
    return value_matrix(events, "loss", split)


def value_matrix(events: Iterable[Event], key: str, split: str = "test") -> np.ndarray:
    """Any number that evaluations hold, on each experience after learning each one, `[T, T]`, NaN if there is none.

    Args:
        events: the log.
        key: its name in an `evaluate` event, for instance `absolute_error`.
        split: `"test"` or `"validation"`.
    """
    return _fill(events, split, lambda log: log.values("evaluate", key, split))[1:]


def before(events: Iterable[Event], aware: bool = False, split: str = "test") -> np.ndarray:
    """Accuracy on each experience before any training: `b[j]`, `[T]`, NaN where not evaluated.

    Args:
        events: the log.
        aware: count the arg-max among each experience's own classes instead of among all.
        split: `"test"` or `"validation"`.
    """
    return _fill(events, split, _accuracy(aware, split))[0]


def sample_counts(events: Iterable[Event], split: str = "test") -> np.ndarray:
    """Number of samples evaluated of each experience, `[T]` int64 (0 where none ever was).

    Args:
        events: the log.
        split: `"test"` or `"validation"`.
    """
    log = read_log(events)
    counts = np.zeros(log.experiences, dtype=np.int64)
    columns, samples = (log.values("evaluate", key, split).astype(np.int64) for key in ("experience", "samples"))
    counts[columns] = samples
    return counts


def write_matrix(path: str | os.PathLike[str], matrix: np.ndarray) -> Path:
    """Write a matrix as CSV: header `after,0,1,...`, one row per experience learned, NaN as `nan`.

    Numbers are written in full, so that `read_matrix` gives back equal ones. The file appears at once or not at all.

    Args:
        path: the file to make or replace.
        matrix: `[rows, columns]`.

    Returns:
        `path`.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    lines = [",".join(["after", *map(str, range(matrix.shape[1]))])]
    lines += [",".join([str(row), *(repr(float(value)) for value in values)]) for row, values in enumerate(matrix)]
    return replace_file(path, "\n".join(lines) + "\n")


def read_matrix(path: str | os.PathLike[str]) -> np.ndarray:
    """Read what `write_matrix` wrote, never changing it; an empty cell is NaN too.

    Args:
        path: the CSV file.

    Returns:
        `[rows, columns]` float64.

    Raises:
        DataError: the file is not such a matrix; file and line are named.
    """
    try:
        rows = list(csv.reader(io.StringIO(Path(path).read_bytes().decode("utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"no accuracy matrix can be read at {path}: {error}. Name a run's accuracy_matrix.csv."
        ) from error
    columns = len(rows[0]) - 1 if rows else 0
    if not rows or rows[0] != ["after", *map(str, range(columns))]:
        raise DataError(f"{path}, line 1 is not the header of a matrix. Write `after,0,1,...` there.")
    matrix = np.full((len(rows) - 1, columns), np.nan)
    for index, row in enumerate(rows[1:]):
        try:
            if len(row) != columns + 1 or int(row[0]) != index:
                raise ValueError(f"it should hold {index} and {columns} numbers")
            matrix[index] = [float(cell) if cell.strip() else np.nan for cell in row[1:]]
        except ValueError as error:
            raise DataError(
                f"{path}, line {index + 2} is damaged: {error}. Write the matrix again from the log."
            ) from error
    return matrix


def last_row(matrix: np.ndarray) -> int:
    """Index l of the last row with an evaluation, -1 if there is none."""
    rows = np.flatnonzero(np.isfinite(matrix).any(axis=1)) if np.size(matrix) else np.array([], dtype=int)
    return int(rows[-1]) if rows.size else -1


def _fill(events: Iterable[Event], split: str, values: Callable[[Log], np.ndarray]) -> np.ndarray:
    """`[T + 1, T]`: row 0 before any training, row i + 1 after learning experience i; the latest evaluation counts."""
    log = read_log(events)
    filled = np.full((log.experiences + 1, log.experiences), np.nan)
    rows, columns = (log.values("evaluate", key, split).astype(np.int64) for key in ("after", "experience"))
    filled[rows + 1, columns] = values(log)  # where an index repeats, numpy keeps the last value
    return filled


def _accuracy(aware: bool, split: str) -> Callable[[Log], np.ndarray]:
    def values(log: Log) -> np.ndarray:
        samples = log.values("evaluate", "samples", split)
        correct = log.values("evaluate", "correct_task" if aware else "correct", split)
        return correct / np.where(samples > 0, samples, np.nan)

    return values
