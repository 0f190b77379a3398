"""Latent replay: the memory holds what comes out of the stages below a cut, and only what lies above is replayed."""

from __future__ import annotations

from typing import Any, Literal

import torch

from holdfast.core.errors import UsageError
from holdfast.core.experience import Experience, task_column, tree_map
from holdfast.core.forward import forward_task
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Term
from holdfast.core.ranges import Count, NonNegative
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.memory import BalancedReservoir, Insertion, Memory, Reservoir
from holdfast.operations._parts.draws import Draws, keep_in
from holdfast.operations._parts.rows import loss_of
from holdfast.operations.freeze_below import FreezeBelow

Policy = Literal["reservoir", "balanced_reservoir"]


class LatentMemory(Memory):
    """A memory whose rows have latents and no inputs, and say so to whoever asks for inputs."""

    __slots__ = ()

    def draw(self, size: int, retrieval: Any) -> LatentRows | None:
        """Rows to replay, as `Memory.draw`."""
        rows = super().draw(size, retrieval)
        return None if rows is None else LatentRows(rows)

    def all(self) -> LatentRows:
        """A copy of all rows, as `Memory.all`."""
        return LatentRows(super().all())


class LatentRows(dict[str, Any]):
    """Rows of a memory of latents."""

    def __missing__(self, field: str) -> Any:
        if field != "inputs":
            raise KeyError(field)
        raise UsageError(
            "this method's memory holds latents, and another operation wants inputs from it. "
            "Leave that operation out, or take Replay and Remember instead of LatentReplay."
        )


class LatentReplay(Draws, FreezeBelow):
    r"""Loss on remembered latents, which go through the stages above the cut only.

    $$ L = L(f(x), y) + w \, L(f_{\text{above}}(z'), y'), \qquad (z', y') \sim M, \; z = f_{\text{below}}(x) $$

    The stages below are frozen after the first experience, so that latents stay what they were. When an experience
    ends, its training data go through them once, in eval mode and as they are evaluated (not augmented), and a
    reservoir keeps some. From then on a current sample passes the frozen stages once, a replayed one never; current
    samples are augmented before the cut. No input is kept: the memory's size in the log is that of the latents.

    Args:
        capacity: number of latents kept.
        cut: how many stages lie below, or the name of the last of them; null takes a hypernetwork's own cut, and of any
            other model all but the output layer.
        size: latents drawn for each step.
        weight: factor w of their loss.
        policy: which are kept: `reservoir` (each sample seen with equal probability) or `balanced_reservoir` (classes
            held evenly).
        after: the number of experiences that the stages below learn from; 0 freezes them from the start.

    Source: Pellegrini et al. 2020, "Latent replay for real-time continual learning"; Hemati et al. 2023, "Partial
    hypernetworks for continual learning", its control at the same cuts.
    Differences: Pellegrini et al. slow the stages below down rather than freeze them, and have a fresh share of the
    memory in each experience; in the code of Hemati et al. running statistics below the cut go on moving, and latents
    are of augmented samples.

    Example:
        >>> LatentReplay(capacity=200, cut="layer2").weight
        1.0
    """

    asks = "outputs"
    fills = True
    lacks = frozenset({"inputs"})
    check_arguments = {"capacity": 20}
    role = "knowledge retention"
    needs = frozenset({"boundaries", "data"})
    state = ("begun", "retrieval")

    def __init__(
        self,
        capacity: Count = 200,
        cut: int | str | None = None,
        size: Count = 64,
        weight: NonNegative = 1.0,
        policy: Policy = "reservoir",
        after: Literal[0, 1] = 1,
    ) -> None:
        super().__init__(size)
        self.cut = cut
        self.after = after
        self.capacity = capacity
        self.weight = weight
        self.policy = policy
        if policy == "balanced_reservoir":
            self.needs = self.needs | {"classes"}

    def setup(self, learner: Services) -> None:
        """Make the memory, and take generators, behind the cut and its hooks."""
        super().setup(learner)
        generator = learner.rng("remember")
        insertion: Insertion = Reservoir(generator) if self.policy == "reservoir" else BalancedReservoir(generator)
        memory = LatentMemory(self.capacity, insertion=insertion, device=learner.device, share=learner.share)
        self._memory = keep_in(learner, memory, self.name)  # of latents instead of inputs
        learner.rng(f"order/{self.name}")

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean loss on the drawn latents, weighted."""
        rows = self.drawn(learner)
        if rows is None or self.weight == 0:
            return None
        with forward_task(rows.get("task")):
            outputs = rows["latents"]
            for stage in self._above:
                outputs = stage(outputs)
        return loss_of(learner, outputs, rows["targets"]), self.weight

    def end(self, experience: Experience, learner: Services) -> None:
        """Send the experience's data through the stages below, and offer the latents to the memory."""
        data = experience.train
        order = torch.randperm(len(data), generator=learner.rng(f"order/{self.name}"))
        with torch.no_grad(), eval_mode(learner.model):
            for batch in data.batches(learner.share.rows(order), 256):
                inputs = tree_map(lambda leaf: leaf.to(learner.device), batch.inputs)
                latents = self._body.below(learner.forward.prepared(inputs, training=False), self.cut)
                rows: dict[str, Any] = {"latents": latents, "targets": batch.targets.to(learner.device)}
                task = learner.task if batch.task is None else batch.task
                if learner.multi_head and task is not None:
                    rows["task"] = task_column(task, latents.shape[0], learner.device)
                self._memory.add(rows)
