"""Pruned weights: each task keeps its largest free weights for good and leaves the others to later tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.ranges import Inside, UpToOne
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.blocking import Blocking
from holdfast.operations._parts.layers import Layer


class PrunedWeights(Blocking):
    r"""Train all free weights, prune the smallest of them within each layer, go on training the rest, then fix it.

    $$ m_{ij}^t = [\text{owner}_{ij} \le t], \qquad
       \text{owner}_{ij} = t \text{ for the share } 1 - p \text{ of largest } |w_{ij}| \text{ among the free weights} $$

    Task t uses the weights of tasks 1 to t; the weights that it did not keep are zero at the start of task t + 1.

    Args:
        fraction: the fraction p of the free weights of each layer that is pruned.
        at: how far the experience has come, from 0 to 1, when it prunes; the rest of it retrains what was kept.

    Source: Mallya and Lazebnik 2018, "PackNet: adding multiple tasks to a single network by iterative pruning",
    section 3.
    Differences: the retraining is the last part of the experience's own training, with the same optimiser and
    schedule, instead of a second training of half as many epochs. Biases and normalisation are kept once per task;
    the paper keeps those of the first task for all.

    Example:
        >>> PrunedWeights(fraction=0.75, at=0.5)
        PrunedWeights(fraction=0.75, at=0.5)
    """

    needs = Blocking.needs | {"progress"}
    state = (*Blocking.state, "owners", "pruned")
    scratch = ("_due",)

    def __init__(self, fraction: Inside = 0.75, at: UpToOne = 0.5) -> None:
        super().__init__()
        self.fraction = fraction
        self.at = at
        self.owners: dict[str, Tensor] = {}
        self.pruned = False
        self._due = False

    def setup(self, learner: Services) -> None:
        """Nobody owns a weight yet."""
        super().setup(learner)
        for name, layer in self.layers.items():
            self.owners[name] = torch.full_like(layer.weight, -1, dtype=torch.int16)

    def backbone_rates(self, learner: Services) -> dict[str, Tensor]:
        """Zero for the weights of earlier tasks."""
        return {f"{name}.weight": (owner < 0).float() for name, owner in self.owners.items()} if self.finished else {}

    def weights(self, layer: Layer, learner: Services, task: int | None) -> dict[str, Tensor]:
        """For a finished task, the weights that it and those before it own."""
        if task not in self.finished:
            return {}
        owner = self.owners[layer.name]
        return {"weight": layer.weight * ((owner >= 0) & (owner <= self.finished.index(task)))}

    def begin(self, experience: Experience, learner: Services) -> None:
        """Start with every free weight."""
        super().begin(experience, learner)
        self.pruned = False

    def observe(self, step: Step, learner: Services) -> None:
        """Note where the values are, and whether the time to prune has come."""
        super().observe(step, learner)
        self._due = learner.decide(lambda: not self.pruned and (learner.now.progress or 0.0) >= self.at)

    def update(self, step: Step, learner: Services) -> None:
        """Hold what is fixed, and prune when the time has come."""
        super().update(step, learner)
        if self._due:
            self.prune(learner)

    def end(self, experience: Experience, learner: Services) -> None:
        """Fix what was kept."""
        if not self.pruned:
            self.prune(learner)
        super().end(experience, learner)

    @torch.no_grad()
    def prune(self, learner: Services) -> None:
        """Give the largest free weights of each layer to the current task, and set the others to zero."""
        for name, layer in self.layers.items():
            weight, owner = layer.parameter, self.owners[name].reshape(-1)
            free = (owner < 0).nonzero().view(-1)
            keep = min(len(free), max(1, round((1 - self.fraction) * len(free))))
            largest = free[weight.reshape(-1)[free].abs().topk(keep).indices]
            owner[largest] = len(self.finished)
            self.owners[name] = owner.view(weight.shape)  # a copy where the layer is `channels_last`
            weight.mul_(self.owners[name] >= 0)
            kept = (self.owners[name] == len(self.finished)).to(weight.dtype)
            self.rates[f"{name}.weight"] = kept
            for moment in learner.trainable.moments(weight):
                moment.mul_(kept)
        self.pruned, self._held = True, None
