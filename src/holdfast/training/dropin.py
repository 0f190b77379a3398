"""A method in a loop that somebody else writes: what its loop calls, made of the parts that act there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.experience import Data, Experience, Tree
from holdfast.core.step import Step
from holdfast.streams.data import Pairs
from holdfast.training.export import Hooks, exported
from holdfast.training.followed import Followed, Optimizers
from holdfast.training.forwards import Forwards
from holdfast.training.intake import Intake
from holdfast.training.phases import Phases
from holdfast.training.records import Tally
from holdfast.training.update import Update


class DropIn:
    """A method in a loop that somebody else writes, made of the parts that `Continual` chooses.

    Args:
        engine: the method bound to the plain model.
        forwards: watches the forwards of the model.
        phases: knows where experiences begin and end.
        update: the parts of the optimiser's step that are the method's.
        followed: the user's optimiser.
        own_hooks: the hooks that the model had before the method was bound.
        criterion: whether the user gave one.

    Attributes:
        model: as it was given, wrapped or not.
        method: what is done around each step.
        learner: the plain model with its services.
        own_loss: what `loss` returned last, until `backward` gets it.
    """

    def __init__(
        self,
        engine: Engine,
        forwards: Forwards,
        phases: Phases,
        update: Update,
        followed: Followed,
        own_hooks: Hooks,
        criterion: bool,
    ) -> None:
        self.engine = engine
        self.learner = engine.learner
        self.method = engine.method
        self.model = forwards.model
        self.own_loss: Tensor | None = None
        self._forwards = forwards
        self.phases = phases
        self.update = update
        self._followed = followed
        followed.ignored = forwards.ignored
        self._own_hooks = own_hooks
        self.intake = Intake(engine, forwards, update, criterion)
        self._watch = self.intake.watch
        self._count = 0
        self.tally: Tally | None = None  # of steps that were run as recorded
        self._makes_steps, self._owns_loss = engine.acts_at("take_step"), engine.acts_at("criterion")
        self._needs_boundaries = "boundaries" in engine.method.needs and phases.boundary is None
        self._asks_order = self._needs_boundaries or self._owns_loss

    # Outputs ---------------------------------------------------------------------------------------------

    def __call__(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """The model's outputs on raw `inputs`, through `prepare` if there is one; in training, for `backward`.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: the task label; default: that of the experience.
        """
        return self._forwards(inputs, task)

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in eval mode without gradients, as the method wants them."""
        with self._forwards.ignored(), self.engine.evaluating(), torch.no_grad():
            return self.engine.predict(inputs, task)

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
        if self._asks_order or self._followed.pending is not None:
            self._check_order(loss)
        step = self.intake.step(self._count, loss, targets, inputs, outputs, task, named)
        phases, update, forwards = self.phases, self.update, self._forwards
        forwards.ignoring = True  # without `ignored`, which would cost two microseconds a step
        try:
            between = not update.parts and self._followed.pending is None
            if phases.boundary is not None and phases.cross(step, between=between):
                self._watch.renew()
            if phases.watches_classes:
                phases.see(step)
            if self._makes_steps:
                self._take_step(step)
            elif update.single and between and not (self._watch.closely or self._followed.evaluating):
                self._expect(update.at_once(step))
            else:
                update.add(step)
                if self._watch.closely:
                    self._watch.check_gradients()
                if self._followed.evaluating:
                    self._evaluate(step)
                elif len(update.parts) == update.accumulate:
                    self.complete(unscale=update.scaler is not None)
        finally:
            forwards.ignoring = False
            forwards.forget()
            self.own_loss = None
        if self._count % 1000 == 999:
            self.learner.logged.clear()
        self._count += 1

    def complete(self, unscale: bool = False) -> None:
        """Finish the gradient of the batches that were added up, if there are any.

        Args:
            unscale: whether the gradients are still scaled by the scaler.
        """
        step = self.update.complete(unscale) if self.update.parts else None
        if step is not None:
            self._expect(step)

    def _evaluate(self, step: Step) -> None:
        """One of the gradients that an optimiser asks its closure for."""
        self.update.parts.clear()
        if self._followed.evaluate(step):
            self.phases.advance()
            if self.update.finished is not None:
                self.update.finished(step)

    def _take_step(self, step: Step) -> None:
        """Let the method move the weights itself; the loop's own `optimizer.step()` finds nothing to do."""
        assert self._followed.optimizer is not None
        self.engine.take_step(step, self._followed.optimizer)
        self.update.clear()
        self._expect(step)

    def _expect(self, step: Step) -> None:
        self._followed.expect(step)
        self.phases.advance()

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tree | None = None) -> Tensor:
        """The current data's loss as the method wants it: its own criterion if it has one, else the one given.

        Args:
            outputs: of the model, `[rows, ...]`.
            targets: `[rows, ...]`.
            inputs: what the model was called with, for criteria that look at it.
        """
        if inputs is None:
            inputs = self.intake.inputs_of(outputs)
        if inputs is not None or not self._owns_loss:
            self.own_loss = self.engine.criterion(outputs, targets, torch.empty(0) if inputs is None else inputs)
            return self.own_loss
        try:
            self.own_loss = self.engine.criterion(outputs, targets, torch.empty(0))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise UsageError(
                f"`{self.method.name}` looks at the inputs in its loss, and no forward that gave these outputs is"
                " known. Write cl.loss(outputs, targets, inputs=x)."
            ) from error
        return self.own_loss

    def losses(self) -> dict[str, float]:
        """The current loss (`loss`) and each operation's term as they entered the total.

        They are summed over the calls of `backward` since the last reading (at most 1000).
        """
        sums = {} if self.tally is None else self.tally.read()[0]
        for name, values in self.learner.logged.items():
            sums[name] = sums.get(name, 0.0) + float(sum(value.double() * factor for value, factor in values))
        self.learner.logged.clear()
        return sums

    def passed(self) -> None:
        """Count a step that was run as recorded."""
        self.engine.index += 1
        self.phases.advance()
        self._count += 1

    # Experiences -----------------------------------------------------------------------------------------

    @property
    def boundary(self) -> Boundary | None:
        """Who finds where experiences begin; None where `begin` and `end` say so."""
        return self.phases.boundary

    @property
    def experience(self) -> Experience | None:
        """The experience that is open."""
        return self.phases.current

    def begin(
        self,
        data: Experience | Pairs | None = None,
        *,
        task: int | None = None,
        classes: tuple[int, ...] = (),
        epochs: int = 1,
        batch_size: int | None = None,
        steps: int | None = None,
    ) -> Any:
        """Say that an experience begins.

        Args:
            data: an experience of a stream, or the data itself, for methods that choose or go over it: ours, a torch
                data set, a loader, or a list of batches; read only where the method needs it.
            task: its task label, if it has one.
            classes: its classes, if the model's head must grow; read off the data where it is given.
            epochs: passes over the data, for methods that follow the progress.
            batch_size: rows per optimiser step, likewise; or
            steps: optimiser steps per pass; default: the batches of a loader.

        Returns:
            The data to train on: what was given (of an experience its training data), unless the method chose
            otherwise; for a loader that is a loader again.
        """
        self._watch.check_parameters()
        with self._forwards.ignored():
            chosen = self.phases.begin(
                data, task=task, classes=classes, epochs=epochs, batch_size=batch_size, steps=steps
            )
        self._watch.renew()
        return chosen

    def end(self, data: Experience | Pairs | None = None) -> None:
        """Say that the experience ended, before its model is evaluated or the next one begins.

        Args:
            data: the experience's data, if `begin` did not get it and the method goes over it.
        """
        with self._forwards.ignored():
            self.phases.end(data)

    def resume(self, experience: Experience) -> Data:
        """Hand the current experience over again after `load_state_dict` in its middle.

        Returns:
            The data to train on, as `begin` returned it.
        """
        with self._forwards.ignored():
            data = self.phases.resume(experience)
        self._watch.renew()
        return data

    # The optimiser ---------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser, or all as one; assign a new one, or a list of several, and the method goes on with that."""
        return self._followed.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizers | None) -> None:
        self._followed.optimizer = optimizer  # type: ignore[assignment]

    @property
    def accumulate(self) -> int:
        """Calls of `backward` for one step of the optimiser."""
        return self.update.accumulate

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Of float16 gradients."""
        return self.update.scaler

    # State -----------------------------------------------------------------------------------------------

    def export(self) -> nn.Module:
        """The model for deployment: a copy in eval mode that shares nothing with the training.

        Returns:
            A module of the model's own class without any hook of ours; or, where the method replaces predictions or
            acts inside layers, or where inputs are prepared, a module that does all this when it is called.
        """
        return exported(self.engine, self._own_hooks)

    def state_dict(self) -> dict[str, Any]:
        """Model, memory, operations and random states, as tensors and plain values."""
        if self.update.parts:
            raise UsageError(
                f"the state was asked for after {len(self.update.parts)} of {self.accumulate} accumulated batches."
                " Save it between steps."
            )
        return {"engine": self.engine.state(), **self.phases.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the optimiser is restored by its own, afterwards.

        In the middle of an experience, pass its data to `end`, or for a method that chooses the data call
        `resume(experience)` for it.
        """
        self.engine.load(state["engine"])
        self.phases.load(state)
        self._forwards.forget()
        self.update.parts, self._followed.pending = [], None

    def close(self) -> None:
        """Take every hook off the model and the optimiser; the model is the user's alone again."""
        for part in (self._forwards, self._followed, self.intake):
            part.close()

    def _check_order(self, loss: Tensor) -> None:
        """Refuse a call that comes too early, twice, or with another loss than the method's own."""
        if self._needs_boundaries and self.phases.current is None:
            raise UsageError(
                f"`{self.method.name}` needs boundaries. Call begin() before an experience's first step, "
                "or pass boundary=Every(steps=1000) or boundary=OnNewClass()."
            )
        if self._owns_loss and loss is not self.own_loss:
            raise UsageError(
                f"`{self.method.name}` brings its own loss. Write loss = cl.loss(outputs, targets), and pass that to"
                " backward()."
            )
        if self._followed.pending is not None and not self._followed.evaluating:
            self._followed.go_on()
