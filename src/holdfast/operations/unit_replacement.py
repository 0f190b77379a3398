"""Unit replacement: now and then a layer's least useful unit starts again, so that the network stays able to learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.operation import Operation
from holdfast.core.ranges import BelowOne, NonNegative, Size
from holdfast.core.ranks import average_over_ranks
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.layers import Layer, backbone_layers


class UnitReplacement(Operation):
    r"""Each layer replaces a fraction of its mature units per step, those that contribute least.

    $$ u_i \leftarrow \eta \, u_i + (1 - \eta) \, \overline{|h_i|} \sum_k |w_{ki}|, \qquad
       q \leftarrow q + \rho \, |\{i : a_i > m\}| $$

    When q reaches 1, the unit with the smallest u among those of age a > m gets new input weights, drawn as at the
    start, a zero bias, zero output weights, and no momentum; its u and a start from 0, and q falls by 1. Works on
    layers that the next one reads directly (chains of linear and convolutional layers), and needs no tasks.

    The fraction of dormant units is logged as `dormant_units`: those whose mean activity in the batch is at most
    `dormant` times the mean over their layer (Sokar et al. 2023, definition 3.1).

    Args:
        rate: the paper's replacement rate rho, per unit and step.
        maturity: the paper's m, steps before a unit can be replaced.
        decay: the paper's eta.
        dormant: threshold of the dormant-unit metric.

    Source: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632, equation 1 and Algorithm 1.
    Differences: at most one unit per layer and step; activities are batch means, also over the positions of a map. The
    mean activity that a replaced unit had is not moved into the next layer's bias.

    Example:
        >>> UnitReplacement(rate=1e-3)
        UnitReplacement(rate=0.001, maturity=100, decay=0.99, dormant=0.025)
    """

    asks = "nothing"
    role = "representation learning"
    needs = frozenset({"update"})
    state = ("utility", "age", "quota")
    scratch = ("_activity",)

    def __init__(
        self, rate: NonNegative = 1e-4, maturity: Size = 100, decay: BelowOne = 0.99, dormant: NonNegative = 0.025
    ) -> None:
        super().__init__()
        self.rate = rate
        self.maturity = maturity
        self.decay = decay
        self.dormant = dormant
        self.utility: dict[str, Tensor] = {}
        self.age: dict[str, Tensor] = {}
        self.quota: dict[str, Tensor] = {}
        self._activity: dict[str, Tensor] = {}

    def setup(self, learner: Services) -> None:
        """Watch what each next layer reads."""
        self.layers = {layer.name: layer for layer in backbone_layers(learner, self.name) if layer.reader is not None}
        if not self.layers:
            raise ConfigError(
                f"`{self.name}` finds no layer of this model that the next one reads directly. "
                "Use a chain of layers, for instance `mlp` or `cnn`."
            )
        for name, layer in self.layers.items():
            assert layer.reader is not None
            self.utility[name] = torch.zeros(layer.units, device=learner.device, dtype=layer.weight.dtype)
            self.age[name] = torch.zeros(layer.units, device=learner.device)
            self.quota[name] = torch.zeros((), device=learner.device)
            layer.reader.register_forward_pre_hook(Watch(self, name))

    def update(self, step: Step, learner: Services) -> None:
        """Keep count of what units contribute, and replace where the time has come."""
        dormant: list[Tensor] = []
        average_over_ranks(list(self._activity.values()))
        with torch.no_grad():
            for name, activity in self._activity.items():
                layer = self.layers[name]
                by_unit = activity.view(layer.units, -1).mean(1)
                dormant.append((by_unit <= self.dormant * by_unit.mean()).float())
                self._replace(layer, activity, learner)
        if dormant:
            learner.log("dormant_units", torch.cat(dormant).mean())
        self._activity = {}

    def _replace(self, layer: Layer, activity: Tensor, learner: Services) -> None:
        utility, age, quota = self.utility[layer.name], self.age[layer.name], self.quota[layer.name]
        readers = weights_of(layer.reader)
        reading = torch.stack([weight.abs().transpose(0, 1).flatten(1).sum(1) for weight in readers]).sum(0)
        utility.lerp_((activity * reading).view(layer.units, -1).sum(1), 1 - self.decay)
        age += 1
        mature = age > self.maturity
        quota += self.rate * mature.sum()
        index = torch.where(mature, utility, torch.inf).argmin().view(1)
        due = (quota >= 1) & mature.any()

        weight, generator = layer.weight, learner.rng(f"weights/{self.name}")
        shape, bound = weight[:1].shape, weight[0].numel() ** -0.5
        drawn = learner.decide(
            lambda: torch.empty(shape).uniform_(-bound, bound, generator=generator), weight.device
        ).to(weight.dtype)
        inputs = [(layer.parameter, drawn)]
        bias = layer.module.bias
        if isinstance(bias, nn.Parameter):
            inputs.append((bias, torch.zeros_like(bias[:1])))
        for parameter, new in inputs:
            _put(parameter, 0, index, new, due)
            for moment in learner.trainable.moments(parameter):
                _put(moment, 0, index, torch.zeros_like(new), due)
        inputs_each = activity.numel() // layer.units
        columns = index * inputs_each + torch.arange(inputs_each, device=index.device)
        for parameter in readers:
            for tensor in (parameter, *learner.trainable.moments(parameter)):
                _put(tensor, 1, columns, torch.zeros((), device=index.device, dtype=tensor.dtype), due)
        for count in (utility, age):
            _put(count, 0, index, torch.zeros_like(count[:1]), due)
        quota -= due.to(quota.dtype)


def _put(tensor: Tensor, dim: int, index: Tensor, new: Tensor, due: Tensor) -> None:
    """Write `new` at `index` of `dim` where `due`, without waiting for the device."""
    tensor.index_copy_(dim, index, torch.where(due, new, tensor.index_select(dim, index)))


def weights_of(reader: nn.Module | None) -> list[nn.Parameter]:
    """The weights of a layer, or of all parts of a head."""
    if hasattr(reader, "parts"):
        return [part.weight for part in reader.parts()]  # type: ignore[union-attr, operator]
    return [reader.weight]  # type: ignore[union-attr, list-item, attr-defined]


class Watch:
    """Keeps the mean activity per input of the step's first forward; copied models share it and are not watched.

    Args:
        owner: the operation; its `_activity` takes the values.
        name: of the layer whose units are read here.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self.owner = owner
        self.name = name

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Read the inputs: later forwards of a step are replays, and those in evaluation do not count."""
        if not module.training or self.name in self.owner._activity:
            return
        values = arguments[0].detach().abs()
        convolution = not isinstance(module, nn.Linear) and not hasattr(module, "features")
        inputs = 1 if convolution else values.dim() - 1
        self.owner._activity[self.name] = values.mean([dim for dim in range(values.dim()) if dim != inputs])

    def __deepcopy__(self, _: Any) -> Watch:
        return self
