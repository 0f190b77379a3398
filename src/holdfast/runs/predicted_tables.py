"""Tables of new samples: read as the training table was, and written again with what the model says of each row."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, needs_extra
from holdfast.core.experience import Stream
from holdfast.metrics.log import replace_file
from holdfast.runs.assemble import Restored
from holdfast.runs.card import number_of
from holdfast.runs.inputs import outputs, probabilities
from holdfast.streams.datasets.columns import Raw, gaps, numbers, refuse_gap
from holdfast.streams.datasets.encoding import Encoding
from holdfast.streams.datasets.tables import read_parquet
from holdfast.streams.datasets.text import read_table

TABLES = (".csv", ".tsv", ".txt", ".gz", ".parquet")
MOST_TOLD = 5
"""Names that a note lists."""


@dataclass
class Scores:
    """How right predictions are, over all inputs with a label.

    Attributes:
        samples: with a label.
        right: of classes.
        unknown: labels that the model has no class for, each with how often it was seen; they count as wrong.
        confusion: label -> answer -> how often.
        absolute, squared, total, squares: sums for regression.
    """

    samples: int = 0
    right: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    absolute: float = 0.0
    squared: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    numbers: int = 0

    def add_classes(
        self, answers: Sequence[int], targets: Tensor | None, labels: Sequence[str] | None, names: Sequence[str]
    ) -> None:
        """Count a batch of answers, those with a label."""
        if targets is None:
            return
        for position, (answer, target) in enumerate(zip(answers, targets.tolist())):
            label = labels[position] if labels is not None else names[target]
            if label == "":
                continue
            self.samples += 1
            self.right += answer == target
            if target < 0:
                self.unknown[label] = self.unknown.get(label, 0) + 1
            row = self.confusion.setdefault(label, {})
            word = names[answer] if answer < len(names) else str(answer)
            row[word] = row.get(word, 0) + 1

    def add_numbers(self, answers: Tensor, targets: Tensor | None) -> None:
        """Sum the errors of a batch of numbers, those that have a target."""
        if targets is None or answers.shape != targets.flatten(1).shape:
            return
        wanted = targets.flatten(1).double()
        there = torch.isfinite(wanted).all(1)
        wanted, error = wanted[there], answers.double()[there] - wanted[there]
        self.samples += int(there.sum())
        self.numbers += wanted.numel()
        self.absolute += float(error.abs().sum())
        self.squared += float(error.square().sum())
        self.total += float(wanted.sum())
        self.squares += float(wanted.square().sum())

    def measures(self) -> dict[str, Any]:
        """What came of it: `accuracy` and `confusion`, or `absolute_error`, `root_squared_error` and `r2`."""
        if not self.samples:
            return {}
        if not self.numbers:
            unknown = {"unknown_labels": self.unknown} if self.unknown else {}
            accuracy = self.right / self.samples
            return {"samples": self.samples, "accuracy": accuracy, **unknown, "confusion": self.confusion}
        spread = self.squares - self.total**2 / self.numbers
        return {
            "samples": self.samples,
            "absolute_error": self.absolute / self.numbers,
            "root_squared_error": (self.squared / self.numbers) ** 0.5,
            "r2": 1 - self.squared / spread if spread > 0 else None,
        }

    def sentence(self, rows: int) -> str:
        """The scores for reading; empty where no input has a label."""
        told = self.measures()
        if not told:
            return ""
        of = f"{self.samples}" if self.samples == rows else f"{self.samples} of {rows}"
        if self.numbers:
            share = "" if told["r2"] is None else f", R2 {told['r2']:.3f}"
            return f"mean absolute error {told['absolute_error']:.4g}{share}, on {of} rows with a target"
        text = f"{100 * told['accuracy']:.1f} % right, of {of} with a label"
        if self.unknown:
            listed = ", ".join(f"{label} ({count})" for label, count in list(self.unknown.items())[:MOST_TOLD])
            text += f"; labels that the model never learned count as wrong: {listed}"
        return text


def is_table(name: str) -> bool:
    """Whether an input is a table by its name."""
    return Path(name).suffix.lower() in TABLES and not Path(name).is_dir()


def encoding_of(restored: Restored) -> Encoding:
    """How the training table's columns became features.

    Raises:
        DataError: for a model that was not trained on a table.
    """
    table = restored.card.get("table")
    if table is None:
        raise DataError(
            f"this model was not trained on a table but on {restored.stream.name}, inputs of shape"
            f" {tuple(restored.stream.input_shape)}. Give such inputs as .npy or .npz."
        )
    return Encoding.from_description(table)


def features_of(raw: Raw, encoding: Encoding) -> Tensor:
    """The features of each row of a table, `[rows, features]` float32.

    Raises:
        ConfigError: for columns that are not there.
        DataError: for a value of another kind than its column, or one that is missing where none was in training.
    """
    lacking = [feature.name for feature in encoding.features if feature.name not in raw.names]
    if lacking:
        raise ConfigError(
            f"{raw.source} lacks the columns {', '.join(map(repr, lacking[:MOST_TOLD]))} that the model was trained on;"
            f" it has {', '.join(map(repr, raw.names[:20]))}. Add them."
        )
    matrix = encoding.matrix(raw)
    gone = np.isnan(matrix)
    if gone.any():
        for feature in encoding.features:
            column = gaps(raw.values[raw.find(feature.name)])
            if column.any():
                refuse_gap(raw, feature.name, int(column.argmax()), int(column.sum()))
    return encoding.features_from(matrix)


def predict_table(
    restored: Restored, path: Path, out: Path, scores: Scores, task: int | None = None
) -> tuple[list[str], int]:
    """Write the table `path` to `out` with columns for what the model says.

    The columns are `predicted_<target>`, and with classes `probability` and `p(<class>)` for each; a name that the
    table has already gets a number. Where the table has the target's column, rows with a label are scored.

    Args:
        restored: the model.
        path: of the table.
        out: the file to write, `.csv` or `.parquet`.
        scores: gets the counts.
        task: of all rows.

    Returns:
        Sentences about what stands out, and the number of rows.
    """
    encoding = encoding_of(restored)
    raw = read_file(path, encoding)
    values = features_of(raw, encoding)
    names, size = restored.stream.class_names, restored.eval_batch_size
    answers = torch.cat([outputs(restored.engine, part, task) for part in values.split(size)]).flatten(1)
    target_column = raw.values[raw.find(encoding.target)] if encoding.target in raw.names else None
    columns: dict[str, Any] = {}
    if restored.stream.classes:
        shares, best = probabilities(answers, len(names)), answers.argmax(1).tolist()
        columns[f"predicted_{encoding.target}"] = [names[label] if label < len(names) else str(label) for label in best]
        columns["probability"] = shares.max(1).values.tolist()
        columns |= {f"p({name})": shares[:, column].tolist() for column, name in enumerate(names)}
        if target_column is not None:
            labels = _labels(target_column, encoding)
            targets = torch.tensor([number_of(label, names) for label in labels])
            columns["right"] = [
                "" if not label else int(answer) == int(target) for label, answer, target in zip(labels, best, targets)
            ]
            scores.add_classes(best, targets, labels, names)
    else:
        columns[f"predicted_{encoding.target}"] = answers[:, 0].tolist()
        if target_column is not None:
            wanted, _ = numbers(target_column, encoding.decimal)
            scores.add_numbers(answers[:, :1], torch.from_numpy(wanted)[:, None])
    _write(raw, columns, out)
    return notes_on(raw, encoding), len(raw)


def labels_of(raw: Raw, encoding: Encoding, stream: Stream) -> list[str] | Tensor | None:
    """The labels of a table by name, "" where one is missing; numbers `[rows, 1]` for regression; None without any."""
    if encoding.target not in raw.names:
        return None
    target_column = raw.values[raw.find(encoding.target)]
    if stream.classes:
        return _labels(target_column, encoding)
    return torch.from_numpy(numbers(target_column, encoding.decimal)[0].astype(np.float32))[:, None]


def _labels(column: np.ndarray, encoding: Encoding) -> list[str]:
    gone = gaps(column)
    return ["" if gone[row] else _label(value, encoding) for row, value in enumerate(column)]


def _label(value: Any, encoding: Encoding) -> str:
    """A label as the training table's were named: whole numbers without a fraction."""
    number, wrong = numbers(
        np.array([value], dtype=object) if isinstance(value, str) else np.array([value]), encoding.decimal
    )
    if not wrong[0] and np.isfinite(number[0]) and float(number[0]).is_integer():
        return str(int(number[0]))
    return str(value).strip()


