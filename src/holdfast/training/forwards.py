"""A method bound to somebody's model: what joins the rows of its forwards, and what is kept of them for `backward`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Token
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.experience import Batch, Tree, task_column, tree_rows
from holdfast.core.learner import Criterion, Learner
from holdfast.core.method import Method
from holdfast.core.task import Task, enter_task, leave_task, running_task
from holdfast.training.advice import ADVICE
from holdfast.training.capture import Capture, called_with, cut, first_leaf, join_call, logits_of
from holdfast.training.checks import check_compiled, hook_count, unwrapped
from holdfast.training.export import hooks_of


class Forwards:
    """What `Continual` does around the forwards of the model it was given.

    Attributes:
        model: as it was given, wrapped or not.
        method: what is done around each step.
        learner: the plain model with its services.
        engine: the method bound to the learner.
    """

    model: nn.Module
    method: Method
    learner: Learner
    engine: Engine

    def _bind(
        self,
        model: nn.Module,
        method: Method,
        offers: Iterable[str],
        *,
        criterion: Criterion | None,
        prepare: Callable[..., Any] | None,
        output: Callable[[Any], Tensor] | None,
        seed: int,
        head: str | None,
    ) -> None:
        plain = unwrapped(model)
        self.model, self.method = model, method
        self.learner = Learner(plain, criterion=criterion, prepare=prepare, seed=seed, head=head)
        self.learner.output = output
        self._given_output = output
        self._own_hooks, before = hooks_of(plain), hook_count(plain)
        self.engine = Engine(method, self.learner, offers, ADVICE)
        check_compiled(model, method, acts_inside=hook_count(plain) > before)
        self._busy = False
        self._heard = False
        self._captures: deque[Capture] = deque(maxlen=4)
        self._batch: Batch | None = None
        self._blank = torch.empty(0)
        self._joins = self.engine.acts_at("batch")
        self._distributed = isinstance(model, DistributedDataParallel)
        self._entered: Token[Task] | None = None
        self._hooks = [model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True)]
        if self._acts_before():
            self._hooks.append(model.register_forward_pre_hook(self._before_forward, with_kwargs=True))

    def _acts_before(self) -> bool:
        """Whether a forward must be known before it begins."""
        return self._joins or self.learner.multi_head

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
            through = None if self.model is self.learner.model else self.model
            outputs, extras = self.engine.forward(batch, through)
        finally:
            self._busy = False
        self._note(outputs, extras, first_leaf(inputs))
        return outputs

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in eval mode without gradients, as the method wants them."""
        busy, self._busy = self._busy, True
        try:
            with self.engine.evaluating(), torch.no_grad():
                return self.engine.predict(inputs, task)
        finally:
            self._busy = busy

    # Hooks on the model ----------------------------------------------------------------------------------

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
            self._enter(learner.task)
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
        self._enter(task)

    def _enter(self, task: Task) -> None:
        """The forward that begins is of `task`, until `_after_forward`, which comes after an error too."""
        self._leave()
        if running_task() is None:  # else whoever calls the model has said which
            self._entered = enter_task(task)

    def _leave(self) -> None:
        token, self._entered = self._entered, None
        if token is not None:
            leave_task(token)

    def _after_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        self._leave()
        if not self._listening() or outputs is None:
            return None
        self._check_direct_call()
        batch, self._batch = self._batch, None
        given, joined = outputs, batch is not None and bool(batch.appended)
        if self._given_output is None and not isinstance(outputs, Tensor):
            self.learner.output = logits_of
        if self.learner.output is not None:
            outputs = self.learner.output(outputs)
        if not isinstance(outputs, Tensor):
            return None
        extras: dict[str, Any] = {}
        if joined:
            assert batch is not None
            rows = outputs.shape[0]
            outputs, extras = self.engine.split(outputs, batch)
            given = outputs if isinstance(given, Tensor) else cut(given, rows, outputs.shape[0])
        self.engine.note_unmasked(outputs, extras)
        leaf = args[0] if args else next(iter(kwargs.values()), None)
        self._note(outputs, extras, leaf)
        return given if joined else None

    def _check_direct_call(self) -> None:
        if self.learner.prepare is not None:
            raise UsageError(
                "the model was called directly, but `prepare` was given. Call cl(inputs) with raw inputs instead."
            )

    # What is kept of a forward ---------------------------------------------------------------------------

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
