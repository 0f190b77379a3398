"""Unit attention: each task learns which units it uses, and units in use are protected from later tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

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
COSH_LIMIT = 50.0
EMBEDDING_LIMIT = 6.0


class UnitAttention(Blocking):
    r"""A learnt gate per task and unit; weights between units that earlier tasks use are kept from moving.

    $$ h_l \leftarrow a_l^t \odot h_l, \quad a_l^t = \sigma(s \, e_l^t), \qquad
       s = \frac{1}{s_{\max}} + \Big(s_{\max} - \frac{1}{s_{\max}}\Big) \frac{b - 1}{B - 1} $$

    $$ g_{l,ij} \leftarrow r_{l,ij} \, g_{l,ij}, \qquad
       r_{l,ij} = 1 - \min(a_{l,i}^{<t}, a_{l-1,j}^{<t}) \;\text{("block")}, \qquad
       r_{l,ij} = \frac{r_l}{\min(M_{l,i}, M_{l-1,j}) + r_l}, \;
       r_l = \frac{\alpha}{\epsilon + R_l} \;\text{("adapt")} $$

    $$ R = \frac{\sum_{l,i} a_{l,i}^t (1 - a_{l,i}^{<t})}{\sum_{l,i} (1 - a_{l,i}^{<t})}, \qquad L' = L + c R, \qquad
       q_{l,i} \leftarrow \frac{s_{\max} (\cosh(s e_{l,i}) + 1)}{s \, (\cosh(e_{l,i}) + 1)} q_{l,i} $$

    with batch b of the B of an epoch, q the gradient of the embedding e, a^{<t} the union of the earlier tasks' gates,
    M the number of earlier tasks that use a unit, and R_l the part of R in layer l. The rates act on the step of the
    optimiser too (see `Blocking`), so "block" forgets nothing under any optimiser. Embeddings start from N(0, 1) for
    each task; at a task's end its gates become 0 or 1 (e > 0). Tasks may be mixed in a batch.

    Args:
        strength: the paper's c, the weight of the sparsity term.
        s_max: the largest s; the gates of a task are steep at the end of each epoch.
        mode: `block` (HAT) keeps used weights as they are, `adapt` (AdaHAT) lets them move a little.
        intensity: the alpha of "adapt".
        epsilon: the epsilon of "adapt", above 0.

    Source: Serra et al. 2018, "Overcoming catastrophic forgetting with hard attention to the task", section 2;
    "adapt": Wang et al. 2025, "AdaHAT: adaptive hard attention to the task in task-incremental learning".
    Differences: gates at test are 0 or 1 instead of steep; in a backbone that is no plain chain, gates act where a
    layer writes its units, and all weights into a used unit are kept. Normalisation is kept once per task. The paper's
    code also clips the gradient's norm at 10,000, which is left to the loop.

    Example:
        >>> UnitAttention(strength=0.75)
        UnitAttention(strength=0.75, s_max=400.0, mode='block', intensity=1e-06, epsilon=0.1)
    """

    needs = Blocking.needs | {"progress"}
    state = (*Blocking.state, "masks", "current")
    scratch: ClassVar[tuple[str, ...]] = ("_uses",)

    def __init__(
        self,
        strength: Strength = 0.75,
        s_max: Annotated[float, Range(1, low_open=True)] = 400.0,
        mode: Literal["block", "adapt"] = "block",
        intensity: Positive = 1e-6,
        epsilon: Positive = 0.1,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.s_max = s_max
        self.mode = mode
        self.intensity = intensity
        self.epsilon = epsilon
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
            self.embeddings[_key(name)] = nn.Parameter(torch.zeros(layer.units, device=learner.device))
            GateHook(layer, lambda name=name: self.gates(name))  # type: ignore[misc]
        learner.trainable.add({f"{self.name}/{key}": e for key, e in self.embeddings.items()})

    # Gates ---------------------------------------------------------------------------------------------

    @property
    def sharpness(self) -> float:
        """s: rises from 1 / s_max to s_max within each epoch of training; s_max in evaluation."""
        learner = self._learner
        if not learner.model.training:
            return self.s_max
        low = 1 / self.s_max
        return learner.decide(lambda: low + (self.s_max - low) * (learner.now.epoch_progress or 0.0), learner.device)

    def gates(self, name: str) -> Tensor | None:
        """The gates of a layer in the forward that is running: `[units]`, or `[rows, units]` where tasks are mixed."""
        masks, task = self.masks[name], self._learner.forward_task
        if task is None:
            return None
        if isinstance(task, int):
            return masks[task] if task in masks else self._soft(name) if task == self.current else None
        known = dict(masks)
        if self.current is not None and self.current not in known:
            known[self.current] = self._soft(name)
        return rows_of(known, task) if known else None

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
        """Zero between units that are in use; under "adapt" set anew at each step."""
        self._uses = None
        return (
            {name: (count == 0).to(count.dtype) for name, count in self._by_parameter(self.uses).items()}
            if self.finished
            else {}
        )

    def _by_parameter(self, of: Callable[[str], Tensor], join: Join = torch.minimum) -> dict[str, Tensor]:
        """What units have, by parameter: a weight has the smaller (or another join) of the two units it joins."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            weight, bias, count = layer.weight, layer.module.bias, of(name)
            rows = count.view(-1, *[1] * (weight.dim() - 1))
            found[f"{name}.weight"] = rows.expand_as(weight)
            if layer.source is not None:
                columns = spread(of(layer.source), layer.module).view(1, -1, *[1] * (weight.dim() - 2))
                found[f"{name}.weight"] = join(rows, columns).expand_as(weight)
            if isinstance(bias, Tensor):
                found[f"{name}.bias"] = count
        return found

    def begin(self, experience: Experience, learner: Services) -> None:
        """Draw the task's embeddings."""
        super().begin(experience, learner)
        self.current = experience.task
        generator = learner.rng(f"embeddings/{self.name}")
        with torch.no_grad():
            for embedding in self.embeddings.values():
                embedding.copy_(torch.randn(embedding.shape, generator=generator))
        learner.trainable.forget_moments(list(self.embeddings.values()))

    # A step --------------------------------------------------------------------------------------------

    def loss(self, step: Step, learner: Services) -> Term | None:
        """The weight c times the share of unused units that the task takes."""
        if self.strength == 0:
            return None
        taken, free = zip(*(self._taken(name) for name in self.layers))
        return torch.stack(taken).sum() / torch.stack(free).sum().clamp(min=1.0), self.strength

    def _taken(self, name: str) -> tuple[Tensor, Tensor]:
        unused = (self.uses(name) == 0).float()
        return (self._soft(name) * unused).sum(), unused.sum()

    def gradient(self, step: Step, learner: Services) -> None:
        """Compensate the embeddings' gradient for the annealing, and scale that of used weights."""
        s = self.sharpness
        for embedding in self.embeddings.values():
            if embedding.grad is not None:
                e = embedding.detach()
                steep = torch.cosh((s * e).clamp(-COSH_LIMIT, COSH_LIMIT)) + 1
                embedding.grad.mul_(self.s_max / s * steep / (torch.cosh(e) + 1))
        if self.mode == "adapt" and self.finished:
            self._adapt()
        super().gradient(step, learner)

    @torch.no_grad()
    def _adapt(self) -> None:
        if self._uses is None:
            self._uses = self._by_parameter(self.uses)
        for name, layer in self.layers.items():
            taken, free = self._taken(name)
            rate = self.intensity / (self.epsilon + taken / free.clamp(min=1.0))
            for key in self.covered(layer):
                path = f"{name}.{key}"
                if path in self._uses:
                    self.rates[path].copy_(rate / (self._uses[path] + rate))

    def update(self, step: Step, learner: Services) -> None:
        """Hold what is protected, and the embeddings within their range."""
        super().update(step, learner)
        with torch.no_grad():
            for embedding in self.embeddings.values():
                embedding.clamp_(-EMBEDDING_LIMIT, EMBEDDING_LIMIT)

    def end(self, experience: Experience, learner: Services) -> None:
        """Keep the gates as 0 or 1."""
        assert experience.task is not None
        for name in self.layers:
            self.masks[name][experience.task] = (self.embeddings[_key(name)].detach() > 0).float()
        super().end(experience, learner)

    def load(self, values: object) -> None:
        """Restore what `save` returned."""
        super().load(values)
        self._uses = None


def _key(name: str) -> str:
    """A layer's name as a parameter can have it."""
    return name.replace(".", "/")
