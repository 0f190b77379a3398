"""Separate networks: every task has a network of its own, and nothing is shared or forgotten."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.services import Services
from holdfast.operations._parts.blocking import Blocking
from holdfast.operations._parts.layers import Layer


class SeparateNetworks(Blocking):
    r"""A fresh network at each task, the earlier ones kept and used again for their tasks.

    $$ f_t(x) = h_t(\phi_{\theta_t}(x)), \qquad \theta_t \text{ starts from } \theta_0 \text{ or } \theta_{t-1} $$

    The backbone's parameters and buffers are exchanged, so the model keeps one module and its `Parameter` objects;
    memory grows by one backbone a task. The optimiser forgets its momentum at each start.

    Args:
        start: each network starts from the `initial` values, or as a copy of the `last` one.

    Source: the upper bound of task-incremental learning, "Separate networks" in van de Ven et al. 2022, "Three types
    of incremental learning", Table 2; "independent" in other libraries.
    `start="last"`: CLMixer's duplicated backbone, after Yan et al. 2021, "DER: dynamically expandable representation".
    Differences: each network starts from the same initial values; van de Ven et al. make all of them smaller,
    so that their sum has the size of the other methods' network (choose a smaller model for that).

    Example:
        >>> SeparateNetworks()
        SeparateNetworks(start='initial')
    """

    asks = "nothing"
    state = (*Blocking.state, "initial")

    def __init__(self, start: Literal["initial", "last"] = "initial") -> None:
        super().__init__()
        self.start = start
        self.initial: dict[str, Tensor] = {}

    def covered(self, layer: Layer) -> tuple[str, ...]:
        """Nothing: each task keeps all."""
        return ()

    def backbone_rates(self, learner: Services) -> dict[str, Tensor]:
        """Everything is free to move."""
        return {}

    def setup(self, learner: Services) -> None:
        """Keep the initial values."""
        super().setup(learner)
        self.initial = {name: getattr(module, key).detach().clone() for name, (module, key) in self._uncovered.items()}

    def begin(self, experience: Experience, learner: Services) -> None:
        """Start a network."""
        super().begin(experience, learner)
        if not self.finished:
            return
        if self.start == "initial":
            with torch.no_grad():
                for name, (module, key) in self._uncovered.items():
                    getattr(module, key).copy_(self.initial[name])
        learner.trainable.forget_moments(learner.parameters())