def notes_on(raw: Raw, encoding: Encoding) -> list[str]:
    """Sentences about words of a table that no feature stands for."""
    return [
        f"{raw.source}: the words {', '.join(map(repr, words[:MOST_TOLD]))} of column {column!r} were not seen in"
        " training, and are zeros in all of its features."
        for column, words in encoding.unseen(raw).items()
    ]


def read_file(path: Path, encoding: Encoding) -> Raw:
    """The columns of a table's file, read as the training table was."""
    if path.suffix.lower() == ".parquet":
        return read_parquet(str(path))
    header = not all(feature.name.isdigit() for feature in encoding.features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a column of line numbers was told of when the training table was read
        return read_table(path, header=header)


def _write(raw: Raw, columns: Mapping[str, Sequence[Any]], out: Path) -> None:
    """The table with more columns, as text or as Parquet."""
    whole: dict[str, Sequence[Any]] = {name: values.tolist() for name, values in zip(raw.names, raw.values)}
    for name, values in columns.items():
        free = name
        for number in range(2, 1000):
            if free not in whole:
                break
            free = f"{name}_{number}"
        whole[free] = values
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
            import pyarrow.parquet as writer  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise needs_extra("a Parquet file", "pyarrow", "parquet") from error
        table = pyarrow.table({name: _whole_column(values) for name, values in whole.items()})
        temporary = out.with_name(f".{out.name}.tmp")
        writer.write_table(table, temporary)
        temporary.replace(out)
        return
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(list(whole))
    lines.writerows(zip(*([_shown(value) for value in values] for values in whole.values())))
    replace_file(out, text.getvalue())


def _whole_column(values: Sequence[Any]) -> list[Any]:
    """A column of one type: an empty word among others is a value that is missing."""
    return [None if value == "" else value for value in values]


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e15 else "" if value != value else round(value, 6)
    return value
