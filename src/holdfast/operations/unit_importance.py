"""Unit importance: attention whose used weights move the less, the more their units mattered to earlier tasks."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience
from holdfast.core.ranges import NonNegative, Positive, Range, Strength
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations.unit_attention import Join, UnitAttention
from holdfast.operations.unit_replacement import Watch, weights_of

Importance = Literal[
    "input_gradient",
    "output_gradient",
    "input_weight",
    "output_weight",
    "activation",
    "input_contribution",
    "contribution",
    "activation_fisher",
]
IMPORTANCES = (
    "input_gradient",
    "output_gradient",
    "input_weight",
    "output_weight",
    "activation",
    "input_contribution",
    "contribution",
    "activation_fisher",
)
JOINS: dict[str, Join] = {
    "min": torch.minimum,
    "max": torch.maximum,
    "mean": lambda one, other: (one + other) / 2,
}


class UnitImportance(UnitAttention):
    r"""Hard attention in which a used weight may move at a rate that falls with the importance of its units.

    $$ g_{l,ij} \leftarrow \frac{\alpha}{c_l^t \operatorname{Agg}(I_{l,i}^{<t}, I_{l-1,j}^{<t}) + \alpha} \, g_{l,ij},
       \qquad c_l^t = (t + b_L) (R_l + b_R), \qquad I_l^{<t} = \sum_{\tau < t} I_l^\tau $$

    $$ I_l^\tau = \Big( b_I + \frac{1}{S} \sum_{s=1}^{S} \operatorname{minmax}(i_{l,s}) \odot a_{l,s}^\tau \Big)
       \odot a_l^\tau $$

    in task t, with $i_{l,s}$ what each unit of layer l was worth in step s of task tau, scaled to 0 ... 1 within the
    layer, $a_{l,s}$ the gates of that step, $a_l$ those that were kept, and R_l the layer's part of the sparsity term.
    What a unit is worth is, with w and g the weights and their gradients, and h its mean activity in the batch:

    `input_gradient`: sum of |g| over its inputs; `output_gradient`: over its outputs; `input_weight`, `output_weight`:
    sums of |w|; `activation`: |h|; `input_contribution`, `contribution`: |h| times the sum of |w| over its inputs or
    outputs; `activation_fisher`: |h| times the sum of g squared over its inputs. All but `input_gradient` and
    `input_weight` need a chain of layers. The gates, the sparsity term and the rest are those of `UnitAttention`.

    Args:
        strength: the weight of the sparsity term.
        s_max: the largest s of the annealing within each epoch.
        importance: what a unit is worth in a step.
        aggregate: of the importance of the two units that a weight joins.
        intensity: alpha.
        base_importance: b_I.
        base_sparsity: b_R, above 0.
        base_task: b_L.

    Source: FG-AdaHAT (fine-grained adaptive hard attention to the task) of Continual Learning Arena, equations 1 to 6
    as its documentation numbers those of the paper. Differences: importances of Captum (conductance, DeepLIFT ...) are
    left out; gradients are taken before the rates scale them; the rates act on the step of the optimiser too.

    Example:
        >>> UnitImportance(importance="contribution").aggregate
        'min'
    """

    state = (*UnitAttention.state, "summed", "running", "steps")
    scratch = (
        "_joined",
        "_activity",
    )

    def __init__(
        self,
        strength: Strength = 0.75,
        s_max: Annotated[float, Range(1, low_open=True)] = 400.0,
        importance: Importance = "input_gradient",
        aggregate: Literal["min", "max", "mean"] = "min",
        intensity: Positive = 1.5e-7,
        base_importance: NonNegative = 0.01,
        base_sparsity: Positive = 0.1,
        base_task: NonNegative = 10.0,
    ) -> None:
        super().__init__(strength=strength, s_max=s_max, mode="adapt", intensity=intensity, epsilon=base_sparsity)
        self.importance = importance
        self.aggregate = aggregate
        self.base_importance = base_importance
        self.base_sparsity = base_sparsity
        self.base_task = base_task
        self.summed: dict[str, Tensor] = {}
        self.running: dict[str, Tensor] = {}
        self.steps = 0
        self._activity: dict[str, Tensor] = {}
        self._joined: dict[str, Tensor] | None = None

    def setup(self, learner: Services) -> None:
        """As in hard attention, and watch what each next layer reads where that is asked for."""
        super().setup(learner)
        for name, layer in self.layers.items():
            self.summed[name] = torch.zeros(layer.units, device=learner.device)
            self.running[name] = torch.zeros(layer.units, device=learner.device)
            if self.importance in ("input_gradient", "input_weight"):
                continue
            if layer.reader is None:
                raise ConfigError(
                    f"`{self.name}` with importance={self.importance!r} asks which layer reads {name!r}, and this "
                    "backbone is no plain chain. Write importance='input_gradient', or use a model such as `cnn`."
                )
            layer.reader.register_forward_pre_hook(Watch(self, name))

    def begin(self, experience: Experience, learner: Services) -> None:
        """Start to measure the task."""
        super().begin(experience, learner)
        self.running = {name: torch.zeros_like(value) for name, value in self.running.items()}
        self.steps, self._joined, self._activity = 0, None, {}

    # A step --------------------------------------------------------------------------------------------

    def gradient(self, step: Step, learner: Services) -> None:
        """Measure what units are worth, then scale the gradients."""
        with torch.no_grad():
            for name in self.layers:
                worth = self.worth(name)
                low, high = worth.aminmax()
                scaled = (worth - low) / (high - low).clamp(min=torch.finfo(worth.dtype).tiny)
                self.running[name] += (scaled * self._soft(name)).to(self.running[name].dtype)
        learner.decide(self._count)
        self._activity = {}
        super().gradient(step, learner)

    def _count(self) -> None:
        self.steps += 1

    def worth(self, name: str) -> Tensor:
        """What each unit of a layer is worth in this step, `[units]`."""
        layer, kind = self.layers[name], self.importance
        own = layer.parameter
        if kind.startswith("output") or kind == "contribution":
            weights = [weight.grad if kind == "output_gradient" else weight for weight in weights_of(layer.reader)]
            sums = [weight.abs().transpose(0, 1).flatten(1).sum(1) for weight in weights if weight is not None]
            total = torch.stack(sums).sum(0) if sums else own.new_zeros(layer.units)
            by_unit = total.view(layer.units, -1).sum(1)
        elif kind in ("input_gradient", "activation_fisher"):
            found = torch.zeros_like(own) if own.grad is None else own.grad
            by_unit = (found.abs() if kind == "input_gradient" else found.square()).flatten(1).sum(1)
        else:
            by_unit = own.detach().abs().flatten(1).sum(1)
        if kind in ("activation", "input_contribution", "contribution", "activation_fisher"):
            activity = self._activity.get(name)
            mean = own.new_zeros(layer.units) if activity is None else activity.view(layer.units, -1).mean(1)
            by_unit = mean if kind == "activation" else by_unit * mean
        return by_unit

    @torch.no_grad()
    def _adapt(self) -> None:
        if self._joined is None:
            self._joined = self._by_parameter(self.summed.__getitem__, JOINS[self.aggregate])
        task = len(self.finished) + 1
        for name, layer in self.layers.items():
            taken, free = self._taken(name)
            factor = (task + self.base_task) * (taken / free.clamp(min=1.0) + self.base_sparsity)
            for key in self.covered(layer):
                path = f"{name}.{key}"
                if path in self._joined:
                    self.rates[path].copy_(self.intensity / (factor * self._joined[path] + self.intensity))

    def end(self, experience: Experience, learner: Services) -> None:
        """Keep the gates, and add up what the units were worth to the task."""
        super().end(experience, learner)
        assert experience.task is not None
        for name in self.layers:
            mean = self.running[name] / max(1, self.steps)
            self.summed[name] = self.summed[name] + (mean + self.base_importance) * self.masks[name][experience.task]
        self._joined = None

    def load(self, values: object) -> None:
        """Restore what `save` returned."""
        super().load(values)
        self._joined, self._activity = None, {}
