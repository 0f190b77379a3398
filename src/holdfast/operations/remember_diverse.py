"""Remember diverse: keeps the samples whose gradients point apart, by a greedy choice."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.experience import task_column, tree_cat
from holdfast.core.inspect import eval_mode
from holdfast.core.memory import Rows
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.memory import Insertion, Memory, Placement, Uniform
from holdfast.operations._parts.draws import keep_in
from holdfast.operations._parts.layer_gradients import (
    inner_products,
    layer_outputs,
    one_call_a_row,
    recorded,
    supported_layers,
)
from holdfast.operations._parts.per_sample import PerSample
from holdfast.operations._parts.rows import row_losses, rows_of, sum_of_rows

LEAST = 1e-8
"""The lowest score: with a score of exactly zero a row could never be replaced."""

MOST = 2.001
"""No score is higher: one more than a cosine, and its rounding."""

TRIES = 64
"""Slots that are proposed before one is drawn by adding up all scores."""

SMALLEST = 1e-12
"""The least norm of a gradient that is divided by."""


class DiverseInsertion(Insertion):
    """Greedy choice by scores: a row that is unlike the others takes the place of one that is alike.

    Set `incoming` to the scores of the rows before they are added, and `gate` to that of their batch where it decides
    instead of theirs whether they are offered. Each decision depends on the one before, so this
    policy walks over the scores on the host (from a GPU that is a synchronisation per insertion).

    Args:
        generator: CPU generator the draws come from.
    """

    __slots__ = ("_uniforms", "gate", "generator", "incoming", "scores")

    _uniforms: list[float]  # left of those drawn for the rows that are being placed

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.incoming: Tensor | None = None
        self.gate: float | None = None
        self.reset()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`."""
        assert self.incoming is not None
        places: dict[int, int] = {}
        for row, score in enumerate(self.incoming.clamp(LEAST, MOST).tolist()):
            if len(self.scores) < capacity:
                places[len(self.scores)] = row
                self.scores.append(score if self.gate is None else self.gate)
            elif (score if self.gate is None else self.gate) < 1:
                slot = self._drawn()
                if self._uniform() < self.scores[slot] / (self.scores[slot] + score):
                    places[slot] = row
                    self.scores[slot] = score
        self._uniforms = []
        return Placement.of(places) if places else None

    def _drawn(self) -> int:
        """A slot with probability in proportion to its score: slots are proposed alike, and taken by their scores."""
        for _ in range(TRIES):
            slot = int(self._uniform() * len(self.scores))
            if self._uniform() * MOST < self.scores[slot]:
                return slot
        sums = list(accumulate(self.scores))
        return min(bisect_right(sums, self._uniform() * sums[-1]), len(sums) - 1)

    def _uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = torch.rand(256, generator=self.generator, dtype=torch.float64).tolist()
        return self._uniforms.pop()

    def reset(self) -> None:
        """Forget all scores."""
        self.scores: list[float] = []
        self._uniforms = []

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
        over: whether a `sample` is offered where its own score is below 1, or all those of a `batch` where the score of
            the gradient of the batch's mean loss is. That is what the code of Buzzega et al. 2020 does: fewer gradients
            are made, and while the memory fills, each sample is kept with its batch's score.

    Raises:
        ConfigError: a size that is not positive, or a method that already has a memory.

    Source: Aljundi et al. 2019, "Gradient based sample selection for online continual learning", algorithm 2
    (GSS-Greedy).
    Differences: one subset per batch, not per sample, and a sample's score is 1 while there is nothing to compare
    with; gradients of single samples on both sides, where the authors' code takes those of memory batches; they are
    measured in eval mode. For linear layers no gradient of a sample is made: one forward and one backward over the rows
    and those compared with give all inner products (`operations._parts.layer_gradients`), convolutions make those of 16
    samples at a time; other models hold them for one batch, (rows + compare) times the parameters, made by `vmap` or,
    where that does not take the model, by one backward a sample.

    Example:
        >>> RememberDiverse(capacity=200)
        RememberDiverse(capacity=200, compare=10, over='sample')
    """

    asks = "loss"
    fills = True
    check_arguments = {"capacity": 20}
    role = "knowledge retention"
    captured = "compares gradients on the host to choose what is kept"
    state = ("retrieval",)
    scratch = ("_per_sample",)

    def __init__(self, capacity: Count, compare: Count = 10, over: Literal["sample", "batch"] = "sample") -> None:
        super().__init__()
        self.capacity = capacity
        self.compare = compare
        self.over = over
        self.retrieval: Uniform | None = None
        self._insertion: DiverseInsertion | None = None
        self._per_sample: tuple[list[nn.Parameter], int, PerSample] | None = None

    def setup(self, learner: Services) -> None:
        """Make the learner's memory."""
        self._insertion = DiverseInsertion(learner.rng(f"replace/{self.name}"))
        self.retrieval = Uniform(learner.rng(f"draw/{self.name}"))
        memory = Memory(
            self.capacity,
            insertion=self._insertion,
            device=learner.memory_device,
            share=learner.share,
            fill=learner.fill,
            gives=learner.device,
        )
        self._memory = keep_in(learner, memory, self.name)

    def observe(self, step: Step, learner: Services) -> None:
        """Score the step's current rows and offer them to the memory."""
        assert self._insertion is not None
        if step.fresh is not None and not bool(step.fresh.any()):
            return
        rows = rows_of(step, learner)
        if self.over == "batch":
            self._insertion.gate, self._insertion.incoming = self._batch_scores(rows, learner)
        else:
            self._insertion.incoming = self._scores(rows, learner)
        self._memory.add(rows)

    def _batch_scores(self, rows: Rows, learner: Services) -> tuple[float, Tensor]:
        """The score of the gradient of the batch's mean loss, and of each row's own, against the same samples."""
        assert self.retrieval is not None
        samples: Rows | None = self._memory.draw(self.compare, self.retrieval)
        count = rows["targets"].shape[0]
        if samples is None:
            return 1.0, torch.ones(count)
        criterion, measured = learner.criterion, self._measured(learner)

        def own(outputs: Tensor, targets: Tensor) -> Tensor:
            return sum_of_rows(criterion, outputs, targets)

        with eval_mode(learner.model):
            old = F.normalize(measured.matrix(samples["inputs"], samples["targets"], samples.get("task"), own), dim=1)
            with torch.enable_grad():
                loss = learner.loss_on(rows["inputs"], rows["targets"], rows.get("task"))
                whole = torch.cat([part.flatten() for part in learner.grad(loss)])
            gate = float((1 + (old @ F.normalize(whole, dim=0)).amax()).clamp(LEAST, MOST))
            if gate >= 1 and len(self._memory) >= self.capacity:
                return gate, torch.full((count,), MOST)  # nothing of it is offered
            new = F.normalize(measured.matrix(rows["inputs"], rows["targets"], rows.get("task"), own), dim=1)
        return gate, 1 + (new @ old.T).amax(1)

    def _scores(self, rows: Rows, learner: Services) -> Tensor:
        assert self.retrieval is not None
        samples: Rows | None = self._memory.draw(self.compare, self.retrieval)
        count = rows["targets"].shape[0]
        if samples is None:
            return torch.ones(count)
        measured = self._measured(learner)
        with eval_mode(learner.model):
            products = self._products(measured, rows, samples, count)
            if products is None:
                criterion = learner.criterion
                new, old = (
                    measured.matrix(
                        r["inputs"],
                        r["targets"],
                        r.get("task"),
                        lambda outputs, targets: sum_of_rows(criterion, outputs, targets),
                    )
                    for r in (rows, samples)
                )
                return 1 + (F.normalize(new, dim=1) @ F.normalize(old, dim=1).T).amax(1)
        cross, norms = products
        sizes = norms.sqrt().clamp(min=SMALLEST)
        return 1 + (cross / sizes[:count].unsqueeze(1) / sizes[count:]).amax(1)

    def _products(
        self, measured: PerSample, rows: dict[str, Any], samples: dict[str, Any], count: int
    ) -> tuple[Tensor, Tensor] | None:
        """Inner products and squared norms by one forward and backward; None where the closed form does not hold."""
        learner, layers = measured.learner, measured.layers
        if layers is None or measured.closed_form is False:
            return None
        task = rows.get("task")
        if task is not None and "task" in samples:
            task = torch.cat([task_column(task, count, learner.device), samples["task"]])
        inputs, targets = (
            tree_cat([rows["inputs"], samples["inputs"]]),
            torch.cat([rows["targets"], samples["targets"]]),
        )
        if measured.choose(inputs, task) != "closed":
            return None
        with recorded(layers) as seen, torch.enable_grad():
            outputs = measured.outputs(inputs, task)
            if outputs.shape[0] != len(targets) or not one_call_a_row(seen, len(targets)):
                return None
            total = row_losses(learner.criterion, outputs, targets).sum()
            deltas = torch.autograd.grad(total, layer_outputs(seen))
        return inner_products(layers, seen, deltas, count)

    def _measured(self, learner: Services) -> PerSample:
        """How gradients of samples are made: decided once for as long as the model has the same parameters."""
        decided = self._per_sample
        parameters = learner.parameters()
        if decided is None or decided[0] is not parameters or decided[1] != learner.experience:
            supported = [p for module in (supported_layers(learner.model) or {}).values() for p in module.parameters()]
            whole = all(p.requires_grad and not p.is_complex() for p in supported)
            decided = self._per_sample = (
                parameters,
                learner.experience,
                PerSample(learner, closed_form=None if whole else False),
            )
        return decided[2]
