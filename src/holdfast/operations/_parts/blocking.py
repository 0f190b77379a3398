"""What all operations that block forgetting share: values that do not move, and what each task keeps to itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, require
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.layers import ExchangeHook, Layer, backbone_layers, frozen_parts, one_task


class Blocking(Operation, ABC):
    r"""Base of the operations that keep a task's function: they say at which rate each value may move.

    $$ \theta \leftarrow \theta^{\text{before}} + r \odot (\theta^{\text{after}} - \theta^{\text{before}}),
       \qquad g \leftarrow r \odot g, \qquad r \in [0, 1] $$

    The first is done after the optimiser moved: momentum, weight decay and Adam move values whose gradient is zero.
    At r = 0 a value stays the same to the bit, at r = 1 the optimiser's value stands. The outputs of finished tasks
    in the head have r = 0. What no rate covers (normalisation with its running statistics, and what else an operation
    leaves to this) is kept once per task, and put in place whenever an earlier task is forwarded.

    Attributes:
        finished: the tasks that ended, in order.
        rates: r by parameter name, for the current experience.
        copies: by task, what it keeps to itself, by name.
    """

    asks = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries", "task", "update"})
    state: ClassVar[tuple[str, ...]] = ("finished", "rates", "copies")
    scratch: ClassVar[tuple[str, ...]] = (
        "_before",
        "_held",
    )

    def __init__(self) -> None:
        super().__init__()
        self.finished: list[int] = []
        self.rates: dict[str, Tensor] = {}
        self.copies: dict[int, dict[str, Tensor]] = {}
        self._held: list[tuple[nn.Parameter, Tensor]] | None = None
        self._before: list[Tensor] = []

    # What a subclass says ------------------------------------------------------------------------------

    def covered(self, layer: Layer) -> tuple[str, ...]:
        """Which parameters of a layer (`weight`, `bias`) the rates cover; the others are kept once per task."""
        return ("weight",)

    @abstractmethod
    def backbone_rates(self, learner: Services) -> dict[str, Tensor]:
        """The rates r of the backbone's parameters by name, for the experience that begins."""

    def weights(self, layer: Layer, learner: Services, task: int | None) -> dict[str, Tensor]:
        """What stands in the place of the layer's parameters in a forward of `task`; nothing by default."""
        return {}

    # What they share -----------------------------------------------------------------------------------

    def setup(self, learner: Services) -> None:
        """Attach the hooks, and find what no rate covers."""
        self._learner = learner
        self.layers = {layer.name: layer for layer in backbone_layers(learner, self.name)}
        require(
            getattr(learner.head, "factor", None) is None,
            self.name,
            "keeps what earlier tasks say, which a learnt scale of the head changes. Write head='cosine_task'.",
        )
        head = frozen_parts(learner.model) | (set() if learner.head is None else set(learner.head.modules()))
        if hasattr(learner.head, "apart"):
            learner.head.apart = True  # type: ignore[union-attr, assignment]
        self._uncovered: dict[str, tuple[nn.Module, str]] = {}
        for path, module in learner.model.named_modules():
            if module in head:
                continue
            layer = self.layers.get(path)
            covered = () if layer is None else self.covered(layer)
            # Buffers that a state leaves out (caches) are no part of what a task has learned; only this set names them.
            kept = [key for key in module._buffers if key not in module._non_persistent_buffers_set]
            places = (*module._parameters, *kept)
            uncovered = [key for key in places if key not in covered and getattr(module, key) is not None]
            self._uncovered.update({f"{path}.{key}".lstrip("."): (module, key) for key in uncovered})
            if uncovered or (layer is not None and type(self).weights is not Blocking.weights):
                ExchangeHook(module, lambda _module, path=path, keys=uncovered: self._exchange(_module, path, keys))  # type: ignore[misc]

    def _exchange(self, module: nn.Module, path: str, keys: list[str]) -> dict[str, Tensor]:
        learner = self._learner
        task = one_task(learner, self.name)
        instead: dict[str, Tensor] = {}
        if task != learner.task and task in self.copies:
            copies = self.copies[task]
            instead = {key: copies[f"{path}.{key}".lstrip(".")] for key in keys}
            if module.training:  # a replay forward must not move the statistics that are kept
                instead = {key: instead[key].clone() if key in module._buffers else instead[key] for key in keys}
        if path in self.layers:
            instead.update(self.weights(self.layers[path], learner, task))
        return instead

    def begin(self, experience: Experience, learner: Services) -> None:
        """Fix the rates for the experience."""
        if experience.task is None:
            raise UsageError(
                f"`{self.name}` needs a task label, and this experience has none. Call begin(data, task=...)."
            )
        if experience.task in self.finished:
            raise UsageError(
                f"task {experience.task} begins again, and `{self.name}` keeps what a task learnt the first time. "
                "Give each experience a task label of its own."
            )
        self.rates = self.backbone_rates(learner)
        if self.finished:
            self.rates.update(self._head_rates(experience, learner))
        named = dict(learner.model.named_parameters())
        self.rates = {name: rate.to(named[name].dtype) for name, rate in self.rates.items()}
        self._held = None

    def gradient(self, step: Step, learner: Services) -> None:
        """Scale the gradients."""
        for parameter, rate in self._limited():
            if parameter.grad is not None:
                parameter.grad.mul_(rate)

    def observe(self, step: Step, learner: Services) -> None:
        """Note where the values are before the optimiser moves."""
        self._before = [parameter.detach().clone() for parameter, _ in self._limited()]

    def update(self, step: Step, learner: Services) -> None:
        """Take back what the optimiser moved beyond the rates."""
        with torch.no_grad():
            for (parameter, rate), before in zip(self._limited(), self._before):
                torch.lerp(before, parameter.detach(), rate, out=parameter.detach())

    def end(self, experience: Experience, learner: Services) -> None:
        """Keep what the task has to itself."""
        assert experience.task is not None
        self.copies[experience.task] = {
            name: getattr(module, key).detach().clone() for name, (module, key) in self._uncovered.items()
        }
        self.finished.append(experience.task)

    def load(self, values: Any) -> None:
        """Restore what `save` returned."""
        super().load(values)
        self._held = None

    def _limited(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters with their rates, looked up once per experience."""
        if self._held is None:
            named = dict(self._learner.model.named_parameters())
            self._held = [(named[name], rate) for name, rate in self.rates.items()]
        return self._held

    def _head_rates(self, experience: Experience, learner: Services) -> dict[str, Tensor]:
        """Zero in the rows of every class that was seen, but for those that come again now."""
        seen = learner.classes.clone()
        again = [label for label in experience.classes if label < len(seen)]
        seen[torch.tensor(again, dtype=torch.int64, device=seen.device)] = False
        named = {id(p): name for name, p in learner.model.named_parameters()}
        head, rates = learner.head, {}
        whole = [] if head is None else [(0, getattr(head, "weight", None), getattr(head, "bias", None))]
        parts = [(p.start, p.weight, p.bias) for p in head.parts()] if hasattr(head, "parts") else whole  # type: ignore[union-attr, operator]
        for start, weight, bias in parts:
            for parameter in (weight, bias):
                if parameter is not None and id(parameter) in named:
                    rate = torch.ones_like(parameter)
                    rows = seen[start : start + len(rate)]
                    rate[: len(rows)][rows] = 0.0
                    rates[named[id(parameter)]] = rate
        return rates


class ScoreMasks(Blocking):
    r"""Base of the operations that learn a binary mask per task over the weights of each layer.

    $$ \hat w = w \odot m(s), \qquad \frac{\partial L}{\partial s} := \frac{\partial L}{\partial \hat w} \odot w $$

    (straight-through: the mask's step function passes gradients as the identity). The scores join the optimiser.

    Attributes:
        masks: by task and layer, what was chosen when the task ended, bool.
        current: the task that is learnt.
    """

    state = (*Blocking.state, "masks", "current")
    once = "learn a mask of every weight"

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, dict[str, Tensor]] = {}
        self.current: int | None = None
        self.scores = nn.ParameterDict()

    @abstractmethod
    def choose(self, scores: Tensor) -> Tensor:
        """The binary mask of these scores, bool."""

    def setup(self, learner: Services) -> None:
        """Make a score per weight; they join the optimiser."""
        super().setup(learner)
        for name, layer in self.layers.items():
            self.scores[_key(name)] = nn.Parameter(torch.zeros_like(layer.weight))
        learner.trainable.add({f"{self.name}/{key}": scores for key, scores in self.scores.items()})

    def weights(self, layer: Layer, learner: Services, task: int | None) -> dict[str, Tensor]:
        """The weights that take part; all of them for a task that never began."""
        weight = layer.weight
        if task in self.masks:
            return {"weight": weight * self.masks[task][layer.name]}
        if task is None or task != self.current:
            return {}
        scores = self.scores[_key(layer.name)]
        hard = self.choose(scores.detach()).to(weight.dtype)
        if not torch.is_grad_enabled():
            return {"weight": weight * hard}
        return {"weight": self.trained(weight) * (hard + (scores - scores.detach()))}

    def trained(self, weight: Tensor) -> Tensor:
        """The weight as the gradient sees it."""
        return weight

    def begin(self, experience: Experience, learner: Services) -> None:
        """Move on to the task."""
        super().begin(experience, learner)
        self.current = experience.task

    def end(self, experience: Experience, learner: Services) -> None:
        """Keep the mask."""
        assert experience.task is not None
        with torch.no_grad():
            self.masks[experience.task] = {name: self.choose(self.scores[_key(name)]) for name in self.layers}
        super().end(experience, learner)


def _key(name: str) -> str:
    """A layer's name as a parameter can have it."""
    return name.replace(".", "/")
