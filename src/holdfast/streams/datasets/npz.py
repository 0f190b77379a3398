"""Data sets in NumPy's .npz archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.errors import DAMAGED_ARRAYS, ConfigError, DataError, unknown
from holdfast.core.ranges import BelowOne, Positive, Size, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import Kind, Layout, encode, images, of_tensors
from holdfast.streams.datasets.missing import Missing, absent

GUESSES = {
    "inputs": ("x_train", "X_train", "train_x", "train_images", "x", "X", "images", "inputs", "data"),
    "targets": ("y_train", "Y_train", "train_y", "train_labels", "y", "Y", "labels", "targets", "target"),
    "test_inputs": ("x_test", "X_test", "test_x", "test_images"),
    "test_targets": ("y_test", "Y_test", "test_y", "test_labels"),
    "split": ("split",),
    "class_names": ("class_names", "fine_names", "names"),
}


@ranged
def npz(
    path: str,
    inputs: str | None = None,
    targets: str | None = None,
    test_inputs: str | None = None,
    test_targets: str | None = None,
    split: str | None = None,
    class_names: str | list[str] | None = None,
    where: dict[str, list[int]] | None = None,
    name: str | None = None,
    test_fraction: BelowOne = 0.2,
    split_seed: int = 0,
    kind: Kind = "classification",
    layout: Layout = "auto",
    missing: Missing = "refuse",
    scale: Positive | None = None,
    normalise: bool = False,
    crop: Size = 0,
    flip: bool = False,
    by: str | None = None,
    test_by: str | None = None,
) -> Dataset:
    """A data set in one .npz file, or in files that belong together.

    An array is named as in the file (`"x_train"`), or as another file of the same folder (`"labels.npz"`, or
    `"labels.npz:arr_0"`). Names that are None are guessed: `x_train, y_train, x_test, y_test`; `x, y` and perhaps
    `split` (0 is training, all else test); a file `...-imgs.npz` beside `...-labels.npz`. Nothing is unpickled.

    Args:
        path: of the file.
        inputs: array of training inputs.
        targets: array of training targets.
        test_inputs: array of test inputs.
        test_targets: array of test targets.
        split: array with 0 for training rows, if there are no test inputs; "" ignores the one that is guessed.
        class_names: array with the names, or a list of them.
        where: keeps only the rows where these arrays have one of these values (`{"group": [41, 12000]}`); classes
            are numbered over the whole file, so that groups agree on them.
        name: for reports; None takes the file's name.
        test_fraction: of each class, held out where neither test inputs nor a split are there.
        split_seed: of that choice.
        kind: "classification" or "regression".
        layout: of one image; "auto" guesses. "tokens" keeps whole numbers as they are, for a model with an embedding.
        missing: "refuse" values that are missing or infinite and labels that are missing, fill in the "mean" of the
            feature over the training data, or "drop" those rows.
        scale: what whole numbers are divided by; None takes 255 for bytes, 65535 for 16-bit images, and 1 for others.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.
        crop: padding of the random crop in training.
        flip: whether training images are mirrored at random.
        by: array with a value per training row, which cuts them into groups for the stream `grouped`: numbers in their
            order, words in that of their first rows.
        test_by: the same for the test rows, where test inputs are there.

    Raises:
        DataError: no such file or array, one that is not an archive or needs unpickling, rows that differ in number, or
            missing values that are refused.
    """
    file = _Archive(Path(path))
    x, y = file.find("inputs", inputs), file.find("targets", targets)
    if x is None or y is None:
        lacking = "inputs" if x is None else "targets"
        raise DataError(f"{path} holds {', '.join(file.names)}, and none is known for {lacking}. Give {lacking}=.")
    if len(x) == 0:
        raise DataError(f"{path} has no training samples: its inputs have shape {x.shape}. Give at least one.")
    x_test, y_test = file.find("test_inputs", test_inputs), file.find("test_targets", test_targets)
    for part, rows, labels in (("training", x, y), ("test", x_test, y_test)):
        if rows is not None and labels is not None and len(rows) != len(labels):
            raise DataError(f"{path}: {len(rows)} {part} inputs and {len(labels)} targets. Give one target per input.")
    if where and x_test is not None:
        raise ConfigError(f"where={where} with test inputs apart. Leave where out, or put all rows into one array.")
    keep = np.ones(len(x), dtype=bool)
    for key, values in (where or {}).items():
        column = file.array(key)
        if len(column) != len(x):
            raise ConfigError(f"the array {key!r} has {len(column)} rows and the inputs {len(x)}. Choose another.")
        keep &= np.isin(column, values)
    if not keep.any():
        raise DataError(f"no row of {path} fits {where}. Choose other values.")
    groups = None if by is None else file.array(by)
    test_groups = None if test_by is None else file.array(test_by)
    if groups is not None and len(groups) != len(x):
        raise ConfigError(f"{path}: the array {by!r} has {len(groups)} rows and the inputs {len(x)}. Choose another.")
    parts = None if split == "" else file.find("split", split)
    encoded: tuple[str, ...] | None = None
    if kind == "classification":  # over the whole file, so that groups agree on the numbers
        y, y_test, encoded = _codes(y, y_test)
    if x_test is None and parts is not None:
        if len(parts) != len(x):
            raise DataError(f"{path}: the split has {len(parts)} rows and the inputs {len(x)}. Give test_inputs=.")
        test, keep = keep & (parts != 0), keep & (parts == 0)
        if not keep.any():
            raise DataError(f"{path}: the split has no training row where {where}. Give split='' to draw one instead.")
        x_test, y_test = x[test], y[test]
        test_groups = None if groups is None else groups[test]
    names = class_names if isinstance(class_names, list) else file.find("class_names", class_names)
    every = bool(keep.all())
    return of_tensors(
        name or Path(path).stem,
        images(x if every else x[keep], layout, scale),
        y if every else y[keep],
        None if x_test is None else images(x_test, layout, scale),
        y_test,
        None if names is None else [str(entry) for entry in names],
        test_fraction,
        split_seed,
        kind,
        encoded=encoded,
        missing=missing,
        tokens=layout == "tokens",
        scale=scale,
        normalise=normalise,
        crop=crop,
        flip=flip,
        by=None if groups is None else groups[keep],
        test_by=test_groups,
    )


def _codes(labels: np.ndarray, others: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Class numbers as floats, NaN where the label is missing, and the name of each class."""
    whole, labelled = np.full(len(labels), np.nan), ~absent(labels)
    rest = None if others is None else np.full(len(others), np.nan)
    there = None if others is None else ~absent(others)
    codes, other_codes, names = encode(labels[labelled], None if others is None else others[there])
    whole[labelled] = codes.numpy()
    if rest is not None and other_codes is not None:
        rest[there] = other_codes.numpy()
    return whole, rest, names


