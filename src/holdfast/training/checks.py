"""What can be wrong in a loop that is not ours, each with the sentence that says what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from holdfast.core.boundary import Boundary
from holdfast.core.criteria import elementwise, ignored_label, likelihood
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Tree, tree_rows
from holdfast.core.learner import Criterion, Learner
from holdfast.core.method import Method
from holdfast.training.calls import Capture
from holdfast.training.forwards import Forwards


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


def check_compiled(model: nn.Module, method: Method, acts_inside: bool) -> None:
    """Refuse a model whose compiled code would not see the hooks of a method.

    Args:
        model: as it was given.
        method: for its name.
        acts_inside: whether the method has hooks on the model's layers.
    """
    plain = unwrapped(model)
    if getattr(plain, "_compiled_call_impl", None) is not None:  # left by `Module.compile()`; nothing public says it
        raise ConfigError(
            "model.compile() compiles a model's call with the hooks it has by then, and ignores later ones. Write"
            " Continual(torch.compile(model), ...) instead."
        )
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    parts = [m for m in plain.modules() if hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None)]
    if acts_inside and (hasattr(inner, "_orig_mod") or parts):
        raise ConfigError(
            f"`{method.name}` acts inside the model's layers, which a model compiled before ignores. Make the Continual"
            " before `torch.compile`, on the plain model."
        )


def hook_count(model: nn.Module) -> int:
    """Number of forward hooks on the layers of `model`."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def check_arguments(method: object, optimizer: object, accumulate: int, scaler: torch.amp.GradScaler | None) -> None:
    """Refuse arguments of `Continual` that no model can make good."""
    if not isinstance(method, Method):
        raise ConfigError(
            f"`Continual` got {method!r} as its method. Write Continual(model, er(capacity=200), optimizer)."
        )
    if accumulate < 1:
        raise ConfigError(
            f"`Continual` got accumulate={accumulate}. Give the calls of backward per optimiser step, at least 1."
        )
    if scaler is not None and optimizer is None:
        raise ConfigError(
            "a scaler was given without its optimizer, whose gradients it scales. Pass optimizer=... too."
        )


def check_optimizer(optimizer: object, learner: Learner) -> None:
    """Refuse an optimiser that does not move what the method trains."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"`Continual` got {optimizer!r} as its optimizer. Give a torch.optim.Optimizer of this model."
        )
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = learner.parameters()
    if parameters and not any(id(p) in optimised for p in parameters):
        raise ConfigError(
            "the optimizer holds none of the model's parameters. Make it from this model:"
            " torch.optim.SGD(model.parameters(), ...)."
        )


def check_head(head: nn.Module | None, boundary: Boundary | None) -> None:
    """Refuse a head without outputs where nobody announces classes before the forward."""
    if getattr(head, "grow", None) is None or getattr(head, "width", None) != 0:
        return
    who = (
        "an unlabelled stream announces none" if boundary is None else f"{boundary!r} finds them after the forward only"
    )
    raise ConfigError(
        f"the model's head grows as experiences announce their classes, and {who}. Give the head its outputs at once,"
        " model.head.grow(10), or train with begin() and end() around each experience."
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
            f"backward() got targets of shape {tuple(targets.shape)} for {rows} inputs. Pass those of the same batch;"
            " a model that takes sequences first wants a module around it that turns rows to the first dimension."
        )
    if given_criterion or targets.dtype == torch.int64:
        return
    if targets.is_floating_point() or targets.is_complex():
        if remembers or targets.is_complex():
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


def check_targets(targets: Tensor, outputs: Tensor | None, criterion: Criterion, ignored: int | None) -> None:
    """Refuse targets that `criterion` cannot take. Waits for the device: for the first steps only.

    Args:
        targets: of one batch.
        outputs: of the model on it, if they are known.
        criterion: of the learner; one that is not torch's is not judged.
        ignored: the class index that counts for nothing, or None.
    """
    if outputs is None or not targets.numel():
        return
    name = getattr(criterion, "__name__", type(criterion).__name__)
    numbers, classes = elementwise(criterion), criterion in CLASS_LOSSES or type(criterion) in CLASS_LOSSES
    if numbers and not targets.is_floating_point():
        raise UsageError(
            f"{name} wants numbers, and targets are {targets.dtype}. Pass targets.float(), or for class indices"
            " criterion=torch.nn.functional.cross_entropy."
        )
    if (numbers or (classes and targets.is_floating_point())) and targets.shape != outputs.shape:
        raise UsageError(
            f"{name} got targets of shape {tuple(targets.shape)} for outputs of shape {tuple(outputs.shape)}. Give a"
            " target for each output."
        )
    if likelihood(criterion) == "bernoulli" and not bool(((targets >= 0) & (targets <= 1)).all()):
        raise UsageError(f"{name} got targets that are not from 0 to 1. Give a yes (1) or no (0) for each output.")
    if classes and targets.dtype == torch.int64 and targets.dim() == 1 and outputs.dim() == 2:
        counted = targets if ignored is None else targets[targets != ignored]
        check_range(counted, outputs.shape[1])


CLASS_LOSSES = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
"""Losses of class indices."""


def check_range(targets: Tensor, width: int) -> None:
    """Refuse class indices that the model has no output for."""
    if not len(targets):
        return
    low, high = torch.stack(torch.aminmax(targets)).tolist()
    if low < 0 or high >= width:
        raise UsageError(
            f"targets run from {low} to {high}, and the model has outputs for 0 to {width - 1}. "
            "Number the classes from 0, leave out rows to be ignored, and give the model an output for each class."
        )


PAST_FORWARD = "Where other methods of the model make what the loss is of, let its forward do it: decode(encode(x))."


class Parameters:
    """The parameters a method was bound to, to notice when the model gets others.

    Args:
        learner: whose model is watched.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._watched = {id(p): p for p in learner.model.parameters()}
        self._trained = self._flags()

    def add(self, new: list[nn.Parameter]) -> None:
        """Parameters that grew."""
        self._watched.update({id(p): p for p in new})

    def check(self) -> None:
        """Refuse layers that were replaced or compiled; take notice of parameters that were frozen or set free."""
        if getattr(self._learner.model, "_compiled_call_impl", None) is not None:
            raise UsageError(
                "model.compile() was called after the method was bound, and hides the model's layers from it. Write"
                " compiled = torch.compile(model), and call that."
            )
        new = [name for name, p in self._learner.named_parameters().items() if id(p) not in self._watched]
        if new:
            raise UsageError(
                f"the model has parameters that it had not when the method was bound ({', '.join(new[:3])}). Make a new"
                " Continual and optimizer after replacing a layer, or let a growing head from holdfast.models add"
                " outputs."
            )
        flags = self._flags()
        if flags != self._trained:
            self._trained = flags
            self._learner.trainable.changed()

    def _flags(self) -> list[Any]:
        return [(id(p), p.requires_grad) for p in self._learner.model.parameters()]


