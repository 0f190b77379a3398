"""Remember exemplars: at the end of each experience, a few chosen samples of each of its classes are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.experience import Batch, Data, Experience, Tree, tree_cat
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Operation, require
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.memory.exemplars import quotas
from holdfast.memory.memories import ExemplarMemory, Joined, Selection
from holdfast.operations._parts.draws import keep_in
from holdfast.operations._parts.rows import rows_of_batch

ROWS = 256
"""Samples per forward."""


class RememberExemplars(Operation):
    r"""Choose a class's samples once, when its experience is over, and share the room among all classes.

    With `capacity`, t classes leave `capacity / t` exemplars to each, and the sets of earlier classes drop their
    last ones. With `per_class`, every class has as many for ever, in however many experiences it comes: where it comes
    again, its set is chosen anew among its exemplars and what arrived. Two of these in one method have each its own
    budget and selection, and what draws from the memory draws from both. It stands where `Remember` would, and before
    operations that add data of their own to an experience (`MergedReplay`): only what arrived is chosen from. Other
    operations draw from it as from any memory; during an experience none of its own samples are in it.

    $$ \text{herding: } p_k = \arg\min_x
       \Big\lVert \mu - \tfrac{1}{k} \Big( \varphi(x) + \sum_{j < k} \varphi(p_j) \Big) \Big\rVert $$

    With `per_experience`, every experience has a budget of its own, which its classes share as evenly as they have
    samples, and which nobody takes away later: one number for all, or one for each in order, the last for those that
    follow.

    With `by="experience"` a class that comes again in a later experience gets one more set. Fields that other
    operations ask for (`logits`) are those of the model at the end of the experience.

    Args:
        capacity: samples in all; give this, `per_class` or `per_experience`.
        per_class: samples of each class; with `by="experience"` of each class of each experience.
        selection: `herding` (the running mean of features stays nearest to the class mean), `random` (without
            replacement), or `closest` (nearest to the class mean).
        by: whether a set belongs to a `class`, or to a class of one `experience`; to one with `per_experience`.
        per_experience: samples of each experience, one number or one for each.

    Raises:
        ConfigError: not exactly one of `capacity`, `per_class` and `per_experience`, a budget below 1, or a method that
            already has a memory.

    Source: Rebuffi et al. 2017, "iCaRL: incremental classifier and representation learning", algorithms 4 and 5;
    `random` with `per_class` and `by="experience"`: van de Ven et al. 2022, "Three types of incremental learning",
    Methods.

    Example:
        >>> RememberExemplars(per_class=100, selection="random")
        RememberExemplars(capacity=None, per_class=100, selection='random', by='class', per_experience=None)
    """

    fills = True
    joins = True
    check_arguments = {"capacity": 20}
    role = "knowledge retention"
    needs = frozenset({"boundaries", "data", "classes"})
    state = ("arrived",)
    scratch = ("_memory",)  # saved as the learner's, or as a part of that

    def __init__(
        self,
        capacity: Count | None = None,
        per_class: Count | None = None,
        selection: Selection = "herding",
        by: Literal["class", "experience"] = "class",
        per_experience: Count | list[int] | None = None,
    ) -> None:
        super().__init__()
        budgets = [per_experience] if isinstance(per_experience, int) else per_experience
        require(
            budgets is None or (capacity is None and per_class is None and min(budgets, default=0) >= 1),
            "remember_exemplars",
            f"got capacity={capacity}, per_class={per_class}, per_experience={per_experience}. Give one of the"
            " three, and 1 or more of it.",
        )
        if budgets is None:
            ExemplarMemory(capacity, per_class, selection, torch.Generator())  # refuses what is wrong, early
        self.capacity = capacity
        self.per_class = per_class
        self.selection = selection
        self.by = by
        self.per_experience = per_experience
        self.arrived = 0

    def setup(self, learner: Services) -> None:
        """Make the learner's memory, or a part of it beside that of another of these."""
        generator = learner.rng(f"select/{self.name}")
        each = self.per_class if self.per_experience is None else self._budget(0)
        by = self.by if self.per_experience is None else "experience"
        self._memory = ExemplarMemory(
            self.capacity, each, self.selection, generator, learner.memory_device, by, learner.device
        )
        memory = learner.memory
        if isinstance(memory, ExemplarMemory | Joined):
            learner.memory = Joined([*(memory.members if isinstance(memory, Joined) else [memory]), self._memory])
        else:
            keep_in(learner, self._memory, self.name)

    def begin(self, experience: Experience, learner: Services) -> None:
        """Note how many samples arrived, before other operations add theirs."""
        self.arrived = len(experience.train)

    def end(self, experience: Experience, learner: Services) -> None:
        """Choose the exemplars of each class that arrived."""
        targets = experience.train.targets
        arrived = targets[: self.arrived or len(targets)]
        labels, counts = (column.tolist() for column in torch.unique(arrived, return_counts=True))
        sizes: list[int | None] = [None] * len(labels)
        if self.per_experience is not None:
            sizes = [*quotas(self._budget(max(0, learner.experience)), counts)]
        for label, size in zip(labels, sizes):
            if size == 0:
                continue  # a budget of fewer samples than there are classes
            index = (arrived == label).nonzero().flatten()
            rows, features = self._rows(experience.train, index, learner)
            old = self._memory.of(label)
            if old:
                old_rows = rows_of_batch(Batch(old["inputs"], old["targets"], old.get("task")), learner)  # type: ignore[arg-type]
                features = torch.cat([self._features(old_rows, learner), features])
                rows = {field: tree_cat([old_rows[field], rows[field]]) for field in rows}
            self._memory.choose(rows, features, label, size)

    def _budget(self, experience: int) -> int:
        """The samples of an experience; of one beyond those that were listed, as many as of the last."""
        assert self.per_experience is not None
        if isinstance(self.per_experience, int):
            return self.per_experience
        return self.per_experience[min(experience, len(self.per_experience) - 1)]

    def _rows(self, data: Data, index: Tensor, learner: Services) -> tuple[dict[str, Tree], Tensor]:
        """All samples at `index` with the fields that the method remembers, and their features."""
        parts: list[dict[str, Any]] = []
        features: list[Tensor] = []
        with eval_mode(learner.model):
            for batch in data.batches(index, ROWS):
                rows = rows_of_batch(batch, learner)
                parts.append(rows)
                features.append(self._features(rows, learner))
        return {field: tree_cat([part[field] for part in parts]) for field in parts[0]}, torch.cat(features)

    def _features(self, rows: Mapping[str, Any], learner: Services) -> Tensor:
        """What the selection looks at, `[rows, d]`; only how many rows there are counts for a random one."""
        if self.selection == "random":
            return torch.empty(rows["targets"].shape[0], 1)
        with eval_mode(learner.model), torch.no_grad():
            return features_of(rows["inputs"], learner)


def features_of(inputs: Tree, learner: Services) -> Tensor:
    """What enters the head, flattened to `[rows, features]`, in the model's current mode.

    Args:
        inputs: raw, `[rows, ...]`.
        learner: its model may have a head per task, whose outputs are left alone.
    """
    return learner.features(inputs).flatten(1)
