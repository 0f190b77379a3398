"""The model as a function of its parameters and one sample; and what its inner layers gave in the main forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Tree, tree_map, tree_rows
from holdfast.core.forward import forward_task
from holdfast.core.services import Services
from holdfast.core.snapshot import Snapshot
from holdfast.core.step import Step
from holdfast.models import Hypernetwork
from holdfast.operations._parts.layer_gradients import Diagonal

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""The sum over rows of each row's own loss, a scalar, of outputs `[rows, ...]` and labels `[rows, ...]`."""

TOGETHER = 32
"""Samples that go through the model together where gradients of each of them are made."""


class FunctionalModel:
    """The model as a function of its parameters and one sample, for `vmap`.

    Args:
        learner: whose model it is.
        inputs: raw inputs `[rows, ...]`, prepared here.
        task: the task of all rows, `[rows]` tasks, or None for the current one.
    """

    def __init__(self, learner: Services, inputs: Tree, task: Any) -> None:
        self.model, self.forward, self.output = learner.model, learner.forward, learner.forward.output
        self.task = learner.task if task is None else task
        self.inputs = inputs if learner.prepare is None else learner.prepare(inputs, False, None)
        named = learner.named_parameters()
        self.parameters = {name: p.detach() for name, p in named.items()}
        trained = {id(p) for p in named.values()}  # also under a second name
        state = self.model.state_dict(keep_vars=True)
        # A module under two names must be exchanged by one of them: torch would put back what it had put there itself.
        names = {
            f"{prefix}.{name}".lstrip(".")
            for prefix, part in self.model.named_modules()
            for values in (part.named_parameters, part.named_buffers)
            for name, _ in values(recurse=False, remove_duplicate=False)
        }
        self.rest = {name: value for name, value in state.items() if id(value) not in trained and name in names}
        first = {id(p): name for name, p in named.items()}
        every = self.model.named_parameters(remove_duplicate=False)
        self.aliases = {name: first[id(p)] for name, p in every if name in names and first.get(id(p), name) != name}

    def outputs(self) -> Tensor:
        """Outputs `[rows, ...]` of all samples, without graph."""
        with torch.no_grad():
            return self._mapped(lambda row, task: self._call(self.parameters, row, task).squeeze(0))

    def gradients(self, loss: RowLoss, labels: Tensor, rows: slice | None = None) -> Diagonal:
        """The gradients of each of `rows` by the trainable parameters, `[rows, ...]` each, all at once.

        Args:
            loss: a scalar, of outputs `[1, ...]` and labels `[1, ...]`.
            labels: `[rows, ...]`.
            rows: which of the inputs; None for all, which are then not taken in parts.
        """

        def one(weights: Diagonal, row: Tree, task: Any, label: Tensor) -> Tensor:
            return loss(self._call(weights, row, task), label.unsqueeze(0))

        return self._mapped(
            lambda row, task, label: grad(one)(self.parameters, row, task, label),
            labels,
            rows=rows,
            chunk=None if rows is None else TOGETHER,
        )

    def _mapped(
        self, function: Callable[..., Any], *labels: Tensor, rows: slice | None = None, chunk: int | None = None
    ) -> Any:
        inputs, task = self.inputs, self.task
        if rows is not None:
            inputs = tree_map(lambda leaf: leaf[rows], inputs)
            task = task[rows] if isinstance(task, Tensor) else task
        if isinstance(task, Tensor):
            return vmap(function, chunk_size=chunk)(inputs, task, *labels)
        return vmap(lambda row, *label: function(row, task, *label), chunk_size=chunk)(inputs, *labels)

    def _call(self, weights: Diagonal, row: Tree, task: Any) -> Tensor:
        """Outputs `[1, ...]` of one sample under `weights`."""
        one = tree_map(lambda leaf: leaf.unsqueeze(0), row)
        if self.forward.others:
            one = self.forward.with_others(one)
        args: tuple[Tensor, ...] = (one,) if isinstance(one, Tensor) else one if isinstance(one, tuple) else ()
        named = dict(one) if isinstance(one, Mapping) else {}
        # Weights of two modules are tied by hand: torch's way exchanges a module that has two names twice.
        every = {**weights, **{name: weights[original] for name, original in self.aliases.items()}}
        with forward_task(task.unsqueeze(0) if isinstance(task, Tensor) else task):
            outputs = functional_call(self.model, (every, self.rest), args, named, tie_weights=False)
        return outputs if self.output is None else self.output(outputs)


Values = dict[str, Tensor]
"""What each tapped layer gave in one forward, by name."""


class Taps:
    """Hooks on layers that keep what they gave, for losses on features and maps.

    Nothing is computed twice: the main forward's values are found by the outputs that the same forward made. Only where
    the loop has none (or changed them) does the model run again. Hooks are plain functions, which copies of the model
    share, so that they act in a teacher too.

    Args:
        learner: whose model is tapped.
        layers: by name.
        inputs: keep what enters a layer instead of what leaves it.

    Raises:
        UsageError: if a layer is the whole model.
    """

    def __init__(self, learner: Services, layers: dict[str, nn.Module], inputs: bool = False) -> None:
        if any(isinstance(module, Hypernetwork) for module in learner.model.modules()):
            raise ConfigError(
                "what goes through the layers of a hypernetwork is another for each task, so it cannot be compared "
                "with what was. Use a model with weights of its own."
            )
        if any(layer is learner.model for layer in layers.values()):
            raise UsageError("the model is one layer, and has no features before it. Use a model with a hidden layer.")
        self._running: Values = {}
        self._forwards: list[
            tuple[int, Tensor, Values]
        ] = []  # the outputs are held so that no other gets their address
        self._teaching = False
        for name, layer in layers.items():
            if inputs:
                layer.register_forward_pre_hook(self._before(name), with_kwargs=True)
            else:
                layer.register_forward_hook(self._after(name))
        learner.model.register_forward_hook(self._end())

    def of_step(self, step: Step, learner: Services) -> Values:
        """The values of the step's current rows, with their graph."""
        values = None
        if step.outputs is not None:
            address = step.outputs.data_ptr()
            values = next((taps for made_at, _, taps in self._forwards if made_at == address), None)
        if values is None:
            self._forwards.clear()
            learner(step.inputs, step.task)
            values = self._forwards[-1][-1]
        rows = tree_rows(step.inputs)
        return {name: value[:rows] for name, value in values.items()}

    def of_teacher(self, snapshot: Snapshot, step: Step, learner: Services) -> Values:
        """The values of the step's current rows in the model as it was at `snapshot`, without a graph."""
        self._teaching, self._running = True, {}
        try:
            snapshot(step.inputs, "all" if learner.multi_head else None)
        finally:
            self._teaching, values, self._running = False, self._running, {}
        return values

    def clear(self) -> None:
        """Let go of all values, and of the graphs behind them."""
        self._forwards.clear()

    def _keep(self, name: str, value: Any) -> None:
        if self._teaching or torch.is_grad_enabled():
            self._running[name] = value

    def _before(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(name, args[0] if args else next(iter(kwargs.values())))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._keep(name, output)

        return hook

    def _end(self) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if torch.is_grad_enabled() and isinstance(output, Tensor):
                values, self._running = self._running, {}
                # Another operation's gradients per sample run the model under vmap, whose tensors have no storage.
                with contextlib.suppress(RuntimeError):
                    self._forwards.append((output.data_ptr(), output, values))

        return hook
