"""What every factory of data sets needs: class encoding, train and test splits, statistics, and where files are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Data
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset, Prepare
from holdfast.streams.datasets.columns import check_groups, grouped_by
from holdfast.streams.datasets.doubts import warn_of_case
from holdfast.streams.datasets.missing import Completed, Missing, absent
from holdfast.streams.tables import rng

Kind = Literal["classification", "regression"]
Layout = Literal["auto", "hw", "chw", "hwc", "tokens"]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, from 0 to 1, that its networks were trained with."""


def encode(labels: Any, others: Any = None) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Class indices for training and test labels of any kind, with the name of each class.

    Labels that are 0..C-1 already keep their numbers; others are numbered in sorted order.

    Args:
        labels: of the training data: numbers or strings.
        others: of the test data, or None.

    Raises:
        DataError: a test label that no training sample has, labels that are missing (None, NaN, an empty word), or
            labels of more than one dimension.
    """
    plain_labels = _plain(labels)
    values, indices = np.unique(plain_labels, return_inverse=True)
    warn_of_case([str(value) for value in values], "the classes")
    if others is None:
        return torch.from_numpy(indices.astype(np.int64)), None, tuple(str(value) for value in values)
    other = _plain(others)
    strange = np.setdiff1d(other, values)
    if len(strange):
        shown = ", ".join(str(value) for value in strange[:5])
        raise DataError(f"the test data have the classes {shown}, which no training sample has. Remove or add them.")
    second = torch.from_numpy(np.searchsorted(values, other).astype(np.int64))
    return torch.from_numpy(indices.astype(np.int64)), second, tuple(str(value) for value in values)


def held_out(
    targets: Tensor, fraction: float, seed: int, ordered: Literal["no", "spread", "end"] = "no"
) -> tuple[Tensor, Tensor]:
    """Training and test rows, ascending.

    Args:
        targets: class indices, or floats.
        fraction: of the rows that become test rows.
        seed: of the choice, where it is random.
        ordered: "no" draws the fraction of each class; "spread" takes every k-th row, so that every stretch of time
            has its test rows; "end" takes the last rows.

    Raises:
        ConfigError: a fraction outside 0..1.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"test_fraction is {fraction}. Give a fraction from 0 to below 1.")
    count = len(targets)
    test = torch.zeros(count, dtype=torch.bool)
    if ordered == "spread":
        steps = (torch.arange(count + 1, dtype=torch.float64) * fraction + 1e-9).floor()
        test = steps[1:] > steps[:-1]
    elif ordered == "end":
        test[count - math.floor(count * fraction + 0.5) :] = True
    else:
        labels = torch.zeros(count, dtype=torch.int64) if targets.is_floating_point() else targets
        generator = rng(seed, "test split")
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            size = min(len(members) - 1, math.floor(len(members) * fraction + 0.5))
            test[members[torch.randperm(len(members), generator=generator)[:size]]] = True
    return (~test).nonzero().flatten(), test.nonzero().flatten()


def finish(
    name: str,
    train: Data,
    test: Data | None,
    class_names: Sequence[str],
    kind: Kind = "classification",
    scale: float | None = None,
    normalise: bool | Literal["imagenet"] = False,
    crop: int = 0,
    flip: bool = False,
    tokens: bool = False,
    known: Data | None = None,
) -> Dataset:
    """The data set of these parts; statistics for the normalisation come from the training part alone, or from `known`.

    Without a scale, bytes are divided by 255, and other whole numbers are left as they are.
    """
    first = train.gather(torch.tensor([0])).inputs if len(train) else torch.empty(1, 0)
    shape = tuple(first.shape[1:]) if isinstance(first, Tensor) else ()
    prepare: Prepare | None = None
    if tokens and (normalise or crop or flip):
        raise ConfigError("normalise, crop and flip are for images, and these inputs are tokens. Leave them out.")
    if isinstance(first, Tensor) and not tokens:
        counts = not first.is_floating_point() and first.dtype != torch.uint8
        divisor = (1.0 if counts else 255.0) if scale is None else scale
        mean, std = statistics(known or train, divisor) if normalise is True else (None, None)
        if normalise == "imagenet":
            mean, std = list(IMAGENET[0]), list(IMAGENET[1])
        prepare = Prepare(mean, std, divisor, crop, flip)
    classes = 0 if kind == "regression" else len(class_names)
    return Dataset(name, train, test, classes, shape, tuple(class_names), prepare, kind)


