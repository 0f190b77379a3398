"""Remember: puts what is seen into a memory of fixed size, for other operations to replay."""

from __future__ import annotations

from typing import Literal, get_args

from holdfast.core.operation import Operation, require
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.memory import BalancedReservoir, First, Insertion, Memory, Reservoir, Ring
from holdfast.operations.rows import rows_of

Policy = Literal["reservoir", "balanced_reservoir", "ring", "first"]


class Remember(Operation):
    """Keep a fixed number of the samples seen, with what the other operations want to know of them.

    Samples are inserted after the losses of their own step were computed, so nothing is replayed in the step
    it arrives in. The fields kept are inputs (raw: images stay uint8), targets, and every field that an operation
    of the same method declares in `remembers` (`logits`: the outputs before the step's update).

    Args:
        capacity: number of samples kept; give this or `bytes`.
        bytes: size in bytes instead.
        policy: which samples are kept: `reservoir` (each seen so far with equal probability, Vitter 1985,
            Algorithm R), `balanced_reservoir` (classes held evenly, Chrysakis and Moens 2020), `ring` (the newest),
            `first` (the oldest).

    Raises:
        ConfigError: not exactly one of `capacity` and `bytes`, or not positive.

    Example:
        >>> Remember(capacity=200)
        Remember(capacity=200, bytes=None, policy='reservoir')
    """

    role = "knowledge retention"
    state = ()

    def __init__(self, capacity: int | None = None, bytes: int | None = None, policy: Policy = "reservoir") -> None:
        super().__init__()
        require(
            (capacity is None) != (bytes is None),
            "remember",
            f"got capacity={capacity}, bytes={bytes}. Give one of the two.",
        )
        require((capacity or bytes or 0) > 0, "remember", f"got a size of {capacity or bytes}. Give a positive number.")
        require(
            policy in get_args(Policy),
            "remember",
            f"got policy={policy!r}. Choose one of {', '.join(get_args(Policy))}.",
        )
        self.capacity = capacity
        self.bytes = bytes
        self.policy = policy
        if policy == "balanced_reservoir":
            self.needs = frozenset({"classes"})

    def setup(self, learner: Services) -> None:
        """Make the learner's memory."""
        require(learner.memory is None, "remember", "stands twice in this method. One memory serves all operations.")
        generator = learner.rng("remember")
        insertion: Insertion
        if self.policy == "reservoir":
            insertion = Reservoir(generator)
        elif self.policy == "balanced_reservoir":
            insertion = BalancedReservoir(generator)
        else:
            insertion = Ring() if self.policy == "ring" else First()
        learner.memory = Memory(
            self.capacity and learner.share(self.capacity),
            bytes=self.bytes and learner.share(self.bytes),
            insertion=insertion,
            device=learner.device,
        )

    def observe(self, step: Step, learner: Services) -> None:
        """Insert the step's current rows."""
        learner.memory.add(rows_of(step, learner))