class _Archive:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _opened(path)
        self.names: list[str] = list(self._file.files)

    def array(self, name: str) -> np.ndarray:
        """An array of this file, or `other.npz:name` of the same folder."""
        if ".npz" in name:
            other, _, inner = name.partition(":")
            archive = _Archive(self.path.parent / other)
            return archive.array(inner or archive.names[0])
        if name not in self.names:
            raise DataError(f"{self.path}: {unknown('array', name, self.names)}")
        try:
            value = np.asarray(self._file[name])
        except DAMAGED_ARRAYS as error:
            raise DataError(f"{self.path}: the array {name!r} cannot be read: {error}. Save plain arrays.") from error
        if not value.ndim:
            raise DataError(f"{self.path}: the array {name!r} is a single value. Give one entry per row.")
        return value

    def find(self, role: str, given: str | None) -> np.ndarray | None:
        """The array given by name, else the first one guessed."""
        if given is not None:
            return self.array(given)
        for guess in GUESSES[role]:
            if guess in self.names:
                return self.array(guess)
        if len(self.names) == 1 and self.path.stem.endswith("-imgs"):
            if role == "inputs":
                return self.array(self.names[0])
            if role == "targets":
                return self.array(self.path.name.replace("-imgs.npz", "-labels.npz"))
        return None


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give the path of a .npz file.")
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGED_ARRAYS as error:
        raise DataError(f"{path} is no .npz archive: {error}. Save one with numpy.savez.") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds a single array. Save inputs and targets together with numpy.savez.")
    return archive
