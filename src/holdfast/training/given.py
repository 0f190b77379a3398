"""What a user hands over as an experience, as one of ours."""

from __future__ import annotations

import torch

from holdfast.core.errors import UsageError
from holdfast.core.experience import Data, Experience
from holdfast.streams.data import TensorData


def checked_data(data: object) -> Data:
    """`data`, if it is what `begin` and `end` take.

    Raises:
        UsageError: with how to wrap it, if it is not.
    """
    if not isinstance(data, Data):
        raise UsageError(
            f"an experience's data was given as {type(data).__name__}. Wrap it:"
            " holdfast.streams.data.LoaderData(dataset), or TensorData(inputs, targets)."
        )
    return data


def as_experience(index: int, data: Data | None, task: int | None, classes: tuple[int, ...]) -> Experience:
    """An experience of `data`, whose classes are read off it unless they are given; of nothing without data."""
    if data is None:
        data = TensorData(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    elif not classes and not checked_data(data).targets.is_floating_point():
        classes = tuple(torch.unique(data.targets).tolist())
    return Experience(index, checked_data(data), classes=tuple(classes), task=task)
