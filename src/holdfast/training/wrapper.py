"""The drop-in: a method in the user's own loop, by one changed line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.errors import UsageError
from holdfast.core.experience import Tree, tree_rows
from holdfast.core.learner import Criterion
from holdfast.core.method import Method
from holdfast.core.needs import OFFERS
from holdfast.core.step import Step
from holdfast.training.advice import ADVICE
from holdfast.training.capture import Capture
from holdfast.training.checks import check_arguments, check_targets, check_tree, check_values
from holdfast.training.export import exported
from holdfast.training.steps import Steps

__all__ = ["ADVICE", "Continual"]


class Continual(Steps):
    """Puts a method into any PyTorch loop: `cl.backward(loss, targets, inputs=x)` stands where `loss.backward()` stood.

    The model's outputs are captured from its forward, so none is computed twice. Operations that join old samples
    to the batch act inside that forward: the model sees more rows, and the caller gets back those of its own.

    **Gradient accumulation.** With `accumulate=k`, call `backward` k times with the undivided loss of each batch, then
    move the optimiser. Each batch draws old samples of its own, and its total loss enters with the factor 1/k. Edits
    of the gradient and what is remembered act once, after the k-th call, on a step that holds the rows of all k
    batches, as if they had been one batch. A smaller last group is closed when the optimiser moves.

    **Mixed precision.** Call the model inside `torch.autocast`; every other forward enters the same autocast. With
    `scaler=` give `backward` the unscaled loss, and leave out `scaler.scale` and `scaler.unscale_`: the gradients are
    already unscaled afterwards (so clip as usual), and a step that overflowed leaves no trace in the method.

    **Clipping** stands between `backward` and the optimiser's step, as in any loop.

    **Several processes.** Give the model as `DistributedDataParallel` made it, the same seed on every rank, and each
    rank its own share of the data. Every rank remembers what it saw itself, and draws from that; gradients, reference
    gradients and Fisher diagonals are averaged, so all ranks keep the same weights.

    Args:
        model: any module, on its device already; in `DistributedDataParallel` or compiled by `torch.compile` too.
        method: what is done around each step; bound here, once.
        optimizer: needed by methods that act after it moved, and by models that grow. To change it, assign
            `cl.optimizer`.
        criterion: the loss on replayed samples, `criterion(outputs, targets)` -> mean; default: cross-entropy.
        boundary: who says that an experience ended: None (you call `begin` and `end`), `Every(steps=...)`, or
            `OnNewClass()`.
        prepare: turns raw inputs into the model's, as `Stream.prepare` does; memory then keeps them raw (images as
            uint8), and the loop calls `cl(x)` with raw inputs instead of `model(x)`.
        accumulate: calls of `backward` for one step of the optimiser.
        scaler: a `torch.amp.GradScaler`, for float16.
        output: takes the tensor of outputs out of what the model returns; default: the tensor it returns, or its
            `logits`.
        seed: of every random choice.
        head: dotted path of the output layer; default: `model.head`, else the last linear layer.

    Raises:
        NeedError: if the method needs what this loop does not offer, with what to write instead.
        ConfigError: if the optimiser does not hold the model's parameters, or the model cannot be worked with.

    Example:
        >>> from holdfast.methods import der_plus_plus
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> cl = Continual(model, der_plus_plus(capacity=100, size=8), optimizer=optimizer)
        >>> for _ in range(3):
        ...     x, y = torch.randn(8, 4), torch.randint(0, 2, (8,))
        ...     loss = nn.functional.cross_entropy(model(x), y)
        ...     optimizer.zero_grad()
        ...     cl.backward(loss, y, inputs=x)
        ...     optimizer.step()
        >>> len(cl.learner.memory)
        24
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        criterion: Criterion | None = None,
        boundary: Boundary | None = None,
        prepare: Callable[..., Any] | None = None,
        accumulate: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        output: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        head: str | None = None,
    ) -> None:
        check_arguments(method, optimizer, accumulate, scaler)
        offers = self._offers(boundary) - ({"update"} if optimizer is None else set())
        self._bind(model, method, offers, criterion=criterion, prepare=prepare, output=output, seed=seed, head=head)
        self._watch_for(boundary)
        self._move_with(optimizer, accumulate, scaler)
        self._given_criterion = criterion is not None
        self._own_loss: Tensor | None = None
        self._count = 0
        self._makes_steps, self._owns_loss = self.engine.acts_at("take_step"), self.engine.acts_at("criterion")
        self._needs_capture = bool(method.remembers) or self._joins

    def _offers(self, boundary: Boundary | None) -> frozenset[str]:
        """What this loop offers to the method."""
        ways = [name for name in OFFERS if name.startswith("wrapper")]
        return OFFERS[ways[0] if boundary is None else ways[1]]

    # The one changed line --------------------------------------------------------------------------------

    def backward(
        self,
        loss: Tensor,
        targets: Tensor,
        *,
        inputs: Tree | None = None,
        outputs: Tensor | None = None,
        task: int | Tensor | None = None,
        **named: Tensor,
    ) -> None:
        """Compute gradients as `loss.backward()` would, with the method's part in them.

        Args:
            loss: the current data's mean loss, a scalar with its graph.
            targets: the current data's targets, `[rows, ...]`.
            inputs: what the model was called with: a tensor, a tuple of positional arguments or a mapping of
                keyword arguments.
            outputs: the model's outputs on `inputs`; default: those of its forward on them in training mode.
            task: the task label, or one per row; default: that of the experience.
            **named: instead of `inputs`, the model's arguments by name.

        Raises:
            UsageError: if the model was not called since the last step, rows do not match, or an experience is missing.
        """
        if named:
            inputs = dict(named) if inputs is None else {"inputs": inputs, **named}  # type: ignore[dict-item]
        if inputs is None:
            raise UsageError(
                "backward() got no inputs. Write cl.backward(loss, targets, inputs=x) with what the model was called"
                " with."
            )
        if not isinstance(inputs, Tensor):
            check_tree(inputs)
        capture = self._capture_of(inputs)
        extras: dict[str, Any] = {}
        if capture is not None:
            extras = capture.extras
            outputs = capture.outputs if outputs is None else outputs
        self._check(loss, targets, inputs, outputs, capture)
        learner = self.learner
        step = Step(
            inputs,
            targets,
            loss,
            outputs,
            learner.task if task is None else task,
            self.engine.index,
            learner.progress,
            extras,
        )
        self._busy = True
        try:
            if self.boundary is not None:
                self._watch(step, between=not self._parts)
            if self._needs_classes:
                self._see(step)
            if self._makes_steps:
                self._take_step(step)
            else:
                self._add(step)
        finally:
            self._busy = False
            self._captures.clear()
            self._own_loss = None
        if self._count % 1000 == 999:
            learner.logged.clear()
        self._count += 1

    def _add(self, step: Step) -> None:
        """Accumulate the gradient of one batch, and finish the step where it is the last."""
        self.engine.accumulate(step, self._scale() if self._scaled else None)
        if self._watchful:
            self._check_gradients()
        if self.accumulate > 1:
            step.loss, step.outputs = step.loss.detach(), None if step.outputs is None else step.outputs.detach()
        self._parts.append(step)
        if len(self._parts) == self.accumulate:
            self._finish(self.scaler is not None)

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tree | None = None) -> Tensor:
        """The current data's loss as the method wants it: its own criterion if it has one, else the one given.

        Args:
            outputs: of the model, `[rows, ...]`.
            targets: `[rows, ...]`.
            inputs: what the model was called with, for criteria that look at it.
        """
        tree = torch.empty(0) if inputs is None else inputs
        self._own_loss = self.engine.criterion(outputs, targets, tree)
        return self._own_loss

    def losses(self) -> dict[str, float]:
        """The current loss (`loss`) and each operation's term as they entered the total.

        They are summed over the calls of `backward` since the last reading (at most 1000).
        """
        found = {
            name: float(sum(value.double() * factor for value, factor in values))
            for name, values in self.learner.logged.items()
        }
        self.learner.logged.clear()
        return found

    def export(self) -> nn.Module:
        """The model for deployment: a copy in eval mode that shares nothing with the training.

        Returns:
            A module of the model's own class without any hook of ours; or, where the method replaces predictions or
            acts inside layers, or where inputs are prepared, a module that does all this when it is called.
        """
        return exported(self.engine, self._own_hooks)

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Model, memory, operations and random states, as tensors and plain values."""
        if self._parts:
            raise UsageError(
                f"the state was asked for after {len(self._parts)} of {self.accumulate} accumulated batches. Save it"
                " between steps."
            )
        return {"engine": self.engine.state(), **self._experience_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the optimiser is restored by its own, afterwards.

        In the middle of an experience, pass its data to `end`, or for a method that chooses the data call
        `resume(experience)` for it.
        """
        self.engine.load(state["engine"])
        self._load_experience_state(state)
        self._captures.clear()
        self._parts, self._pending = [], None

    def close(self) -> None:
        """Take every hook off the model and the optimiser; the model is the user's alone again."""
        for hook in (*self._hooks, *self._optimizer_hooks):
            hook.remove()
        self._hooks, self._optimizer_hooks = [], []

    # Checks ----------------------------------------------------------------------------------------------

    def _check(
        self, loss: Tensor, targets: Tensor, inputs: Tree, outputs: Tensor | None, capture: Capture | None
    ) -> None:
        check_values(loss, targets, inputs, self._given_criterion, self.learner.memory is not None)
        if self.boundary is None and self._experience is None and "boundaries" in self.method.needs:
            raise UsageError(
                f"`{self.method.name}` needs boundaries. Call begin() before an experience's first step, "
                "or pass boundary=Every(steps=1000) or boundary=OnNewClass()."
            )
        rows = tree_rows(inputs)
        if capture is not None and capture.rows != rows:
            raise UsageError(
                f"the model's last forward had {capture.rows} rows, backward() got {rows}. Pass the batch it was called"
                " with."
            )
        if capture is None and ((outputs is None and self._heard) or self._joins):
            raise UsageError(
                "backward() was called without a forward, in training mode, of the model that was given to Continual. "
                "Call that model once a step, and make a new Continual for a new model."
            )
        if outputs is None and self._needs_capture:
            raise UsageError(
                f"`{self.method.name}` needs the model's outputs, and none were captured. Call the model that was given"
                " to Continual in training mode before backward(), or pass outputs=..., or output=... to Continual."
            )
        if self._owns_loss and loss is not self._own_loss:
            raise UsageError(
                f"`{self.method.name}` brings its own loss. Write loss = cl.loss(outputs, targets), and pass that to"
                " backward()."
            )
        if self._pending is not None and self._optimizer is not None:
            raise UsageError(
                "backward() was called again, and the optimizer given to Continual did not move in between. Pass"
                " accumulate=... for gradient accumulation, scaler=... if you use one, and assign cl.optimizer when you"
                " make a new optimizer."
            )
        if self._watchful or self._count % 256 == 0:
            self._parameters.check()
        if self._watchful:
            criterion = self.learner.criterion
            ignored = getattr(criterion, "ignore_index", -100) if self._given_criterion else None
            check_targets(targets, outputs, criterion, ignored)

    def _check_gradients(self) -> None:
        self._watchful -= 1
        if not any(p.grad is not None for p in self.learner.parameters()):
            raise UsageError(
                "backward() gave no gradient to any parameter of the model that was given to Continual. "
                "Compute the loss by that model, and make a new Continual for a new one."
            )
