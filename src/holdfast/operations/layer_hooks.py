"""Hooks on the layers of a backbone: gates on their units, other tensors in the place of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.core.services import Services
from holdfast.operations.layers import Layer


def gate(values: Tensor, gates: Tensor, convolution: bool) -> Tensor:
    """`values` times one gate per unit.

    Args:
        values: `[rows, ..., units]`, of a convolution `[rows, units, ...]`; units may be repeated by flattening.
        gates: `[units]`, or `[rows, units]` where tasks are mixed.
        convolution: whether units are the second dimension.
    """
    gates = gates.to(values.dtype)
    if convolution:
        return values * gates.reshape(*gates.shape, *[1] * (values.dim() - 2))
    if gates.shape[-1] != values.shape[-1]:
        gates = gates.repeat_interleave(values.shape[-1] // gates.shape[-1], dim=-1)
    between = [1] * (values.dim() - 2)
    return values * (gates if gates.dim() == 1 else gates.reshape(gates.shape[0], *between, gates.shape[-1]))


class GateHook:
    """Multiplies the units of one layer by gates: where the next layer reads them, else where the layer writes them.

    A deep copy is the hook itself, so that a copied model asks the same operation.

    Args:
        layer: whose units.
        gates: returns the gates of the forward that is running, or None for none.
    """

    def __init__(self, layer: Layer, gates: Callable[[], Tensor | None]) -> None:
        self.gates = gates
        if layer.reader is not None:
            self.convolution = not hasattr(layer.reader, "features") and not isinstance(layer.reader, nn.Linear)
            layer.reader.register_forward_pre_hook(self.read)
        else:
            self.convolution = not isinstance(layer.module, nn.Linear)
            layer.module.register_forward_hook(self.write)

    def read(self, _: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """Gate what the next layer reads."""
        gates = self.gates()
        return None if gates is None else (gate(arguments[0], gates, self.convolution), *arguments[1:])

    def write(self, _: nn.Module, __: tuple[Any, ...], outputs: Tensor) -> Any:
        """Gate what the layer writes."""
        gates = self.gates()
        return None if gates is None else gate(outputs, gates, self.convolution)

    def __deepcopy__(self, _: Any) -> GateHook:
        return self


class ExchangeHook:
    """Puts other tensors in the place of a module's parameters and buffers while it runs.

    Args:
        module: a leaf of the model.
        find: returns the tensors by attribute name (`weight`, `running_mean`); an empty mapping changes nothing.
    """

    def __init__(self, module: nn.Module, find: Callable[[nn.Module], Mapping[str, Tensor]]) -> None:
        self.find = find
        self.held: list[list[tuple[dict[str, Any], str, Any]]] = []
        module.register_forward_pre_hook(self.before)
        module.register_forward_hook(self.after, always_call=True)

    def before(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        """Exchange."""
        held: list[tuple[dict[str, Any], str, Any]] = []
        self.held.append(held)  # first: `after` is called even where `find` raises
        for name, tensor in self.find(module).items():
            place: dict[str, Any] = module._parameters if name in module._parameters else module._buffers  # type: ignore[assignment]
            held.append((place, name, place[name]))
            place[name] = tensor

    def after(self, *_: Any) -> None:
        """Put everything back, also after an error."""
        for place, name, value in self.held.pop():
            place[name] = value

    def __deepcopy__(self, _: Any) -> ExchangeHook:
        return self


def one_task(learner: Services, operation: str) -> int | None:
    """The task of the forward that is running, for an operation with one set of weights a task.

    Raises:
        UsageError: if its rows are of several tasks.
    """
    task = learner.forward_task
    if isinstance(task, Tensor):
        if task.numel() == 0 or bool((task == task[0]).all()):
            return int(task[0]) if task.numel() else learner.task
        raise UsageError(
            f"`{operation}` has one set of weights per task, and this batch mixes tasks. "
            "Forward the rows of each task on their own, or choose a method that gates units: hat, xdg."
        )
    return task


def rows_of(gates: Mapping[int, Tensor], task: Tensor) -> Tensor:
    """The gates of each row's task, `[rows, units]`; ones where a task has none.

    Args:
        gates: `[units]` by task.
        task: `[rows]` tasks.
    """
    ones = torch.ones_like(next(iter(gates.values())))
    table = torch.stack([gates.get(index, ones) for index in range(max(gates) + 2)])
    return table[task.clamp(max=max(gates) + 1)]
