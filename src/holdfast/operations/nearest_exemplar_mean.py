"""Nearest exemplar mean: a sample belongs to the class whose remembered samples have the nearest mean of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Tree, tree_map, tree_rows
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.models.heads import MASKED
from holdfast.operations._parts.draws import memory_of
from holdfast.operations.remember_exemplars import ROWS, features_of


class NearestExemplarMean(Operation):
    r"""In evaluation the outputs are minus the squared distances to the class means of the memory's features.

    $$ z_y(x) = - \lVert \varphi(x) - \mu_y \rVert_2^2, \qquad
       \mu_y \propto \frac{1}{|P_y|} \sum_{p \in P_y} \varphi(p), \qquad
       \lVert \varphi \rVert = \lVert \mu_y \rVert = 1 $$

    The features phi are what enters the head, of today's model: the means are measured again after every step that
    is followed by an evaluation. Classes of which nothing is remembered are never predicted; while the memory is
    empty the model's own outputs stay. Any memory of class labels will do.

    Source: Rebuffi et al. 2017, "iCaRL: incremental classifier and representation learning", eq. 2 and algorithm 1.

    Example:
        >>> NearestExemplarMean().role
        'bias mitigation'
    """

    draws = True
    role = "bias mitigation"
    needs = frozenset({"classes"})
    scratch = ("_means",)

    def __init__(self) -> None:
        super().__init__()
        self._means: tuple[Tensor, Tensor] | None = None

    def observe(self, step: Step, learner: Services) -> None:
        """Forget the means: the model is about to move."""
        self._means = None

    def end(self, experience: Any, learner: Services) -> None:
        """Forget the means: the memory may have changed."""
        self._means = None

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """Minus the squared distance to each class mean, `[rows, outputs]`."""
        if learner.memory is None or not len(learner.memory):
            return outputs
        if self._means is None:
            self._means = self._measure(outputs.shape[1], learner)
        means, has_mean = self._means
        features = F.normalize(features_of(inputs, learner).float(), dim=1)
        distance = 2 - 2 * features @ means.T  # of vectors of norm 1
        return torch.where(has_mean, -distance, MASKED)

    def _measure(self, width: int, learner: Services) -> tuple[Tensor, Tensor]:
        """Class means of norm 1, `[outputs, features]`, and which classes have one."""
        rows = memory_of(learner, self.name).all()
        labels = cast(Tensor, rows["targets"])
        index = torch.arange(tree_rows(rows["inputs"]), device=labels.device)
        features = torch.cat(
            [
                features_of(tree_map(lambda leaf: leaf.index_select(0, part), rows["inputs"]), learner)  # noqa: B023
                for part in index.split(ROWS)
            ]
        )
        belongs = F.one_hot(labels, width).to(torch.float32)
        means = F.normalize(belongs.T @ F.normalize(features.float(), dim=1), dim=1)
        return means, belongs.any(0)

    def load(self, values: Mapping[str, Any]) -> None:
        """Forget the means."""
        super().load(values)
        self._means = None
