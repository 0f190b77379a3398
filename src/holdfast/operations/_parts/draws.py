"""Drawing from the memory, putting one into a method, and how old data is weighted against current data."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar

from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import tree_rows
from holdfast.core.memory import Memory, Rows
from holdfast.core.operation import Operation, Term
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.core.step import Step
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

    asks: ClassVar[Literal["loss", "outputs", "nothing"]] = "loss"
    draws = True
    state: ClassVar[tuple[str, ...]] = ("retrieval",)

    def __init__(self, size: Count) -> None:
        super().__init__()
        self.size = size
        self.retrieval: Uniform | None = None

    def setup(self, learner: Services) -> None:
        """Take a generator for the draws."""
        super().setup(learner)
        self.retrieval = Uniform(learner.rng(f"draw/{self.name}"))

    def drawn(self, learner: Services, size: int | None = None) -> Rows | None:
        """Samples from the memory, each field `[rows, ...]`; None while it is empty.

        Args:
            learner: whose memory it is.
            size: how many; default: `self.size`. Several ranks draw as many together.
        """
        memory, retrieval, share = learner.memory, self.retrieval, learner.share
        assert memory is not None and retrieval is not None  # the engine has refused a method without a memory
        size = self.size if size is None else size
        return memory.draw(size if share.ranks == 1 else share(size), retrieval)


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


Average = Literal["none", "rows", "experiences"]


def mix(term: Tensor, step: Step, learner: Services, average: Average, weight: float, rows: int = 0) -> Term | None:
    """The part of the total loss that `term` contributes; lowers `step.weight` where the two are averaged.

    Args:
        term: mean loss on old data, a scalar.
        step: the current step.
        learner: knows how many experiences were seen.
        average: `"none"`: L + weight * term. `"rows"`: the mean over all rows, current and old.
            `"experiences"`: (1 / c) L + (1 - 1 / c) term, with c experiences so far (van de Ven et al. 2022);
            in the first experience there is nothing to average with.
        weight: factor of the term under `"none"`.
        rows: number of rows behind `term`, for `"rows"`.

    Returns:
        The term with its factor, or None where that is zero.
    """
    if average == "none":
        return term, weight
    if average == "rows":
        share = rows / (rows + tree_rows(step.inputs))
    else:
        share = 1 - 1 / (learner.experience + 1) if learner.experience > 0 else 0.0
        if share == 0.0:
            return None
    step.weight *= 1 - share
    return term, share
