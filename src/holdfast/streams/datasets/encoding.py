"""How a table becomes a data set: its columns as features, its rows in groups, and parts of them for tests."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import Kind, encode, finish, held_out_of
from holdfast.streams.datasets.columns import (
    Decimal,
    Period,
    Raw,
    dates,
    decimal_of,
    gaps,
    groups_of,
    numbers,
    refuse_gap,
    refuse_word,
)
from holdfast.streams.datasets.doubts import check_labels, check_numbers, check_words, offsets
from holdfast.streams.datasets.missing import Missing, filled

Standardise = bool | Literal["first"]
"""By which samples features are standardised: all training samples, those of the first group, or none."""

MOST_WORDS = 100
"""Different words of a column that become features of their own, at most."""


@dataclass(frozen=True)
class Feature:
    """How one column becomes numbers.

    Attributes:
        name: of the column.
        kind: "number"; "date" (days since 1970); or "category" (a 1 for the word that it is, 0 for the others).
        words: of a category, sorted.
    """

    name: str
    kind: Literal["number", "date", "category"]
    words: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the numbers that it becomes."""
        return (self.name,) if self.kind != "category" else tuple(f"{self.name}={word}" for word in self.words)


@dataclass(frozen=True)
class Encoding:
    """How the columns of a table become features; plain values, so that other tables can be read the same way.

    Attributes:
        features: in order.
        target: name of the column to predict.
        decimal: the decimal mark, "." or ",".
        means: filled in for missing values, one for each output; empty where they are refused.
        shift: subtracted from the outputs, one for each; empty where whoever prepares the inputs does that.
        scale: divided by then.
    """

    features: tuple[Feature, ...]
    target: str
    decimal: str = "."
    means: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the numbers of a sample."""
        return tuple(name for feature in self.features for name in feature.outputs)

    def matrix(self, raw: Raw) -> np.ndarray:
        """The features of every row, `[rows, outputs]` float64; NaN where a value is missing, unless `means` say it.

        Raises:
            ConfigError: for a column that is not there.
            DataError: for a value of another kind than its column.
        """
        parts = [self._columns(raw, feature) for feature in self.features]
        result = np.concatenate(parts, axis=1) if parts else np.empty((len(raw), 0))
        return np.where(np.isnan(result), self.means, result) if self.means else result

    def features_from(self, matrix: np.ndarray) -> Tensor:
        """What `matrix` gave, shifted and scaled, as float32."""
        if self.shift:
            matrix = (matrix - np.array(self.shift)) / np.array(self.scale)
        return torch.from_numpy(matrix.astype(np.float32))

    def _columns(self, raw: Raw, feature: Feature) -> np.ndarray:
        column = raw.values[raw.find(feature.name)]
        if feature.kind == "category":
            gone = gaps(column)
            number_of = {word: number for number, word in enumerate(feature.words)}
            result = np.zeros((len(column), len(feature.words)))
            for row, value in enumerate(column):
                number = number_of.get(str(value).strip())
                if not gone[row] and number is not None:
                    result[row, number] = 1.0
            result[gone] = np.nan
            return result
        if feature.kind == "date":
            times = dates(column)
            if times is None:
                row = next(row for row in range(len(column)) if dates(column[row : row + 1]) is None)
                raise DataError(
                    f"{raw.at(row)}: column {feature.name!r} is {column[row]!r}, which is not a date. Mend it."
                )
            days = times.astype("datetime64[s]").astype(np.float64) / 86400
            return np.where(np.isnat(times), np.nan, days)[:, None]
        values, wrong = numbers(column, self.decimal)
        if wrong.any():
            refuse_word(raw, feature.name, int(wrong.argmax()))
        return values[:, None]

    def unseen(self, raw: Raw) -> dict[str, list[str]]:
        """Words of categories that have no feature, by column; they are zeros in all of its features."""
        result = {}
        for feature in self.features:
            if feature.kind == "category":
                column = raw.values[raw.find(feature.name)]
                words = {str(value).strip() for value in column[~gaps(column)]} - set(feature.words)
                if words:
                    result[feature.name] = sorted(words)
        return result

    def describe(self) -> dict[str, Any]:
        """The encoding as JSON values; `from_description` gives it back."""
        features = [{"name": one.name, "kind": one.kind, "words": list(one.words)} for one in self.features]
        description = {"features": features, "target": self.target, "decimal": self.decimal, "means": list(self.means)}
        return {**description, "shift": list(self.shift), "scale": list(self.scale)} if self.shift else description

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Encoding:
        """The encoding that plain values describe."""
        features = tuple(Feature(one["name"], one["kind"], tuple(one["words"])) for one in values["features"])
        moved = (tuple(values.get(name) or ()) for name in ("shift", "scale"))
        return cls(features, values["target"], values["decimal"], tuple(values["means"]), *moved)


def feature_of(raw: Raw, number: int, decimal: str, category: bool, rows: np.ndarray) -> Feature:
    """How a column becomes numbers.

    Args:
        raw: the table.
        number: of the column.
        decimal: the decimal mark.
        category: whether its values are words, whatever they look like.
        rows: whose words are known beforehand: those of the first experience.

    Raises:
        DataError: for numbers and words in one column, or too many different words.
    """
    name, column = raw.names[number], raw.values[number]
    present = ~gaps(column)
    if not category:
        values, wrong = numbers(column, decimal)
        if column.dtype.kind != "M" and not wrong.any():
            check_numbers(raw, name, values)
            return Feature(name, "number")
        if dates(column) is not None:
            return Feature(name, "date")
        if not np.isnan(values[present]).all() or np.isinf(values).any():
            refuse_word(raw, name, int(wrong.argmax()))
        check_words(raw, name, column, int(present.sum()))
    here = column[rows]
    words = sorted({str(value).strip() for value in here[~gaps(here)]})
    if len(words) > MOST_WORDS:
        raise DataError(
            f"{raw.source}: column {name!r} has {len(words)} different words, such as {words[0]!r}. Leave it out with"
            f" drop=[{name!r}], or make fewer of them."
        )
    return Feature(name, "category", tuple(words))


# From columns to a data set --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Which columns are what; the arguments of `csv` by these names."""

    target: str | int
    features: Sequence[str] | None
    drop: Sequence[str] | None
    by: str | None
    period: Period | None
    categories: Sequence[str] | None
    decimal: Decimal

    def chosen(self, raw: Raw) -> tuple[int, int | None, list[int]]:
        """The numbers of the target, of the column that groups, and of the features.

        Raises:
            ConfigError: for an unknown column, or a table without features.
        """
        target = raw.find(self.target)
        by = None if self.by is None else raw.find(self.by)
        if self.period is not None and by is None:
            raise ConfigError(f"period is {self.period!r}, and no column groups the rows. Name it with by=.")
        left_out = {target, *([] if by is None else [by]), *(raw.find(name) for name in self.drop or ())}
        features = [number for number in range(len(raw.names)) if number not in left_out]
        if self.features is not None:
            features = [raw.find(name) for name in self.features]
            twice = [raw.names[number] for number in features if number in left_out]
            if twice:
                raise ConfigError(f"column {twice[0]!r} is a feature, and the target, a group or left out too. Decide.")
        if not features:
            raise ConfigError(f"{raw.source} has no column left to learn from. Leave fewer of {raw.names} out.")
        for name in self.categories or ():
            raw.find(name)
        return target, by, features


