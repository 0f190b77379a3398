"""What classifiers in closed form share: features without a graph, and scores in place of outputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from holdfast.core.experience import Tree
from holdfast.core.inspect import eval_mode
from holdfast.core.services import Services
from holdfast.models.heads import MASKED

Space = Literal["features", "inputs"]
"""Where a classifier in closed form works: on what enters the head, or on the prepared inputs."""


def vectors(learner: Services, inputs: Tree, space: Space) -> Tensor:
    """One vector a row, `[rows, features]` floats, in eval mode and without a graph.

    Args:
        learner: the model, left in the mode it was in.
        inputs: raw inputs.
        space: `features` are what enters the head; `inputs` the prepared inputs, flattened.
    """
    if space == "inputs":
        prepared = inputs if learner.prepare is None else learner.prepare(inputs, False, None)
        assert isinstance(prepared, Tensor)
        return prepared.flatten(1).float()
    with eval_mode(learner.model), torch.no_grad():
        return learner.features(inputs).detach().flatten(1).float()


def as_outputs(scores: Tensor, known: Tensor, outputs: Tensor) -> Tensor:
    """Scores as outputs of the model: classes nobody knows yet, and those masked for a row's task, rank last.

    Args:
        scores: `[rows, classes]`, the higher the likelier.
        known: `[classes]` bool, which of them were seen.
        outputs: `[rows, width]` the model's own, kept where no class is known.

    Returns:
        `[rows, width]`.
    """
    width = outputs.shape[1]
    missing = max(0, width - scores.shape[1])
    scores = torch.nn.functional.pad(scores, (0, missing))[:, :width].to(outputs.dtype)
    known = torch.nn.functional.pad(known, (0, missing))[:width] & (outputs != MASKED)
    lowest = scores.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    return torch.where(known.any(1, keepdim=True), torch.where(known, scores, lowest - 1), outputs)
