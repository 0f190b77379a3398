"""Interfered replay: of the old samples drawn, those are replayed that the coming step would hurt most."""

from __future__ import annotations

from torch import Tensor

from holdfast.core.forward import gradients_of
from holdfast.core.operation import Term, require
from holdfast.core.ranges import Count, NonNegative, Positive
from holdfast.core.ranks import average_over_ranks
from holdfast.core.services import Services
from holdfast.core.snapshot import Twin
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Average, Draws, mix
from holdfast.operations._parts.rows import row_losses, take
from holdfast.operations.lookahead import descend


class InterferedReplay(Draws):
    r"""Loss on those candidates from the memory whose loss a step on the current data alone would raise most.

    $$ \theta^v = \theta - \alpha \nabla_\theta L(x, y), \qquad
       s(x', y') = \ell(f_{\theta^v}(x'), y') - \ell(f_\theta(x'), y'), \qquad
       L = L(x, y) + w \, L(\{ k \text{ candidates of highest } s \}) $$

    The virtual step is made on a second model, so the learner's parameters, gradients, buffers and random state
    stay untouched. It costs one backward more, and two forwards on the candidates.

    Args:
        size: samples replayed per step, the paper's k.
        candidates: samples drawn from the memory per step, the paper's C; at least `size`.
        rate: learning rate of the virtual step, the paper's alpha; default: that of the optimiser, or 0.1 where the
            loop has none.
        weight: factor of the replay loss under `average="none"`.
        average: `none` adds the two losses; `rows` takes one mean over all rows; `experiences` weighs the current
            data by 1/c and the old by 1 - 1/c after c experiences.

    Raises:
        ConfigError: fewer candidates than samples to replay, or a size or rate that is not positive.

    Source: Aljundi et al. 2019, "Online continual learning with maximally interfered retrieval", section 3.1
    (criterion MI-1) and algorithm 1.
    Differences: scores are measured in eval mode (no dropout, no augmentation, BatchNorm's running statistics), the
    authors' code stays in training mode; the virtual step is plain gradient descent whatever the optimiser.

    Example:
        >>> InterferedReplay(size=10).candidates
        50
    """

    role = "knowledge retention"
    scratch = ("_twin",)

    def __init__(
        self,
        size: Count = 10,
        candidates: Count = 50,
        rate: Positive | None = None,
        weight: NonNegative = 1.0,
        average: Average = "none",
    ) -> None:
        super().__init__(size)
        require(
            candidates >= size,
            "interfered_replay",
            f"got candidates={candidates} and size={size}. Draw at least as many candidates as are replayed.",
        )
        self.candidates = candidates
        self.rate = rate
        self.weight = weight
        self.average = average
        self._twin: Twin | None = None

    def setup(self, learner: Services) -> None:
        """Take a generator for the draws, and a model for the virtual step."""
        self._twin = learner.twin()
        super().setup(learner)

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean loss on the candidates that the step would hurt most, weighted."""
        rows = self.drawn(learner, self.candidates)
        if rows is None:
            return None
        size, drawn = learner.share(self.size), rows["targets"].shape[0]
        if drawn > size or learner.share.ranks > 1:  # where all ranks must ask, though one of them held fewer rows
            rows = take(rows, self.interference(step, rows, learner).topk(min(size, drawn)).indices)
        term = learner.loss_on(rows["inputs"], rows["targets"], rows.get("task"))
        return mix(term, step, learner, self.average, self.weight, rows["targets"].shape[0])

    def interference(self, step: Step, rows: dict[str, Tensor], learner: Services) -> Tensor:
        """By how much each row's loss would rise, `[rows]`.

        Args:
            step: the current step, its graph not yet used up; it is kept.
            rows: candidates, as the memory drew them.
            learner: the model, which is only read.
        """
        assert self._twin is not None
        twin = self._twin
        parameters = learner.named_parameters()
        grads = average_over_ranks(gradients_of(step.loss, list(parameters.values()))[0])
        twin.copy_from(learner.model.state_dict())
        before = self._losses(twin, rows, learner)
        descend([twin.values[name] for name in parameters], grads, learner.decide(lambda: self._rate(learner)))
        return self._losses(twin, rows, learner) - before

    def _rate(self, learner: Services) -> float:
        if self.rate is not None:
            return self.rate
        rate = learner.trainable.rate
        return 0.1 if rate is None else rate

    def _losses(self, twin: Twin, rows: dict[str, Tensor], learner: Services) -> Tensor:
        return row_losses(learner.criterion, twin(rows["inputs"], rows.get("task")), rows["targets"])
