"""Complementary memories: two running averages of the model, a fast and a slow one, hold replay to what was known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Tree
from holdfast.core.learner import Learner, Snapshot
from holdfast.core.operation import Operation, Term, require
from holdfast.core.step import Step
from holdfast.memory import Uniform
from holdfast.operations.mixing import mix
from holdfast.operations.rows import row_losses
from holdfast.operations.twin import Twin


class ComplementaryMemories(Operation):
    r"""Replay with a consistency loss to the better of two averaged models; the slow one answers in evaluation.

    $$ L = \frac{1}{n + m} \Big( \sum_i \ell(x_i, y_i) + \sum_j \ell(x'_j, y'_j) \Big)
           + \lambda \, \lVert f_{\theta}(x') - z' \rVert_2^2 / C, \qquad
       z'_j = \begin{cases} f_{\theta_P}(x'_j) & \text{if } \ell(f_{\theta_P}(x'_j), y'_j)
       < \ell(f_{\theta_S}(x'_j), y'_j) \\
              f_{\theta_S}(x'_j) & \text{otherwise} \end{cases} $$
    $$ \theta_P \leftarrow \alpha_P \theta_P + (1 - \alpha_P) \theta \text{ with probability } r_P, \qquad
       \theta_S \leftarrow \alpha_S \theta_S + (1 - \alpha_S) \theta \text{ with probability } r_S $$

    P is the plastic, S the stable model; under cross-entropy the smaller loss is the larger probability of the label,
    as the paper writes it. The decay in step t is min(1 - 1 / (t + 1), alpha), so that both start as the model itself.
    Needs a memory (`Remember`).

    Args:
        size: samples drawn from the memory per step.
        weight: the paper's lambda.
        plastic_decay: the paper's alpha_P.
        plastic_rate: the paper's r_P, how often the plastic model is updated.
        stable_decay: the paper's alpha_S, usually at least alpha_P.
        stable_rate: the paper's r_S, lower than r_P.
        predict_stable: whether the stable model's outputs stand for the model's in evaluation.

    Raises:
        ConfigError: a size that is not positive, a decay outside [0, 1), a rate outside (0, 1].

    Source: Arani, Sarfraz and Zonooz 2022, "Learning fast, learning slow: a general continual learning method based
    on complementary learning system", eq. 1 to 4 and algorithm 1.
    Differences: the mean over outputs in the squared distance, as in the authors' code; the averaged models run in
    eval mode, with BatchNorm statistics averaged like parameters. Today's outputs that the averages lack (a head
    that grew) start from the model's own values.

    Example:
        >>> ComplementaryMemories(size=10).stable_decay
        0.999
    """

    role = "knowledge retention"
    needs = frozenset({"update"})
    state = ("retrieval", "plastic", "stable", "steps")

    def __init__(
        self,
        size: int = 32,
        weight: float = 0.15,
        plastic_decay: float = 0.999,
        plastic_rate: float = 0.9,
        stable_decay: float = 0.999,
        stable_rate: float = 0.7,
        predict_stable: bool = True,
    ) -> None:
        super().__init__()
        require(size > 0, "complementary_memories", f"got size={size}. Give the number of samples to draw per step.")
        for name, decay in (("plastic_decay", plastic_decay), ("stable_decay", stable_decay)):
            require(
                0 <= decay < 1,
                "complementary_memories",
                f"got {name}={decay}. Give a number from 0 up to, but below, 1.",
            )
        for name, rate in (("plastic_rate", plastic_rate), ("stable_rate", stable_rate)):
            require(0 < rate <= 1, "complementary_memories", f"got {name}={rate}. Give a probability above 0.")
        self.size = size
        self.weight = weight
        self.plastic_decay = plastic_decay
        self.plastic_rate = plastic_rate
        self.stable_decay = stable_decay
        self.stable_rate = stable_rate
        self.predict_stable = predict_stable
        self.retrieval: Uniform | None = None
        self.plastic: Snapshot = {}
        self.stable: Snapshot = {}
        self.steps = 0
        self._twins: dict[str, Twin] = {}

    def setup(self, learner: Learner) -> None:
        """Take generators for the draws and for the choice of updates."""
        self.retrieval = Uniform(learner.rng(f"draw/{self.name}"))
        learner.rng(f"update/{self.name}")

    def loss(self, step: Step, learner: Learner) -> Term | None:
        """Replay and consistency on one draw from the memory, in one forward."""
        rows = learner.memory.draw(learner.share(self.size), self.retrieval)
        if rows is None:
            return None
        outputs = learner(rows["inputs"], rows.get("task"))
        labels = learner.criterion(outputs, rows["targets"])
        term, share = mix(labels, step, learner, "rows", 1.0, rows["targets"].shape[0])  # type: ignore[misc]
        total = share * term
        if self.stable:
            total = total + self.weight * F.mse_loss(outputs, self.consensus(rows, learner))
        return total

    def consensus(self, rows: dict[str, Tensor], learner: Learner) -> Tensor:
        """For each row the outputs of that averaged model which has the smaller loss on it, `[rows, outputs]`."""
        plastic, stable = (
            self._twin(which, learner)(rows["inputs"], rows.get("task")) for which in ("plastic", "stable")
        )
        losses = [row_losses(learner.criterion, outputs, rows["targets"]) for outputs in (plastic, stable)]
        better = (losses[0] < losses[1]).view(-1, *[1] * (plastic.dim() - 1))
        return torch.where(better, plastic, stable)

    def update(self, step: Step, learner: Learner) -> None:
        """Move each average towards the model, as often as its rate says."""
        draws = torch.rand(2, generator=learner.rng(f"update/{self.name}")).tolist()
        if not self.stable:  # the first step: both become the model
            draws = [0.0, 0.0]
        live = learner.model.state_dict()
        for which, rate, limit, draw in (
            ("plastic", self.plastic_rate, self.plastic_decay, draws[0]),
            ("stable", self.stable_rate, self.stable_decay, draws[1]),
        ):
            if draw < rate:
                self._average(self._twin(which, learner).values, live, min(1 - 1 / (self.steps + 1), limit))
        self.steps += 1

    def _average(self, values: Snapshot, live: Snapshot, decay: float) -> None:
        floats = [name for name, value in values.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([values[name] for name in floats], [live[name] for name in floats], 1 - decay)
            for name in values.keys() - set(floats):
                values[name].copy_(live[name])

    def _twin(self, which: str, learner: Learner) -> Twin:
        """The averaged model; its values are the state."""
        twin = self._twins.get(which)
        if twin is None or twin.stale():
            twin = Twin(learner)
            twin.copy_from({name: value for name, value in getattr(self, which).items() if value.is_floating_point()})
            self._twins[which] = twin
            setattr(self, which, twin.values)
        return twin

    def predict(self, outputs: Tensor, inputs: Tree, learner: Learner) -> Tensor:
        """The stable model's outputs, once there is one."""
        if not self.predict_stable or not self.stable:
            return outputs
        task = learner.head.task if learner.multi_head else None  # type: ignore[union-attr]
        return self._twin("stable", learner)(inputs, task)  # type: ignore[arg-type]

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore what `save` returned; the models that hold the averages are made again."""
        super().load(values)
        self._twins = {}
