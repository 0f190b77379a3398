"""Synapse's methods under its own names and arguments, each a `Continual` around the reader's own loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.compat.synapse import IGNORED, Reduction, masked_accuracy, masked_cross_entropy
from holdfast.core.errors import ConfigError, unknown
from holdfast.core.method import Method
from holdfast.core.operation import Operation, Term
from holdfast.core.ranges import Count, NonNegative, Positive
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.methods import agem, si
from holdfast.operations import LogitReplay, Remember, Replay
from holdfast.operations._parts.draws import Draws
from holdfast.training import Continual

CustomLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss of logits today `[rows, classes]`, logits when the samples arrived, as wide, and targets `[rows]`."""

METHODS = ("er", "der", "der++", "custom")


class CustomReplay(Draws):
    """A loss of one's own on remembered samples: of their logits today, their logits when they arrived, their targets.

    Logits of classes that came since are the smallest stored one of their row, as in Synapse.

    Args:
        loss: of the three, a scalar.
        size: samples drawn per step.
        weight: factor of the loss.
    """

    remembers = ("logits",)

    def __init__(self, function: CustomLoss, size: Count = 32, weight: NonNegative = 1.0) -> None:
        super().__init__(size)
        self.function = function
        self.weight = weight

    def loss(self, step: Step, learner: Services) -> Term | None:
        """The function's value on what was drawn, weighted."""
        rows = self.drawn(learner)
        if rows is None:
            return None
        outputs, stored = learner(rows["inputs"], rows.get("task")), rows["logits"]
        stored = F.pad(stored, (0, outputs.shape[1] - stored.shape[1]), value=torch.nan)
        least = torch.where(stored.isnan(), torch.inf, stored).min(1, keepdim=True).values
        value = self.function(outputs, torch.where(stored.isnan(), least, stored), rows["targets"])
        return value, self.weight


