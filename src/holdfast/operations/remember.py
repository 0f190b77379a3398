"""Remember: puts what is seen into a memory of fixed size, for other operations to replay."""

from __future__ import annotations

from typing import Literal

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, require
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.memory import BalancedReservoir, First, FrequencyAware, Insertion, Memory, Reservoir, Ring
from holdfast.operations._parts.draws import keep_in
from holdfast.operations._parts.rows import rows_of, with_classes

Policy = Literal["reservoir", "balanced_reservoir", "frequency_aware", "ring", "first"]


class Remember(Operation):
    """Keep a fixed number of the samples seen, with what the other operations want to know of them.

    Samples are inserted after the losses of their own step were computed, so nothing is replayed in the step
    it arrives in. The fields kept are inputs (raw: images stay uint8), targets, and every field that an operation
    of the same method declares in `remembers` (`logits`: the outputs before the step's update).

    Args:
        capacity: number of samples kept; give this or `bytes`.
        bytes: size in bytes instead.
        policy: which samples are kept: `reservoir` (each seen so far with equal probability, Vitter 1985,
            Algorithm R), `balanced_reservoir` (classes held evenly, Chrysakis and Moens 2020), `frequency_aware` (more
            of classes that were in few experiences, Hemati et al. 2023), `ring` (the newest), `first` (the oldest).

    Raises:
        ConfigError: not exactly one of `capacity` and `bytes`, or not positive.

    Example:
        >>> Remember(capacity=200)
        Remember(capacity=200, bytes=None, policy='reservoir')
    """

    asks = "nothing"
    fills = True
    check_arguments = {"capacity": 20}
    role = "knowledge retention"
    state = ()

    def __init__(self, capacity: Count | None = None, bytes: Count | None = None, policy: Policy = "reservoir") -> None:
        super().__init__()
        require(
            (capacity is None) != (bytes is None),
            "remember",
            f"got capacity={capacity}, bytes={bytes}. Give one of the two.",
        )
        self.capacity = capacity
        self.bytes = bytes
        self.policy = policy
        if policy == "balanced_reservoir":
            self.needs = frozenset({"classes"})
        if policy == "frequency_aware":
            self.needs = frozenset({"classes", "boundaries"})

    def setup(self, learner: Services) -> None:
        """Make the learner's memory."""
        generator = learner.rng("remember")
        insertion: Insertion
        if self.policy == "reservoir":
            insertion = Reservoir(generator)
        elif self.policy == "balanced_reservoir":
            insertion = BalancedReservoir(generator)
        elif self.policy == "frequency_aware":
            insertion = FrequencyAware(generator)
        else:
            insertion = Ring() if self.policy == "ring" else First()
        memory = Memory(
            self.capacity,
            bytes=self.bytes,
            insertion=insertion,
            device=learner.memory_device,
            share=learner.share,
            fill=learner.fill,
            gives=learner.device,
        )
        self._memory = keep_in(learner, memory, self.name)

    def begin(self, experience: Experience, learner: Services) -> None:
        """Tell a policy that counts experiences that another one begins."""
        insertion = self._memory.insertion
        if isinstance(insertion, FrequencyAware):
            insertion.next_experience()

    def observe(self, step: Step, learner: Services) -> None:
        """Insert the step's current rows."""
        if step.fresh is None or bool(step.fresh.any()):
            rows = rows_of(step, learner)
            self._memory.add(with_classes(rows, learner) if "classes" in self.needs else rows)
