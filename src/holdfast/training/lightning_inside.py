"""The drop-in within Lightning's loop, which owns precision, accumulation and the order of calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.needs import OFFERS
from holdfast.training.wrapper import Continual


class Inside(Continual):
    """The drop-in where Lightning owns precision, accumulation and the order of calls.

    Lightning divides the loss by the number of accumulated batches and scales it; both are undone for the method and
    done again to the total. Inputs are raw where there is a `prepare`, which then acts inside the model's call.
    """

    lightning: Any = None
    _manual: int = 0
    _hidden: list[bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hidden = []
        super().__init__(*args, **kwargs)
        self._scaled = True

    def _acts_before(self) -> bool:
        """Always: the strategy's own call of the training step must be known from the network's."""
        return True

    def _offers(self, boundary: Boundary | None) -> frozenset[str]:
        return OFFERS["Lightning"] if boundary is None else super()._offers(boundary)

    def take(self, trainer: Any, optimizer: torch.optim.Optimizer, accumulate: int) -> None:
        """Work for `trainer`, whose optimiser is `optimizer`, from now on."""
        self.lightning = trainer
        self._manual = 0 if trainer.lightning_module.automatic_optimization else accumulate
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        # Where modules clip the gradients themselves, edits come before that; else Lightning says when all is there.
        self.accumulate = self._manual if self._manual and not scaled else 10**9
        self._distributed = trainer.world_size > 1
        self._averaged = {id(p) for p in trainer.lightning_module.parameters() if p.requires_grad}
        self.optimizer = optimizer
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)

    def before_optimizer(self) -> None:
        """Edit the gradient, when it is complete and unscaled and not clipped yet."""
        if self._parts:
            self._finish()

    def _before_step(self, *_: Any) -> None:
        """Lightning's closure makes the last batch of a group inside the optimiser's step."""

    def undone(self, loss: Tensor) -> Tensor:
        """The loss as the training step returned it."""
        factor = 1.0 if self._manual else self._factor()
        loss = loss if factor == 1 else loss / factor
        return loss if self.scaler is None else loss / self.scaler.get_scale()

    def _factor(self) -> float:
        return 1 / (self._manual or self.lightning.accumulate_grad_batches)

    def _scale(self) -> float | Tensor:
        if self.scaler is None:
            return self._factor()
        return self.scaler.scale(torch.full((), self._factor(), device=self.learner.device))  # type: ignore[return-value]

    def _is_own(self, loss: Tensor) -> bool:
        """Whether `loss` is `cl.loss(...)` up to a factor: Lightning divides and scales it."""
        node, own = loss.grad_fn, None if self._own_loss is None else self._own_loss.grad_fn
        for _ in range(6):
            if node is None or node is own:
                break
            node = node.next_functions[0][0] if node.next_functions else None
        return own is not None and node is own

    def _check_direct_call(self) -> None:
        """Lightning's loop calls the model directly."""

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._busy:
            return None
        self._hidden.append(getattr(vars(module).get("forward"), "__name__", "") == "wrapped_forward")
        if self._hidden[-1]:  # the strategy calls the training step through the module's forward
            return None
        if self._joins or self.learner.multi_head:
            args, kwargs = super()._before_forward(module, args, kwargs) or (args, kwargs)
        if self.learner.prepare is not None and args:
            args = (self.learner.forward.prepared(args[0], module.training), *args[1:])
        return args, kwargs

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        if self._busy or (self._hidden and self._hidden.pop()):
            return None
        return super()._after_forward(module, args, kwargs, outputs)
