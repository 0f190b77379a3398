"""Lateral connections: the network of a task also reads what the networks of earlier tasks make of the same input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience
from holdfast.core.forward import forward_task
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.operations._parts.layers import backbone_layers, chain_of


class LateralConnections(Operation):
    r"""Every linear layer behind the first, and the head, reads the layer below in all earlier networks too.

    $$ h_i^{(k)} = f\Big( W_i^{(k)} h_{i-1}^{(k)} + \sum_{j < k} U_i^{(k:j)} h_{i-1}^{(j)} \Big) $$

    Stands behind `SeparateNetworks`, which keeps the networks (the columns); a column and its connections never move
    after their task. A step costs one more forward, without a gradient, for each earlier column.

    With `into="head"` only the head reads earlier columns: the features of all networks together make the outputs.

    Args:
        columns: the most tasks there can be; connections are made for so many at the start.
        into: `layers` (every linear layer and the head) or only the `head`.

    Source: Rusu et al. 2016, "Progressive neural networks", equation 1.
    Differences: no adapters (equation 2): connections are linear. Those into the head come in front of it,
    $W^{(k)} (h^{(k)} + \sum_j A^{(k:j)} h^{(j)})$, which is U = W A. Convolutions get none.

    Example:
        >>> LateralConnections(columns=5)
        LateralConnections(columns=5, into='layers')
    """

    asks = "nothing"
    role = "knowledge incorporation"
    needs = frozenset({"boundaries", "task"})
    state = ("order", "kept")
    scratch = (
        "_reads",
        "_running",
    )

    def __init__(self, columns: Count = 10, into: Literal["layers", "head"] = "layers") -> None:
        super().__init__()
        self.columns = columns
        self.into = into
        self.order: list[int] = []
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.connections = nn.ParameterDict()
        self._reads: list[dict[nn.Module, Tensor]] = []
        self._running = False

    def setup(self, learner: Services) -> None:
        """Find the chain of layers, make the connections, which join the optimiser, and attach the hooks."""
        self._learner = learner
        layers = backbone_layers(learner, self.name)
        self._chain = chain_of(learner.model, learner.head)
        if not self._chain:
            raise ConfigError(
                f"`{self.name}` runs the layers of a backbone one after another, and this backbone is not a chain. "
                "Use a model such as `mlp` or `cnn`."
            )
        first, *others = layers
        first.module.register_forward_pre_hook(Shared(self.run))
        for layer in others if self.into == "layers" else ():
            if isinstance(layer.module, nn.Linear):
                self._make(layer.name, layer.weight.shape[0], layer.weight.shape[1], learner)
                name = layer.name
                layer.module.register_forward_hook(Shared(lambda m, a, out, name=name: self.add(name, m, out)))
        assert learner.head is not None
        features = int(getattr(learner.head, "features", 0) or learner.head.weight.shape[1])  # type: ignore[union-attr, index]
        self._make("head", features, features, learner)
        learner.head.register_forward_pre_hook(Shared(lambda m, a: (self.add("head", m, a[0]), *a[1:])))
        learner.trainable.add({f"{self.name}/{key}": p for key, p in self.connections.items()})

    def _make(self, name: str, outputs: int, inputs: int, learner: Services) -> None:
        self.connections[_key(name)] = nn.Parameter(
            torch.zeros(self.columns - 1, outputs, inputs, device=learner.device, dtype=learner.parameters()[0].dtype)
        )

    def begin(self, experience: Experience, learner: Services) -> None:
        """Draw the connections of a new column, as `nn.Linear` would draw a layer that reads all earlier columns."""
        if experience.task is None:
            raise UsageError(
                f"`{self.name}` needs a task label, and this experience has none. Call begin(data, task=...)."
            )
        before = len(self.order)
        if before == self.columns:
            raise UsageError(
                f"`{self.name}` has columns={self.columns}, and another task begins. Give it more columns."
            )
        self.order.append(experience.task)
        generator = learner.rng(f"connections/{self.name}")
        with torch.no_grad():
            for connections in self.connections.values():
                connections.zero_()
                if before:
                    bound = (connections.shape[2] * before) ** -0.5
                    drawn = torch.empty(connections[:before].shape).uniform_(-bound, bound, generator=generator)
                    connections[:before] = drawn.to(connections)
        learner.trainable.forget_moments(list(self.connections.values()))

    def end(self, experience: Experience, learner: Services) -> None:
        """Keep the column's connections."""
        before = len(self.order) - 1
        self.kept[self.order[-1]] = {key: p.detach()[:before].clone() for key, p in self.connections.items()}

    # The forward ---------------------------------------------------------------------------------------

    def run(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Before the first layer: forward its input through every earlier column, and keep what each layer reads."""
        if self._running:
            return
        learner, task = self._learner, self._learner.forward_task
        self._reads = []
        columns = self.order.index(task) if isinstance(task, int) and task in self.order else 0
        modes = [part.training for part in self._chain]
        self._running = True
        try:
            for part in self._chain:
                part.training = False
            for column in range(columns):
                reads: dict[nn.Module, Tensor] = {}
                values = arguments[0]
                with torch.no_grad(), forward_task(self.order[column]):
                    for part in self._chain:
                        reads[part] = values
                        values = part(values)
                reads[learner.head] = values  # type: ignore[index]
                self._reads.append(reads)
        finally:
            self._running = False
            for part, mode in zip(self._chain, modes):
                part.training = mode

    def add(self, name: str, module: nn.Module, values: Tensor) -> Tensor:
        """Add what comes from the earlier columns."""
        if not self._reads:
            return values
        task, key = self._learner.forward_task, _key(name)
        count = len(self._reads)
        if isinstance(task, Tensor):  # replayed rows of several tasks, which entered behind the first layer
            return values
        connections = self.kept[task][key] if task in self.kept else self.connections[key][:count]
        position = self._live(name, module)
        return values + torch.einsum(
            "koi,k...i->...o", connections, torch.stack([reads[position] for reads in self._reads])
        )

    def _live(self, name: str, module: nn.Module) -> nn.Module:
        """The learner's own module where a copied model runs."""
        live = self._learner.head if name == "head" else self._learner.model.get_submodule(name)
        assert live is not None
        return live


class Shared:
    """A hook that a deep copy shares, so that a copied model asks the same operation."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self.function(*arguments)

    def __deepcopy__(self, _: Any) -> Shared:
        return self


def _key(name: str) -> str:
    """A layer's name as a parameter can have it."""
    return name.replace(".", "/")
