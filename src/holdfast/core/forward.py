"""One forward as a learner makes it, the task of the one that is running, and one backward pass from several losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import _disable_current_modes

from holdfast.core.errors import UsageError
from holdfast.core.tree import Tree

T = TypeVar("T")
R = TypeVar("R")

# The task of the running forward, for heads and for hooks on inner layers ----------------------------------

Task = int | Tensor | str | None
"""The task of all rows, `[rows]` tasks where they are mixed, "all" for the outputs of every task, or None."""

_running: ContextVar[Task] = ContextVar("holdfast_task", default=None)


def running_task() -> Task:
    """The task of the forward that is running; None outside of one, and if there are no tasks.

    Example:
        >>> with forward_task(2):
        ...     running_task()
        2
        >>> running_task() is None
        True
    """
    return _running.get()


@contextmanager
def forward_task(task: Task) -> Iterator[None]:
    """Forwards inside are of `task`; the task from before holds again afterwards, also after an error."""
    token = _running.set(task)
    try:
        yield
    finally:
        _running.reset(token)


def enter_task(task: Task) -> Token[Task]:
    """The first half of `forward_task`, for a pair of hooks or a `try` on the step path.

    Returns:
        What `leave_task` takes.
    """
    return _running.set(task)


def leave_task(token: Token[Task]) -> None:
    """The second half of `forward_task`."""
    _running.reset(token)


# The forward itself ------------------------------------------------------------------------------------------

FULL_PRECISION: AbstractContextManager[object] = nullcontext()


class Forward:
    """What every forward needs besides the module and its inputs.

    Args:
        model: that is called.
        prepare: turns raw inputs into model inputs: `prepare(inputs, training, generator)`; None keeps them.
        augment: the generator that `prepare` draws from.

    Attributes:
        task: the current task; None in unlabelled streams.
        autocast: `(device type, dtype)` of the main forward's autocast, entered again by every other forward.
        output: takes the tensor of outputs out of what the model returns; None where the model returns that tensor.
        others: arguments of the model that have no row per sample, by name: every forward is made with them.
        names: the parameters of the model that take the inputs, in order, where there are `others`.
    """

    def __init__(self, model: nn.Module, prepare: Callable[..., Any] | None, augment: torch.Generator) -> None:
        self.model = model
        self.prepare = prepare
        self.augment = augment
        self.task: int | None = None
        self.autocast: tuple[str, torch.dtype] | None = None
        self.output: Callable[[Any], Tensor] | None = None
        self.others: Mapping[str, Any] = {}
        self.names: Sequence[str] = ()

    def __call__(self, inputs: Tree, task: Task = None, through: Callable[..., Any] | None = None) -> Tensor:
        """Outputs on raw `inputs`, in the mode the module is in.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: the task of all rows, `[rows]` tasks, or "all" for the outputs of every task; None: the current one.
            through: a wrapper around the model, a copy of it, or a method of it, to call instead.
        """
        if self.autocast is None:
            return self._run(inputs, task, through)
        with self.autocasting():
            return self._run(inputs, task, through)

    def answer(self, inputs: Tree, task: Task = None) -> Tensor:
        """What the model answers when it is asked: `model.answer(inputs)` where its forward gives what its loss needs.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: as for a call.
        """
        return self(inputs, task, getattr(self.model, "answer", None))

    def autocasting(self) -> AbstractContextManager[object]:
        """The autocast of the main forward; nothing in full precision, or inside of it."""
        kind = self.autocast
        if kind is None or torch.is_autocast_enabled(kind[0]):
            return FULL_PRECISION
        return torch.autocast(kind[0], dtype=kind[1])

    def autocasted(self, make: Callable[[T], R], argument: T) -> R:
        """`make(argument)` inside `autocasting`; without a context if there is none, as at most steps."""
        if self.autocast is None:
            return make(argument)
        with self.autocasting():
            return make(argument)

    def _run(self, inputs: Tree, task: Task, through: Callable[..., Any] | None) -> Tensor:
        module = self.model if through is None else through
        token = _running.set(self.task if task is None else task)
        try:
            prepared = self.prepared(inputs, getattr(module, "training", False))
            try:
                outputs = module(prepared) if isinstance(prepared, Tensor) else call(module, prepared)
            except (RuntimeError, ValueError) as error:
                outputs = self._again(module, prepared, error)
        finally:
            _running.reset(token)
        if self.output is not None:
            outputs = self.output(outputs)
        if not isinstance(outputs, Tensor):
            key = repr(next(iter(outputs))) if isinstance(outputs, Mapping) and outputs else "0"
            raise UsageError(
                f"the model returned a {type(outputs).__name__}, and it is not known which part of it are its outputs."
                f" Pass output=lambda returned: returned[{key}], or whichever it is."
            )
        return outputs

    @staticmethod
    def _again(module: Callable[..., Any], inputs: Tree, error: Exception) -> object:
        """What `module` returns where a batch of one value a channel is normalised by the statistics before it.

        Raises:
            UsageError: for inputs of another type than the weights, and a batch norm without statistics.
            Exception: any other `error` of the forward, as it is.
        """
        if isinstance(error, RuntimeError):
            kinds = {value.dtype for value in tensors(inputs)}
            weights = {p.dtype for p in module.parameters()} if isinstance(module, nn.Module) else kinds
            if "dtype" not in str(error) or kinds <= weights:
                raise error
            raise UsageError(
                f"the model's weights are {next(iter(weights))}, and it got inputs of {next(iter(kinds - weights))}."
                " Give data of the type that the model is called with, or Continual(..., prepare=...) that converts it."
            ) from error
        parts = module.modules() if isinstance(module, nn.Module) else ()
        norms = [part for part in parts if isinstance(part, _BatchNorm) and part.training]
        if "more than 1 value per channel" not in str(error) or not norms:
            raise error
        if any(not part.track_running_stats for part in norms):
            raise UsageError(
                "a batch of one sample reached a BatchNorm that keeps no running statistics, and has none of its"
                " own. Write drop_last=True where batches are made, or choose another batch size."
            ) from error
        for part in norms:
            part.eval()
        try:
            return call(module, inputs)
        finally:
            for part in norms:
                part.train()

    def prepared(self, inputs: Tree, training: bool) -> Tree:
        """Raw `inputs` as the model takes them."""
        prepared = inputs if self.prepare is None else self.prepare(inputs, training, self.augment)
        return self.with_others(prepared) if self.others else prepared

    def with_others(self, inputs: Tree) -> Tree:
        """Prepared `inputs` by the names of the model's parameters, beside its other arguments."""
        if isinstance(inputs, Mapping):
            return {**self.others, **inputs}
        parts = (inputs,) if isinstance(inputs, Tensor) else inputs
        return {**self.others, **dict(zip(self.names, parts))}

    @property
    def running(self) -> int | Tensor | None:
        """The task of the forward that is running; the current one outside of it, and where all tasks are asked for."""
        task = running_task()
        return self.task if task is None or isinstance(task, str) else task


