"""Remember diverse: keeps the samples whose gradients point apart, by a greedy choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from holdfast.core.experience import Tree, tree_map
from holdfast.core.learner import Learner
from holdfast.core.operation import Operation, require
from holdfast.core.step import Step
from holdfast.memory import Insertion, Memory, Placement, Uniform
from holdfast.operations.rows import rows_of
from holdfast.operations.twin import Twin

LEAST = 1e-8
"""The lowest score: with a score of exactly zero a row could never be replaced."""


class DiverseInsertion(Insertion):
    """Greedy choice by scores: a row that is unlike the others takes the place of one that is alike.

    Set `incoming` to the scores of the rows before they are added. Each decision depends on the one before, so this
    policy walks over the scores on the host (from a GPU that is a synchronisation per insertion).

    Args:
        generator: CPU generator the draws come from.
    """

    __slots__ = ("generator", "incoming", "scores")

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.incoming: Tensor | None = None
        self.reset()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`."""
        assert self.incoming is not None
        places: dict[int, int] = {}
        for row, score in enumerate(self.incoming.clamp(min=LEAST).tolist()):
            if len(self.scores) < capacity:
                places[len(self.scores)] = row
                self.scores.append(score)
            elif score < 1:
                slot = int(
                    torch.multinomial(torch.tensor(self.scores, dtype=torch.float64), 1, generator=self.generator)
                )
                if float(torch.rand((), generator=self.generator)) < self.scores[slot] / (self.scores[slot] + score):
                    places[slot] = row
                    self.scores[slot] = score
        return Placement.of(places) if places else None

    def reset(self) -> None:
        """Forget all scores."""
        self.scores: list[float] = []

    def state(self) -> dict[str, Any]:
        """The scores and the generator's state."""
        return {"scores": list(self.scores), "generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.scores = list(state["scores"])
        self.generator.set_state(state["generator"].cpu())


class RememberDiverse(Operation):
    r"""Keep a fixed number of samples whose gradients differ from one another, chosen greedily as they arrive.

    $$ c = 1 + \max_{i \in S} \frac{\langle g, g_i \rangle}{\lVert g \rVert \, \lVert g_i \rVert}, \qquad
       \text{if } c < 1: \; i \sim \frac{C_i}{\sum_j C_j}, \;
       \text{replace } i \text{ with probability } \frac{C_i}{C_i + c} $$

    S is a random subset of the memory, g the gradient of one sample's loss, C the scores of the samples held from
    when they arrived. While the memory fills, every sample is taken. It stands where `Remember` would: other
    operations replay from it.

    Args:
        capacity: number of samples kept.
        compare: samples of the memory that each new one is compared with, the paper's n.

    Raises:
        ConfigError: a size that is not positive, or a method that already has a memory.

    Source: Aljundi et al. 2019, "Gradient based sample selection for online continual learning", algorithm 2
    (GSS-Greedy).
    Differences: one subset per batch, not per sample, and a sample's score is 1 while there is nothing to compare
    with; gradients of single samples on both sides, where the authors' code takes those of memory batches; they are
    measured in eval mode. Per-sample gradients are held for one batch: (rows + compare) times the parameters.

    Example:
        >>> RememberDiverse(capacity=200)
        RememberDiverse(capacity=200, compare=10)
    """

    role = "knowledge retention"
    state = ("retrieval",)

    def __init__(self, capacity: int, compare: int = 10) -> None:
        super().__init__()
        require(capacity > 0, "remember_diverse", f"got capacity={capacity}. Give the number of samples to keep.")
        require(compare > 0, "remember_diverse", f"got compare={compare}. Give the number of samples to compare with.")
        self.capacity = capacity
        self.compare = compare
        self.retrieval: Uniform | None = None
        self._insertion: DiverseInsertion | None = None
        self._twin: Twin | None = None

    def setup(self, learner: Learner) -> None:
        """Make the learner's memory."""
        require(learner.memory is None, "remember_diverse", "found another memory in this method. Leave out Remember.")
        self._insertion = DiverseInsertion(learner.rng(f"replace/{self.name}"))
        self.retrieval = Uniform(learner.rng(f"draw/{self.name}"))
        learner.memory = Memory(self.capacity, insertion=self._insertion, device=learner.device)

    def observe(self, step: Step, learner: Learner) -> None:
        """Score the step's current rows and offer them to the memory."""
        assert self._insertion is not None
        rows = rows_of(step, learner)
        self._insertion.incoming = self._scores(rows, learner)
        learner.memory.add(rows)

    def _scores(self, rows: dict[str, Any], learner: Learner) -> Tensor:
        held = learner.memory.draw(self.compare, self.retrieval)
        if held is None:
            return torch.ones(rows["targets"].shape[0])
        twin = self._twin
        if twin is None or twin.stale():
            twin = self._twin = Twin(learner)
        twin.copy_from(learner.model.state_dict())
        new, old = (
            torch.nn.functional.normalize(row_gradients(learner, twin, r["inputs"], r["targets"], r.get("task")), dim=1)
            for r in (rows, held)
        )
        return 1 + (new @ old.T).amax(1)


def row_gradients(learner: Learner, twin: Twin, inputs: Tree, targets: Tensor, task: Any = None) -> Tensor:
    """The gradient of each row's own loss by all trainable parameters, `[rows, parameters]`.

    Args:
        learner: its criterion, and how it prepares inputs.
        twin: the model, with the values at which to measure.
        inputs: raw, `[rows, ...]`.
        targets: `[rows, ...]`.
        task: the task of all rows, or `[rows]` tasks, for a model with one head per task.
    """
    if learner.prepare is not None:
        inputs = learner.prepare(inputs, False, None)
    names = learner.named_parameters()
    weights = {name: twin.values[name] for name in names}
    rest = {name: value for name, value in twin.values.items() if name not in names}
    tasks = (
        task if isinstance(task, Tensor) else torch.full_like(targets, 0 if task is None else task, dtype=torch.int64)
    )
    heads = [module for module in twin.module.modules() if getattr(module, "needs_task", False)]

    def loss(weights: dict[str, Tensor], row: Tree, target: Tensor, of: Tensor) -> Tensor:
        one = tree_map(lambda leaf: leaf.unsqueeze(0), row)
        for head in heads:
            head.task = of.unsqueeze(0)  # type: ignore[assignment]
        args, kwargs = (
            ((one,), {}) if isinstance(one, Tensor) else ((), dict(one)) if isinstance(one, dict) else (one, {})
        )
        return learner.criterion(functional_call(twin.module, (weights, rest), args, kwargs), target.unsqueeze(0))

    rows = targets.shape[0]
    tasks = tasks.flatten()[:rows]
    found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, inputs, targets, tasks)
    return torch.cat([found[name].reshape(rows, -1) for name in names], dim=1)
