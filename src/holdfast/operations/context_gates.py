"""Context gates: each task uses a random part of the hidden units."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.experience import Experience
from holdfast.core.operation import Operation
from holdfast.core.ranges import BelowOne
from holdfast.core.services import Services
from holdfast.operations._parts.layers import GateHook, backbone_layers, rows_of


class ContextGates(Operation):
    r"""A random fraction of every hidden layer's units is switched off, another one for each task.

    $$ h_l \leftarrow g_l^t \odot h_l, \qquad g_{l,i}^t \in \{0, 1\}, \qquad
       \sum_i g_{l,i}^t = n_l - \mathrm{round}(p \, n_l) $$

    Tasks then share few weights, and disturb each other little, but not nothing: combine it with a penalty (the paper
    does with EWC or SI). Channels are the units of a convolution. Gates act where the next layer reads the units; in a
    backbone that is not a plain chain, where the layer writes them. A task that never began has no gates yet.

    Args:
        fraction: the fraction p of units that are switched off.

    Source: Masse, Grant and Freedman 2018, "Alleviating catastrophic forgetting using context-dependent gating and
    synaptic stabilization", Methods, "Context-dependent gating" (XdG).
    Differences: the number of units switched off is exact in each layer; at least one unit stays on.

    Example:
        >>> ContextGates(fraction=0.9)
        ContextGates(fraction=0.9)
    """

    asks = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries", "task"})
    state = ("gates",)

    def __init__(self, fraction: BelowOne = 0.8) -> None:
        super().__init__()
        self.fraction = fraction
        self.gates: dict[str, dict[int, Tensor]] = {}

    def setup(self, learner: Services) -> None:
        """Attach the hooks."""
        self._learner = learner
        self._units: dict[str, int] = {}
        for layer in backbone_layers(learner, self.name):
            self._units[layer.name] = layer.units
            self.gates[layer.name] = {}
            GateHook(layer, lambda name=layer.name: self.find(name))  # type: ignore[misc]

    def begin(self, experience: Experience, learner: Services) -> None:
        """Draw the gates of a new task."""
        task = experience.task
        if task is None:
            raise UsageError(
                f"`{self.name}` needs a task label, and this experience has none. Call begin(data, task=...)."
            )
        generator = learner.rng(f"gates/{self.name}")
        for name, units in self._units.items():
            if task not in self.gates[name]:
                off = min(units - 1, round(self.fraction * units))
                gates = torch.ones(units)
                gates[torch.randperm(units, generator=generator)[:off]] = 0.0
                self.gates[name][task] = gates.to(learner.device)

    def find(self, name: str) -> Tensor | None:
        """The gates of a layer in the forward that is running: `[units]`, or `[rows, units]` where tasks are mixed."""
        gates, task = self.gates[name], self._learner.forward_task
        if isinstance(task, Tensor):
            return rows_of(gates, task) if gates else None
        return None if task is None else gates.get(task)
