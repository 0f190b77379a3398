"""The part of the data that a limit on batches leaves."""

from __future__ import annotations

import torch

from holdfast.core.experience import Data
from holdfast.core.learner import derive_seed


def limited(data: Data, limit: int | float | None, batch_size: int, seed: int, part: str) -> Data:
    """The part of `data` that a limit leaves: the same random rows every time.

    Args:
        data: whole.
        limit: a number of batches, a fraction of them, or None for all.
        batch_size: samples per batch.
        seed: of the run.
        part: `train`, `validation` or `test`, each with a choice of its own.
    """
    if limit is None:
        return data
    batches = -(-len(data) // batch_size)
    rows = (max(1, int(limit * batches)) if isinstance(limit, float) else limit) * batch_size
    if rows >= len(data):
        return data
    generator = torch.Generator().manual_seed(derive_seed(seed, f"limit/{part}"))
    return data.subset(torch.randperm(len(data), generator=generator)[:rows].sort().values)
