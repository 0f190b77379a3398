"""One step of the user's optimiser: batches that add up to it, the scaler, and what follows its move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.step import Step
from holdfast.training.agreement import average_gradients
from holdfast.training.capture import join_steps
from holdfast.training.checks import check_optimizer
from holdfast.training.experiences import Experiences


class Steps(Experiences):
    """What `Continual` does around the optimiser's move.

    Attributes:
        accumulate: calls of `backward` for one step of the optimiser.
        scaler: of float16 gradients, or None.
    """

    accumulate: int
    scaler: torch.amp.GradScaler | None

    def _move_with(
        self, optimizer: torch.optim.Optimizer | None, accumulate: int, scaler: torch.amp.GradScaler | None
    ) -> None:
        """Start before the first step."""
        if self.engine.acts_at("take_step") and (optimizer is None or accumulate > 1 or scaler is not None):
            raise ConfigError(
                f"`{self.method.name}` makes the whole step itself. Pass optimizer=..., and neither accumulate nor"
                " scaler."
            )
        self.accumulate = accumulate
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._scaled = self.scaler is not None or accumulate > 1
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_hooks: list[Any] = []
        self._parts: list[Step] = []
        self._pending: Step | None = None
        self._averaged = {id(p) for p in self.model.parameters() if p.requires_grad}
        self.optimizer = optimizer
        self.learner.optimizer = self._current
        self.learner.on_growth.append(self._follow)

    def _current(self) -> torch.optim.Optimizer | None:
        return self._optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser; assign a new one to it, and the method goes on with that."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        check_optimizer(optimizer, self.learner)
        for hook in self._optimizer_hooks:
            hook.remove()
        self._optimizer, self._optimizer_hooks, self._pending = optimizer, [], None
        if optimizer is None:
            return
        self._optimizer_hooks.append(optimizer.register_step_post_hook(self._after_step))
        if self.accumulate > 1:
            self._optimizer_hooks.append(optimizer.register_step_pre_hook(self._before_step))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in self.learner.added.values() if id(p) not in held]
        if missing:
            optimizer.add_param_group({"params": missing})

    def _follow(self, new: list[nn.Parameter]) -> None:
        """Let the optimiser move parameters that the model, or an operation, got since."""
        self._parameters.add(new)
        if self._optimizer is None:
            raise UsageError(
                "the model got new parameters, and no optimizer follows them. Pass optimizer=... to Continual."
            )
        self._optimizer.add_param_group({"params": new})

    def _scale(self) -> float | Tensor:
        """The factor of one batch's total loss."""
        if self.scaler is None:
            return 1 / self.accumulate
        ones = torch.full((), 1 / self.accumulate, device=self.learner.device)
        return self.scaler.scale(ones)  # type: ignore[return-value]

    def _finish(self, unscale: bool = False) -> None:
        """What happens once per step of the optimiser: edits of the gradient, and what is remembered."""
        step = self._parts[0]
        if self.accumulate > 1:
            fields = [name for name in self.learner.fields if name not in ("logits", "task")]
            step = join_steps(self._parts, fields)
        self._parts = []
        if self._distributed:
            average_gradients(p for p in self.learner.optimized() if id(p) not in self._averaged)
        if unscale:
            assert self.scaler is not None and self._optimizer is not None
            self.scaler.unscale_(self._optimizer)
        if self.scaler is not None and not self._finite():
            return
        self.engine.finish(step)
        if self._recent is not None:
            self._recent.add({"inputs": step.inputs, "targets": step.targets})
        self._made(step)

    def _finite(self) -> bool:
        grads = [p.grad for p in self.learner.optimized() if p.grad is not None]
        return not grads or bool(torch.nn.utils.get_total_norm(grads).isfinite())

    def _take_step(self, step: Step) -> None:
        """Let the method move the weights itself; the loop's own `optimizer.step()` finds nothing to do."""
        assert self._optimizer is not None
        self.engine.take_step(step, self._optimizer)
        for parameter in self.learner.optimized():
            parameter.grad = None
        self._made(step)

    def _made(self, step: Step) -> None:
        self._pending = step
        self._done += 1
        if self._per_epoch:
            self._tell_progress()

    # Hooks on the optimiser ------------------------------------------------------------------------------

    def _before_step(self, *_: Any) -> None:
        if self._parts:
            self._finish()

    def _after_step(self, *_: Any) -> None:
        if self._pending is not None:
            step, self._pending = self._pending, None
            self.engine.update(step)
