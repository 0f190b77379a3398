"""Unit attention: each task learns which units it uses, and units in use are protected from later tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from holdfast.core.experience import Experience
from holdfast.core.operation import Term
from holdfast.core.ranges import Positive, Range, Strength
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.blocking import Blocking
from holdfast.operations._parts.layers import GateHook, Layer, rows_of, spread

Join = Callable[[Tensor, Tensor], Tensor]
EMBEDDING_LIMIT = 6.0

DRAWS: dict[str, Callable[[torch.Size, torch.Generator], Tensor]] = {
    "uniform": lambda shape, generator: torch.rand(shape, generator=generator) * 2 - 1,
    "positive": lambda shape, generator: torch.rand(shape, generator=generator),
    "negative": lambda shape, generator: torch.rand(shape, generator=generator) - 1,
}
"""Where embeddings start other than from N(0, 1), by the names of `initial`."""


class UnitAttention(Blocking):
    r"""A learnt gate per task and unit; weights between units that earlier tasks use are kept from moving.

    $$ h_l \leftarrow a_l^t \odot h_l, \quad a_l^t = \sigma(s \, e_l^t), \qquad
       s = \frac{1}{s_{\max}} + \Big(s_{\max} - \frac{1}{s_{\max}}\Big) \frac{b - 1}{B - 1} $$

    $$ g_{l,ij} \leftarrow r_{l,ij} \, g_{l,ij}, \qquad
       r_{l,ij} = 1 - \min(a_{l,i}^{<t}, a_{l-1,j}^{<t}) \;\text{("block")}, \qquad
       r_{l,ij} = \frac{r_l}{\min(M_{l,i}, M_{l-1,j}) + r_l}, \;
       r_l = \frac{\alpha}{\epsilon + R_l} \;\text{("adapt")} $$

    The other modes are the baselines and ablations of the AdaHAT paper. Between units that earlier tasks use, the rate
    is drawn from U(0, 1) anew in each step ("random"), or is the same number ("constant": 1 constrains nothing). Under
    "adapt_without_counts" the number of earlier tasks stands in the place of M, for every weight; under
    "adapt_without_sparsity" $r_l = \alpha / \epsilon$.

    $$ R = \frac{\sum_{l,i} a_{l,i}^t (1 - a_{l,i}^{<t})}{\sum_{l,i} (1 - a_{l,i}^{<t})}, \qquad L' = L + c R, \qquad
       q_{l,i} \leftarrow \frac{s_{\max} (\cosh(s e_{l,i}) + 1)}{s \, (\cosh(e_{l,i}) + 1)} q_{l,i} $$

    with batch b of the B of an epoch, q the gradient of the embedding e, a^{<t} the union of the earlier tasks' gates,
    M the number of earlier tasks that use a unit, and R_l the part of R in layer l. The rates act on the step of the
    optimiser too (see `Blocking`), so "block" forgets nothing under any optimiser. Embeddings start from N(0, 1) for
    each task; at a task's end its gates become 0 or 1 (e > 0). Tasks may be mixed in a batch.

    Args:
        strength: the paper's c, the weight of the sparsity term.
        s_max: the largest s; the gates of a task are steep at the end of each epoch.
        mode: `block` (HAT) keeps used weights as they are, `adapt` (AdaHAT) lets them move a little; see above.
        intensity: the alpha of "adapt".
        epsilon: the epsilon of "adapt", above 0.
        constant: the rate of "constant".
        sparsity: `original` is R as above; `cross` is $(R + 1 - U) / 2$, with U the share of the units in use that the
            task's gates keep (0 instead of 1 - U while there are none), so that they are used again.
        initial: where embeddings start in each task: N(0, 1), U(-1, 1), U(0, 1), U(-1, 0), or where the last task's
            ended (`last`; the first task's are `normal`).
        limit: of |s e| in the embeddings' compensation, so that the cosh is finite.

    Source: Serra et al. 2018, "Overcoming catastrophic forgetting with hard attention to the task", section 2;
    "adapt": Wang et al. 2025, "AdaHAT: adaptive hard attention to the task in task-incremental learning".
    Differences: gates at test are 0 or 1 instead of steep; in a backbone that is not a plain chain, gates act where a
    layer writes its units, and all weights into a used unit are kept. Normalisation is kept once per task. The paper's
    code also clips the gradient's norm at 10,000, which is left to the loop. Continual Learning Arena's code counts the
    current task too under "adapt_without_counts", so that its first task already moves at r / (1 + r).

    Attributes:
        mean_rates: by layer and task, the mean rate of the weights into each unit at the task's end, `[units]`.
        capacity: by task, the mean rate over all weights and biases then, a scalar: what AdaHAT calls the capacity.

    Example:
        >>> UnitAttention(strength=0.75, mode="constant", constant=0.5).constant
        0.5
    """

    needs = Blocking.needs | {"progress"}
    state = (*Blocking.state, "masks", "current", "mean_rates", "capacity")
    scratch: ClassVar[tuple[str, ...]] = ("_uses",)

    def __init__(
        self,
        strength: Strength = 0.75,
        s_max: Annotated[float, Range(1, low_open=True)] = 400.0,
        mode: Literal[
            "block", "random", "constant", "adapt", "adapt_without_counts", "adapt_without_sparsity"
        ] = "block",
        intensity: Positive = 1e-6,
        epsilon: Positive = 0.1,
        constant: Annotated[float, Range(0, 1)] = 1.0,
        sparsity: Literal["original", "cross"] = "original",
        initial: Literal["normal", "uniform", "positive", "negative", "last"] = "normal",
        limit: Positive = 50.0,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.s_max = s_max
        self.mode = mode
        self.intensity = intensity
        self.epsilon = epsilon
        self.constant = constant
        self.sparsity = sparsity
        self.initial = initial
        self.limit = limit
        self.mean_rates: dict[str, dict[int, Tensor]] = {}
        self.capacity: dict[int, Tensor] = {}
        self.masks: dict[str, dict[int, Tensor]] = {}
        self.current: int | None = None
        self.embeddings = nn.ParameterDict()
        self._uses: dict[str, Tensor] | None = None

    def covered(self, layer: Layer) -> tuple[str, ...]:
        """Weights and biases."""
        return ("weight", "bias")

    def setup(self, learner: Services) -> None:
        """Make an embedding per unit, which joins the optimiser, and attach the gates."""
        super().setup(learner)
        for name, layer in self.layers.items():
            self.masks[name] = {}
            self.embeddings[_key(name)] = nn.Parameter(layer.parameter.detach().new_zeros(layer.units))
            GateHook(layer, lambda name=name: self.gates(name))  # type: ignore[misc]
        learner.trainable.add({f"{self.name}/{key}": e for key, e in self.embeddings.items()})

    # Gates ---------------------------------------------------------------------------------------------

    @property
    def sharpness(self) -> float:
        """s: rises from 1 / s_max to s_max within each epoch of training; s_max in evaluation."""
        learner = self._learner
        return learner.decide(self._annealed, learner.device) if learner.model.training else self.s_max

    def _annealed(self) -> float:
        learner, low = self._learner, 1 / self.s_max
        rising = low + (self.s_max - low) * (learner.now.epoch_progress or 0.0)
        return rising if learner.model.training else self.s_max

    def gates(self, name: str) -> Tensor | None:
        """The gates of a layer in the forward that is running: `[units]`, or `[rows, units]` where tasks are mixed."""
        masks, task = self.masks[name], self._learner.forward_task
        if task is None:
            return None
        if isinstance(task, int):
            return masks[task] if task in masks else self._soft(name) if task == self.current else None
        masks_by_task = dict(masks)
        if self.current is not None and self.current not in masks_by_task:
            masks_by_task[self.current] = self._soft(name)
        return rows_of(masks_by_task, task) if masks_by_task else None

    def _soft(self, name: str) -> Tensor:
        return torch.sigmoid(self.sharpness * self.embeddings[_key(name)])

    # Protection ----------------------------------------------------------------------------------------

    def uses(self, name: str) -> Tensor:
        """How many earlier tasks use each unit, `[units]`."""
        masks = self.masks[name]
        return (
            torch.stack(list(masks.values())).sum(0)
            if masks
            else torch.zeros_like(self.embeddings[_key(name)].detach())
        )

    def backbone_rates(self, learner: Services) -> dict[str, Tensor]:
        """Zero (or the constant) between units that are in use; under "adapt" and "random" set anew at each step."""
        self._uses = None
        if not self.finished:
            return {}
        rates = {name: (count == 0).to(count.dtype) for name, count in self._by_parameter(self.uses).items()}
        if self.mode == "constant":
            return {name: rate.clamp(min=self.constant) for name, rate in rates.items()}
        return rates

    def _by_parameter(self, of: Callable[[str], Tensor], join: Join = torch.minimum) -> dict[str, Tensor]:
        """What units have, by parameter: a weight has the smaller (or another join) of the two units it joins."""
        values: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            weight, bias, count = layer.weight, layer.module.bias, of(name)
            rows = count.view(-1, *[1] * (weight.dim() - 1))
            values[f"{name}.weight"] = rows.expand_as(weight)
            if layer.source is not None:
                columns = spread(of(layer.source), layer.module).view(1, -1, *[1] * (weight.dim() - 2))
                values[f"{name}.weight"] = join(rows, columns).expand_as(weight)
            if isinstance(bias, Tensor):
                values[f"{name}.bias"] = count
        return values

    def begin(self, experience: Experience, learner: Services) -> None:
        """Draw the task's embeddings."""
        super().begin(experience, learner)
        self.current = experience.task
        generator = learner.rng(f"embeddings/{self.name}")
        with torch.no_grad():
            for embedding in self.embeddings.values():
                if self.initial in DRAWS:
                    embedding.copy_(DRAWS[self.initial](embedding.shape, generator))
                elif self.initial == "normal" or not self.finished:
                    embedding.copy_(torch.randn(embedding.shape, generator=generator))
        learner.trainable.forget_moments(list(self.embeddings.values()))

    # A step --------------------------------------------------------------------------------------------

    def loss(self, step: Step, learner: Services) -> Term | None:
        """The weight c times the share of unused units that the task takes."""
        if self.strength == 0:
            return None
        return self._sparsity(list(self.layers)), self.strength

    def _sparsity(self, names: Sequence[str]) -> Tensor:
        """R of some layers together: the share of their unused units that the task takes, a scalar."""
        unused = [(self.uses(name) == 0).float() for name in names]
        soft = [self._soft(name) for name in names]
        taken = torch.stack([(gates * free).sum() for gates, free in zip(soft, unused)]).sum()
        sparsity = taken / torch.stack([free.sum() for free in unused]).sum().clamp(min=1.0)
        if self.sparsity == "original":
            return sparsity
        kept = torch.stack([(gates * (1 - free)).sum() for gates, free in zip(soft, unused)]).sum()
        used = torch.stack([(1 - free).sum() for free in unused]).sum()
        return (sparsity + (used > 0) * (1 - kept / used.clamp(min=1.0))) / 2

    def gradient(self, step: Step, learner: Services) -> None:
        """Compensate the embeddings' gradient for the annealing, and scale that of used weights."""
        s = self.sharpness
        back = learner.decide(lambda: self.s_max / self._annealed(), learner.device)  # divided on the host, in doubles
        for embedding in self.embeddings.values():
            if embedding.grad is not None:
                e = embedding.detach()
                steep = torch.cosh((s * e).clamp(-self.limit, self.limit)) + 1
                embedding.grad.mul_(back * steep / (torch.cosh(e) + 1))
        if self.finished and self.mode == "random":
            self._draw(learner)
        elif self.finished and self.mode.startswith("adapt"):
            self._adapt()
        super().gradient(step, learner)

    @torch.no_grad()
    def _draw(self, learner: Services) -> None:
        if self._uses is None:
            self._uses = self._by_parameter(self.uses)
        generator = learner.rng(f"rates/{self.name}")
        for path, count in self._uses.items():
            shape = count.shape
            drawn = learner.decide(lambda shape=shape: torch.rand(shape, generator=generator), count.device)  # type: ignore[misc]
            self.rates[path].copy_(torch.where(count > 0, drawn, torch.ones_like(drawn)))

    @torch.no_grad()
    def _adapt(self) -> None:
        if self._uses is None:
            self._uses = self._by_parameter(self.uses)
        for name, layer in self.layers.items():
            sparsity = 0.0 if self.mode == "adapt_without_sparsity" else self._sparsity([name])
            rate = self.intensity / (self.epsilon + sparsity)
            for key in self.covered(layer):
                path = f"{name}.{key}"
                if path in self._uses:
                    count = self._uses[path]
                    if self.mode == "adapt_without_counts":
                        count = torch.full_like(count, len(self.finished))
                    self.rates[path].copy_(rate / (count + rate))

    def update(self, step: Step, learner: Services) -> None:
        """Hold what is protected, and the embeddings within their range."""
        super().update(step, learner)
        with torch.no_grad():
            for embedding in self.embeddings.values():
                embedding.clamp_(-EMBEDDING_LIMIT, EMBEDDING_LIMIT)

    def end(self, experience: Experience, learner: Services) -> None:
        """Keep the gates as 0 or 1, and at which rates the units moved."""
        assert experience.task is not None
        total, count = torch.zeros((), device=learner.device), 0
        for name, layer in self.layers.items():
            self.masks[name][experience.task] = (self.embeddings[_key(name)].detach() > 0).float()
            rate = self.rates.get(f"{name}.weight", torch.ones_like(layer.parameter))
            self.mean_rates.setdefault(name, {})[experience.task] = rate.float().flatten(1).mean(1)
            for values in (rate, self.rates.get(f"{name}.bias", layer.module.bias)):
                if isinstance(values, Tensor):  # without a rate, as in the first task, all of it moves freely
                    total = total + (values.numel() if isinstance(values, nn.Parameter) else values.float().sum())
                    count += values.numel()
        self.capacity[experience.task] = total / max(1, count)
        super().end(experience, learner)

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore what `save` returned; what older checkpoints do not have starts empty."""
        super().load({"mean_rates": {}, "capacity": {}, **values})
        self._uses = None


def _key(name: str) -> str:
    """A layer's name as a parameter can have it."""
    return name.replace(".", "/")
