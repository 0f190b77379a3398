"""Unit importance: attention whose used weights move the less, the more their units mattered to earlier tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience
from holdfast.core.operation import require
from holdfast.core.ranges import NonNegative, Positive, Range, Strength
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.attributions import ATTRIBUTIONS, Attribution, attribute
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
    "input_fisher",
    "output_fisher",
    "output_activation_fisher",
    "adaptation",
    "adaptive_contribution",
    Attribution,
]
IMPORTANCES: tuple[str, ...] = get_args(Importance)
INPUTS_ONLY = ("input_gradient", "input_weight", "input_fisher", "adaptation", *ATTRIBUTIONS)
"""What is known without the layer that reads the units."""

GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "input_gradient": torch.abs,
    "output_gradient": torch.abs,
    "input_fisher": torch.square,
    "output_fisher": torch.square,
    "activation_fisher": torch.square,
    "output_activation_fisher": torch.square,
}
"""What sums over gradients are of."""

ACTIVE = (
    *("activation", "input_contribution", "contribution", "adaptive_contribution"),
    *("activation_fisher", "output_activation_fisher"),
)
"""What is multiplied by how active a unit is."""

Summing = Literal["latest", "all", "average", "linear", "quadratic", "cubic", "exponential", "logarithmic", "factorial"]
AGES: dict[str, Callable[[int, float], float]] = {
    "linear": lambda age, rate: rate * age + 1,
    "quadratic": lambda age, rate: (age + 1.0) ** 2,
    "cubic": lambda age, rate: (age + 1.0) ** 3,
    "exponential": lambda age, rate: rate ** (age + 1),
    "logarithmic": lambda age, rate: math.log(age + 1, rate) + 1,
    "factorial": lambda age, rate: float(math.factorial(age + 1)),
}
"""How much a task counts that is so many tasks old, where older ones count more."""

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
    outputs; `input_fisher`, `output_fisher`: sums of g squared, `activation_fisher` and `output_activation_fisher`: the
    same times |h|; `adaptation`: 1 over the sum of |w| over its inputs, `adaptive_contribution`: that times
    `contribution` (of continual backpropagation). The ten others are attributions to what the layer writes, with the
    output of the right class, as Captum computes them (see `operations._parts.attributions`); they take forwards of
    their own in each step, `feature_ablation` one for each unit. Those that ask for |h| or a unit's outputs need a
    chain of layers. The gates, the sparsity term and the rest are those of `UnitAttention`.

    Args:
        strength: the weight of the sparsity term.
        s_max: the largest s of the annealing within each epoch.
        importance: what a unit is worth in a step.
        aggregate: of the importance of the two units that a weight joins.
        intensity: alpha.
        base_importance: b_I.
        base_sparsity: b_R, above 0.
        base_task: b_L.
        summing: how tasks add up: `latest` is the sum above; `all` adds all tasks so far after each, `average` their
            mean; the others weight a task that is k tasks old by $r k + 1$, $(k + 1)^2$, $(k + 1)^3$, $r^{k + 1}$,
            $\log_r(k + 1) + 1$ and $(k + 1)!$.
        rate: r, above 1 for `exponential` and `logarithmic`.
        schedule: c as above (`task`), without $t + b_L$ (`sparsity`), or with the number of earlier tasks that use
            both units plus b_L in its place (`counts`).
        used_only: whether importance counts only between units that earlier tasks use.
        masked: whether a task's importance is zero outside of its own gates (the last factor above).
        gated: whether the importance of a step is multiplied by the gates of that step.
        points: on a path or draws, for attributions.
        sparsity: see `UnitAttention`.
        initial: see `UnitAttention`.

    Source: FG-AdaHAT (fine-grained adaptive hard attention to the task) of Continual Learning Arena, equations 1 to 6
    as its documentation numbers those of the paper. Differences: gradients are taken before the rates scale them; the
    rates act on the step of the optimiser too; Arena's summings with weights use the last task alone, its logarithmic
    one takes the logarithm of 0, and its Grad-CAM joins all units of a layer. Attributions without Captum.

    Example:
        >>> UnitImportance(importance="contribution").aggregate
        'min'
    """

    state = (*UnitAttention.state, "summed", "running", "steps", "worths")
    scratch = ("_joined", "_activity", "_attributed")

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
        summing: Summing = "latest",
        rate: Positive = 2.0,
        schedule: Literal["task", "sparsity", "counts"] = "task",
        used_only: bool = False,
        masked: bool = True,
        gated: bool = True,
        points: Annotated[int, Range(1)] = 8,
        sparsity: Literal["original", "cross"] = "original",
        initial: Literal["normal", "uniform", "positive", "negative", "last"] = "normal",
    ) -> None:
        super().__init__(
            strength=strength,
            s_max=s_max,
            mode="adapt",
            intensity=intensity,
            epsilon=base_sparsity,
            sparsity=sparsity,
            initial=initial,
        )
        message = f"got rate={rate} with summing={summing!r}, expected a rate above 1."
        require(rate > 1 or summing not in ("exponential", "logarithmic"), self.name, message)
        self.importance = importance
        self.aggregate = aggregate
        self.base_importance = base_importance
        self.base_sparsity = base_sparsity
        self.base_task = base_task
        self.summing = summing
        self.rate = rate
        self.schedule = schedule
        self.used_only = used_only
        self.masked = masked
        self.gated = gated
        self.points = points
        self.worths: dict[str, dict[int, Tensor]] = {}
        self._attributed: dict[str, Tensor] = {}
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
            if self.importance in INPUTS_ONLY:
                continue
            if layer.reader is None:
                raise ConfigError(
                    f"`{self.name}` with importance={self.importance!r} asks which layer reads {name!r}, and this "
                    "backbone is not a plain chain. Write importance='input_gradient', or use a model such as `cnn`."
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
        if self.importance in ATTRIBUTIONS:
            generator = learner.rng(f"points/{self.name}")
            self._attributed = attribute(self.importance, self.layers, step, learner, self.points, generator)
        with torch.no_grad():
            for name in self.layers:
                worth = self.worth(name)
                low, high = worth.aminmax()
                scaled = (worth - low) / (high - low).clamp(min=torch.finfo(worth.dtype).tiny)
                scaled = scaled * self._soft(name) if self.gated else scaled
                self.running[name] += scaled.to(self.running[name].dtype)
        learner.decide(self._count)
        self._activity = {}
        super().gradient(step, learner)

    def _count(self) -> None:
        self.steps += 1

    def worth(self, name: str) -> Tensor:
        """What each unit of a layer is worth in this step, `[units]`."""
        layer, kind = self.layers[name], self.importance
        if kind in ATTRIBUTIONS:
            return self._attributed[name]
        parameter = layer.parameter
        if kind.startswith("output") or kind in ("contribution", "adaptive_contribution"):
            ours = [weight.grad if kind in GRADIENTS else weight for weight in weights_of(layer.reader)]
            sums = [
                GRADIENTS.get(kind, torch.abs)(one).transpose(0, 1).flatten(1).sum(1) for one in ours if one is not None
            ]
            total = torch.stack(sums).sum(0) if sums else parameter.new_zeros(layer.units)
            by_unit = total.view(layer.units, -1).sum(1)
            if kind == "adaptive_contribution":
                by_unit = by_unit / parameter.detach().abs().flatten(1).sum(1)
        elif kind in GRADIENTS:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            by_unit = GRADIENTS[kind](gradient).flatten(1).sum(1)
        else:
            by_unit = parameter.detach().abs().flatten(1).sum(1)
            by_unit = by_unit.reciprocal() if kind == "adaptation" else by_unit
        if kind in ACTIVE:
            activity = self._activity.get(name)
            mean = parameter.new_zeros(layer.units) if activity is None else activity.view(layer.units, -1).mean(1)
            by_unit = mean if kind == "activation" else by_unit * mean
        return by_unit

    @torch.no_grad()
    def _adapt(self) -> None:
        if self._joined is None:
            self._joined = self._by_parameter(self.summed.__getitem__, JOINS[self.aggregate])
            self._uses = self._by_parameter(self.uses)
            if self.used_only:
                self._joined = {path: value * (self._uses[path] > 0) for path, value in self._joined.items()}
        assert self._uses is not None
        task = len(self.finished) + 1
        for name, layer in self.layers.items():
            share = self._sparsity([name]) + self.base_sparsity
            factor = share if self.schedule != "task" else (task + self.base_task) * share
            for key in self.covered(layer):
                path = f"{name}.{key}"
                if path in self._joined:
                    worth = factor * self._joined[path]
                    worth = worth * (self._uses[path] + self.base_task) if self.schedule == "counts" else worth
                    self.rates[path].copy_(self.intensity / (worth + self.intensity))

    def end(self, experience: Experience, learner: Services) -> None:
        """Keep the gates, and add up what the units were worth to the task."""
        super().end(experience, learner)
        assert experience.task is not None
        for name in self.layers:
            worth = self.running[name] / max(1, self.steps) + self.base_importance
            worth = worth * self.masks[name][experience.task] if self.masked else worth
            self.worths.setdefault(name, {})[experience.task] = worth
            so_far = list(self.worths[name].values())
            if self.summing == "latest":
                self.summed[name] = self.summed[name] + worth
            elif self.summing in ("all", "average"):
                total = torch.stack(so_far).sum(0)
                self.summed[name] = self.summed[name] + (total if self.summing == "all" else total / len(so_far))
            else:
                weights = [AGES[self.summing](age, self.rate) for age in range(len(so_far))][::-1]
                self.summed[name] = torch.stack([w * one for w, one in zip(weights, so_far)]).sum(0)
        self._joined = None

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore what `save` returned; what older checkpoints do not have starts empty."""
        super().load({"worths": {}, **values})
        self._joined, self._activity = None, {}