class Watch:
    """Looks at what a loop that is not ours hands over: at shapes at every step, at values in an experience's first.

    Args:
        engine: of the method.
        forwards: of the model.
        criterion: whether the user gave one.
        reruns: whether the method makes forwards of its own.

    Attributes:
        closely: in how many more steps values are looked at.
    """

    def __init__(self, engine: Engine, forwards: Forwards, criterion: bool, reruns: bool = True) -> None:
        self._engine, self._services = engine, engine.services
        self._name = engine.method.name
        self._forwards = forwards
        self._criterion = criterion
        self._needs_outputs = bool(engine.method.remembers) or forwards.joins
        self._parameters = Parameters(engine.learner)
        self._reruns = reruns
        self._unheard = False
        self.closely = 3
        engine.learner.on_growth.append(self._parameters.add)

    def renew(self) -> None:
        """Look closely again: an experience begins."""
        self.closely = 3

    def check(
        self,
        count: int,
        loss: Tensor,
        targets: Tensor,
        inputs: Tree,
        outputs: Tensor | None,
        capture: Capture | None,
    ) -> None:
        """Refuse what cannot be one batch of the model's.

        Args:
            count: calls of `backward` so far.
            loss: the batch's.
            targets: the batch's.
            inputs: the batch's.
            outputs: the model's, if they are known.
            capture: the forward that they come from, if one was seen.
        """
        check_values(loss, targets, inputs, self._criterion, self._services.memory is not None)
        rows = tree_rows(inputs)
        if capture is not None and capture.rows != rows:
            raise UsageError(
                f"the model's last forward had {capture.rows} rows, backward() got {rows}. Pass the batch it was called"
                " with."
            )
        if capture is None and ((outputs is None and self._forwards.heard) or self._forwards.joins):
            raise UsageError(
                "backward() was called without a forward, in training mode, of the model that was given to Continual. "
                f"Call that model once a step, and make a new Continual for a new model. {PAST_FORWARD}"
            )
        self._unheard = capture is None and outputs is None and self._reruns
        if outputs is None and self._needs_outputs:
            raise UsageError(
                f"`{self._name}` needs the model's outputs, and none were captured. Call the model that was given"
                " to Continual in training mode before backward(), or pass outputs=..., or output=... to Continual."
                f" {PAST_FORWARD}"
            )
        if self.closely or count % 256 == 0:
            self._parameters.check()
        if self.closely:
            criterion = self._services.criterion
            check_targets(targets, outputs, criterion, ignored_label(criterion))
            self._services.ignores |= self._engine.targets.check_values(targets, ignored_label(criterion))

    def check_parameters(self) -> None:
        """Refuse layers that were replaced or compiled since."""
        self._parameters.check()

    def check_gradients(self) -> None:
        """Refuse a backward pass that reached none of the model's parameters; in an experience's first steps."""
        if not self.closely:
            return
        self.closely -= 1
        if not any(p.grad is not None for p in self._services.parameters()):
            raise UsageError(
                "backward() gave no gradient to any parameter of the model that was given to Continual. "
                "Compute the loss by that model, and make a new Continual for a new one."
            )
        if self._unheard:
            raise UsageError(
                f"the loss was made without a forward of the model that was given, and `{self._name}` makes forwards of"
                f" it on other samples: they would not be what was trained. {PAST_FORWARD} Call the model itself, as"
                " model(x) or self(x), where model.forward(x) was called, which no hook sees. A method that makes no"
                " other forwards, such as si, needs none of this."
            )