def statistics(data: Data, scale: float) -> tuple[list[float], list[float]]:
    """Mean and (population) standard deviation of the inputs: per channel of images, per feature of vectors."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    batches = list(_columns(data, scale)) if len(data) <= 1024 else _columns(data, scale)
    centre: Tensor | None = None
    for values in batches:
        # Sums of deviations from an early guess of the mean keep their digits.
        centre = values.mean(0, keepdim=True) if centre is None else centre
        count += values.shape[0]
        total = total + (values - centre).sum(0)
        squares = squares + (values - centre).square().sum(0)
    if centre is None:
        raise DataError("the mean of no training samples. Give at least one.")
    shift = total / count
    std = (squares / count - shift.square()).clamp_(min=0).sqrt()
    return (centre[0] + shift).tolist(), std.tolist()


def images(array: Any, layout: Layout = "auto", scale: float | None = None) -> Tensor:
    """Images as a tensor `[rows, channels, height, width]`; other arrays stay as they are.

    Numbers keep their type, but for those that torch can hardly work with: images of 16 bits become floats from 0 to 1,
    other unsigned numbers of more than 8 bits become int64, truth values bytes 0 and 1.

    Args:
        array: `[rows, height, width]`, or four dimensions with the channels second or last.
        layout: of one image; "auto" takes bytes and 16-bit numbers of three dimensions for grey images, and a last
            dimension of 1, 3 or 4 for channels where the second is none. "tokens" keeps whole numbers for an embedding.
        scale: what 16-bit images are divided by; None for 65535.

    Raises:
        ConfigError: for a layout with another number of dimensions, or tokens that are not whole numbers.
        DataError: for values that are not numbers.
    """
    try:
        tensor = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the inputs are not numbers: {error}. Encode them first, or use csv or frame.") from error
    if layout == "tokens":
        if tensor.is_floating_point() or tensor.is_complex():
            raise ConfigError(f"layout 'tokens' with inputs of {tensor.dtype}. Give whole numbers, or another layout.")
        return tensor.to(torch.int64)
    if layout == "auto":
        if tensor.dim() == 3 and tensor.dtype in (torch.uint8, torch.uint16):
            layout = "hw"
        elif tensor.dim() == 4 and tensor.shape[3] in (1, 3, 4) and tensor.shape[1] not in (1, 3, 4):
            layout = "hwc"
    expected = {"hw": 3, "hwc": 4, "chw": 4}.get(layout)
    if expected is not None and tensor.dim() != expected:
        raise ConfigError(f"layout {layout!r} with inputs of shape {tuple(tensor.shape)}. Give another layout.")
    if layout == "hw":
        tensor = tensor.unsqueeze(1)
    elif layout == "hwc":
        tensor = tensor.permute(0, 3, 1, 2).contiguous()
    if tensor.dtype == torch.uint16 and tensor.dim() == 4:
        return tensor.to(torch.float32) / (65535.0 if scale is None else scale)
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return tensor.to(torch.int64)
    return tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor


def of_tensors(
    name: str,
    inputs: Tensor,
    labels: Any,
    test_inputs: Tensor | None = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    kind: Kind = "classification",
    ordered: Literal["no", "spread", "end"] = "no",
    encoded: Sequence[str] | None = None,
    missing: Missing = "refuse",
    by: Any = None,
    test_by: Any = None,
    **prepare: Any,
) -> Dataset:
    """A data set of tensors; without test inputs a part of the training data is held out, sharing their memory.

    Labels are encoded here, unless `encoded` gives the names of labels that are class indices already. With `by`, one
    value per row, the data come in groups, and the part that is held out is one of each group.

    Raises:
        DataError: for missing values that are refused.
        ConfigError: for groups of the training data alone, or of another number of rows.
    """
    check_groups(name, len(inputs), by, None if test_inputs is None else len(test_inputs), test_by)
    if (test_inputs is None) != (test_labels is None):
        raise ConfigError("test inputs without test targets, or the reverse. Give both or neither.")
    if kind not in ("classification", "regression"):
        raise ConfigError(f"kind is {kind!r}. Give 'classification' or 'regression'.")
    if inputs.dim() == 0 or inputs.is_complex() or (len(inputs) and inputs[0].numel() == 0):
        raise DataError(
            f"{name} has inputs of shape {tuple(inputs.shape)} and type {inputs.dtype}. Give real numbers [rows, ...],"
            " at least one for each row."
        )
    if len(inputs) == 0:
        raise DataError(f"{name} has no training samples. Give at least one.")
    if len(inputs) != len(labels):
        raise DataError(f"{name}: there are {len(inputs)} inputs and {len(labels)} targets. Give one target per input.")
    inputs = inputs.unsqueeze(1) if inputs.dim() == 1 else inputs
    test_inputs = test_inputs.unsqueeze(1) if test_inputs is not None and test_inputs.dim() == 1 else test_inputs
    whole = Completed(name, inputs, labels, missing)
    inputs, labels, by = whole.inputs, whole.of(labels), whole.of(by)
    if test_inputs is not None:
        rest = Completed(f"{name}, test data", test_inputs, test_labels, missing, means=whole.means)
        test_inputs, test_labels, test_by = rest.inputs, rest.of(test_labels), rest.of(test_by)
    groups, test_groups, group_names = grouped_by(name, by, test_by)
    names: tuple[str, ...] = ()
    targets, test_targets = labels, test_labels
    if kind == "classification" and encoded is not None:
        names = tuple(encoded)
        targets, test_targets = _whole(labels), None if test_labels is None else _whole(test_labels)
    elif kind == "classification":
        targets, test_targets, names = encode(labels, test_labels)
    else:
        targets = _numbers(labels)
        test_targets = None if test_labels is None else _numbers(test_labels)
    if class_names is not None and kind == "classification":
        names = _renamed(names, class_names)
    train: TensorData = TensorData(_single(inputs), targets)
    if test_inputs is not None:
        test: TensorData | None = TensorData(_single(test_inputs), test_targets)
    else:
        kept, tested = held_out_of(groups, train.targets, test_fraction, split_seed, ordered)
        train, test = train.subset(kept), train.subset(tested) if len(tested) else None
        if groups is not None:
            groups, test_groups = groups[kept], groups[tested]
    made = finish(name, train, test, names, kind, **prepare)
    return replace(made, groups=groups, test_groups=test_groups, group_names=group_names)


def held_out_of(
    groups: Tensor | None, targets: Tensor, fraction: float, seed: int, ordered: Literal["no", "spread", "end"] = "no"
) -> tuple[Tensor, Tensor]:
    """Training and test rows, ascending: by `held_out` of each group, where there are groups."""
    if groups is None:
        return held_out(targets, fraction, seed, ordered)
    parts = []
    for group in range(int(groups.max()) + 1):
        rows = (groups == group).nonzero().flatten()
        parts.append([rows[part] for part in held_out(targets[rows], fraction, seed, ordered)])
    kept, tested = (torch.cat(list(part)).sort().values for part in zip(*parts))
    return kept, tested


def _whole(codes: Any) -> Tensor:
    """Class numbers, which were floats as long as some of them were missing."""
    return torch.as_tensor(codes).to(torch.int64)


def _numbers(values: Any) -> Tensor:
    """Targets of regression, `[rows, numbers]` float32; one number a row is a column, as a model's outputs are."""
    try:
        targets = torch.as_tensor(values).to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the targets are not numbers: {error}. For words give kind='classification'.") from error
    return targets.unsqueeze(1) if targets.dim() == 1 else targets


