"""Binary distillation: one yes-or-no question per class; old classes are answered as before, new ones by the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience, Tree
from holdfast.core.operation import Operation
from holdfast.core.ranges import Positive
from holdfast.core.services import Services
from holdfast.core.snapshot import Snapshot


class BinaryDistillation(Operation):
    r"""Binary cross-entropy of each class's sigmoid output: with labels for new classes, the old model for old ones.

    $$ L = - \frac{1}{n} \sum_i \Big[ \sum_{y \in \text{new}} \delta_{y = y_i} \log g_y(x_i)
           + \delta_{y \ne y_i} \log (1 - g_y(x_i))
           + \sum_{y \in \text{old}} q_i^y \log g_y(x_i) + (1 - q_i^y) \log (1 - g_y(x_i)) \Big] $$

    g are sigmoid outputs, q those of the model before this experience. It stands instead of the loop's criterion,
    and runs over the classes seen so far: outputs of classes yet to come are left alone.

    Args:
        temperature: the old model's logits are divided by it before the sigmoid; 1 in the paper, 2 in the code of
            van de Ven et al. 2022.

    Raises:
        ConfigError: a temperature that is not positive.

    Source: Rebuffi et al. 2017, "iCaRL: incremental classifier and representation learning", algorithm 3.

    Example:
        >>> sorted(BinaryDistillation().needs)
        ['boundaries', 'classes', 'criterion']
    """

    role = "knowledge retention"
    needs = frozenset({"criterion", "boundaries", "classes"})
    state = ("teacher", "old", "active")
    scratch = ("_columns",)

    def __init__(self, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.teacher: Snapshot | None = None
        self.old: list[int] = []
        self.active: list[int] = []
        self._columns: tuple[Tensor, Tensor] | None = None

    def begin(self, experience: Experience, learner: Services) -> None:
        """Take the teacher, and note which classes are old, before the head grows."""
        if learner.experience >= 0:
            self.teacher = learner.snapshot()
        self.old = sorted({label for members in learner.members for label in members})
        self.active = sorted({*self.old, *experience.classes})
        self._columns = None

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The sum over classes of the binary cross-entropies, averaged over rows."""
        if self._columns is None:
            old = torch.tensor(self.old, dtype=torch.int64, device=outputs.device)
            self._columns = old, torch.tensor(self.active, dtype=torch.int64, device=outputs.device)
        old, active = self._columns
        wanted = torch.zeros_like(outputs).scatter_(1, targets.unsqueeze(1), 1.0)
        if self.teacher is not None and len(old):
            taught = (self.teacher(inputs) / self.temperature).sigmoid()
            wanted = wanted.index_copy(1, old, taught.index_select(1, old).to(wanted.dtype))
        outputs, wanted = outputs.index_select(1, active), wanted.index_select(1, active)
        return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").sum(1).mean()

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore what `save` returned."""
        super().load(values)
        self._columns = None
