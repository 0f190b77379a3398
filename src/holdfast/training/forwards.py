"""The forwards of a model that somebody else calls: rows join them there, and what they gave is kept for `backward`."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Token
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.experience import Batch, Tree, task_column, tree_rows
from holdfast.core.services import note_unmasked
from holdfast.core.task import Task, enter_task, leave_task, running_task


class Forwards:
    """Watches the forwards of a model in training mode.

    Args:
        engine: of the method that acts in them.
        model: as the user calls it, wrapped or not; hooks are put on it.
        output: takes the tensor of outputs out of what the model returns; default: the tensor it returns, or its
            `logits`.
        direct: whether the model may be called directly although inputs are prepared.

    Attributes:
        heard: whether a forward was heard at all.
        joins: whether operations act on the batch.
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
        self._output = output
        self._direct = direct or engine.services.forward.prepare is None
        self.ignoring = False
        self._captures: deque[Capture] = deque(maxlen=4)
        self._batch: Batch | None = None
        self._changed = False
        self._entered: Token[Task] | None = None
        self._hooks = [model.register_forward_hook(self.after, with_kwargs=True, always_call=True)]
        if self.always or self.joins or engine.services.multi_head:
            self._hooks.append(model.register_forward_pre_hook(self.before, with_kwargs=True))

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
        """The model's outputs on raw `inputs`; kept for `backward` in training mode."""
        forward = self.services.forward
        if not self._listening():
            return forward(inputs, task)
        batch = self._made_of(inputs, forward.task if task is None else task)
        through = None if self.model is forward.model else self.model
        self.ignoring = True
        try:
            outputs, extras = self.engine.forward(batch, through)
        finally:
            self.ignoring = False
        self._keep(outputs, extras, first_leaf(inputs), inputs, batch)
        return outputs

    def _made_of(self, inputs: Tree, task: int | Tensor | None) -> Batch:
        """What operations make of a batch whose targets nobody knows yet."""
        batch = Batch(inputs, None, task)  # type: ignore[arg-type]
        if not self.joins:
            return batch
        self.ignoring = True  # without a context manager, which would cost a microsecond a step
        try:
            batch = self.engine.batch(batch)
        finally:
            self.ignoring = False
        if batch.targets is not None or tree_rows(batch.inputs) != tree_rows(inputs):
            raise UsageError(
                f"an operation of `{self.engine.method.name}` changed the targets or the number of rows of a batch, and"
                ' this loop computes the loss by its own targets. Declare needs = frozenset({"targets"}) in it, and'
                " train with the Trainer or the StreamTrainer."
            )
        return batch

    # Forwards that the user's loop makes -----------------------------------------------------------------

    def _listening(self) -> bool:
        return self.model.training and not self.ignoring and torch.is_grad_enabled()

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before the model's forward: the arguments with what operations changed and appended, or None."""
        if not self._listening():
            return None
        if not self._direct:
            self._refuse_direct()
        forward = self.services.forward
        plain = forward.model
        tree = called_with(plain, args, kwargs)
        self._batch = batch = self._made_of(tree, forward.task)
        self._changed = batch.inputs is not tree
        self._enter(batch.task if not batch.appended else self._tasks(batch, tree_rows(tree)))
        if self._changed:
            args, kwargs = put_into_call(plain, args, kwargs, batch.inputs)
        if batch.appended:
            return join_call(plain, args, kwargs, [rows["inputs"] for rows in batch.appended.values()])
        return (args, kwargs) if self._changed else None

    def _tasks(self, batch: Batch, rows: int) -> Task:
        """The task of each current and each appended row."""
        task, appended = batch.task, (batch.appended or {}).values()
        if task is None or not all("task" in other for other in appended):
            return task
        column = task_column(task, rows, self.services.device)
        return torch.cat([column, *(other["task"] for other in appended)])

    def _enter(self, task: Task) -> None:
        """The forward that begins is of `task`, until `after`, which is called after an error too."""
        self._leave()
        if running_task() is None:  # else whoever calls the model has said which
            self._entered = enter_task(task)

    def _leave(self) -> None:
        token, self._entered = self._entered, None
        if token is not None:
            leave_task(token)

    def after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> Any:
        """Hook after the model's forward: what it returned with the caller's rows alone, or None."""
        self._leave()
        if not self._listening() or returned is None:
            return None
        if not self._direct:
            self._refuse_direct()
        forward = self.services.forward
        batch, self._batch = self._batch, None
        outputs = returned
        if self._output is None and not isinstance(outputs, Tensor):
            forward.output = logits_of
        if forward.output is not None:
            outputs = forward.output(outputs)
        if not isinstance(outputs, Tensor):
            return None
        extras: dict[str, Any] = {}
        joined = batch is not None and bool(batch.appended)
        if joined:
            assert batch is not None
            rows = outputs.shape[0]
            outputs, extras = batch.parted(outputs)
            returned = outputs if isinstance(returned, Tensor) else cut(returned, rows, outputs.shape[0])
        note_unmasked(self.engine.services, outputs, extras)
        leaf = args[0] if args else next(iter(kwargs.values()), None)
        self._keep(outputs, extras, leaf, None if batch is None or self._changed else batch.inputs, batch)
        return returned if joined else None

    def _refuse_direct(self) -> None:
        raise UsageError(
            "the model was called directly, but `prepare` was given. Call cl(inputs) with raw inputs instead."
        )

    # What is kept of a forward ---------------------------------------------------------------------------

    def _keep(self, outputs: Tensor, extras: dict[str, Any], leaf: Any, raw: Tree | None, batch: Batch | None) -> None:
        if outputs.dim() == 2 and outputs.shape[1] == 0:
            raise UsageError(
                "the model has no outputs yet, because its head grows with the classes. Call begin(data) before its"
                " first forward."
            )
        kind, forward = outputs.device.type, self.services.forward
        forward.autocast = (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        self.heard = True
        rows = outputs.shape[0] if outputs.dim() else 1
        inputs = None if batch is None or batch.inputs is raw else batch.inputs
        task = forward.task if batch is None else batch.task
        self._captures.append(Capture(outputs, extras, rows, leaf, inputs, task))

    def of(self, inputs: Tree) -> Capture | None:
        """The forward that `inputs` went through: the last one on the same tensor, else the last one."""
        if len(self._captures) > 1:
            leaf = first_leaf(inputs)
            for capture in reversed(self._captures):
                if capture.leaf is leaf:
                    return capture
        return self._captures[-1] if self._captures else None

    def forget(self) -> None:
        """Drop what was kept: the step is made, or belongs to another state."""
        self._captures.clear()


class Capture(NamedTuple):
    """One forward in training mode, for the `backward` that follows.

    Attributes:
        outputs: of the current rows, with their graph.
        extras: by operation.
        rows: how many the current ones are.
        leaf: an input to know it by, as the caller has it.
        inputs: what operations made of the inputs; None where they left them alone.
        task: what they made of the task label.
    """

    outputs: Tensor
    extras: dict[str, Any]
    rows: int
    leaf: Tensor | None
    inputs: Tree | None
    task: int | Tensor | None


def first_leaf(tree: Tree) -> Tensor | None:
    """The first tensor of `tree`."""
    if isinstance(tree, Tensor):
        return tree
    return next(iter(tree.values() if isinstance(tree, Mapping) else tree), None)


def called_with(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tree:
    """The tensors of a call as a tree: the tensor itself if there is one, else by parameter name."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return args[0]
    tensors = {name: value for name, _, value in _tensors(model, args, kwargs)}
    if not tensors:
        raise UsageError(
            "the model was called without a tensor among its arguments. Call it with tensors by position or by name, "
            "or a mapping spread out: model(**batch)."
        )
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def join_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Sequence[Tree]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with more rows: `rows` hold what `backward(inputs=...)` got at other steps.

    Tensors are matched by name where `inputs` was a mapping, by position where it was a tuple; all else stays.
    """
    if len(args) == 1 and not kwargs and all(isinstance(part, Tensor) for part in rows):
        return (torch.cat([args[0], *rows]),), {}  # type: ignore[list-item]
    tensors, new_args, new_kwargs = _tensors(model, args, kwargs), list(args), dict(kwargs)
    for position, (name, key, value) in enumerate(tensors):
        try:
            parts = [_part(tree, name, position) for tree in rows]
        except (KeyError, IndexError):
            raise UsageError(
                f"the model was called with the tensor {name!r}, and backward() did not get it. "
                "Pass all of the model's inputs to backward(), by their names."
            ) from None
        joined = torch.cat([value, *parts])
        if isinstance(key, int):
            new_args[key] = joined
        else:
            new_kwargs[key] = joined
    return tuple(new_args), new_kwargs


def put_into_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tree: Tree
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the tensors of `tree`, which is what `called_with` gave, changed."""
    new_args, new_kwargs = list(args), dict(kwargs)
    for position, (name, key, _) in enumerate(_tensors(model, args, kwargs)):
        value = _part(tree, name, position)
        if isinstance(key, int):
            new_args[key] = value
        else:
            new_kwargs[key] = value
    return tuple(new_args), new_kwargs


def _tensors(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, int | str, Tensor]]:
    """Name, position or keyword, and value of each tensor argument."""
    names = list(inspect.signature(model.forward).parameters) if args else []
    arguments: list[tuple[str, int | str, Any]] = [
        (names[i] if i < len(names) else str(i), i, value) for i, value in enumerate(args)
    ]
    arguments += [(name, name, value) for name, value in kwargs.items()]
    return [(name, key, value) for name, key, value in arguments if isinstance(value, Tensor)]


def _part(tree: Tree, name: str, position: int) -> Tensor:
    if isinstance(tree, Tensor):
        return (tree,)[position]
    return tree[name] if isinstance(tree, Mapping) else tree[position]


def logits_of(returned: Any) -> Any:
    """The tensor of outputs in what a model returned: itself, or its `logits`."""
    if isinstance(returned, Tensor):
        return returned
    return returned.get("logits", returned) if isinstance(returned, Mapping) else getattr(returned, "logits", returned)


def cut(returned: Any, rows: int, own: int) -> Any:
    """What a model returned, with only the first `own` of `rows` rows in each of its tensors."""
    if isinstance(returned, Tensor):
        return returned[:own] if returned.dim() and returned.shape[0] == rows else returned
    if isinstance(returned, Mapping):
        less = {key: cut(value, rows, own) for key, value in returned.items()}
        return less if type(returned) is dict else type(returned)(**less)
    if isinstance(returned, list | tuple):
        parts = [cut(value, rows, own) for value in returned]
        return type(returned)(*parts) if hasattr(returned, "_fields") else type(returned)(parts)
    return returned
