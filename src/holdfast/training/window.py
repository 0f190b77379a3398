"""What is recorded of the training steps: kept as tensors on the device, read once a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.core.learner import Learner


class Window:
    """Losses and accuracy of the steps since the last reading.

    Args:
        learner: whose logged scalars are read.

    Attributes:
        steps: in the window.
        first: the largest loss, or term of a loss, of the very first step; None before the first reading.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self.steps = 0
        self.first: float | None = None

    def add(self, outputs: Tensor | None, targets: Tensor) -> None:
        """Keep one step's outputs and targets; nothing is computed yet."""
        if outputs is not None and outputs.dim() == 2 and not targets.is_floating_point():
            self._outputs.append(outputs.detach())
            self._targets.append(targets)
        self.steps += 1

    def read(self) -> dict[str, Any]:
        """Means over the window, as floats: `loss`, `accuracy` and `terms`; empties it."""
        terms = {name: _weighed_sum(values) / self.steps for name, values in self._learner.logged.items()}
        if self.first is None and self.steps:
            logged = [values[0][0] for values in self._learner.logged.values() if len(values) == self.steps]
            self.first = max((abs(float(value)) for value in logged), default=None)
        accuracy = None
        if self._outputs and len({output.shape[1] for output in self._outputs}) == 1:
            hits = torch.cat(self._outputs).argmax(1) == torch.cat(self._targets)
            accuracy = hits.float().mean().item()
        self._learner.logged.clear()
        self._outputs.clear()
        self._targets.clear()
        self.steps = 0
        return {"loss": terms.get("loss"), "accuracy": accuracy, "terms": terms}


def _weighed_sum(values: list[tuple[Tensor, float]]) -> float:
    tensors = torch.stack([value for value, _ in values]).double()
    return float(
        tensors.dot(torch.tensor([factor for _, factor in values], dtype=torch.float64, device=tensors.device))
    )
