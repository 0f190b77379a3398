"""Drawing from the memory, and putting one into a method: one call each, for whatever operation does so."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from holdfast.core.errors import ConfigError
from holdfast.core.memory import Memory, Rows
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.memory import Uniform

M = TypeVar("M", bound=Memory)


class Draws(Operation):
    """Base of the operations that draw samples from the memory at every step: `rows = self.drawn(learner)`.

    A subclass that has a `setup` of its own calls this one, too.

    Args:
        size: samples drawn per step, by all ranks together.

    Attributes:
        retrieval: which rows are drawn: each set of them with equal probability.
    """

    draws = True
    state: ClassVar[tuple[str, ...]] = ("retrieval",)

    def __init__(self, size: Count) -> None:
        super().__init__()
        self.size = size
        self.retrieval: Uniform | None = None

    def setup(self, learner: Services) -> None:
        """Take a generator for the draws."""
        self.retrieval = Uniform(learner.rng(f"draw/{self.name}"))

    def drawn(self, learner: Services, size: int | None = None) -> Rows | None:
        """Samples from the memory, each field `[rows, ...]`; None while it is empty.

        Args:
            learner: whose memory it is.
            size: how many; default: `self.size`. Several ranks draw as many together.
        """
        assert learner.memory is not None  # the engine has refused a method without one
        assert self.retrieval is not None
        return learner.memory.draw(learner.share(self.size if size is None else size), self.retrieval)


def memory_of(learner: Services, operation: str) -> Memory:
    """The memory of the method.

    Raises:
        ConfigError: if no operation fills one.
    """
    if learner.memory is None:
        raise ConfigError(f"`{operation}` works on a memory. Add Remember(capacity=200) to the method.")
    return learner.memory


def keep_in(learner: Services, memory: M, operation: str) -> M:
    """Make `memory` the one that the operations of this method draw from.

    Args:
        learner: whose memory it becomes.
        memory: empty.
        operation: the name of the one that fills it, for the error.

    Raises:
        ConfigError: if the method has a memory already.
    """
    if learner.memory is not None:
        raise ConfigError(
            f"`{operation}` fills the memory, and another operation of this method does so, too. One memory serves all"
            " operations: keep one of Remember, RememberExemplars, RememberDiverse, TrainOnMemory, GradientConstraints,"
            " LatentReplay."
        )
    learner.memory = memory
    return memory
