"""Complementary memories: two running averages of the model, a fast and a slow one, hold replay to what was known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Tree
from holdfast.core.forward import running_task
from holdfast.core.operation import Term
from holdfast.core.ranges import BelowOne, Count, NonNegative, UpToOne
from holdfast.core.services import Services
from holdfast.core.snapshot import Twin
from holdfast.core.step import Step
from holdfast.operations._parts.draws import Draws, mix
from holdfast.operations._parts.rows import loss_of, row_losses


class ComplementaryMemories(Draws):
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
    state = (*Draws.state, "plastic", "stable", "steps")

    def __init__(
        self,
        size: Count = 32,
        weight: NonNegative = 0.15,
        plastic_decay: BelowOne = 0.999,
        plastic_rate: UpToOne = 0.9,
        stable_decay: BelowOne = 0.999,
        stable_rate: UpToOne = 0.7,
        predict_stable: bool = True,
    ) -> None:
        super().__init__(size)
        self.weight = weight
        self.plastic_decay = plastic_decay
        self.plastic_rate = plastic_rate
        self.stable_decay = stable_decay
        self.stable_rate = stable_rate
        self.predict_stable = predict_stable
        self.plastic: Twin | None = None
        self.stable: Twin | None = None
        self.steps = 0

    def setup(self, learner: Services) -> None:
        """Take generators for the draws and for the choice of updates, and make the averages."""
        self.plastic, self.stable = learner.twin(), learner.twin()
        super().setup(learner)
        learner.rng(f"update/{self.name}")

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Replay and consistency on one draw from the memory, in one forward."""
        rows = self.drawn(learner)
        if rows is None:
            return None
        outputs = learner(rows["inputs"], rows.get("task"))
        labels = loss_of(learner, outputs, rows["targets"])
        term, share = mix(labels, step, learner, "rows", 1.0, rows["targets"].shape[0])  # type: ignore[misc]
        total = share * term
        if self.stable is not None and self.stable.started:
            total = total + self.weight * F.mse_loss(outputs, self.consensus(rows, learner))
        return total

    def consensus(self, rows: dict[str, Tensor], learner: Services) -> Tensor:
        """For each row the outputs of that averaged model which has the smaller loss on it, `[rows, outputs]`."""
        assert self.plastic is not None and self.stable is not None
        plastic, stable = (twin(rows["inputs"], rows.get("task")) for twin in (self.plastic, self.stable))
        losses = [row_losses(learner.criterion, outputs, rows["targets"]) for outputs in (plastic, stable)]
        better = (losses[0] < losses[1]).view(-1, *[1] * (plastic.dim() - 1))
        return torch.where(better, plastic, stable)

    def update(self, step: Step, learner: Services) -> None:
        """Move each average towards the model, as often as its rate says."""
        assert self.plastic is not None and self.stable is not None
        due = learner.decide(lambda: self._due(learner))
        for twin, limit, now in ((self.plastic, self.plastic_decay, due[0]), (self.stable, self.stable_decay, due[1])):
            if now:
                twin.average(learner.decide(lambda limit=limit: 1 - min(1 - 1 / self.steps, limit), learner.device))  # type: ignore[misc]

    def _due(self, learner: Services) -> tuple[bool, bool]:
        """Which of the two averages moves at this step; counts the step."""
        draws = torch.rand(2, generator=learner.rng(f"update/{self.name}")).tolist()
        first = self.steps == 0  # both become the model
        self.steps += 1
        return first or draws[0] < self.plastic_rate, first or draws[1] < self.stable_rate

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The stable model's outputs, once there is one."""
        if not self.predict_stable or self.stable is None or not self.stable.started:
            return outputs
        return self.stable(inputs, running_task())
