"""Asymmetric cross-entropy: what arrives competes only among its own classes, so that old ones are not pushed away."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.criteria import ignored_label
from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term, require
from holdfast.core.services import ROOM, Services
from holdfast.core.step import Step
from holdfast.operations._parts.rows import by_position, require_outputs

Among = Literal["batch", "experience"]


class AsymmetricCrossEntropy(Operation):
    r"""Cross-entropy of the current rows over the classes of the current rows alone, instead of the default loss.

    $$ L(x, y) = - \frac{1}{n} \sum_{i=1}^{n} \log \frac{\exp z_{i, y_i}}{\sum_{c \in C} \exp z_{i, c}},
       \qquad C = \{ y_1, \dots, y_n \} $$

    Where a class stands at each position (segmentation, language models), the rows here are the positions. The outputs
    of all other classes get no gradient from the current rows; they move by replay only, whose softmax
    runs over all classes. The loss that the loop computed enters the total with factor 0, and this one with the
    factor that the loop's had: after `Replay(average=...)` the two are averaged as they were. So it works in the
    reader's own loop too, which needs no change; there the loss passed to `backward` is not used.

    Args:
        among: C: the classes of the current `batch`, as in the paper, or of the current `experience`.

    Raises:
        ConfigError: with `among="experience"`, at an experience that does not say which classes it has.

    Source: Caccia et al. 2022, "New insights on reducing abrupt representation change in online continual
    learning", eq. 3, the part of the incoming data.
    Differences: in effect from the first step, as in the equation; the authors' code begins with the second task
    and leaves outputs of classes not seen yet unmasked.

    Example:
        >>> AsymmetricCrossEntropy()
        AsymmetricCrossEntropy(among='batch')
    """

    positions = True
    asks = "loss"
    role = "knowledge retention"
    needs = frozenset({"classes"})
    state = ("current",)
    scratch = ("_mask",)

    def __init__(self, among: Among = "batch") -> None:
        super().__init__()
        self.among = among
        if among == "experience":
            self.needs = self.needs | {"boundaries"}
        self.current: list[int] = []
        self._mask: Tensor | None = None

    def begin(self, experience: Experience, learner: Services) -> None:
        """Note the experience's classes, if C is those."""
        if self.among == "experience":
            require(
                bool(experience.classes),
                "asymmetric_cross_entropy",
                "needs the classes of each experience, and this one names none. Give them to begin(), or use"
                " among='batch'.",
            )
            self.current = list(experience.classes)
        self._mask = None

    def loss(self, step: Step, learner: Services) -> Term:
        """The masked cross-entropy, with the factor that the current loss had."""
        outputs, targets = by_position(learner.criterion, require_outputs(step), step.targets)
        masked = outputs.masked_fill(self._absent(outputs, targets), -torch.inf)
        factor, step.weight = step.weight, 0.0
        return F.cross_entropy(masked, targets, ignore_index=ignored_label(learner.criterion)), factor

    def _absent(self, outputs: Tensor, targets: Tensor) -> Tensor:
        width = outputs.shape[1]
        if self.among == "batch":  # labels that count for nothing leave their mark behind the classes
            room = torch.ones(width + ROOM, dtype=torch.bool, device=outputs.device).index_fill_(0, targets, False)
            return room[:width]
        if self._mask is None or self._mask.shape[0] != width:
            self._mask = torch.ones(width, dtype=torch.bool, device=outputs.device)
            self._mask[self.current] = False
        return self._mask
