"""The drop-in: a method in the user's own loop, by one changed line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.core.boundary import Boundary
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Batch, Data, Experience, Tree, task_column, tree_rows
from holdfast.core.learner import Criterion, Learner
from holdfast.core.method import Method
from holdfast.core.needs import OFFERS
from holdfast.core.step import Step
from holdfast.memory import Memory, Ring
from holdfast.streams.data import TensorData
from holdfast.training.capture import Capture, called_with, first_leaf, join_call, join_steps
from holdfast.training.checks import (
    Parameters,
    check_optimizer,
    check_range,
    check_tree,
    check_values,
    compiled,
    hook_count,
    unwrapped,
)
from holdfast.training.export import copied, exported, hooks_of

ADVICE = {
    "boundaries": "Pass boundary=Every(steps=1000) or boundary=OnNewClass(), or call begin() and end() yourself.",
    "data": (
        "Call begin(data) and end(data) around each experience, or choose a method that needs none: er, der_plus_plus,"
        " agem."
    ),
    "replacement": "Leave boundary out and loop over the data that `begin` returns, or use the Trainer.",
    "stream": "Leave boundary out and call begin(experience) with the experiences of a stream, or use the Trainer.",
    "task": "Leave boundary out and call begin(data, task=...), or choose a method that needs no task labels.",
    "update": "Pass optimizer=..., so that the method sees when the parameters moved.",
    "progress": "Leave boundary out and call begin(data, epochs=..., batch_size=...), or use the Trainer.",
    "criterion": "Leave boundary out (the loss is made before one is found); write loss = cl.loss(outputs, targets).",
}


class Continual:
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
        plain = unwrapped(model)
        self.model = model
        self.method = method
        self.boundary = boundary
        self.accumulate = accumulate
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.learner = Learner(plain, criterion=criterion, prepare=prepare, seed=seed, head=head)
        self.learner.output = output
        self._given_output = output
        self._given_criterion = criterion is not None
        self._distributed = isinstance(model, DistributedDataParallel)
        offers = set(self._offers(boundary))
        if optimizer is None:
            offers.discard("update")
        self._own_hooks, before = hooks_of(plain), hook_count(plain)
        self.engine = Engine(method, self.learner, offers, ADVICE)
        if compiled(model) and hook_count(plain) > before:
            raise ConfigError(
                f"`{method.name}` acts inside the model's layers, which a compiled model ignores. Leave out"
                " torch.compile."
            )
        if self.engine.acts_at("take_step") and (optimizer is None or accumulate > 1 or self.scaler is not None):
            raise ConfigError(
                f"`{method.name}` makes the whole step itself. Pass optimizer=..., and neither accumulate nor scaler."
            )
        self._parameters = Parameters(self.learner)
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_hooks: list[Any] = []
        self._experience: Experience | None = None
        self._before: Any = None
        self._busy = False
        self._heard = False
        self._captures: deque[Capture] = deque(maxlen=4)
        self._batch: Batch | None = None
        self._blank = torch.empty(0)
        self._parts: list[Step] = []
        self._pending: Step | None = None
        self._own_loss: Tensor | None = None
        self._count = 0
        self._watchful = 3
        self._per_epoch, self._epochs, self._done = 0, 1, 0
        self._recent: Memory | None = None
        if boundary is not None and "data" in method.needs:
            self._recent = Memory(boundary.window, insertion=Ring(), device=self.learner.device)
        self._seen: Tensor | None = None
        self._makes_steps, self._owns_loss = self.engine.acts_at("take_step"), self.engine.acts_at("criterion")
        self._joins = self.engine.acts_at("batch")
        self._scaled = self.scaler is not None or accumulate > 1
        self._needs_capture = bool(method.remembers) or self.engine.acts_at("batch")
        self._needs_classes = bool({"boundaries", "classes"} & set(method.needs))
        self.optimizer = optimizer
        self.learner.optimizer = self._current_optimizer
        self.learner.on_growth.append(self._follow)
        self._hooks = [model.register_forward_hook(self._after_forward, with_kwargs=True)]
        if self.engine.acts_at("batch") or self.learner.multi_head:
            self._hooks.append(model.register_forward_pre_hook(self._before_forward, with_kwargs=True))

    def _current_optimizer(self) -> torch.optim.Optimizer | None:
        return self._optimizer

    def _offers(self, boundary: Boundary | None) -> frozenset[str]:
        """What this loop offers to the method."""
        ways = [name for name in OFFERS if name.startswith("wrapper")]
        return OFFERS[ways[0] if boundary is None else ways[1]]

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser; assign a new one to it, and the method goes on with that."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        check_optimizer(optimizer, self.learner, self._distributed)
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

    # The one changed line ------------------------------------------------------------------------------

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
                self._watch(step)
            if self._needs_classes:
                self._see(step)
            if self._makes_steps:
                self._take_step(step)
            else:
                self.engine.accumulate(step, self._scale() if self._scaled else None)
                if self._watchful:
                    self._check_gradients()
                if self.accumulate > 1:
                    step.loss, step.outputs = step.loss.detach(), None if outputs is None else outputs.detach()
                self._parts.append(step)
                if len(self._parts) == self.accumulate:
                    self._finish(self.scaler is not None)
        finally:
            self._busy = False
            self._captures.clear()
            self._own_loss = None
        if self._count % 1000 == 999:
            learner.logged.clear()
        self._count += 1

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

    def _scale(self) -> float | Tensor:
        if self.scaler is None:
            return 1 / self.accumulate
        ones = torch.full((), 1 / self.accumulate, device=self.learner.device)
        return self.scaler.scale(ones)  # type: ignore[return-value]

    def _finish(self, unscale: bool = False) -> None:
        """What happens once per step of the optimiser: edits of the gradient, and what is remembered."""
        if self.accumulate > 1:
            fields = [name for name in self.learner.fields if name not in ("logits", "task")]
            step = join_steps(self._parts, fields)
        else:
            step = self._parts[0]
        self._parts = []
        if unscale:
            assert self.scaler is not None and self._optimizer is not None
            self.scaler.unscale_(self._optimizer)
        if self.scaler is not None and not self._finite():
            return
        self.engine.finish(step)
        if self._recent is not None:
            self._recent.add({"inputs": step.inputs, "targets": step.targets})
        self._pending = step
        self._advance()

    def _finite(self) -> bool:
        grads = [p.grad for p in self.learner.optimized() if p.grad is not None]
        return not grads or bool(torch.nn.utils.get_total_norm(grads).isfinite())

    def _take_step(self, step: Step) -> None:
        assert self._optimizer is not None
        self.engine.take_step(step, self._optimizer)
        for parameter in self.learner.optimized():  # the loop's own optimizer.step() finds nothing to do
            parameter.grad = None
        self._pending = step
        self._advance()

    def _advance(self) -> None:
        self._done += 1
        if self._per_epoch:
            self._tell_progress()

    def _tell_progress(self) -> None:
        self.learner.progress = min(1.0, self._done / (self._per_epoch * self._epochs))
        self.learner.epoch_progress = self._done % self._per_epoch / max(1, self._per_epoch - 1)

    # Boundaries ----------------------------------------------------------------------------------------

    def begin(
        self,
        data: Experience | Data | None = None,
        *,
        task: int | None = None,
        classes: tuple[int, ...] = (),
        epochs: int = 1,
        batch_size: int | None = None,
        steps: int | None = None,
    ) -> Data | None:
        """Say that an experience begins.

        Args:
            data: an experience of a stream, or the data itself, for methods that choose or go over it.
            task: its task label, if it has one.
            classes: its classes, if the model's head must grow; read off the data where it is given.
            epochs: passes over the data, for methods that follow the progress.
            batch_size: rows per optimiser step, likewise; or
            steps: optimiser steps per pass.

        Returns:
            The data to train on: what was given, unless the method chose otherwise.
        """
        if self.boundary is not None:
            raise UsageError(
                f"begin() was called, but boundary={self.boundary!r} decides here. Leave one of the two out."
            )
        if self._experience is not None:
            raise UsageError("begin() was called twice. Call end() after each experience.")
        self._parameters.check()
        experience = data if isinstance(data, Experience) else self._wrap(data, task, classes)
        self._open(experience)
        assert self._experience is not None
        if steps is None and batch_size is not None:
            steps = -(-len(self._experience.train) // batch_size)
        if steps is None and "progress" in self.method.needs:
            raise UsageError(
                f"`{self.method.name}` follows how far the experience has come. Call begin(data, epochs=1,"
                " batch_size=32)."
            )
        self._per_epoch, self._epochs, self._done = steps or 0, epochs, 0
        self.learner.progress = self.learner.epoch_progress = None
        if self._per_epoch:
            self._tell_progress()
        return None if data is None else self._experience.train

    def end(self, data: Experience | Data | None = None) -> None:
        """Say that the experience ended, before its model is evaluated or the next one begins.

        Args:
            data: the experience's data, if `begin` did not get it and the method goes over it.
        """
        if self._experience is None:
            raise UsageError("end() was called without begin(). Call begin() before an experience's first step.")
        if data is not None:
            self._experience.train = data.train if isinstance(data, Experience) else data
        if "data" in self.method.needs and len(self._experience.train) == 0 and "replacement" not in self.method.needs:
            raise UsageError(
                f"`{self.method.name}` goes over an experience's data when it ends, and got none. Pass it: begin(data)"
                " or end(data)."
            )
        self._close()

    def _open(self, experience: Experience) -> None:
        busy, self._busy = self._busy, True
        before = copied(self.engine.state()) if "replacement" in self.method.needs else None
        try:
            self._experience, replaced = self.engine.begin(experience)
        finally:
            self._busy = busy
        self._before = before if replaced else None
        self._watchful = 3
        self._seen = None

    def _close(self) -> None:
        assert self._experience is not None
        busy, self._busy = self._busy, True
        if self._seen is not None and not self._experience.classes:
            classes = tuple(self._seen.nonzero().flatten().tolist())
            self._experience.classes = self.learner.members[-1] = classes
            self.learner.see_classes(classes)
        try:
            self.engine.end(self._experience)
        finally:
            self._busy = busy
        self._experience = self._before = None

    def _watch(self, step: Step) -> None:
        assert self.boundary is not None
        crossed = not self._parts and self.boundary.crossed(step)
        if not crossed and self._experience is not None:
            return
        versions = [p._version for p in self.learner.model.parameters()]
        if self._experience is not None:
            if self._recent is not None and len(self._recent):
                rows = self._recent.all()
                self._experience.train = TensorData(rows["inputs"], rows["targets"])
                self._recent.clear()
            self._close()
        self._open(self._wrap(None, None, ()))
        if versions != [p._version for p in self.learner.model.parameters()]:
            raise UsageError(
                f"`{self.method.name}` changes weights at a boundary, and {self.boundary!r} finds one only after the"
                " forward. Leave boundary out and call begin() and end() yourself."
            )

    def _wrap(self, data: Data | None, task: int | None, classes: tuple[int, ...]) -> Experience:
        if data is not None and not isinstance(data, Data):
            raise UsageError(
                f"an experience's data was given as {type(data).__name__}. Wrap it:"
                " holdfast.streams.data.LoaderData(dataset), or TensorData(inputs, targets)."
            )
        if data is not None and not classes and not data.targets.is_floating_point():
            classes = tuple(torch.unique(data.targets).tolist())
        empty = TensorData(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
        return Experience(self.learner.experience + 1, empty if data is None else data, classes=classes, task=task)

    def _see(self, step: Step) -> None:
        """Note the classes of a batch, where nobody announced them, without waiting for the device."""
        if (
            step.outputs is None
            or step.outputs.dim() != 2
            or step.targets.dtype != torch.int64
            or step.targets.dim() != 1
        ):
            return
        if self._experience is None:
            self.learner._widen(step.outputs.shape[1])
            self.learner.see_targets(step.targets)
        elif not self._experience.classes:
            if self._seen is None or len(self._seen) < step.outputs.shape[1]:
                seen = torch.zeros(step.outputs.shape[1], dtype=torch.bool, device=step.targets.device)
                if self._seen is not None:
                    seen[: len(self._seen)] = self._seen
                self._seen = seen
            self._seen.index_fill_(0, step.targets, True)

    # Prediction, state ---------------------------------------------------------------------------------

    def __call__(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """The model's outputs on raw `inputs`, through `prepare` if there is one; in training, for `backward`.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: the task label; default: that of the experience.
        """
        if not self._listening():
            return self.learner(inputs, task)
        task = self.learner.task if task is None else task
        batch = Batch(inputs, torch.empty(tree_rows(inputs)), task)
        self._busy = True
        try:
            batch = self.engine.batch(batch)
            outputs, extras = self.engine.forward(batch) if self.model is self.learner.model else self._through(batch)
        finally:
            self._busy = False
        self._note(outputs, extras, first_leaf(inputs))
        return outputs

    def _through(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The main forward through what wraps the model, which must see it."""
        extras: dict[str, Any]
        if not batch.appended:
            outputs, extras = self.learner._forward(self.model, batch.inputs, batch.task), {}
        else:
            inputs, task = self.engine.join(batch)
            outputs, extras = self.engine.split(self.learner._forward(self.model, inputs, task), batch)
        self.engine.note_unmasked(outputs, extras)
        return outputs, extras

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in eval mode without gradients, as the method wants them."""
        busy, self._busy = self._busy, True
        try:
            with self.engine.evaluating(), torch.no_grad():
                return self.engine.predict(inputs, task)
        finally:
            self._busy = busy

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

    def state_dict(self) -> dict[str, Any]:
        """Model, memory, operations and random states, as tensors and plain values."""
        if self._parts:
            raise UsageError(
                f"the state was asked for after {len(self._parts)} of {self.accumulate} accumulated batches. Save it"
                " between steps."
            )
        return {
            "engine": self.engine.state(),
            "boundary": {} if self.boundary is None else self.boundary.state(),
            "recent": None if self._recent is None else self._recent.state(),
            "inside": self._experience is not None,
            "classes": None if self._experience is None else list(self._experience.classes),
            "seen": self._seen,
            "before": self._before,
            "progress": [self._per_epoch, self._epochs, self._done],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the optimiser is restored by its own, afterwards.

        In the middle of an experience, pass its data to `end`, or for a method that chooses the data call
        `resume(experience)` for it.
        """
        self.engine.load(state["engine"])
        if self.boundary is not None:
            self.boundary.load(state["boundary"])
        if self._recent is not None:
            self._recent.load(state["recent"])
        self._experience = None
        if state["inside"]:
            self._experience = self._wrap(None, self.learner.task, tuple(state["classes"]))
            self._experience.index = self.learner.experience
        self._seen, self._before = copied(state["seen"]), state["before"]
        self._per_epoch, self._epochs, self._done = state["progress"]
        if self._per_epoch and self._experience is not None:
            self._tell_progress()
        self._captures.clear()
        self._parts, self._pending = [], None

    def resume(self, experience: Experience) -> Data:
        """Hand the current experience over again after `load_state_dict` in its middle.

        Returns:
            The data to train on, as `begin` returned it.
        """
        if self._experience is None:
            raise UsageError("resume() was called outside of an experience. Call begin(experience) instead.")
        if self._before is not None:
            state, before, progress = (
                copied(self.engine.state()),
                self._before,
                (self._per_epoch, self._epochs, self._done),
            )
            older = copied(before)
            now = self.learner.model.state_dict()  # outputs that grew since stay, as they are in the optimiser
            older["learner"]["model"] = {**now, **older["learner"]["model"]}
            self.engine.load(older)
            self._open(experience)
            self.engine.load(state)
            self._before = before
            self._per_epoch, self._epochs, self._done = progress
        else:
            self._experience = experience
        assert self._experience is not None
        return self._experience.train

    def close(self) -> None:
        """Take every hook off the model and the optimiser; the model is the user's alone again."""
        for hook in (*self._hooks, *self._optimizer_hooks):
            hook.remove()
        self._hooks, self._optimizer_hooks = [], []

    # Hooks ---------------------------------------------------------------------------------------------

    def _listening(self) -> bool:
        return self.model.training and not self._busy and torch.is_grad_enabled()

    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._listening():
            return None
        self._check_direct_call()
        plain, learner = self.learner.model, self.learner
        tree = called_with(plain, args, kwargs)
        rows = tree_rows(tree)
        if self._blank.shape[0] != rows:  # targets are not known yet
            self._blank = torch.empty(rows)
        self._batch = batch = self.engine.batch(Batch(tree, self._blank, learner.task))
        if not batch.appended:
            if learner.multi_head:
                learner.head.task = learner.task  # type: ignore[union-attr, assignment]
            return None
        if learner.multi_head:
            self._tell_tasks(batch, rows)
        return join_call(plain, args, kwargs, [rows["inputs"] for rows in batch.appended.values()])

    def _tell_tasks(self, batch: Batch, rows: int) -> None:
        """Tell the head which task each current and each appended row belongs to."""
        appended = (batch.appended or {}).values()
        task = batch.task
        if task is not None and all("task" in other for other in appended):
            task = torch.cat([task_column(task, rows, self.learner.device), *(other["task"] for other in appended)])
        self.learner.head.task = task  # type: ignore[union-attr, assignment]
        self.learner.given_task = task

    def _after_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        if not self._listening():
            return None
        self._check_direct_call()
        self.learner.given_task = None
        batch, self._batch = self._batch, None
        given, changed = outputs, batch is not None and bool(batch.appended)
        if self._given_output is None and not isinstance(outputs, Tensor):
            self.learner.output = self._logits
        if self.learner.output is not None:
            outputs = self.learner.output(outputs)
        if not isinstance(outputs, Tensor):
            return None
        extras: dict[str, Any] = {}
        if changed:
            assert batch is not None
            rows = outputs.shape[0]
            outputs, extras = self.engine.split(outputs, batch)
            given = outputs if isinstance(given, Tensor) else _cut(given, rows, outputs.shape[0])
        self.engine.note_unmasked(outputs, extras)
        leaf = args[0] if args else next(iter(kwargs.values()), None)
        self._note(outputs, extras, leaf)
        return given if changed else None

    def _note(self, outputs: Tensor, extras: dict[str, Any], leaf: Any) -> None:
        if outputs.dim() == 2 and outputs.shape[1] == 0:
            raise UsageError(
                "the model has no outputs yet, because its head grows with the classes. Call begin(data) before its"
                " first forward."
            )
        kind = outputs.device.type
        self.learner.autocast = (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        self._heard = True
        self._captures.append(Capture(outputs, extras, outputs.shape[0] if outputs.dim() else 1, leaf))

    def _capture_of(self, inputs: Tree) -> Capture | None:
        """The forward that `inputs` went through: the last one on the same tensor, else the last one."""
        if len(self._captures) > 1:
            leaf = first_leaf(inputs)
            for capture in reversed(self._captures):
                if capture.leaf is leaf:
                    return capture
        return self._captures[-1] if self._captures else None

    @staticmethod
    def _logits(found: Any) -> Any:
        """The tensor of outputs in what a model returned: itself, or its `logits`."""
        if isinstance(found, Tensor):
            return found
        return found.get("logits", found) if isinstance(found, Mapping) else getattr(found, "logits", found)

    def _before_step(self, *_: Any) -> None:
        if self._parts:
            self._finish()

    def _after_step(self, *_: Any) -> None:
        if self._pending is not None:
            step, self._pending = self._pending, None
            self.engine.update(step)

    # Checks --------------------------------------------------------------------------------------------

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
        if self._watchful and not self._given_criterion:
            check_range(targets, outputs)

    def _check_gradients(self) -> None:
        self._watchful -= 1
        if not any(p.grad is not None for p in self.learner.parameters()):
            raise UsageError(
                "backward() gave no gradient to any parameter of the model that was given to Continual. "
                "Compute the loss by that model, and make a new Continual for a new one."
            )

    def _check_direct_call(self) -> None:
        if self.learner.prepare is not None:
            raise UsageError(
                "the model was called directly, but `prepare` was given. Call cl(inputs) with raw inputs instead."
            )

    def _follow(self, new: list[nn.Parameter]) -> None:
        self._parameters.add(new)
        if self._optimizer is None:
            raise UsageError(
                "the model got new parameters, and no optimizer follows them. Pass optimizer=... to Continual."
            )
        if self._distributed:
            raise UsageError(
                "the model got new parameters, which DistributedDataParallel would not average over ranks. "
                "Give the model all its outputs before wrapping it."
            )
        self._optimizer.add_param_group({"params": new})


def _cut(given: Any, rows: int, own: int) -> Any:
    """What a model returned, with only the first `own` of `rows` rows in each of its tensors."""
    if isinstance(given, Tensor):
        return given[:own] if given.dim() and given.shape[0] == rows else given
    if isinstance(given, Mapping):
        cut = {key: _cut(value, rows, own) for key, value in given.items()}
        return cut if type(given) is dict else type(given)(**cut)
    if isinstance(given, list | tuple):
        parts = [_cut(value, rows, own) for value in given]
        return type(given)(*parts) if hasattr(given, "_fields") else type(given)(parts)
    return given
