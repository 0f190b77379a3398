"""What the loop of transformers makes of a loss: which it is, and what each batch's counts for in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.learner import Criterion
from holdfast.training.update import Update


class SharedUpdate(Update):
    """The method's part of that loop's optimiser step.

    Attributes:
        share: what the loop multiplies this batch's mean loss by: of the batches that add up to a step each counts by
            its labels, or all alike.
    """

    share: float | Tensor = 1.0

    def scale(self, weight: float = 1.0) -> float | Tensor | None:
        """The factor of one batch's loss; None for 1."""
        factor = weight * self.share
        if self.scaler is None:
            return None if isinstance(factor, float) and factor == 1.0 else factor
        return self.scaler.scale(torch.as_tensor(factor, dtype=torch.float32, device=self.engine.services.device))


class Shares:
    """What the loop multiplies a batch's mean loss by, as the first batch shows it.

    Of the batches that add up to a step each counts by its labels where the model divides by the number that it is
    given. Many models are given it and make no use of it; the loss of GPT-2 is of the next token, and all of its labels
    are counted.
    """

    def __init__(self) -> None:
        self.counting: str | None = None

    def __call__(
        self,
        trainer: Any,
        items: Any,
        batch: Mapping[str, Any],
        targets: Tensor,
        fits: Callable[[float | Tensor], bool],
    ) -> float | Tensor:
        """The share of a batch.

        Args:
            trainer: of transformers.
            items: how many labels all batches of the step have, where the loop counts them.
            batch: as the model was called with it.
            targets: in it.
            fits: whether the loss over such a share is the criterion of the outputs.
        """
        parts, ranks = trainer.current_gradient_accumulation_steps, trainer.args.world_size
        claims = getattr(trainer, "loss_is_scaled_for_ga", None)
        if claims is None:
            claims = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
        if not claims or items is None:
            return 1.0 / parts
        if self.counting in ("", "as it counts") and parts == 1 and ranks == 1:
            return 1.0
        shifts = loss_shifts(trainer)
        labels = batch.get("shift_labels", batch.get("labels", targets))
        inner = labels[..., 1:] if labels.dim() > 1 and "shift_labels" not in batch else labels
        ways: dict[str, Tensor] = {"as it counts": inner if shifts else labels, "shifted": inner, "all": labels}
        factor = ranks if trainer.args.average_tokens_across_devices else 1

        def share(way: str) -> float | Tensor:
            return factor * ways[way].ne(-100).sum() / items if way else 1.0

        if self.counting is None:
            every = ("as it counts", "", "shifted", "all")
            self.counting = next((way for way in every if fits(share(way))), every[0])
        return share(self.counting)


def loss_shifts(trainer: Any) -> bool:
    """Whether transformers knows that the model's loss is of the next token."""
    return bool(getattr(trainer, "_loss_shifts_labels", False))


def criterion_of(trainer: Any, targets: Tensor) -> Criterion | None:
    """The model's loss, where the first steps do not show which one it is."""
    config = getattr(trainer.model, "config", None)
    smoothing = trainer.args.label_smoothing_factor
    if targets.is_floating_point():
        kind = getattr(config, "problem_type", None)
        single = getattr(config, "num_labels", 0) == 1
        return _squared if single or kind == "regression" else F.binary_cross_entropy_with_logits
    if not smoothing:
        return None
    shifts = loss_shifts(trainer)

    def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.dim() > 2:
            outputs, targets = (outputs[:, :-1], targets[:, 1:]) if shifts else (outputs, targets)
            outputs, targets = outputs.flatten(0, 1), targets.flatten()
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

    return smoothed


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error, of one number a row with or without a dimension of its own."""
    return F.mse_loss(outputs.view(targets.shape), targets)