@dataclass(frozen=True)
class Sharing:
    """How rows are shared out between training and test; the arguments of `csv` by these names."""

    test_fraction: float
    ordered: bool
    test_at: Literal["spread", "end"]
    split_seed: int

    def __call__(self, targets: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """Training and test rows, ascending: the fraction of each group."""
        if self.test_at not in ("spread", "end"):
            raise ConfigError(f"test_at is {self.test_at!r}. Give 'spread' or 'end'.")
        how = self.test_at if self.ordered else "no"
        return held_out_of(groups, targets, self.test_fraction, self.split_seed, how)  # type: ignore[arg-type]


def dataset_of(
    raw: Raw, name: str, columns: Columns, sharing: Sharing, missing: Missing, standardise: Standardise, kind: Kind
) -> Dataset:
    """The data set of a table, as `csv` describes it."""
    target, by, chosen = columns.chosen(raw)
    decimal = decimal_of(raw, columns.decimal, [target, *chosen])
    raw = _without_gaps(raw, name, missing, target, by, chosen)
    as_words = {raw.find(column) for column in columns.categories or ()}
    labels, class_names = _targets(raw, target, kind, decimal, target in as_words)
    groups, group_names = (None, ()) if by is None else groups_of(raw, by, columns.period, decimal)
    group = None if groups is None else torch.from_numpy(groups.astype(np.int64))
    kept, tested = sharing(labels, group)
    first = kept if group is None else kept[group[kept] == 0]
    features = tuple(feature_of(raw, number, decimal, number in as_words, first.numpy()) for number in chosen)
    encoding = Encoding(features, raw.names[target], decimal)
    values = encoding.matrix(raw)
    far = offsets(values[kept.numpy()])
    if far.any():
        encoding = replace(encoding, shift=tuple(far.tolist()), scale=(1.0,) * len(far))
    matrix = encoding.features_from(values)
    if not bool(torch.isfinite(matrix).all()):
        void = [encoding.outputs[index] for index in torch.isnan(matrix[kept]).all(0).nonzero().flatten().tolist()]
        if void:
            raise DataError(f"{name}: {', '.join(void[:5])} have no value in any training row. Write drop={void[:5]}.")
        means = filled(name, matrix[kept])[1]
        matrix = filled(name, matrix, means)[0]
        encoding = replace(encoding, means=tuple((means.numpy() + far).tolist()))
    unseen = encoding.unseen(raw)
    for column, unseen_words in unseen.items():
        warnings.warn(
            f"{name}: the words {', '.join(map(repr, unseen_words[:5]))} of column {column!r} are not in the"
            f" {'training lines' if group is None else 'first group'}, and are zeros in all of its features.",
            stacklevel=3,
        )
    if class_names and len(tested):
        untested = sorted(set(labels[kept].tolist()) - set(labels[tested].tolist()))
        if untested:
            listed = ", ".join(repr(class_names[label]) for label in untested[:5])
            warnings.warn(
                f"{name}: the classes {listed} have no test row, so nothing is measured on them. Write ordered=false to"
                " draw test rows of each class.",
                stacklevel=3,
            )
    whole = TensorData(matrix, labels)
    train, test = whole.subset(kept), whole.subset(tested) if len(tested) else None
    first_rows = whole.subset(first) if standardise == "first" else None
    made = finish(name, train, test, class_names, kind, normalise=bool(standardise), known=first_rows)
    parted = {} if group is None else {"groups": group[kept], "test_groups": group[tested], "group_names": group_names}
    return replace(made, table=encoding, **parted)  # type: ignore[arg-type]


def _without_gaps(raw: Raw, name: str, missing: Missing, target: int, by: int | None, chosen: Sequence[int]) -> Raw:
    """The rows to work with: all, or those without a missing value."""
    needed = [target, *([] if by is None else [by])]
    for number in needed if missing != "drop" else ():
        gone = gaps(raw.values[number])
        if gone.any():
            row = int(gone.argmax())
            raise DataError(
                f"{raw.at(row)}: column {raw.names[number]!r} is {raw.values[number][row]!r}: {int(gone.sum())} of its"
                " values are missing. Fill them in, or write missing='drop' to leave those rows out."
            )
    if missing == "refuse":
        for number in chosen:
            gone = gaps(raw.values[number])
            if gone.any():
                refuse_gap(raw, raw.names[number], int(gone.argmax()), int(gone.sum()))
    if missing != "drop":
        return raw
    gone = np.any([gaps(raw.values[number]) for number in [*needed, *chosen]], axis=0)
    if gone.all():
        raise DataError(f"{name}: every row has a missing value, so none is left. Write missing='mean'.")
    if gone.any():
        warnings.warn(
            f"{name}: {int(gone.sum())} of {len(gone)} rows have missing values, and are left out.", stacklevel=4
        )
    return raw.take((~gone).nonzero()[0]) if gone.any() else raw


def _targets(raw: Raw, number: int, kind: Kind, decimal: str, as_words: bool) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices and names, or numbers `[rows, 1]`; whole numbers stay such, so that 10 comes after 9."""
    column = raw.values[number]
    values, wrong = numbers(column, decimal)
    if kind == "regression":
        if wrong.any():
            refuse_word(raw, raw.names[number], int(wrong.argmax()))
        return torch.from_numpy(values.astype(np.float32)).unsqueeze(1), ()
    if kind != "classification":
        raise ConfigError(f"kind is {kind!r}. Give 'classification' or 'regression'.")
    words = [str(value).strip() for value in column]
    numeric = column.dtype.kind != "M" and not wrong.any()
    if not as_words:
        check_labels(raw, raw.names[number], words, numeric)
    if numeric and not as_words:
        if not (values == values.round()).all():
            raise DataError(
                f"{raw.source}: the labels are fractions. For regression give kind='regression', for classes that look"
                f" like numbers categories=[{raw.names[number]!r}]."
            )
        if not (len({len(word) for word in words}) == 1 and any(re.fullmatch("0\\d+", word) for word in words)):
            codes, _, names = encode(values.astype(np.int64))
            return codes, names
    codes, _, names = encode(words)
    return codes, names