class ER(Continual):
    """Synapse's `synapse.rehearsal.ER`: experience replay, dark experience replay (++), or a loss of one's own.

    Args:
        model: of the reader's loop.
        buffer_size: samples remembered.
        buffer_sample_size: samples replayed per step.
        alpha: factor of the replayed cross-entropy (`er`, `der++`) or of the distance to the stored logits (`der`).
        beta: factor of that distance in `der++`.
        method: `er`, `der`, `der++` or `custom`.
        custom_loss_fn: of logits, past logits and past targets, for `custom`; its factor is alpha.
        **options: of `Continual`: `optimizer`, `criterion`, `seed`.

    Raises:
        ConfigError: for an unknown method, or `custom` without a function.

    Differences from Synapse: stored logits belong to their samples, the whole batch is offered to the memory, and
    `der++` draws once for each of its terms, as the paper does.
    """

    def __init__(
        self,
        model: nn.Module,
        buffer_size: int = 1024,
        buffer_sample_size: int = 32,
        alpha: float = 1.0,
        beta: float = 1.0,
        method: Literal["er", "der", "der++", "custom"] = "der++",
        custom_loss_fn: CustomLoss | None = None,
        **options: Any,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(unknown("method of ER", method, METHODS))
        if method == "custom" and custom_loss_fn is None:
            raise ConfigError(
                "ER got method='custom' and no function. Give custom_loss_fn=f, a function of three tensors."
            )
        size = buffer_sample_size
        replayed: list[Operation] = []
        if method in ("er", "der++"):
            replayed.append(Replay(size, weight=alpha))
        if method in ("der", "der++"):
            replayed.append(LogitReplay(size, weight=alpha if method == "der" else beta))
        if method == "custom" and custom_loss_fn is not None:
            replayed.append(CustomReplay(custom_loss_fn, size, alpha))
        super().__init__(model, Method(*replayed, Remember(capacity=buffer_size), name=method), **options)


class AGEM(Continual):
    """Synapse's `synapse.gradient.AGEM`: the gradient is kept from raising the loss on remembered samples.

    Args:
        model: of the reader's loop.
        buffer_size: samples remembered.
        buffer_sample_size: samples that the reference gradient is of.
        **options: of `Continual`.
    """

    def __init__(self, model: nn.Module, buffer_size: int = 1024, buffer_sample_size: int = 32, **options: Any) -> None:
        super().__init__(model, agem(capacity=buffer_size, size=buffer_sample_size), **options)


class SI(Continual):
    """Synapse's `synapse.structure.SI`: synaptic intelligence.

    Args:
        model: of the reader's loop.
        model_lr: does nothing: the path integral is measured from the optimiser's own moves.
        alpha: factor of the penalty.
        xi: damping.
        checkpoint_per_steps: steps between two consolidations.
        optimizer: that moves the model; Synapse takes its learning rate instead.
        **options: of `Continual`.

    Raises:
        NeedError: without an optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        model_lr: Positive = 0.01,
        alpha: float = 0.5,
        xi: float = 0.01,
        checkpoint_per_steps: int = 1250,
        optimizer: torch.optim.Optimizer | None = None,
        **options: Any,
    ) -> None:
        from holdfast.core.boundary import Every

        options.setdefault("boundary", Every(steps=checkpoint_per_steps))
        super().__init__(model, si(strength=alpha, damping=xi), optimizer, **options)


class MultiLinear(nn.Module):
    """Synapse's head: a linear layer a task, all of them side by side unless a task is named.

    Args:
        in_features: of the features that come in.

    Example:
        >>> head = MultiLinear(4)
        >>> head.extend("a", 2), head.extend("b", 3)
        (None, None)
        >>> head(torch.zeros(5, 4)).shape, head(torch.zeros(5, 4), "b").shape
        (torch.Size([5, 5]), torch.Size([5, 3]))
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.heads = nn.ModuleDict()

    def extend(self, task_key: str, out_features: int, bias: bool = True) -> None:
        """Add a task's outputs; the optimiser must be given the new parameters.

        Raises:
            ConfigError: for a task that has outputs already.
        """
        if task_key in self.heads:
            raise ConfigError(f"the head has outputs for the task {task_key!r} already. Extend it for a new one.")
        first = next(self.parameters(), None)
        layer = nn.Linear(self.in_features, out_features, bias)
        self.heads[task_key] = layer if first is None else layer.to(first.device, first.dtype)

    def forward(self, features: Tensor, task_key: str | None = None) -> Tensor:
        """Outputs of one task, or of all, `[rows, outputs]`."""
        if task_key is None:
            return torch.cat([head(features) for head in self.heads.values()], dim=-1)
        if task_key not in self.heads:
            raise KeyError(unknown("task", task_key, self.heads))
        outputs: Tensor = self.heads[task_key](features)
        return outputs


class IndexedCrossEntropyLoss(nn.Module):
    """Synapse's loss among some of the targets: `masked_cross_entropy` as a module.

    Args:
        weight: `[classes]`.
        ignore_index: rows with this target are left out.
        reduction: `mean`, `sum` or `none`.
        label_smoothing: from 0 to 1.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = IGNORED,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing

    def forward(self, logits: Tensor, targets: Tensor, keep_targets: Sequence[int] | None = None) -> Tensor:
        """The loss of `logits` `[rows, classes]` under `targets` `[rows]`."""
        weight: Any = self.weight
        return masked_cross_entropy(
            logits,
            targets,
            keep_targets,
            self.reduction,
            weight=weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )


class IndexedAccuracyScore(nn.Module):
    """Synapse's accuracy among some of the targets: `masked_accuracy` as a module.

    Args:
        top_k: how many outputs may hold the class.
        ignore_index: rows with this target are left out.
        reduction: `mean`, `sum` or `none`.
    """

    def __init__(self, top_k: int = 1, ignore_index: int = IGNORED, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.top_k, self.ignore_index, self.reduction = top_k, ignore_index, reduction

    def forward(self, logits: Tensor, targets: Tensor, keep_targets: Sequence[int] | None = None) -> Tensor:
        """The share of rows that are right."""
        return masked_accuracy(logits, targets, keep_targets, self.top_k, self.reduction, self.ignore_index)
