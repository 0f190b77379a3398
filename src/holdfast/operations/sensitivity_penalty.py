"""Sensitivity penalty: parameters that the outputs on old data depend on are pulled back to where they were."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term
from holdfast.core.ranges import Count, Share, Strength
from holdfast.core.ranks import total_over_ranks
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.quadratic import Over, Stiffness, quadratic, sensitivity


class SensitivityPenalty(Operation):
    r"""A quadratic penalty around the latest parameters, weighted by how much each one moves the outputs.

    $$ L = L(x, y) + \lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad
       \Omega_i \leftarrow \gamma \Omega_i + \frac{1}{N} \sum_{n=1}^{N}
       \Big| \partial_{\theta_i} \lVert f_\theta(x_n) \rVert_2^2 \Big| $$

    The importance needs no labels, and works for any outputs, regression included.

    Args:
        strength: the paper's lambda.
        over: magnitude of the gradient of each `sample` (the paper's), or of each `batch`.
        decay: gamma; at 1 the importances add up.
        samples: samples to measure on; default: all of the experience.
        batch_size: samples of each batch; with `over="batch"` the importance depends on it, else only memory does.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD
            (`Stiffness`): a large strength then holds parameters fast, where it would make training diverge.

    Source: Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget", eq. 2 to 4.
    Differences: gamma is ours, the paper adds up; importance is measured on the experience's training data, where the
    paper may also take unlabelled data from elsewhere.

    Example:
        >>> SensitivityPenalty(strength=0.5)
        SensitivityPenalty(strength=0.5, over='sample', decay=1.0, samples=None, batch_size=128, bounded=True)
    """

    role = "knowledge retention"
    needs = frozenset({"boundaries", "data"})
    state = ("importance", "anchor")
    scratch = ("_stiffness",)

    def __init__(
        self,
        strength: Strength = 1.0,
        over: Over = "sample",
        decay: Share = 1.0,
        samples: Count | None = None,
        batch_size: Count = 128,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.over = over
        self.decay = decay
        self.samples = samples
        self.batch_size = batch_size
        self.bounded = bounded
        self._stiffness = Stiffness(2 * strength, bounded)
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Strength times the weighted squared distance, once something was measured."""
        if not self.importance:
            return None
        return quadratic(learner, self._stiffness.of(learner, self.importance), self.anchor), self.strength

    def end(self, experience: Experience, learner: Services) -> None:
        """Measure the sensitivity on the experience's data and move the anchor."""
        if total_over_ranks(len(experience.train), learner.device) == 0:
            return
        self._stiffness.forget()
        generator = learner.rng(f"samples/{self.name}")
        measured = sensitivity(
            learner,
            experience.train,
            self.over,
            samples=self.samples,
            batch_size=self.batch_size,
            generator=generator,
        )
        with torch.no_grad():
            for name, parameter in learner.named_parameters().items():
                before = self.importance.get(name)
                self.importance[name] = measured[name] if before is None else self.decay * before + measured[name]
                self.anchor[name] = parameter.detach().clone()
