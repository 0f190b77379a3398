"""The drop-in within Lightning's loop, which owns precision, accumulation and the order of calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.copying import deep_copy
from holdfast.core.errors import UsageError
from holdfast.core.forward import Task, forward_task, running_task
from holdfast.core.tree import Tree, tree_map
from holdfast.training.dropin import DropIn
from holdfast.training.forwards import Forwards
from holdfast.training.ranks import average_unknown
from holdfast.training.update import Update


class InsideForwards(Forwards):
    """The network's own forwards: inputs are raw where there is a `prepare`, which acts here, inside the call."""

    always = True  # the strategy's own call of the training step must be known from the network's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hidden: list[bool] = []
        super().__init__(*args, **kwargs)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before the network's forward."""
        if self.ignoring:
            return None
        learner = self.engine.learner
        self._hidden.append(getattr(vars(module).get("forward"), "__name__", "") == "wrapped_forward")
        if self._hidden[-1]:  # the strategy calls the training step through the module's forward
            return None
        args, kwargs = super().before(module, args, kwargs) or (args, kwargs)
        if learner.prepare is not None and args:
            args = (learner.forward.prepared(args[0], module.training), *args[1:])
        return args, kwargs

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> Any:
        """Hook after the network's forward."""
        if self.ignoring or (self._hidden and self._hidden.pop()):
            return None
        return super().after(module, args, kwargs, returned)


class InsideUpdate(Update):
    """The method's part of Lightning's optimiser step.

    Lightning divides the loss by the number of accumulated batches and scales it; both are undone for the method and
    done again to the total. Lightning unscales the gradients, and says when they are complete.
    """

    lightning: Any = None
    manual: int = 0

    @property
    def factor(self) -> float:
        """What Lightning, or the module, multiplies each batch's loss by."""
        return 1 / (self.manual or self.lightning.accumulate_grad_batches)

    def undone(self, loss: Tensor) -> Tensor:
        """The loss as the training step returned it."""
        factor = 1.0 if self.manual else self.factor
        loss = loss if factor == 1 else loss / factor
        return loss if self.scaler is None else loss / self.scaler.get_scale()

    def scale(self, weight: float = 1.0) -> float | Tensor | None:
        """The factor of one batch's loss."""
        if self.scaler is None:
            return weight * self.factor
        return self.scaler.scale(torch.full((), weight * self.factor, device=self.engine.learner.device))


class Inside(DropIn):
    """The drop-in in Lightning's loop."""

    update: InsideUpdate

    def work_for(self, trainer: Any, optimizer: torch.optim.Optimizer, accumulate: int) -> None:
        """Work for `trainer`, whose optimiser is `optimizer`, from now on.

        Args:
            trainer: Lightning's.
            optimizer: that moves the network.
            accumulate: calls of `manual_backward` for one step, in modules that move the optimiser themselves.
        """
        module, scaler = trainer.lightning_module, getattr(trainer.precision_plugin, "scaler", None)
        update = self.update
        update.lightning = trainer
        update.manual = 0 if module.automatic_optimization else accumulate
        # Where modules clip the gradients themselves, edits come before that; else Lightning says when all is there.
        update.accumulate = update.manual if update.manual and scaler is None else 0
        update.scaler = scaler
        update.average = average_unknown(module.parameters()) if trainer.world_size > 1 else None
        self.phases.distributed = trainer.world_size > 1
        self.optimizer = optimizer


TASKS = ("task_id", "task", "task_ids", "tasks", "task_label", "task_labels")
"""What the second parameter of a forward is called that takes the task."""


def takes_task(module: nn.Module) -> bool:
    """Whether a module's forward is `forward(x, task_id)`."""
    names = [
        parameter.name
        for parameter in inspect.signature(type(module).forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(names) == 3 and names[2] in TASKS


class Tasked(nn.Module):
    """A module with `forward(x, task_id)` as one that is called with inputs alone: the task is that of each forward.

    So replayed rows get the task that they came with, and other forwards the one they are made for. Rows of several
    tasks are forwarded task by task.

    Args:
        module: whose class has that forward; it may be patched on the object, which is not looked at.
    """

    takes_task = True
    """So that the memory keeps the task of each row."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.default: Task = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Tasked:
        """A copy that nobody watches: what this fit put on the module stays behind."""
        inside = vars(self.module)
        put: dict[str, Any] = {name: inside.pop(name) for name in ("forward", "backward") if name in inside}
        try:
            copied = Tasked(deep_copy(self.module, memo))
        finally:
            inside.update(put)
        copied.default = self.default
        return copied

    @property
    def training(self) -> bool:
        """The module's mode: Lightning changes it there."""
        inside = self.__dict__.get("_modules") or {}
        return bool(inside["module"].training) if "module" in inside else True

    @training.setter
    def training(self, mode: bool) -> None:
        """Nothing: `train` and `eval` go on to the module."""

    def forward(self, inputs: Tree) -> Any:
        """What the module returns for the task of the running forward."""
        running = running_task()
        task = self.default if running is None or isinstance(running, str) else running
        forward = type(self.module).forward
        if not isinstance(task, Tensor) or not task.dim():
            return forward(self.module, inputs, task)
        kinds = task.unique().tolist()
        if len(kinds) == 1:
            return forward(self.module, inputs, kinds[0])
        joined: Tensor | None = None
        for kind in kinds:
            rows = (task == kind).nonzero().squeeze(1)
            outputs = forward(self.module, tree_map(lambda x, rows=rows: x[rows], inputs), kind)  # type: ignore[misc]
            if not isinstance(outputs, Tensor) or (joined is not None and outputs.shape[1:] != joined.shape[1:]):
                raise UsageError(
                    f"rows of tasks {kinds} are forwarded together, and `{type(self.module).__name__}.forward(x, task)`"
                    " does not return a tensor of the same width for each. Give every task as many outputs."
                )
            if joined is None:
                joined = outputs.new_zeros(len(task), *outputs.shape[1:])
            joined = joined.index_copy(0, rows, outputs)
        return joined

    def watch(self, current: Callable[[], int | None]) -> None:
        """Let the module's own calls, `self(x, task_id)` and `self.forward(x, task_id)`, go through this one.

        Args:
            current: the task of the experience that is learned, None outside of one.
        """
        module = self.module

        def forward(x: Tree, task: Task = None, **named: Task) -> Any:
            for value in named.values():
                task = value
            if not (module.training and torch.is_grad_enabled()):
                with forward_task(task):
                    return self(x)
            learned = current()
            if not isinstance(task, Tensor) and task != learned:
                told = "callback.task has none" if learned is None else f"the experience's task is {learned}"
                raise UsageError(
                    f"`{type(module).__name__}.forward` was called with task {task}, and {told}. Write callback.task ="
                    f" {task} before this fit, or keep it in the module's `task_id`."
                )
            self.default = task
            return self(x)

        module.__dict__["forward"] = forward

    def unwatch(self) -> None:
        """Let the module's calls be its own again."""
        self.module.__dict__.pop("forward", None)


def made_from(loss: Tensor, method_loss: Tensor) -> bool:
    """Whether `loss` is `method_loss` up to a factor: Lightning divides and scales it."""
    node = loss.grad_fn
    for _ in range(6):
        if node is None or node is method_loss.grad_fn:
            break
        node = node.next_functions[0][0] if node.next_functions else None
    return method_loss.grad_fn is not None and node is method_loss.grad_fn
