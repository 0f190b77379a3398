"""Cross-entropy and accuracy among some of the classes: task-aware, without changing the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.errors import UsageError

IGNORED = -100
Reduction = Literal["mean", "sum", "none"]


def masked_cross_entropy(
    logits: Tensor, targets: Tensor, keep: Sequence[int] | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy whose softmax runs over the classes in `keep` only; rows of other classes are left out.

    Args:
        logits: `[rows, classes]`.
        targets: `[rows]` class indices, int64.
        keep: class indices, each once; None keeps all.
        reduction: `mean` over the rows that count (0 if none does), `sum`, or `none`: `[rows]` with zeros elsewhere.

    Raises:
        UsageError: for targets that are no class indices, or classes that repeat or have no output.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]])
        >>> masked_cross_entropy(logits, torch.tensor([0, 2]), keep=[0, 1])
        tensor(0.6931)
    """
    columns, labels = _kept(logits, targets, keep)
    losses = F.cross_entropy(columns, labels, ignore_index=IGNORED, reduction="none")
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (labels != IGNORED).sum().clamp(min=1)


@torch.no_grad()
def masked_accuracy(
    logits: Tensor,
    targets: Tensor,
    keep: Sequence[int] | None = None,
    top_k: int = 1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Share of rows whose class is among the `top_k` largest outputs of the classes in `keep`.

    Args:
        logits: `[rows, classes]`.
        targets: `[rows]` class indices, int64.
        keep: class indices, each once; None keeps all. Rows of other classes are left out.
        top_k: how many outputs may hold the class.
        reduction: `mean` over the rows that count (0 if none does), `sum`, or `none`: `[rows]` of 0 and 1.

    Raises:
        UsageError: as for `masked_cross_entropy`, and for more outputs than classes.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, 9.0], [1.0, 0.0, 9.0]])
        >>> masked_accuracy(logits, torch.tensor([0, 1])), masked_accuracy(logits, torch.tensor([0, 1]), keep=[0, 1])
        (tensor(0.), tensor(0.5000))
    """
    columns, labels = _kept(logits, targets, keep)
    if not 1 <= top_k <= columns.shape[1]:
        raise UsageError(
            f"top_k is {top_k} among {columns.shape[1]} classes. Give a number from 1 to {columns.shape[1]}."
        )
    hits = (columns.topk(top_k, dim=1).indices == labels.unsqueeze(1)).any(1).float()
    if reduction == "none":
        return hits
    return hits.sum() if reduction == "sum" else hits.sum() / (labels != IGNORED).sum().clamp(min=1)


def _kept(logits: Tensor, targets: Tensor, keep: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The columns that count, and each row's place among them or `IGNORED`."""
    if targets.dtype != torch.int64 or targets.dim() != 1 or logits.dim() != 2:
        raise UsageError(
            f"got logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype}. "
            "Give logits [rows, classes] and int64 class indices [rows]."
        )
    if keep is None:
        return logits, targets
    classes = [int(label) for label in keep]
    if len(set(classes)) < len(classes) or not classes or min(classes) < 0 or max(classes) >= logits.shape[1]:
        raise UsageError(f"keep is {classes} for {logits.shape[1]} outputs. Name some of the classes, each once.")
    places = torch.full((logits.shape[1],), IGNORED, dtype=torch.int64, device=logits.device)
    index = torch.tensor(classes, device=logits.device)
    places[index] = torch.arange(len(classes), device=logits.device)
    return logits[:, index], places[targets]
