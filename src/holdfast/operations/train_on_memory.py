"""Train on memory: samples are gathered greedily, and a model is trained from scratch on nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.decide import on_host
from holdfast.core.experience import Experience
from holdfast.core.inspect import has_batch_norm, joined
from holdfast.core.operation import Operation
from holdfast.core.ranges import BelowOne, Count, NonNegative, Positive
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.memory import Insertion, Memory, Placement
from holdfast.operations._parts.draws import keep_in
from holdfast.operations._parts.rows import rows_of_batch, take


class GreedyBalance(Insertion):
    """Prabhu et al. 2020, algorithm 1: a class below its share takes the place of a random sample of the largest.

    The share is the capacity over the number of classes seen; a class that has its share takes no more. It walks
    over the targets on the host.

    Args:
        generator: CPU generator the draws come from.
    """

    __slots__ = ("generator", "held")

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.reset()

    def plan(self, rows: int, seen: int, capacity: int, targets: Tensor | None = None) -> Placement | None:
        """See `Insertion.plan`."""
        assert targets is not None
        places: dict[int, int] = {}
        for row, label in enumerate(on_host(targets).tolist()):
            slots = self.held.setdefault(label, [])
            filled = sum(map(len, self.held.values()))
            if len(slots) >= capacity / len(self.held):
                continue
            if filled < capacity:
                slot = filled
            else:
                largest = max(self.held.values(), key=len)
                slot = largest.pop(int(torch.randint(len(largest), (), generator=self.generator)))
            slots.append(slot)
            places[slot] = row
        return Placement.of(places) if places else None

    def reset(self) -> None:
        """Forget all samples."""
        self.held: dict[int, list[int]] = {}

    def state(self) -> dict[str, Any]:
        """Slots by class and the generator's state."""
        slots_by_class = {label: list(slots) for label, slots in self.held.items()}
        return {"held": slots_by_class, "generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.held = {label: list(slots) for label, slots in state["held"].items()}
        self.generator.set_state(state["generator"].cpu())


class TrainOnMemory(Operation):
    r"""When an experience ends: its samples go through a greedy, class-balanced sampler, then training starts over.

    The model takes back its initial weights and is trained on the memory alone, by SGD with momentum and a cosine
    schedule with warm restarts:

    $$ \eta_e = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min}) \Big( 1 + \cos \frac{\pi e}{T} \Big),
       \qquad T = 1, 2, 4, \dots \text{ epochs} $$

    after one epoch of warm-up at a tenth of the largest rate. The optimiser of the loop has no part in this: what
    it trains during an experience is thrown away at its end.

    Args:
        capacity: samples in the memory.
        epochs: passes over the memory; 31 ends with a restart's last epoch (1 + 2 + 4 + 8 + 16).
        batch_size: samples per step.
        rate: the largest learning rate.
        least_rate: the smallest learning rate.
        momentum: of SGD.
        weight_decay: of SGD.
        clip_norm: largest norm of the gradient.

    Raises:
        ConfigError: a size or rate that is not positive, or a method that already has a memory.

    Source: Prabhu, Torr and Dokania 2020, "GDumb: a simple approach that questions our progress in continual
    learning", algorithm 1 and section 4 (its training settings).
    Differences: 31 epochs instead of 256 with early stopping; no CutMix, which the paper uses on CIFAR; trained at
    the end of every experience, where the paper trains when it is asked; the sampler sees each experience's data
    asks = "loss"
    once, in random order, when it ends.

    Example:
        >>> TrainOnMemory(capacity=500).epochs
        31
    """

    fills = True
    check_arguments = {"capacity": 20}
    role = "knowledge incorporation"
    needs = frozenset({"boundaries", "data", "classes"})
    state = ("initial", "noted")

    def __init__(
        self,
        capacity: Count,
        epochs: Count = 31,
        batch_size: Count = 16,
        rate: Positive = 0.05,
        least_rate: NonNegative = 0.0005,
        momentum: BelowOne = 0.9,
        weight_decay: NonNegative = 1e-6,
        clip_norm: Positive = 10.0,
    ) -> None:
        super().__init__()
        self.capacity = capacity
        self.epochs = epochs
        self.batch_size = batch_size
        self.rate = rate
        self.least_rate = least_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.initial: dict[str, Tensor] = {}
        self.noted = -1

    def setup(self, learner: Services) -> None:
        """Make the learner's memory."""
        insertion = GreedyBalance(learner.rng(f"replace/{self.name}"))
        memory = Memory(
            self.capacity, insertion=insertion, device=learner.memory_device, fill=learner.fill, gives=learner.device
        )
        self._memory = keep_in(learner, memory, self.name)
        learner.rng(f"order/{self.name}")

    def begin(self, experience: Experience, learner: Services) -> None:
        """Note the initial weights, before the first step of all."""
        if not self.initial:
            self._note(learner)

    def loss(self, step: Step, learner: Services) -> None:
        """Note the initial values of outputs that the head got for this experience; no term."""
        if self.noted != learner.experience:
            self._note(learner)
            self.noted = learner.experience

    def _note(self, learner: Services) -> None:
        for name, value in learner.model.state_dict().items():
            initial = self.initial.get(name)
            if initial is None or initial.shape != value.shape or not value.is_floating_point():
                self.initial[name] = value.detach().clone()

    def end(self, experience: Experience, learner: Services) -> None:
        """Gather samples, take back the initial weights, and train on the memory."""
        order = learner.rng(f"order/{self.name}")
        data = experience.train
        for batch in data.batches(torch.randperm(len(data), generator=order), 256):
            self._memory.add(rows_of_batch(batch, learner))
        if not len(self._memory):
            return
        with torch.no_grad():
            for name, value in learner.model.state_dict().items():
                if name in self.initial and value.is_floating_point():
                    value.copy_(self.initial[name])
        training = learner.model.training
        learner.model.train()
        self._fit(learner, order)
        learner.model.train(training)

    def _fit(self, learner: Services, order: torch.Generator) -> None:
        rows, parameters = self._memory.all(), learner.parameters()
        optimizer = torch.optim.SGD(parameters, lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)
        for epoch in range(self.epochs):
            optimizer.param_groups[0]["lr"] = self._rate(epoch)
            least = 2 if has_batch_norm(learner.model) else 1
            for index in joined(torch.randperm(len(self._memory), generator=order), self.batch_size, least):
                batch = take(rows, index.to(learner.device))
                loss = learner.loss_on(batch["inputs"], batch["targets"], batch.get("task"))  # type: ignore[arg-type]
                for parameter, gradient in zip(parameters, learner.grad(loss)):
                    parameter.grad = gradient
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
                optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    def _rate(self, epoch: int) -> float:
        """The learning rate of an epoch: a warm-up, then the place within the restart it lies in."""
        if epoch == 0:
            return self.rate / 10
        epochs_in, length = epoch - 1, 1
        while epochs_in >= length:
            epochs_in, length = epochs_in - length, 2 * length
        return self.least_rate + (self.rate - self.least_rate) * (1 + math.cos(math.pi * epochs_in / length)) / 2
