"""Selections of exemplars: which few samples stand for many. Each returns indices, the most important first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from holdfast.core.errors import DataError
from holdfast.memory.generators import on_cpu


def unit_rows(features: Tensor) -> Tensor:
    """`[n, d]` features scaled to L2 norm 1, as float32 or wider; a zero row stays zero.

    Raises:
        DataError: not a matrix, or not finite.
    """
    if features.ndim != 2:
        raise DataError(
            f"features of shape {tuple(features.shape)} are no matrix. Flatten them to [samples, features]."
        )
    if not bool(torch.isfinite(features).all()):
        raise DataError("some features are not finite, so no sample is nearest. Check the model for NaN or overflow.")
    features = features.detach()
    return normalize(features if features.dtype == torch.float64 else features.float(), dim=1)


def select_random(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Any `count` different samples, with equal probability.

    Args:
        features: `[n, ...]`; only the number of rows is looked at.
        count: how many; all, in random order, if there are fewer.
        generator: CPU generator the draw comes from.

    Returns:
        `[min(count, n)]` int64 on the features' device.

    Example:
        >>> sorted(select_random(torch.zeros(4, 2), 9, torch.Generator().manual_seed(0)).tolist())
        [0, 1, 2, 3]
    """
    return torch.randperm(len(features), generator=on_cpu(generator))[: max(0, count)].to(features.device)


def select_herding(features: Tensor, count: int) -> Tensor:
    """Samples whose running mean stays nearest to the mean of all (Welling 2009; iCaRL, Rebuffi et al. 2017, eq. 4).

    With features f of norm 1, their mean m, and the sum s of the k-1 picks so far, pick number k is

        argmin |m - (f + s) / k|^2  =  argmax f . (k m - s) - |f|^2 / 2

    over the samples not yet picked: one matrix-vector product a pick. Any prefix is a herding of its own, so a set
    shrinks by dropping its last exemplars.

    Difference from the paper: it scales means to norm 1 again ("not written explicitly"); eq. 4 as written does not,
    and no sample is picked twice.

    Args:
        features: `[n, d]` of samples of one class; normalised here.
        count: how many; all if there are fewer.

    Returns:
        `[min(count, n)]` int64 in order of picking, on the features' device.

    Raises:
        DataError: features are no matrix, or not finite.

    Example:
        >>> select_herding(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), 2).tolist()
        [1, 0]
    """
    features = unit_rows(features)
    count = max(0, min(count, len(features)))
    picks = torch.empty(count, dtype=torch.int64, device=features.device)
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    half_norm = features.square().sum(1) / 2  # infinite once picked
    for k in range(1, count + 1):
        pick = torch.mv(features, k * mean - total).sub_(half_norm).argmax().view(1)
        picks[k - 1 : k] = pick
        total += features.index_select(0, pick)[0]
        half_norm.index_fill_(0, pick, torch.inf)
    return picks


def select_closest(features: Tensor, count: int) -> Tensor:
    """The samples nearest to the mean of all, the nearest first; features are scaled to norm 1 before.

    Args:
        features: `[n, d]` of samples of one class; normalised here.
        count: how many; all if there are fewer.

    Returns:
        `[min(count, n)]` int64 on the features' device; among equals the first sample comes first.

    Raises:
        DataError: features are no matrix, or not finite.

    Example:
        >>> select_closest(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), 1).tolist()
        [1]
    """
    features = unit_rows(features)
    distance = (features - features.mean(0)).square().sum(1)
    return distance.argsort(stable=True)[: max(0, count)]
