"""The drop-in: a method in the user's own loop, by one changed line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.core.boundary import Boundary
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Batch, Tree
from holdfast.core.learner import Criterion, Learner
from holdfast.core.method import Method
from holdfast.core.needs import ADVICE, LOOP, LOOP_WITH_BOUNDARY, Way
from holdfast.core.step import Now, Step
from holdfast.training.captured_loop import CapturedLoop
from holdfast.training.checks import check_arguments, check_compiled, hook_count, unwrapped
from holdfast.training.dropin import DropIn
from holdfast.training.export import Hooks, hooks_of
from holdfast.training.followed import Followed, Optimizers
from holdfast.training.forwards import Forwards
from holdfast.training.phases import Phases
from holdfast.training.programs import CaptureMode
from holdfast.training.ranks import average_unknown
from holdfast.training.update import Update

__all__ = ["ADVICE", "Continual"]


class Continual(DropIn):
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
        optimizer: needed by methods that act after it moved, and by models that grow; a list where several move the
            model. To change it, assign `cl.optimizer`.
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
        capture: how `captured` runs steps: True for a CUDA graph on a GPU (elsewhere call by call, for checks), or
            `graph`, `compile` or `tape`.
        pad: what inputs are padded with that are as long as the longest of their batch (text), a number or one by name;
            default: the embedding's `padding_idx`, 0 for masks, the ignored label for labels.
        memory_device: where the memory keeps its rows, for instance "cpu" beside a model on a GPU; they are moved when
            they are drawn. Default: where the model is.

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
        optimizer: Optimizers | None = None,
        *,
        criterion: Criterion | None = None,
        boundary: Boundary | None = None,
        prepare: Callable[..., Any] | None = None,
        accumulate: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        output: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        head: str | None = None,
        capture: bool | CaptureMode = False,
        pad: float | Mapping[str, float] | None = None,
        memory_device: torch.device | str | None = None,
    ) -> None:
        check_arguments(method, optimizer, accumulate, scaler)
        way = LOOP if boundary is None else LOOP_WITH_BOUNDARY
        without = frozenset({"update"} if optimizer is None else ())
        engine, own_hooks = bound(
            model,
            method,
            way,
            without,
            criterion=criterion,
            prepare=prepare,
            output=output,
            seed=seed,
            head=head,
            pad=pad,
            memory_device=memory_device,
        )
        if engine.acts_at("take_step") and (optimizer is None or accumulate > 1 or scaler is not None):
            raise ConfigError(
                f"`{method.name}` makes the whole step itself. Pass optimizer=..., and neither accumulate nor scaler."
            )
        distributed = isinstance(model, DistributedDataParallel)
        phases = Phases(engine, boundary, distributed)
        followed = Followed(engine, self.complete if accumulate > 1 else None)
        update = Update(
            engine,
            followed,
            accumulate=accumulate,
            scaler=scaler if scaler is not None and scaler.is_enabled() else None,
            average=average_unknown(model.parameters()) if distributed else None,
            finished=phases.keeper,
        )
        forwards = Forwards(engine, model, output)
        super().__init__(engine, forwards, phases, update, followed, own_hooks, criterion is not None)
        self.optimizer = optimizer  # type: ignore[assignment]
        self.capture: CaptureMode = "auto" if capture is True else "none" if capture is False else capture
        if self.capture != "none":
            self.captured(lambda: None)  # what cannot be is refused here

    def step(self, inputs: Tree, targets: Tensor) -> Tensor:
        """Train on one batch in one call: forward, loss, backward and the optimiser's move.

        The weights are those of a loop that calls `cl(x)`, `cl.loss`, `optimizer.zero_grad`, `cl.backward` and
        `optimizer.step`, which is what the first steps do, since more is checked there. It costs less: nobody has to
        find out what the loop did in between.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            targets: `[rows, ...]`.

        Returns:
            The outputs from before the step, without their graph.

        Raises:
            ConfigError: without an optimiser.
        """
        if self.optimizer is None:
            raise ConfigError("step() moves the weights, and no optimizer was given. Pass optimizer=... to Continual.")
        if self._watch.closely or self.update.accumulate > 1 or self.update.scaler is not None:
            outputs = self(inputs)
            loss = self.loss(outputs, targets, inputs)
            if not self.update.parts:
                self.optimizer.zero_grad()
            self.backward(loss, targets, inputs=inputs, outputs=outputs)
            if not self.update.parts:
                self.optimizer.step()
            return outputs.detach()
        if self._needs_boundaries:
            self._check_order(torch.empty(0))
        forwards = self._forwards
        before, forwards.ignoring = forwards.ignoring, True
        try:
            step = self.engine.step(Batch(inputs, targets), Now(self.engine.index), self._learn)
        finally:
            forwards.ignoring = before
        if self._count % 1000 == 999:
            self.learner.logged.clear()
        self._count += 1
        assert step.outputs is not None
        return step.outputs.detach()

    def _learn(self, step: Step, weight: float, last: bool) -> None:
        """What happens between the loss of a batch and its update."""
        phases = self.phases
        if phases.boundary is not None and phases.cross(step, between=True):
            self._watch.renew()
        if phases.watches_classes:
            phases.see(step)
        self.update(step, weight, last)
        phases.advance()

    def captured(self, step: Callable[..., Any]) -> CapturedLoop:
        """The loop's own step, as something that is called with each batch and runs recordings of it where it can.

        Args:
            step: from a batch to the optimiser's move: `step(x, y)` calls the model, `cl.backward` and
                `optimizer.step()`, and returns tensors to look at, for instance the loss. Values that differ from
                step to step are its arguments.

        Example:
            >>> from holdfast.methods import er
            >>> model = nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> cl = Continual(model, er(capacity=20, size=8), optimizer=optimizer, capture=True)
            >>> def step(x, y):
            ...     loss = nn.functional.cross_entropy(model(x), y)
            ...     optimizer.zero_grad()
            ...     cl.backward(loss, y, inputs=x)
            ...     optimizer.step()
            ...     return loss
            >>> train = cl.captured(step)
            >>> losses = [train(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(9)]
            >>> train.counts["run"], train.reasons
            (4, [])
        """
        return CapturedLoop(self, step, self.capture)


def bound(
    model: nn.Module,
    method: Method,
    way: Way,
    without: frozenset[str] = frozenset(),
    *,
    criterion: Criterion | None = None,
    prepare: Callable[..., Any] | None = None,
    output: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
    head: str | None = None,
    pad: float | Mapping[str, float] | None = None,
    memory_device: torch.device | str | None = None,
) -> tuple[Engine, Hooks]:
    """A method bound to the plain model inside `model`, and the hooks that the model had before.

    Args:
        model: wrapped or not.
        method: to be bound.
        way: what the loop offers.
        without: what it lacks of that.
        criterion: the loss on replayed samples.
        prepare: turns raw inputs into the model's.
        output: takes the tensor of outputs out of what the model returns.
        seed: of every random choice.
        head: dotted path of the output layer.
        pad: what inputs of different lengths are padded with.
        memory_device: where memories keep their rows.
    """
    plain = unwrapped(model)
    learner = Learner(plain, criterion=criterion, prepare=prepare, seed=seed, head=head)
    learner.output = output
    learner.services.pads = pad
    if memory_device is not None:
        learner.services.memory_device = torch.device(memory_device)
    learner.replaceable = False
    own_hooks, before = hooks_of(plain), hook_count(plain)
    engine = Engine(method, learner, way.offers - without, way.advice)
    check_compiled(model, method, acts_inside=hook_count(plain) > before)
    return engine, own_hooks
