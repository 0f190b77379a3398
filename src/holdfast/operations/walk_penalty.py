"""Walk penalty: a running Fisher diagonal, and what each parameter did for the loss per distance in distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term
from holdfast.core.ranges import BelowOne, Count, Positive, Strength
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.quadratic import Stiffness, quadratic
from holdfast.operations._parts.rows import row_count


class WalkPenalty(Operation):
    r"""A quadratic penalty weighted by a running Fisher diagonal and a score along the path of training.

    $$ L = L(x, y) + \lambda \sum_i (\bar F_i + \bar s_i) (\theta_i - \theta^*_i)^2, \qquad
       F_i \leftarrow \gamma F_i + (1 - \gamma) \, n \, g_i^2, $$
    $$ s_i \leftarrow s_i + \max\Big(0, \frac{- \sum_t g_i(t) \, \Delta\theta_i(t)}
       {\frac{1}{2} F_i \, (\theta_i(t + \Delta t) - \theta_i(t))^2 + \epsilon} \Big) \;\text{every } \Delta t \text{
       steps}$$

    The score is the fall of the loss that a parameter brought, over the distance (approximate Kullback-Leibler
    divergence) that it moved the model's distribution. The bars scale F and s by their largest entry, so that both are
    within 0 and 1. After the first experience the score is the mean of the old one and that of the experience.
    Nothing is measured at a boundary: no pass over data is needed.

    Args:
        strength: the paper's lambda.
        decay: gamma, which weighs the old Fisher diagonal (the paper's 1 - alpha).
        interval: the paper's Delta t, in steps.
        damping: the paper's epsilon.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD
            (`Stiffness`): a large strength then holds parameters fast, where it would make training diverge.

    Source: Chaudhry et al. 2018, "Riemannian walk for incremental learning: understanding forgetting and
    intransigence", section 4: 4.1 (running Fisher), 4.2 (score) and 4.3 (objective).
    Differences: F is the square of the batch's mean gradient g times the number of rows n, which stands for the mean
    of per-sample squares where the mean gradient is small; g is without the penalty's own part, as in the paper's code.

    Example:
        >>> WalkPenalty(strength=10.0).needs == {"boundaries", "update"}
        True
    """

    asks = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries", "update"})
    state = ("fisher", "fall", "start", "path", "score", "importance", "anchor", "count")
    scratch = ("_before", "_stiffness")

    def __init__(
        self,
        strength: Strength = 1.0,
        decay: BelowOne = 0.9,
        interval: Count = 10,
        damping: Positive = 1e-8,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.decay = decay
        self.interval = interval
        self.damping = damping
        self.bounded = bounded
        self._stiffness = Stiffness(2 * strength, bounded)
        self.fisher: dict[str, Tensor] = {}
        self.fall: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        self.path: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.count = 0
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Strength times the weighted squared distance, once something was consolidated."""
        if not self.importance:
            return None
        return quadratic(learner, self._stiffness.of(learner, self.importance), self.anchor), self.strength

    @torch.no_grad()
    def observe(self, step: Step, learner: Services) -> None:
        """Move the Fisher diagonal on, and note the gradient and where the parameters are."""
        rows, pulled = row_count(step, learner), self._stiffness.of(learner, self.importance)
        self._before = {}
        for name, parameter in learner.named_parameters().items():
            if parameter.grad is None:
                continue
            if name not in self.fisher:
                self._begin(name, parameter)
            gradient = parameter.grad.detach()
            gradient = gradient.to_dense() if gradient.is_sparse else gradient.clone()
            if name in self.importance:
                pull = pulled[name] * (parameter - self.anchor[name])
                gradient.sub_(pull, alpha=2 * self.strength)
            self.fisher[name].lerp_(gradient.square().mul_(rows), 1 - self.decay)
            self._before[name] = gradient, parameter.detach().clone()

    def _begin(self, name: str, parameter: nn.Parameter) -> None:
        """Start the books of a parameter that is seen for the first time."""
        for book in (self.fisher, self.fall, self.path):
            book[name] = torch.zeros_like(parameter)
        self.start[name] = parameter.detach().clone()

    @torch.no_grad()
    def update(self, step: Step, learner: Services) -> None:
        """Add each parameter's part in the fall of the loss; every `interval` steps, the score."""
        parameters = learner.named_parameters()
        for name, (gradient, before) in self._before.items():
            self.fall[name].addcmul_(gradient, parameters[name] - before, value=-1)
        self._before = {}
        if learner.decide(self._due):
            self._walk(parameters)

    def _due(self) -> bool:
        """Count the step; whether the score is brought up to date after it."""
        self.count += 1
        return self.count % self.interval == 0

    def _walk(self, parameters: dict[str, nn.Parameter]) -> None:
        for name, fall in self.fall.items():
            if name not in parameters:  # frozen since
                continue
            moved = parameters[name] - self.start[name]
            distance = 0.5 * self.fisher[name] * moved.square() + self.damping
            self.path[name] += (fall / distance).clamp_(min=0)
            self.start[name].copy_(parameters[name])
            fall.zero_()

    @torch.no_grad()
    def end(self, experience: Experience, learner: Services) -> None:
        """Join Fisher diagonal and score into the importance, and move the anchor."""
        self._stiffness.forget()
        if not self.fisher:
            return
        parameters = learner.named_parameters()
        self._walk(parameters)
        for name, path in self.path.items():
            before = self.score.get(name)
            self.score[name] = path.clone() if before is None else (before + path) / 2
            path.zero_()
        fisher, score = _scaled(self.fisher), _scaled(self.score)
        self.importance = {name: fisher[name] + score[name] for name in fisher}
        self.anchor |= {name: parameters[name].detach().clone() for name in fisher if name in parameters}


def _scaled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """All values over the largest of them."""
    largest = torch.stack([value.max() for value in values.values()]).max()
    largest = largest.clamp(min=torch.finfo(largest.dtype).tiny)
    return {name: value / largest for name, value in values.items()}
