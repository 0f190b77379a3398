"""Missing values: refused by default, or filled with the mean, or dropped with their rows, where that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import DataError

Missing = Literal["refuse", "mean", "drop"]
"""What happens to values that are missing (or infinite): an error, the mean of the feature, or the row is left out."""

ADVICE = "Fill them in, or write missing='mean' (the mean of the feature) or missing='drop' (those rows are left out)."


def absent(labels: Any) -> np.ndarray:
    """Which labels are missing: None, NaN, NaT, an empty word, `[rows]` bool.

    Example:
        >>> absent(["ok", None, "", float("nan"), 0]).tolist()
        [False, True, True, True, False]
    """
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind == "f":
        wrong = np.asarray(~np.isfinite(array))
        return np.asarray(wrong.reshape(len(array), -1).any(1)) if wrong.ndim > 1 and wrong.size else wrong
    if array.dtype.kind in "Mm":
        return np.isnat(array)
    if array.dtype.kind in "US":
        return np.char.strip(array).astype(str) == "" if array.ndim == 1 else np.zeros(len(array), dtype=bool)
    if array.dtype.kind == "O" and array.ndim == 1:
        return np.array([_is_absent(value) for value in array], dtype=bool)
    return np.zeros(len(array), dtype=bool)


def _is_absent(value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    try:
        return bool(value != value) or str(value) in ("<NA>", "NaT")
    except (TypeError, ValueError):  # pandas.NA has no truth
        return True


def incomplete(inputs: Any) -> Tensor:
    """Which rows have a value that is missing or infinite, `[rows]` bool."""
    if not isinstance(inputs, Tensor) or not (inputs.is_floating_point() or inputs.is_complex()):
        return torch.zeros(len(inputs), dtype=torch.bool)
    return ~torch.isfinite(inputs).flatten(1).all(1) if inputs.dim() > 1 else ~torch.isfinite(inputs)


class Completed:
    """Rows without missing values.

    Args:
        name: of the data, for messages.
        inputs: `[rows, ...]`.
        labels: one per row, as they were given.
        missing: what is done.
        at: where a row is (`"line 9 of table.csv"`), for messages.
        means: `[...]` to fill in, of the training rows; None takes those of these rows.

    Raises:
        DataError: for missing values that are refused, a label that is missing under `mean`, or nothing left.

    Attributes:
        inputs: of the rows that are left.
        kept: their numbers; None for all.
        means: what was or would be filled in, for other rows.
    """

    def __init__(
        self,
        name: str,
        inputs: Tensor,
        labels: Any,
        missing: Missing,
        at: Callable[[int], str] = lambda row: f"row {row}",
        means: Tensor | None = None,
    ) -> None:
        self.inputs, self.kept, self.means = inputs, None, means
        unlabelled = torch.from_numpy(absent(labels))
        gaps = incomplete(inputs)
        if bool(unlabelled.any()) and missing != "drop":
            raise DataError(
                f"{name}: {int(unlabelled.sum())} of {len(labels)} labels are missing, the first in"
                f" {at(int(unlabelled.nonzero()[0]))}. Give them, or write missing='drop' to leave those rows out."
            )
        if not bool(gaps.any()) and not bool(unlabelled.any()):
            return
        if missing == "refuse":
            row = int(gaps.nonzero()[0])
            raise DataError(
                f"{name}: {int(gaps.sum())} of {len(gaps)} samples have values that are missing or infinite, the first"
                f" in {at(row)}, feature {int((~torch.isfinite(inputs[row].flatten())).nonzero()[0])}. {ADVICE}"
            )
        if missing == "mean":
            self.inputs, self.means = filled(name, inputs, means)
            return
        wrong = gaps | unlabelled
        self.kept = (~wrong).nonzero().flatten()
        if len(self.kept) == 0:
            raise DataError(f"{name}: every row has a missing value, so none is left. Write missing='mean'.")
        self.inputs = inputs[self.kept]
        warnings.warn(
            f"{name}: {int(wrong.sum())} of {len(wrong)} rows have missing values and are left out.", stacklevel=4
        )

    def of(self, values: Any) -> Any:
        """The entries of `values`, one for each row before, of the rows that are left."""
        if self.kept is None or values is None:
            return values
        return values[self.kept] if isinstance(values, Tensor) else np.asarray(values)[self.kept.numpy()]


def filled(name: str, inputs: Tensor, means: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inputs with the mean of each feature in the place of missing values, and those means.

    Args:
        name: of the data, for messages.
        inputs: `[rows, ...]`.
        means: `[...]` of other rows; None takes those of these.

    Raises:
        DataError: for a feature without any value.
    """
    finite = torch.isfinite(inputs)
    if means is None:
        count = finite.sum(0)
        means = torch.where(finite, inputs, 0).double().sum(0) / count
        if bool((count == 0).any()):
            empty = (count == 0).flatten().nonzero().flatten().tolist()
            raise DataError(f"{name}: the features {empty[:5]} have no value at all. Leave them out.")
    return torch.where(finite, inputs, means.to(inputs.dtype)), means
