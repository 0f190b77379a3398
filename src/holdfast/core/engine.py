"""The engine: binds a method to a learner once, and calls each operation at its moments."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from holdfast.core.criteria import beside, ignored_label, labels_in, without_classes
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Batch, Data, Experience, Extras
from holdfast.core.forward import backward, constant, forward_task
from holdfast.core.inspect import eval_mode
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import TargetNeeds, check_needs
from holdfast.core.operation import ENTRY_POINTS, Stateful, acts_at
from holdfast.core.services import Services, note_unmasked
from holdfast.core.snapshot import check_operations, restore_snapshots
from holdfast.core.step import Now, Step
from holdfast.core.tree import Saved, State, Tree, tree_rows
from holdfast.core.undeclared import Undeclared


class Engine:
    """One method bound to one learner. Every way to train is a thin loop around this.

    Args:
        method: its operations are bound here; a method can be bound once.
        learner: the model with its services.
        offers: what the loop offers (see `core.needs.NEEDS`); what the method needs beyond it raises.
        advice: need -> what to write instead, in this loop.

    Raises:
        NeedError: if the loop cannot offer what the method needs.
        ConfigError: if the method is bound already.

    Attributes:
        index: how many steps were made.
        services: what operations get.
        targets: what the method takes as targets.
        evaluating: `with engine.evaluating():` is in eval mode, and in the mode from before afterwards.
    """

    def __init__(
        self, method: Method, learner: Learner, offers: Iterable[str], advice: Mapping[str, str] | None = None
    ) -> None:
        if without_classes(learner.criterion):
            offers = set(offers) - {"classes"}
        check_needs(method.name, method.needs, offers, advice)
        single = next((one.name for one in method if "classes" in one.needs and not one.positions), "")
        self.targets = TargetNeeds(method.name, method.needs, single)
        for operation in method:
            if getattr(operation, "bound", False):
                raise ConfigError(f"{method!r} is already bound to a learner. Use method.clone() for a second one.")
        self.method = method
        self.learner = learner
        self.services = learner.services
        self.index = 0
        if method.wrap is not None:
            learner.change_model(method.wrap, method.name)
        learner.fields = method.remembers
        if learner.multi_head or getattr(learner.model, "takes_task", False):
            learner.fields = (*learner.fields, "task")
        self.evaluating = functools.partial(eval_mode, learner.model)
        for entry_point in ENTRY_POINTS:  # looked up once, so that a step calls only those that act
            acting = tuple(getattr(operation, entry_point) for operation in method if acts_at(operation, entry_point))
            setattr(self, f"_{entry_point}", acting)
        self._named_criteria = tuple((one.name, one.criterion) for one in method if acts_at(one, "criterion"))
        self._named_losses = tuple((one.name, one.loss) for one in method if acts_at(one, "loss"))
        before = learner.criterion
        for operation in method:
            operation.bound = True  # type: ignore[assignment]
            operation.to(learner.device)
            operation.setup(learner.services)
        if any(acts_at(operation, "criterion") and not operation.adds for operation in method):
            self.services.criterion = beside(before, self.services.criterion)
        self._check_memory()
        self._undeclared = Undeclared(method, self.services)
        body = self.services.body
        body.show()
        self._head_untried = body.guessed and body.asked

    _begin: tuple[Callable[[Experience, Services], Data | None], ...]
    _batch: tuple[Callable[[Batch, Services], Batch], ...]
    _criterion: tuple[Callable[[Tensor, Tensor, Tree, Services], Tensor], ...]
    _gradient: tuple[Callable[[Step, Services], None], ...]
    _observe: tuple[Callable[[Step, Services], None], ...]
    _update: tuple[Callable[[Step, Services], None], ...]
    _end: tuple[Callable[[Experience, Services], None], ...]
    _predict: tuple[Callable[[Tensor, Tree, Services], Tensor], ...]
    _take_step: tuple[Callable[[Step, Services, torch.optim.Optimizer], None], ...]

    def _check_memory(self) -> None:
        name = next((one.name for one in self.method if one.remembers or one.draws), "")
        if name and self.learner.memory is None:
            raise ConfigError(
                f"operation {name!r} draws from a memory, and nothing in this method fills one. "
                "Add Remember(capacity=200) to it."
            )

    def acts_at(self, entry_point: str) -> bool:
        """Whether some operation acts at `entry_point`."""
        return bool(getattr(self, f"_{entry_point}"))

    # Boundaries ----------------------------------------------------------------------------------------

    def begin(self, experience: Experience) -> tuple[Experience, bool]:
        """Open `experience`: operations first (teachers are taken before the head grows), then the learner.

        Returns:
            The experience to train on (a copy if an operation replaced its data), and whether one did.

        Raises:
            UsageError: if an operation replaced the data that did not declare it.
        """
        whole = experience
        targets = self.targets
        if targets.classes and len(experience.train) and (targets.single or not experience.classes):
            targets.check(experience.train.targets)
            targets.check_values(experience.train.targets, ignored_label(self.services.criterion))
        for begin in self._begin:
            data = begin(experience, self.services)
            if data is not None:
                if "replacement" not in self.method.needs:  # loops keep what a resumed run needs for that only then
                    raise UsageError(
                        f"an operation of `{self.method.name}` returned other data from begin(). Declare that: needs ="
                        ' frozenset({"replacement"}).'
                    )
                classes = experience.classes
                if len(data) and not data.targets.is_floating_point():
                    classes = labels_in(data.targets, self.services.criterion)
                experience = dataclasses.replace(experience, train=data, classes=classes)
        replaced = experience is not whole
        self.learner.enter(experience, experience.tasks() if replaced else None)
        return experience, replaced

    def end(self, experience: Experience) -> None:
        """Close `experience`; what is measured on its data is measured in full precision."""
        kept, self.learner.autocast = self.learner.autocast, None
        try:
            for end in self._end:
                end(experience, self.services)
        finally:
            self.learner.autocast = kept

    # One step ------------------------------------------------------------------------------------------

    def step(
        self,
        batch: Batch,
        now: Now,
        update: Callable[[Step, float, bool], object],
        weight: float = 1.0,
        last: bool = False,
    ) -> Step:
        """Train on one batch, in the order of every loop that is ours.

        `batch`, forward, `criterion`; within `update` the terms of `loss`, backward, `gradient`, `observe`, the move
        of the weights (up to there `take_step` may do it all), `update`.

        Args:
            batch: current samples.
            now: where this step stands.
            update: makes the optimiser's step of the loss (see `training.update.Update`), or a part of one where
                batches add up to it: `update(step, weight, last)`.
            weight: of this batch in the mean over processes.
            last: whether no other batch adds up to the same step of the optimiser.

        Returns:
            What was seen and computed; its outputs are those from before the weights moved.
        """
        services, forward = self.services, self.services.forward
        services.now = now
        if batch.task is None:
            batch.task = forward.task
        for change in self._batch:
            batch = change(batch, services)
        made = self._outputs(batch) if forward.autocast is None else forward.autocasted(self._outputs, batch)
        outputs, extras, loss = made
        seen = Step(batch.inputs, batch.targets, loss, outputs, batch.task, extras=extras, fresh=batch.fresh)
        update(step := now.stamped(seen, self.index), weight, last)
        return step

    def _outputs(self, batch: Batch) -> tuple[Tensor, Extras, Tensor]:
        outputs, extras = self.forward(batch)
        return outputs, extras, self.criterion(outputs, batch.targets, batch.inputs)

    def batch(self, batch: Batch) -> Batch:
        """What operations make of the batch before its forward."""
        for change in self._batch:
            batch = change(batch, self.services)
        return batch

    def forward(self, batch: Batch, through: nn.Module | None = None) -> tuple[Tensor, Extras]:
        """The main forward: outputs of the current rows, and extras by operation.

        Args:
            batch: with the rows that operations appended.
            through: what wraps the model, if the forward must go through that.
        """
        services = self.services
        if not batch.appended:
            outputs, extras = services.forward(batch.inputs, batch.task, through), Extras()
        else:
            inputs, task = batch.joined(services.device)
            outputs, extras = batch.parted(services.forward(inputs, task, through))
        if services.multi_head:
            note_unmasked(services, outputs, extras)
        return outputs, extras

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Tree) -> Tensor:
        """The current data's loss: the method's own criterion, else the learner's; several add, each in the log."""
        if not self._criterion:
            return self.services.criterion(outputs, targets)
        if self.targets.single:
            self.targets.check(targets)
        if len(self._criterion) == 1:
            return self._criterion[0](outputs, targets, inputs, self.services)
        losses = []
        for name, criterion in self._named_criteria:
            losses.append(criterion(outputs, targets, inputs, self.services))
            self.services.log(name, losses[-1])
        return functools.reduce(torch.add, losses)

    def backward(self, step: Step, scale: float | Tensor | None = None) -> None:
        """Total loss, backward, gradient edits, observers.

        Args:
            step: what was computed; its loss must still have its graph.
            scale: factor of the whole loss (a gradient scaler's, or 1 / accumulated batches).
        """
        self.accumulate(step, scale)
        self.finish(step)

    def accumulate(self, step: Step, scale: float | Tensor | None = None) -> None:
        """Total loss and backward: the first half of `backward`, for loops that add up several batches."""
        if self.targets.classes and (step.targets.is_floating_point() or self.targets.single):
            self.targets.check(step.targets)
        if self._head_untried:
            self._try_head(step)
        forward = self.services.forward  # without a call where there is no autocast to enter, here and in `step`
        roots, factors = self._terms(step) if forward.autocast is None else forward.autocasted(self._terms, step)
        weights = [constant(factor, root) for factor, root in zip(factors, roots)]
        if scale is not None:
            weights = [weight * scale for weight in weights]
        backward(roots, weights)

    def _try_head(self, step: Step) -> None:
        """Before the first backward: whether the layer that was taken for the head makes the model's outputs."""
        self._head_untried = False
        if tree_rows(step.inputs):
            with forward_task("all"):
                self.services.body.try_head(self.services.forward.prepared(step.inputs, False))

    def finish(self, step: Step, edits: bool = True, observers: bool = True) -> None:
        """The second half of `backward`, once per optimiser step.

        Args:
            step: what was computed.
            edits: whether gradients are edited; an optimiser with a closure asks for that alone, several times.
            observers: whether operations observe, and the step counts.
        """
        for edit in self._gradient if edits else ():
            edit(step, self.services)
        if observers:  # after all edits: what is remembered or measured must not change the gradient of this step
            for observe in self._observe:
                observe(step, self.services)
            self.index += 1

    def _terms(self, step: Step) -> tuple[list[Tensor], list[float]]:
        """The losses that have a graph, and the factor of each in the total."""
        services = self.services
        roots, factors = [step.loss], [1.0]
        for name, loss in self._named_losses:
            answer = loss(step, services)
            if answer is None:
                continue
            term, factor = answer if isinstance(answer, tuple) else (answer, 1.0)
            if term.dim():
                raise UsageError(f"operation {name!r} returned a loss of shape {tuple(term.shape)}. Return a scalar.")
            services.log(name, term, factor)
            if term.requires_grad:
                roots.append(term)
                factors.append(factor)
        factors[0] = step.weight
        services.log("loss", step.loss, step.weight)
        return roots, factors

    def update(self, step: Step) -> None:
        """After the optimiser moved."""
        for update in self._update:
            update(step, self.services)

    def take_step(self, step: Step, optimizer: torch.optim.Optimizer) -> bool:
        """Let the method make the whole step, if it wants to. Returns whether it did."""
        for take in self._take_step:
            take(step, self.services, optimizer)
            self.index += 1
        return bool(self._take_step)

    # Prediction ----------------------------------------------------------------------------------------

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in eval mode, as the method wants them; the model must be in eval mode."""
        outputs = self.services.forward.answer(inputs, task)
        if self._predict:
            with forward_task(self.learner.task if task is None else task):  # operations answer for the same task
                for change in self._predict:
                    outputs = change(outputs, inputs, self.services)
        return outputs

    # State ---------------------------------------------------------------------------------------------

    def state(self, check: bool = True) -> State:
        """Learner, operations and step count, as tensors and plain values.

        Args:
            check: whether an operation that keeps something without declaring it is refused: for a checkpoint, since
                that would not have it.

        Raises:
            UsageError: if one does.
        """
        if check:
            self._undeclared.check()
        state = {
            "index": self.index,
            "learner": self.learner.state(),
            "operations": {operation.name: operation.save() for operation in self.method},
        }
        if isinstance(self.method.wrap, Stateful):
            state["wrap"] = self.method.wrap.state()
        return state

    def load(self, state: Saved) -> None:
        """Restore what `state` returned."""
        check_operations([operation.name for operation in self.method], state["operations"])
        self.index = state["index"]
        if "wrap" in state and isinstance(self.method.wrap, Stateful):
            self.method.wrap.load(state["wrap"])
        self.learner.load(state["learner"])
        for operation in self.method:
            values = state["operations"][operation.name]
            operation.load(values)
            restore_snapshots(operation, values, self.services.snapshot_of)
            operation.to(self.learner.device)  # a checkpoint comes back on the CPU
