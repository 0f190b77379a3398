"""What the tests of streams share: a small data set with traceable inputs, and the real data where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset, Prepare


def traceable(counts: list[int], test_counts: list[int] | None = None, shape: tuple[int, ...] = (1,)) -> Dataset:
    """A data set in which the first value of every input is its row number (test rows from 100,000 on)."""

    def data(numbers: list[int], start: int) -> TensorData:
        targets = torch.cat([torch.full((count,), label) for label, count in enumerate(numbers)])
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(7))
        inputs = torch.zeros(len(targets), *shape)
        inputs.flatten(1)[:, 0] = torch.arange(start, start + len(targets)).float()
        return TensorData(inputs, targets[order])

    return Dataset(
        "traceable", data(counts, 0), data(test_counts or counts, 100_000), len(counts), shape, prepare=Prepare()
    )


@pytest.fixture
def make() -> Callable[..., Dataset]:
    return traceable


@pytest.fixture
def rows() -> Callable[..., list[int]]:
    """The row numbers of a data made by `make`, in order."""

    def read(data: TensorData) -> list[int]:
        return [int(value) for batch in data for value in batch.inputs.flatten(1)[:, 0]]

    return read


@pytest.fixture
def real() -> Callable[[str], str]:
    """The path of real data, or a skip that says what is missing."""

    def find(name: str) -> str:
        path = Path(os.environ.get("HOLDFAST_DATA", "../shared/data")) / name
        if not path.exists():
            pytest.skip(f"{name} is not in the folder that HOLDFAST_DATA says")
        return str(path)

    return find
