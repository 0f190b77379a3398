"""Remember exemplars: at the end of each experience, a few chosen samples of each of its classes are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.core.experience import Data, Experience, Tree, tree_cat
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.memory.memories import ExemplarMemory, Selection
from holdfast.operations._parts.draws import keep_in
from holdfast.operations._parts.rows import rows_of_batch

ROWS = 256
"""Samples per forward."""


class RememberExemplars(Operation):
    r"""Choose a class's samples once, when its experience is over, and share the room among all classes.

    With `capacity`, t classes leave `capacity / t` exemplars to each, and the sets of earlier classes drop their
    last ones. With `per_class`, every class has as many for ever. It stands where `Remember` would, and before
    operations that add data of their own to an experience (`MergedReplay`): only what arrived is chosen from. Other
    operations draw from it as from any memory; during an experience none of its own samples are in it.

    $$ \text{herding: } p_k = \arg\min_x
       \Big\lVert \mu - \tfrac{1}{k} \Big( \varphi(x) + \sum_{j < k} \varphi(p_j) \Big) \Big\rVert $$

    A class that comes again in a later experience gets one more set. Fields that other operations ask for
    (`logits`) are those of the model at the end of the experience.

    Args:
        capacity: samples in all; give this or `per_class`.
        per_class: samples of each class of each experience.
        selection: `herding` (the running mean of features stays nearest to the class mean), `random` (without
            replacement), or `closest` (nearest to the class mean).

    Raises:
        ConfigError: not exactly one of `capacity` and `per_class`, or a method that already has a memory.

    Source: Rebuffi et al. 2017, "iCaRL: incremental classifier and representation learning", algorithms 4 and 5;
    `random` with `per_class`: van de Ven et al. 2022, "Three types of incremental learning", Methods.

    Example:
        >>> RememberExemplars(per_class=100, selection="random")
        RememberExemplars(capacity=None, per_class=100, selection='random')
    """

    fills = True
    check_arguments = {"capacity": 20}
    role = "knowledge retention"
    needs = frozenset({"boundaries", "data", "classes"})
    state = ("arrived",)

    def __init__(
        self, capacity: Count | None = None, per_class: Count | None = None, selection: Selection = "herding"
    ) -> None:
        super().__init__()
        ExemplarMemory(capacity, per_class, selection, torch.Generator())  # refuses what is wrong, early
        self.capacity = capacity
        self.per_class = per_class
        self.selection = selection
        self.arrived = 0

    def setup(self, learner: Services) -> None:
        """Make the learner's memory."""
        generator = learner.rng(f"select/{self.name}")
        memory = ExemplarMemory(
            self.capacity, self.per_class, self.selection, generator, learner.memory_device, learner.device
        )
        self._memory = keep_in(learner, memory, self.name)

    def begin(self, experience: Experience, learner: Services) -> None:
        """Note how many samples arrived, before other operations add theirs."""
        self.arrived = len(experience.train)

    def end(self, experience: Experience, learner: Services) -> None:
        """Choose the exemplars of each class that arrived."""
        targets = experience.train.targets
        arrived = targets[: self.arrived or len(targets)]
        for label in torch.unique(arrived).tolist():
            index = (arrived == label).nonzero().flatten()
            self._memory.choose(*self._rows(experience.train, index, learner))

    def _rows(self, data: Data, index: Tensor, learner: Services) -> tuple[dict[str, Tree], Tensor]:
        """All samples at `index` with the fields that the method remembers, and their features."""
        parts: list[dict[str, Any]] = []
        features: list[Tensor] = []
        with eval_mode(learner.model):
            for batch in data.batches(index, ROWS):
                rows = rows_of_batch(batch, learner)
                parts.append(rows)
                if self.selection == "random":
                    features.append(torch.empty(rows["targets"].shape[0], 1))
                else:
                    with torch.no_grad():
                        features.append(features_of(rows["inputs"], learner))
        return {field: tree_cat([part[field] for part in parts]) for field in parts[0]}, torch.cat(features)


def features_of(inputs: Tree, learner: Services) -> Tensor:
    """What enters the head, flattened to `[rows, features]`, in the model's current mode.

    Args:
        inputs: raw, `[rows, ...]`.
        learner: its model may have a head per task, whose outputs are left alone.
    """
    return learner.features(inputs).flatten(1)
