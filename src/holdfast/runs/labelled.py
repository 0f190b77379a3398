"""New data with labels for a trained model: read as its training data were, labels by name, new classes allowed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.core.experience import Stream
from holdfast.core.randomness import add_tensor
from holdfast.runs.assemble import Restored
from holdfast.runs.card import number_of
from holdfast.runs.inputs import as_trained, read_inputs
from holdfast.runs.predicted_tables import encoding_of, features_of, is_table, labels_of, notes_on, read_file
from holdfast.streams.datasets.tables import read_frame

Data = str | os.PathLike[str] | Sequence[Any] | Any
"""One file or folder, several, a data frame with the columns of the training table, or arrays `(inputs, labels)`."""


@dataclass
class Labelled:
    """New samples.

    Attributes:
        inputs: raw as the training data, `[rows, ...]`.
        labels: words for classes, a tensor `[rows, numbers]` for regression; None if there are none.
        names: where they came from.
        notes: sentences about what stands out.
    """

    inputs: Tensor
    labels: list[str] | Tensor | None
    names: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The labels of classes; none for numbers."""
        return self.labels if isinstance(self.labels, list) else []

    def targets(self, stream: Stream) -> Tensor:
        """Class indices, -1 where the model has no such class; or numbers `[rows, numbers]`."""
        if isinstance(self.labels, Tensor):
            return self.labels
        return torch.tensor([number_of(label, stream.class_names) for label in self.words], dtype=torch.int64)


def has(data: Data) -> bool:
    """Whether there is any."""
    return data is not None and not (isinstance(data, list | tuple) and not data)


def parts_of(data: Data) -> list[Any]:
    """The files, frames and arrays that `data` stands for."""
    pair = isinstance(data, tuple) and len(data) == 2 and not any(isinstance(one, str | os.PathLike) for one in data)
    if isinstance(data, str | os.PathLike) or hasattr(data, "columns") or pair:
        return [data]
    return list(data)


def digest_of(data: Data) -> str:
    """Sixteen hexadecimal digits of the content, whatever it is called.

    Raises:
        DataError: where a file is not there.
    """
    digest = hashlib.sha256()
    for part in parts_of(data):
        if hasattr(part, "columns"):
            raw = read_frame(part)
            digest.update(repr([raw.names, *(column.tolist() for column in raw.values)]).encode())
        elif isinstance(part, tuple):
            add_tensor(digest, torch.as_tensor(np.asarray(part[0])))
            digest.update(repr(np.asarray(part[1]).tolist()).encode())
        else:
            path = Path(part)
            if not path.exists():
                raise DataError(f"there are no data at {path}. Give a table, an .npz, or a folder of images.")
            for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
                digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def read_labelled(restored: Restored, data: Data) -> Labelled:
    """Read new data; rows of a table without a label are left out, if others have one.

    Raises:
        DataError: for what cannot be read or does not fit the model, and where some data have labels and others none.
        ConfigError: for columns that are not there.
    """
    pieces = [_read(restored, part) for part in parts_of(data)]
    if len({one.labels is None for one in pieces}) > 1:
        raise DataError("some of the data have labels, and others none. Give them one after the other.")
    labels: list[str] | Tensor | None = None
    if pieces[0].labels is not None:
        if isinstance(pieces[0].labels, Tensor):
            labels = torch.cat([one.labels for one in pieces if isinstance(one.labels, Tensor)])
        else:
            labels = [label for one in pieces for label in one.words]
    names, notes = ([line for one in pieces for line in getattr(one, key)] for key in ("names", "notes"))
    made = Labelled(torch.cat([one.inputs for one in pieces]), labels, names, notes)
    return made if labels is None else _with_label(made)


def _with_label(new: Labelled) -> Labelled:
    """The rows that have a label."""
    if isinstance(new.labels, Tensor):
        there = torch.isfinite(new.labels).all(1)
    else:
        there = torch.tensor([bool(label) for label in new.words], dtype=torch.bool)
    if bool(there.all()) and len(there):
        return new
    if not bool(there.any()):
        return Labelled(new.inputs, None, new.names, new.notes)
    kept = there.nonzero().flatten()
    labels = new.labels[kept] if isinstance(new.labels, Tensor) else [new.words[row] for row in kept.tolist()]
    notes = [*new.notes, f"{len(there) - len(kept)} of {len(there)} rows have no label, and are left out"]
    return Labelled(new.inputs[kept], labels, new.names, notes)


def _read(restored: Restored, part: Any) -> Labelled:
    if hasattr(part, "columns") or (not isinstance(part, tuple) and is_table(str(part))):
        encoding = encoding_of(restored)
        raw = read_frame(part, "the table") if hasattr(part, "columns") else read_file(Path(part), encoding)
        features = features_of(raw, encoding)
        name = "the table" if hasattr(part, "columns") else Path(part).name.split(".")[0]
        return Labelled(features, labels_of(raw, encoding, restored.stream), [name], notes_on(raw, encoding))
    if isinstance(part, tuple):
        values, labels = as_trained(torch.as_tensor(np.asarray(part[0])), restored.card), np.asarray(part[1]).tolist()
        if tuple(values.shape[1:]) != tuple(restored.stream.input_shape):
            raise DataError(
                f"the new inputs have shape {tuple(values.shape[1:])}, and the model takes"
                f" {tuple(restored.stream.input_shape)}. Give those."
            )
        return Labelled(values, _as_labels(labels, restored.stream), ["the arrays"])
    _, values, raw_labels = read_inputs(Path(part), restored, new_classes=True)
    name = Path(part).name.split(".")[0]
    return Labelled(values, None if raw_labels is None else _as_labels(raw_labels, restored.stream), [name])


def _as_labels(labels: Sequence[Any], stream: Stream) -> list[str] | Tensor:
    if not stream.classes:
        return torch.as_tensor(np.asarray(labels, dtype=np.float64)).reshape(len(labels), -1).float()
    return [str(int(one)) if isinstance(one, float) and one.is_integer() else str(one).strip() for one in labels]
