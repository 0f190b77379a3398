"""Feature distillation: on today's inputs the features stay what they were before this experience."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term, require
from holdfast.core.ranges import NonNegative
from holdfast.core.services import Services
from holdfast.core.snapshot import Snapshot
from holdfast.core.step import Step
from holdfast.operations._parts.draws import mix
from holdfast.operations._parts.functional_model import Taps

Metric = Literal["euclidean", "cosine"]


class FeatureDistillation(Operation):
    r"""Distance between the features of the model before this experience and of the model today.

    $$ L = L(x, y) + \frac{w}{n} \sum_{i=1}^{n} d\big( h_{\text{old}}(x_i), h(x_i) \big), \qquad
       d = \lVert a - b \rVert_2^2 \;\text{or}\; d = 1 - \frac{a^\top b}{\lVert a \rVert \lVert b \rVert} $$

    The features are what enters the head. Old outputs are not looked at, so that the head is free to learn; this
    works without labels, for any targets, and with a head per task. The main forward's features are used: the cost
    is one forward of the old model.

    Args:
        weight: w, under `average="none"`.
        metric: `euclidean` holds the features in place, `cosine` their direction only.
        average: `none` adds the two losses; `experiences` weighs the current data by 1/c and this by 1 - 1/c
            after c experiences.

    Source: `euclidean`: Jung et al. 2016, "Less-forgetting learning in deep neural networks", section 3; `cosine`:
    Hou et al. 2019, "Learning a unified classifier incrementally via rebalancing", eq. 6.
    Differences: Jung et al. have a factor 1/2 and freeze the head in the meantime (add a freezing operation for that).

    Example:
        >>> FeatureDistillation(metric="cosine")
        FeatureDistillation(weight=1.0, metric='cosine', average='none')
    """

    role = "knowledge retention"
    needs = frozenset({"boundaries"})
    state = ("teacher",)
    scratch = ("_taps",)

    def __init__(
        self,
        weight: NonNegative = 1.0,
        metric: Metric = "euclidean",
        average: Literal["none", "experiences"] = "none",
    ) -> None:
        super().__init__()
        self.weight = weight
        self.metric = metric
        self.average = average
        self.teacher: Snapshot | None = None
        self._taps: Taps | None = None

    def setup(self, learner: Services) -> None:
        """Tap what enters the head."""
        require(learner.head is not None, "feature_distillation", "found no head in this model. Name it: head='path'.")
        assert learner.head is not None
        self._taps = Taps(learner, {"features": learner.head}, inputs=True)

    def begin(self, experience: Experience, learner: Services) -> None:
        """Take the teacher, from the second experience on."""
        if learner.experience >= 0:
            self.teacher = learner.snapshot()

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean distance of the features to the teacher's, once there is one."""
        if self.teacher is None or self._taps is None:
            return None
        today = self._taps.of_step(step, learner)["features"]
        before = self._taps.of_teacher(self.teacher, step, learner)["features"]
        return mix(self._distance(before, today), step, learner, self.average, self.weight)  # type: ignore[arg-type]

    def _distance(self, before: Tensor, today: Tensor) -> Tensor:
        if self.metric == "cosine":
            return 1 - F.cosine_similarity(before, today).mean()
        return (before - today).square().flatten(1).sum(1).mean()

    def observe(self, step: Step, learner: Services) -> None:
        """Let go of the step's features."""
        if self._taps is not None:
            self._taps.clear()