def versions(inputs: object) -> list[tuple[Tensor, int]]:
    """The tensors of a model's inputs, in tuples, lists and mappings, with the number of writes to each so far."""
    return [(value, value._version) for value in tensors(inputs) if not value.is_inference()]


def check_unchanged(before: Sequence[tuple[Tensor, int]]) -> None:
    """Refuse a model that wrote into its inputs: what is remembered of them, or run again, would not be what came in.

    Args:
        before: what `versions` gave before the forward.

    Raises:
        UsageError: if one was written to.
    """
    if any(value._version != version for value, version in before):
        raise UsageError(
            "the model changes its inputs in place, so that what is remembered of them, or run again, is not what came"
            " in. Write x = x - mean where it says x.sub_(mean) or x -= mean, and inplace=False in its first layer."
        )


def tensors(tree: object) -> Iterator[Tensor]:
    """All tensors in tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping | tuple | list):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from tensors(part)


def call(module: Callable[..., Any], inputs: Tree) -> Any:
    """What `module` returns for a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Tensor):
        return module(inputs)
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)


def gradients_of(loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = True) -> tuple[list[Tensor], bool]:
    """The gradient of `loss` by each parameter, dense, zeros if there is none; `p.grad` stays as it was.

    Reentrant checkpoints know no gradient by chosen tensors: there it is a backward, and `p.grad` is put back.

    Args:
        loss: a scalar.
        parameters: leaves of its graph.
        retain_graph: whether the graph stays; without it a reentrant checkpoint is an error.

    Returns:
        The gradients, and whether there was such a checkpoint.
    """
    gradients: Sequence[Tensor | None]
    checkpointed = False
    try:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error) or not retain_graph:
            raise
        checkpointed = True
        before = [p.grad for p in parameters]
        try:
            for parameter in parameters:
                parameter.grad = None
            loss.backward(retain_graph=retain_graph)
            gradients = [p.grad for p in parameters]
        finally:
            for parameter, kept in zip(parameters, before):
                parameter.grad = kept
    dense = [
        torch.zeros_like(p) if value is None else value.to_dense() if value.is_sparse else value
        for value, p in zip(gradients, parameters)
    ]
    return dense, checkpointed


_constants: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}
_engine = getattr(torch.autograd.Variable, "_execution_engine", None)


def constant(value: float | Tensor, like: Tensor) -> Tensor:
    """`value` as a scalar tensor of the type and device of `like`, made once; a tensor in a step that is recorded."""
    if isinstance(value, Tensor):
        return value.to(like)
    key = (value, like.dtype, like.device)
    scalar = _constants.get(key)
    if scalar is None:
        if len(_constants) > 4096:  # annealed weights would fill it without end
            _constants.clear()
        with _disable_current_modes():  # a step that is being recorded finds it, as every other does
            scalar = _constants[key] = torch.full((), value, dtype=like.dtype, device=like.device)
    return scalar


def backward(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Accumulate the gradient of the weighted sum of `losses` into the leaves.

    The same as `torch.autograd.backward(losses, weights)`, which spends 16 us a call on comparing shapes symbolically
    (torch 2.13 to 2.15); the engine beneath it is called directly where it is there.

    Args:
        losses: scalars with their graphs.
        weights: one scalar each, without a graph.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> backward([x * x, 5 * x], [constant(1.0, x), constant(2.0, x)])
        >>> x.grad
        tensor(16.)
    """
    if _engine is None:
        torch.autograd.backward(list(losses), list(weights))
    else:
        # Positions: roots, their gradients, keep_graph, create_graph, inputs; the call that `autograd.backward` makes.
        _engine.run_backward(
            tuple(losses), tuple(weights), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
