"""The layers of a backbone, which of them certainly read one another, and hooks on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.services import Services
from holdfast.models import Classifier, FrozenBackbone

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers with a weight `[units, inputs, ...]` and a bias `[units]` or none."""

_UNITWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.Flatten),
)


@dataclass(frozen=True)
class Layer:
    """One linear or convolutional layer of a backbone.

    Attributes:
        name: dotted path in the model.
        module: the layer.
        source: name of the layer whose units are this one's inputs, or None where that cannot be known.
        reader: the layer (or head) whose inputs are this one's units, or None where that cannot be known.
    """

    name: str
    module: nn.Module
    source: str | None
    reader: nn.Module | None

    @property
    def weight(self) -> Tensor:
        """The layer's weight, `[units, inputs, ...]`."""
        return self.parameter

    @property
    def parameter(self) -> nn.Parameter:
        """The same, as what the optimiser knows."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def units(self) -> int:
        """Number of units: outputs of a linear layer, channels of a convolution."""
        return self.weight.shape[0]


def backbone_layers(learner: Services, operation: str) -> list[Layer]:
    """The linear and convolutional layers in front of the head, in the order of `model.named_modules()`.

    Those of a frozen backbone (`models.frozen`) are left out.

    Where two follow one another in a chain (`nn.Sequential`, with only modules in between that treat each unit on
    its own), each knows the other as `source` and `reader`. Elsewhere (residual blocks, groups) both are None.

    Args:
        learner: its model must not be compiled: hooks on inner layers attached after `torch.compile` are ignored.
        operation: name of who asks, for the errors.

    Raises:
        ConfigError: if the model is compiled already, or there is no such layer before a head.
    """
    model = learner.model
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ConfigError(
            f"`{operation}` attaches hooks to inner layers, which a compiled model ignores. "
            "Give the model as it was before `torch.compile`."
        )
    still = frozen_parts(model)
    if any(isinstance(module, nn.MultiheadAttention) and module not in still for module in model.modules()):
        raise ConfigError(
            f"`{operation}` acts when a layer is called, which `nn.MultiheadAttention` never does with its own. "
            "Use an attention made of linear layers, as in timm."
        )
    head = learner.head
    inside = still if head is None else still | set(head.modules())
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, WEIGHTED) and m not in inside]
    if not layers:
        raise ConfigError(
            f"`{operation}` works on the linear and convolutional layers before the head, and this model has none. "
            "Use a model with hidden layers, for instance `mlp` or `cnn`."
        )
    if any(module.weight is None for _, module in layers):
        raise ConfigError(
            f"`{operation}` works on the weights of layers, and those of this model are generated. "
            "Use a model with weights of its own, for instance `mlp` or `cnn`."
        )
    pairs = _chained(model, head)
    return [Layer(name, m, *_neighbours(m, pairs, layers)) for name, m in layers]


def frozen_parts(model: nn.Module) -> set[nn.Module]:
    """Every module within a frozen backbone: what no operation acts on, since it never changes."""
    frozen = (module for module in model.modules() if isinstance(module, FrozenBackbone))
    return {part for module in frozen for part in module.modules()}


def _chained(model: nn.Module, head: nn.Module | None) -> list[tuple[nn.Module, nn.Module]]:
    """Pairs of layers that certainly follow one another, the head as the last."""
    order: list[nn.Module | None] = []

    def walk(module: nn.Module) -> None:
        if isinstance(module, FrozenBackbone):
            order.append(None)
        elif module is head or isinstance(module, WEIGHTED):
            order.append(module if getattr(module, "groups", 1) == 1 else None)
        elif isinstance(module, nn.Sequential | Classifier):
            for child in module.children():
                walk(child)
        elif not isinstance(module, _UNITWISE):
            order.append(None)

    walk(model)
    return [(a, b) for a, b in pairwise(order) if a is not None and b is not None]


def chain_of(model: nn.Module, head: nn.Module | None) -> list[nn.Module]:
    """The modules from the first layer up to the head, where they run one after another; else an empty list.

    Args:
        model: made of `nn.Sequential` and `Classifier` alone, if it is a chain.
        head: not in the list.
    """
    order: list[nn.Module] = []

    def walk(module: nn.Module) -> bool:
        if isinstance(module, nn.Sequential | Classifier) and module is not head:
            return all(walk(child) for child in module.children())
        order.append(module)
        return (
            isinstance(module, (*WEIGHTED, FrozenBackbone))
            or module is head
            or not any(True for _ in module.children())
        )

    if head is None or not walk(model) or order[-1] is not head:
        return []
    start = next(index for index, module in enumerate(order) if isinstance(module, WEIGHTED) or module is head)
    return order[start:-1]


def _neighbours(
    module: nn.Module, pairs: list[tuple[nn.Module, nn.Module]], named_modules: Sequence[tuple[str, nn.Module]]
) -> tuple[str | None, nn.Module | None]:
    names = {m: name for name, m in named_modules}
    source = next((names.get(a) for a, b in pairs if b is module), None)
    return source, next((b for a, b in pairs if a is module), None)


def spread(values: Tensor, layer: nn.Module) -> Tensor:
    """One value per unit of the layer before, as one value per input of `layer`: `[..., inputs]`.

    Behind a flattened map, each channel stands for as many inputs as it has pixels.
    """
    weight = layer.weight if hasattr(layer, "weight") else None
    inputs = weight.shape[1] if isinstance(weight, Tensor) else int(layer.features)  # type: ignore[arg-type]
    return values if inputs == values.shape[-1] else values.repeat_interleave(inputs // values.shape[-1], dim=-1)


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
        replaced: list[tuple[dict[str, Any], str, Any]] = []
        self.held.append(replaced)  # first: `after` is called even where `find` raises
        for name, tensor in self.find(module).items():
            # Through the table: `setattr` takes no plain tensor in the place of a parameter, and this one has a graph.
            table: dict[str, Any] = module._parameters if name in module._parameters else module._buffers  # type: ignore[assignment]
            replaced.append((table, name, table[name]))
            table[name] = tensor

    def after(self, *_: Any) -> None:
        """Put everything back, also after an error."""
        for table, name, value in self.held.pop():
            table[name] = value

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
