"""The drop-in within Lightning's loop, which owns precision, accumulation and the order of calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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


def made_from(loss: Tensor, own: Tensor) -> bool:
    """Whether `loss` is `own` up to a factor: Lightning divides and scales it."""
    node = loss.grad_fn
    for _ in range(6):
        if node is None or node is own.grad_fn:
            break
        node = node.next_functions[0][0] if node.next_functions else None
    return own.grad_fn is not None and node is own.grad_fn
