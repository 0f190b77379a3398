"""Nearest class mean: predict the class whose mean is nearest to the features."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience, tree_map
from holdfast.core.operation import require
from holdfast.core.ranges import Size
from holdfast.core.services import Services
from holdfast.operations._parts.draws import memory_of
from holdfast.operations._parts.scores import ClosedFormClassifier, Space, vectors

Metric = Literal["euclidean", "cosine"]
Source = Literal["data", "memory"]


class NearestClassMean(ClosedFormClassifier):
    r"""Class means of the features take the head's place in prediction.

    $$ z_k = - \lVert h(x) - \mu_k \rVert_2^2 \;\text{or}\; z_k = \frac{h(x)^\top \mu_k}{\lVert h(x) \rVert \lVert
    \mu_k \rVert},
       \qquad \mu_k = \frac{1}{n_k} \sum_{i: y_i = k} h(x_i) $$

    With `source="data"` the means are running ones over every experience's data, as the features are when it ends; old
    means do not follow a network that is trained on. With `source="memory"` all means are taken again from the
    memory whenever an experience ends, so they follow the network as far as the memory stands for the class.

    Args:
        metric: how near is measured.
        source: means of the `data` of each experience, or of what is in the `memory`.
        space: `features`, what enters the head, or the prepared `inputs`.
        adapt: experiences that the network is trained in, then it is frozen; none for all.

    Source: Mensink et al. 2013, "Distance-based image classification", eq. 1 and 2; with a memory: Rebuffi et al.
    2017, "iCaRL", algorithm 1. Differences: iCaRL normalises features before the mean and takes herded exemplars.

    Example:
        >>> sorted(NearestClassMean().needs), "replacement" in NearestClassMean(adapt=0).needs
        (['boundaries', 'classes', 'data'], True)
    """

    role = "bias mitigation"
    state = ("total", "counts")

    def __init__(
        self,
        metric: Metric = "euclidean",
        source: Source = "data",
        space: Space = "features",
        adapt: Size | None = None,
    ) -> None:
        super().__init__(space, adapt)
        advice = "takes means of a memory only while the network is trained. Leave adapt out, or write source='data'."
        require(source == "data" or adapt is None, self.name, advice)
        self.metric = metric
        self.source = source
        self.total: Tensor | None = None
        self.counts: Tensor | None = None
        if source == "memory":
            self.needs = frozenset({"boundaries", "classes"})
            self.draws = True

    def absorb(self, x: Tensor, targets: Tensor, classes: int) -> None:
        """Add rows to the sums of their classes."""
        self._add(x, targets, classes)

    def _add(self, x: Tensor, targets: Tensor, classes: int) -> None:
        if self.total is None or self.counts is None:
            self.total = torch.zeros(0, x.shape[1], dtype=torch.float64, device=x.device)
            self.counts = torch.zeros(0, dtype=torch.float64, device=x.device)
        missing = max(0, classes - self.counts.shape[0])
        self.total = F.pad(self.total, (0, 0, 0, missing)).index_add(0, targets, x.to(self.total.dtype))
        self.counts = F.pad(self.counts, (0, missing))
        self.counts = self.counts + torch.bincount(targets, minlength=self.counts.shape[0])

    def end(self, experience: Experience, learner: Services) -> None:
        """Take the means of the experience's data, or all means again from the memory."""
        if self.source == "data":
            super().end(experience, learner)
            return
        rows = memory_of(learner, self.name).all()
        if not rows:
            return
        self.total = self.counts = None
        targets = rows["targets"]
        for part in torch.arange(len(targets), device=targets.device).split(256):
            inputs = tree_map(lambda leaf, part=part: leaf[part], rows["inputs"])  # type: ignore[misc]
            self._add(vectors(learner, inputs, self.space), targets[part], int(targets.max()) + 1)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Minus the squared distance, or the cosine, to each class's mean."""
        if self.total is None or self.counts is None:
            return None
        means = (self.total / self.counts.clamp(min=1).unsqueeze(1)).to(x.dtype)
        if self.metric == "cosine":
            return F.normalize(x, dim=1) @ F.normalize(means, dim=1).T, self.counts > 0
        return 2 * x @ means.T - means.square().sum(1) - x.square().sum(1, keepdim=True), self.counts > 0