def _renamed(present: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The names given, one per class, or picked by number where some numbers never appear."""
    if len(names) == len(present):
        return tuple(str(name) for name in names)
    if all(name.isdigit() and int(name) < len(names) for name in present):
        return tuple(str(names[int(name)]) for name in present)
    raise ConfigError(f"{len(names)} class names for {len(present)} classes. Give one name per class.")


def _single(inputs: Tensor) -> Tensor:
    """Doubles as floats: a model computes in float32, and they take half the memory."""
    return inputs.to(torch.float32) if inputs.dtype == torch.float64 else inputs


def _plain(labels: Any) -> np.ndarray:
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    gone = absent(array)
    if gone.any():
        raise DataError(
            f"{int(gone.sum())} of {len(gone)} class labels are missing, the first in row {int(gone.argmax())}. Give"
            " them, or write missing='drop' to leave those rows out."
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"class labels have the shape {array.shape}. Give one label per sample.")
    if array.dtype.kind == "f":
        if not bool((array == array.round()).all()):
            raise DataError("class labels are fractions. For regression give kind='regression'.")
        array = array.astype(np.int64)
    if array.dtype.kind == "O":  # numbers stay numbers, so that 10 comes after 9
        array = np.array(array.tolist())
    return np.array([str(value) for value in array]) if array.dtype.kind == "O" else array


def _columns(data: Data, scale: float) -> Iterator[Tensor]:
    """The inputs in pieces `[values, channels]` as doubles."""
    for batch in data:
        inputs = batch.inputs
        if not isinstance(inputs, Tensor):
            raise ConfigError("statistics of several input tensors at once. Set normalise=false.")
        values = inputs.cpu().to(torch.float64)
        values = values if inputs.is_floating_point() else values / scale
        yield values.movedim(1, -1).reshape(-1, inputs.shape[1])
