"""What Piggyback and WSN share: a score per weight that decides, through a straight-through mask, who takes part."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from holdfast.core.experience import Experience
from holdfast.core.services import Services
from holdfast.operations.blocking import Blocking
from holdfast.operations.layers import Layer


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
