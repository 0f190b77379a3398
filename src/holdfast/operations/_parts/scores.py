"""Classifiers in closed form: features without a graph, one pass over them, and scores in place of outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Experience, Tree, tree_map
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Operation
from holdfast.core.ranges import Size
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

    Raises:
        ConfigError: inputs of several tensors have no such vectors.
    """
    if space == "inputs":
        prepared = inputs if learner.prepare is None else learner.prepare(inputs, False, None)
        if not isinstance(prepared, Tensor):
            raise ConfigError(
                f'space="inputs" classifies vectors, and these inputs are a {type(prepared).__name__} of several'
                ' tensors. Write space="features".'
            )
        return prepared.flatten(1).float()
    with eval_mode(learner.model), torch.no_grad():
        return learner.features(inputs).detach().flatten(1).float()


def as_outputs(scores: Tensor, learned: Tensor, outputs: Tensor) -> Tensor:
    """Scores as outputs of the model: classes not learned yet, and those masked for a row's task, rank last.

    Args:
        scores: `[rows, classes]`, the higher the likelier.
        learned: `[classes]` bool, which of them were seen.
        outputs: `[rows, width]` the model's own, kept where no class is known.

    Returns:
        `[rows, width]`.
    """
    width = outputs.shape[1]
    missing = max(0, width - scores.shape[1])
    scores = torch.nn.functional.pad(scores, (0, missing))[:, :width].to(outputs.dtype)
    learned = torch.nn.functional.pad(learned, (0, missing))[:width] & (outputs != MASKED)
    lowest = scores.masked_fill(~learned, torch.inf).amin(1, keepdim=True)
    return torch.where(learned.any(1, keepdim=True), torch.where(learned, scores, lowest - 1), outputs)


class ClosedFormClassifier(Operation):
    """Learns from one pass over each experience's data, and predicts in place of the head.

    The network is trained in the first `adapt` experiences only (None: in all of them). Afterwards it is frozen: the
    pass is made as the experience begins, and the loop gets no data to train on.

    Args:
        space: work on `features` (what enters the head) or on the prepared `inputs`.
        adapt: experiences that the network is trained in; None for all.
    """

    role = "knowledge incorporation"
    needs = frozenset({"boundaries", "data", "replacement", "classes"})

    def __init__(self, space: Space, adapt: Size | None) -> None:
        super().__init__()
        self.space = space
        self.adapt = adapt
        if adapt is None:
            self.needs = self.needs - {"replacement"}

    @abstractmethod
    def absorb(self, x: Tensor, targets: Tensor, classes: int) -> None:
        """Add rows to what is known.

        Args:
            x: `[rows, features]`.
            targets: `[rows]`.
            classes: number of classes there are, at least.
        """

    def solve(self, learner: Services) -> None:
        """After an experience's rows were absorbed: compute what prediction needs."""

    @abstractmethod
    def scores(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scores `[rows, classes]` of `x` and which classes are known, or None before anything is."""

    def begin(self, experience: Experience, learner: Services) -> Data | None:
        """Once the network is frozen: learn now, and leave the loop nothing to train on."""
        if self.adapt is None or experience.index < self.adapt:
            return None
        self._pass(experience.train, learner)
        return experience.train.subset(torch.arange(0))

    def end(self, experience: Experience, learner: Services) -> None:
        """While the network is trained: learn from the features it gives now."""
        if self.adapt is None or experience.index < self.adapt:
            self._pass(experience.train, learner)

    def _pass(self, data: Data, learner: Services) -> None:
        if len(data) == 0:
            return
        classes = int(data.targets.max()) + 1
        with torch.no_grad():
            for batch in data.batches(torch.arange(len(data)), 256):
                inputs = tree_map(lambda leaf: leaf.to(learner.device), batch.inputs)
                self.absorb(vectors(learner, inputs, self.space), batch.targets.to(learner.device), classes)
            self.solve(learner)

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The scores in place of the outputs."""
        scored = self.scores(vectors(learner, inputs, self.space))
        return outputs if scored is None else as_outputs(*scored, outputs)
