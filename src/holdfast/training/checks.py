"""What can be wrong in a loop that is not ours, each with the sentence that says what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Tree, tree_rows
from holdfast.core.learner import Learner


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that holds the parameters, inside `DistributedDataParallel` and `torch.compile`.

    Raises:
        ConfigError: for wrappers in which a method cannot work.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"`Continual` got {type(model).__name__} as its model. Give a torch.nn.Module.")
    if isinstance(model, DataParallel):
        raise ConfigError(
            "DataParallel runs copies of the model, whose outputs cannot be captured. Use DistributedDataParallel."
        )
    if type(model).__name__ in ("FullyShardedDataParallel", "DeepSpeedEngine"):
        raise ConfigError(
            f"{type(model).__name__} cuts parameters into shards, and operations need them whole. Use"
            " DistributedDataParallel."
        )
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def compiled(model: nn.Module) -> bool:
    """Whether `model`, or what it wraps, went through `torch.compile`."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return hasattr(inner, "_orig_mod") or getattr(unwrapped(model), "_compiled_call_impl", None) is not None


def hook_count(model: nn.Module) -> int:
    """Number of forward hooks on the layers of `model`."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def check_optimizer(optimizer: object, learner: Learner, distributed: bool) -> None:
    """Refuse an optimiser that does not move what the method trains."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"`Continual` got {optimizer!r} as its optimizer. Give a torch.optim.Optimizer of this model."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = learner.parameters()
    if parameters and not any(id(p) in held for p in parameters):
        raise ConfigError(
            "the optimizer holds none of the model's parameters. Make it from this model:"
            " torch.optim.SGD(model.parameters(), ...)."
        )
    if distributed and learner.added:
        raise ConfigError(
            f"the method trains parameters of its own ({', '.join(list(learner.added)[:2])}), which"
            " DistributedDataParallel does not average over ranks. Train it in one process."
        )


def check_values(loss: Tensor, targets: Tensor, inputs: Tree, given_criterion: bool, remembers: bool) -> None:
    """Refuse a loss, targets or inputs that cannot be those of one batch. Looks at shapes and types only."""
    if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
        what = (
            f"shape {tuple(loss.shape)} with requires_grad={loss.requires_grad}"
            if isinstance(loss, Tensor)
            else repr(loss)
        )
        raise UsageError(
            f"backward() got a loss of {what}. Pass the mean loss of the model's outputs, a scalar with its graph."
        )
    if not isinstance(targets, Tensor):
        raise UsageError(
            f"backward() got targets of type {type(targets).__name__}. Pass a tensor with one row per sample."
        )
    rows = tree_rows(inputs)
    if targets.dim() == 0 or targets.shape[0] != rows:
        raise UsageError(
            f"backward() got targets of shape {tuple(targets.shape)} for {rows} inputs. Pass those of the same batch."
        )
    if given_criterion or targets.dtype == torch.int64:
        return
    if targets.is_floating_point():
        if remembers:
            raise UsageError(
                f"targets are {targets.dtype}, and replayed samples would get cross-entropy. "
                "Pass the criterion of your loop: Continual(..., criterion=torch.nn.functional.mse_loss)."
            )
    else:
        raise UsageError(f"targets are {targets.dtype}, and class indices are int64. Pass targets.long().")


def check_tree(inputs: Tree) -> None:
    """Refuse inputs that are not tensors all through."""
    values = [inputs] if isinstance(inputs, Tensor) else inputs.values() if isinstance(inputs, Mapping) else inputs
    wrong = [type(value).__name__ for value in values if not isinstance(value, Tensor)]
    if wrong or not values:
        raise UsageError(
            f"backward() got inputs with {wrong[0] if wrong else 'nothing'} in them. "
            "Pass tensors with a row per sample only, and give the model's other arguments their values as defaults."
        )


def check_range(targets: Tensor, outputs: Tensor | None) -> None:
    """Refuse class indices that the model has no output for. Waits for the device: for the first steps only."""
    if outputs is None or outputs.dim() != 2 or targets.dim() != 1 or targets.dtype != torch.int64 or not len(targets):
        return
    low, high = torch.stack(torch.aminmax(targets)).tolist()
    if low < 0 or high >= outputs.shape[1]:
        raise UsageError(
            f"targets run from {low} to {high}, and the model has outputs for 0 to {outputs.shape[1] - 1}. "
            "Number the classes from 0, leave out rows to be ignored, and give the model an output for each class."
        )


class Parameters:
    """The parameters a method was bound to, to notice when the model gets others.

    Args:
        learner: whose model is watched.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._known = {id(p): p for p in learner.model.parameters()}
        self._trained = self._flags()

    def add(self, new: list[nn.Parameter]) -> None:
        """Parameters that grew."""
        self._known.update({id(p): p for p in new})

    def check(self) -> None:
        """Refuse layers that were replaced; take notice of parameters that were frozen or set free."""
        new = [name for name, p in self._learner.model.named_parameters() if id(p) not in self._known]
        if new:
            raise UsageError(
                f"the model has parameters that it had not when the method was bound ({', '.join(new[:3])}). Make a new"
                " Continual and optimizer after replacing a layer, or let a growing head from holdfast.models add"
                " outputs."
            )
        flags = self._flags()
        if flags != self._trained:
            self._trained = flags
            self._learner._parameters = None

    def _flags(self) -> list[Any]:
        return [(id(p), p.requires_grad) for p in self._learner.model.parameters()]
