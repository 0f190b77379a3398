"""The forwards of a model that somebody else calls: rows join them there, and what they gave is kept for `backward`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Token
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.experience import Batch, Tree, task_column, tree_rows
from holdfast.core.forward import Task, enter_task, leave_task, running_task
from holdfast.core.services import note_unmasked
from holdfast.training.calls import Calls, Capture, cut, first_leaf, leaves, logits_of, own_loss_in, same_values


class Forwards:
    """Watches the forwards of a model that are made with a graph.

    In training mode, rows that operations append go through the same forward. They get one of their own where that
    would change what the caller sees: where the model computes a loss of all its rows itself, where rows are of other
    lengths, where it is not known yet which part of what it returns are its outputs, and in eval mode.

    Args:
        engine: of the method that acts in them.
        model: as the user calls it, wrapped or not; hooks are put on it.
        output: takes the tensor of outputs out of what the model returns; default: the tensor it returns, or its
            `logits`, or the part that the loss is of (see `Intake`).
        direct: whether the model may be called directly although inputs are prepared.

    Attributes:
        heard: whether a forward was heard at all.
        joins: whether operations act on the batch.
        apart: whether appended rows always get a forward of their own.
        calls: reads the arguments of the model's calls.
        ignoring: whether forwards are the method's own now, and not watched; see `ignored`.
    """

    always = False
    """Whether a forward must be known before it begins, whatever the method does."""

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        output: Callable[[Any], Tensor] | None = None,
        direct: bool = False,
    ) -> None:
        self.engine = engine
        self.services = engine.services
        self.model = model
        self.heard = False
        self.joins = engine.acts_at("batch")
        self.apart = False
        self.calls = Calls(engine.services.forward.model)
        self._acts = self.joins or engine.services.multi_head
        self._asked = output is not None
        self._direct = direct or engine.services.forward.prepare is None
        self.ignoring, self.looks = False, 0  # hooks before the forward that only look
        self._captures: deque[Capture] = deque(maxlen=4)
        self._batch: Batch | None = None
        self._joined = False
        self._called: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._read: tuple[Tree | None, dict[str, Any]] | None = None
        self._entered: Token[Task] | None = None
        # Torch has no public way to ask for hooks; those of others may change what a pre-hook added last would see.
        self._before = self.always or self._acts or bool(model._forward_pre_hooks)
        self._hooks = [model.register_forward_hook(self.after, with_kwargs=True, always_call=True)]
        if self._before:  # before hooks of others, which may change the arguments, and act on appended rows too
            self._hooks.append(model.register_forward_pre_hook(self.before, prepend=True, with_kwargs=True))

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Inside, forwards are the method's own and are not watched."""
        before, self.ignoring = self.ignoring, True
        try:
            yield
        finally:
            self.ignoring = before

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # A forward that is asked of us -----------------------------------------------------------------------

    def __call__(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """The model's outputs on raw `inputs`; kept for `backward` where there is a graph."""
        forward = self.services.forward
        if not self._listening():
            return forward(inputs, task)
        task = forward.task if task is None else task
        training = self.model.training
        batch = self._made_of(inputs, task) if training else Batch(inputs, None, task)  # type: ignore[arg-type]
        waits = batch.appended if self.apart or not self._alike(batch) else None
        through = None if self.model is forward.model else self.model
        self.ignoring = True
        try:
            alone = Batch(batch.inputs, batch.targets, batch.task) if waits else batch
            outputs, extras = self.engine.forward(alone, through)
        finally:
            self.ignoring = False
        self._keep(outputs, extras, inputs, batch, None, {}, bool(waits) or (self.joins and not training))
        return outputs

    def _made_of(self, inputs: Tree, task: int | Tensor | None) -> Batch:
        """What operations make of a batch whose targets are not known yet."""
        batch = Batch(inputs, None, task)  # type: ignore[arg-type]
        if not self.joins:
            return batch
        before, self.ignoring = self.ignoring, True  # without `ignored`, which would cost a microsecond a step
        try:
            batch = self.engine.batch(batch)
        finally:
            self.ignoring = before
        if batch.targets is not None or tree_rows(batch.inputs) != tree_rows(inputs):
            raise UsageError(
                f"an operation of `{self.engine.method.name}` changed the targets or the number of rows of a batch, and"
                ' this loop computes the loss by its own targets. Declare needs = frozenset({"targets"}) in it, and'
                " train with the Trainer or the StreamTrainer."
            )
        return batch

    # Forwards that the user's loop makes -----------------------------------------------------------------

    def _listening(self) -> bool:
        return not self.ignoring and torch.is_grad_enabled()

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before the model's forward: the arguments with what operations changed and appended, or None."""
        if self.ignoring or not torch.is_grad_enabled():
            return None
        self._called, self._read, self._joined = (args, kwargs), None, False
        if not self._acts or not self.model.training:
            return None
        if not self._direct:
            self._refuse_direct()
        forward = self.services.forward
        self._read = tree, _others = self.calls.read(args, kwargs)
        if tree is None:
            raise UsageError(
                "the model was called without a tensor among its arguments. Call it with tensors by position or by name"
                ", or a mapping spread out: model(**batch)."
            )
        self._batch = batch = self._made_of(tree, forward.task)
        joined = self._joined = bool(batch.appended) and not self.apart and self._alike(batch)
        task = batch.task
        self._enter(self._tasks(batch, tree_rows(tree)) if joined and task is not None else task)
        if joined or batch.inputs is not tree:
            appended = [rows["inputs"] for rows in batch.appended.values()] if joined and batch.appended else ()
            return self.calls.put(args, kwargs, batch.inputs, appended)
        return None

    def _tasks(self, batch: Batch, rows: int) -> Task:
        """The task of each current and each appended row."""
        task, appended = batch.task, (batch.appended or {}).values()
        if task is None or not all("task" in other for other in appended):
            return task
        column = task_column(task, rows, self.services.device)
        return torch.cat([column, *(other["task"] for other in appended)])

    @staticmethod
    def _alike(batch: Batch) -> bool:
        """Whether rows that operations append are of the shape of the current ones."""
        if not batch.appended:
            return True
        if isinstance(batch.inputs, Tensor):
            shape = batch.inputs.shape[1:]
            for rows in batch.appended.values():
                inputs = rows["inputs"]
                if not (isinstance(inputs, Tensor) and inputs.shape[1:] == shape):
                    break
            else:
                return True
        shapes = [leaf.shape[1:] for leaf in leaves(batch.inputs)]
        others = ([leaf.shape[1:] for leaf in leaves(rows["inputs"])] for rows in batch.appended.values())
        return all(len(other) != len(shapes) or other == shapes for other in others)

    def _enter(self, task: Task) -> None:
        """The forward that begins is of `task`, until `after`, which is called after an error too."""
        if self._entered is not None:
            self._leave()
        if running_task() is None:  # else whoever calls the model has said which
            self._entered = enter_task(task)

    def _leave(self) -> None:
        token, self._entered = self._entered, None
        if token is not None:
            leave_task(token)

    def after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> Any:
        """Hook after the model's forward: what it returned with the caller's rows alone, or None."""
        if self._entered is not None:
            self._leave()
        if self.ignoring or returned is None or not torch.is_grad_enabled():
            return None
        if not self._direct:
            if not self.model.training:
                return None  # an evaluation, on inputs that its loop prepared
            self._refuse_direct()
        called, self._called = self._called, None
        batch, self._batch, joined = self._batch, None, self._joined
        read, self._read = self._read, None
        tree, others = self.calls.read(*(called or (args, kwargs))) if read is None else read
        sure = self._before or len(self.model._forward_pre_hooks) <= self.looks  # else others may change it
        if isinstance(returned, Tensor) and self.services.forward.output is None:
            outputs: Tensor | None = returned
        else:
            self.apart = self.apart or (self.joins and own_loss_in(returned))
            outputs = self._outputs_in(returned)
        again = joined and (self.apart or outputs is None)
        if again:
            assert called is not None
            with self.ignored():
                returned, joined = self.model(*called[0], **called[1]), False
            outputs = self._outputs_in(returned)
        extras: dict[str, Any] = {}
        if outputs is not None and joined:
            assert batch is not None
            whole = outputs
            try:
                outputs, extras = batch.parted(outputs)
            except (RuntimeError, IndexError):  # the sizes do not add up
                self._check_rows(batch, whole)
                raise
            returned = outputs if isinstance(returned, Tensor) else cut(returned, whole.shape[0], outputs.shape[0])
        if outputs is not None and self.services.multi_head:
            note_unmasked(self.services, outputs, extras)
        waits = self.joins and not joined and (batch is None or bool(batch.appended))
        self._keep(outputs, extras, tree if sure else None, batch, returned, others, waits)
        return returned if joined or again else None

    def _outputs_in(self, returned: Any) -> Tensor | None:
        """The model's outputs; None where it is not known yet which part of what it returned they are."""
        forward = self.services.forward
        if forward.output is None and not isinstance(returned, Tensor) and isinstance(logits_of(returned), Tensor):
            forward.output = logits_of
        outputs = returned if forward.output is None else forward.output(returned)
        if isinstance(outputs, Tensor):
            return outputs
        if self._asked:
            raise UsageError(
                f"output=... of Continual gave a {type(outputs).__name__}. Let it return the tensor of outputs, for"
                " instance output=lambda returned: returned[0]."
            )
        return None

    def _check_rows(self, batch: Batch, outputs: Tensor) -> None:
        rows = sum(tree_rows(part) for part in (batch.inputs, *(r["inputs"] for r in (batch.appended or {}).values())))
        if not outputs.dim() or outputs.shape[0] != rows:
            raise UsageError(
                f"the model gave outputs of shape {tuple(outputs.shape)} for {rows} rows, {tree_rows(batch.inputs)} of"
                " them its caller's. Return a row of outputs for each row of inputs."
            )

    def _refuse_direct(self) -> None:
        raise UsageError(
            "the model was called directly, but `prepare` was given. Call cl(inputs) with raw inputs instead."
        )

    # What is kept of a forward ---------------------------------------------------------------------------

    def _keep(
        self,
        outputs: Tensor | None,
        extras: dict[str, Any],
        called: Tree | None,
        batch: Batch | None,
        returned: Any,
        others: dict[str, Any],
        waits: bool,
    ) -> None:
        if outputs is not None and outputs.dim() == 2 and outputs.shape[1] == 0:
            raise UsageError(
                "the model has no outputs yet, because its head grows with the classes. Call begin(data) before its"
                " first forward."
            )
        forward, training = self.services.forward, self.model.training
        if outputs is not None:
            kind = outputs.device.type
            forward.autocast = (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        self.heard = self.heard or training
        if not training and self._captures and not self._captures[-1].training:
            self._captures.pop()  # of an evaluation with gradients, only the last is kept
        changed = None if batch is None or batch.inputs is called else batch.inputs
        task = forward.task if batch is None else batch.task
        returned = returned if outputs is None else None
        self._captures.append(
            Capture(outputs, extras, called, changed, task, returned, others, batch if waits else None, waits, training)
        )

    def of(self, inputs: Tree) -> Capture | None:
        """The forward that `inputs` went through: the last one on the same tensor, else the last in training mode."""
        captures = self._captures
        if len(captures) > 1 or (captures and not captures[0].training):
            leaf = first_leaf(inputs)
            for capture in reversed(captures):
                if first_leaf(capture.called) is leaf:
                    return capture
            for capture in reversed(captures):
                if capture.training or (capture.called is not None and same_values(inputs, capture.called, True)):
                    return capture
            return None
        return captures[-1] if captures else None

    def that_gave(self, outputs: Tensor) -> Capture | None:
        """The forward that `outputs` come from, else the last one."""
        for capture in reversed(self._captures):
            if capture.outputs is outputs:
                return capture
        return self._captures[-1] if self._captures else None

    def resolve(self, capture: Capture, outputs: Tensor) -> None:
        """Note which tensor of what a model returned its outputs are."""
        position = next(number for number, one in enumerate(self._captures) if one is capture)
        self._captures[position] = capture._replace(outputs=outputs, returned=None)

    def answered(self, capture: Capture) -> Capture:
        """`capture` with what the rows that operations append give, in a forward of their own."""
        if not capture.waits:
            return capture
        batch = capture.batch
        if batch is None:  # in eval mode nothing was asked of the operations before
            assert capture.called is not None
            batch = self._made_of(capture.called, capture.task)
            if batch.inputs is not capture.called:
                raise UsageError(
                    f"`{self.engine.method.name}` changes inputs before the forward, and the model was in eval mode."
                    " Train it in training mode, or put only its normalisation and dropout layers into eval mode."
                )
        extras, before = dict(capture.extras), self.ignoring
        self.ignoring = True
        try:
            for name, rows in (batch.appended or {}).items():
                extras[name] = {**rows, "outputs": self.services.forward(rows["inputs"], rows.get("task"))}
        finally:
            self.ignoring = before
        return capture._replace(extras=extras, waits=False)

    def forget(self) -> None:
        """Drop what was kept: the step is made, or belongs to another state."""
        self._captures.clear()
