"""Path penalty: parameters that lowered the loss on their way are pulled back to where they arrived."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term
from holdfast.core.ranges import Positive, Strength
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.operations._parts.quadratic import Stiffness, quadratic


class PathPenalty(Operation):
    r"""A quadratic penalty weighted by each parameter's contribution to the fall of the loss along its path.

    $$ \omega_i \leftarrow \omega_i - g_i \, \Delta\theta_i \;\text{(every step)}, \qquad
       \Omega_i \leftarrow \Omega_i + \frac{\omega_i}{(\theta_i - \theta_i^{\text{start}})^2 + \xi}, \qquad
       L = L(x, y) + c \sum_i \Omega_i (\theta_i - \theta^*_i)^2 $$

    Args:
        strength: the paper's c.
        damping: the paper's xi.
        limit: the largest importance that a parameter can have; None leaves it free.
        head: whether the head is pulled back too.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD
            (`Stiffness`): a large strength then holds parameters fast, where it would make training diverge.

    Source: Zenke, Poole and Ganguli 2017, "Continual learning through synaptic intelligence", eq. 3 to 5.
    Differences: g is the gradient the optimiser uses, so it includes the penalty's own part and clipping, as in
    van de Ven et al. 2022; the paper speaks of the loss without the penalty. With a limit, importance is never
    negative either (Maltoni and Lomonaco 2019, section 3.3).
    """

    asks = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries", "update"})
    state = ("contribution", "importance", "anchor", "before")
    scratch = ("_stiffness",)

    def __init__(
        self,
        strength: Strength = 1.0,
        damping: Positive = 0.1,
        limit: Positive | None = None,
        head: bool = True,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.damping = damping
        self.limit = limit
        self.head = head
        self.bounded = bounded
        self._stiffness = Stiffness(2 * strength, bounded)
        self.contribution: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Strength times the weighted squared distance, once something was consolidated."""
        if not self.importance:
            return None
        return quadratic(learner, self._stiffness.of(learner, self.importance), self.anchor), self.strength

    def observe(self, step: Step, learner: Services) -> None:
        """Note where the parameters are before the optimiser moves."""
        parameters = self._watched(learner)
        if not parameters:
            return
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name not in self.before:
                    self.before[name] = parameter.detach().clone()
                    self.contribution[name] = torch.zeros_like(parameter)
                    if name not in self.anchor:
                        self.anchor[name] = parameter.detach().clone()
            torch._foreach_copy_([self.before[name] for name in parameters], [p.detach() for p in parameters.values()])

    def update(self, step: Step, learner: Services) -> None:
        """Add each parameter's part in the change of the loss."""
        watched = [(name, p) for name, p in self._watched(learner).items() if p.grad is not None]
        if not watched:  # another operation let no parameter move
            return
        back = [self.before[name] for name, _ in watched]
        with torch.no_grad():
            # One call for all parameters, as torch's optimisers do: a call each costs more than the arithmetic.
            torch._foreach_sub_(back, [p.detach() for _, p in watched])  # minus the move
            contributions = [self.contribution[name] for name, _ in watched]
            grads = [p.grad.to_dense() if p.grad.is_sparse else p.grad for _, p in watched]  # type: ignore[union-attr]
            torch._foreach_addcmul_(contributions, grads, back)  # type: ignore[arg-type]

    def end(self, experience: Experience, learner: Services) -> None:
        """Turn contributions into importance and move the anchor."""
        self._stiffness.forget()
        with torch.no_grad():
            for name, parameter in self._watched(learner).items():
                if name not in self.contribution:
                    continue
                moved = parameter.detach() - self.anchor[name]
                added = self.contribution[name] / (moved.square() + self.damping)
                before = self.importance.get(name)
                total = added if before is None else before + added
                self.importance[name] = total if self.limit is None else total.clamp(0, self.limit)
                self.anchor[name] = parameter.detach().clone()
                self.contribution[name].zero_()

    def _watched(self, learner: Services) -> dict[str, nn.Parameter]:
        """The trainable parameters that the penalty speaks of."""
        if self.head or learner.head is None:
            return learner.named_parameters()
        apart = {id(parameter) for parameter in learner.head.parameters()}
        return {name: p for name, p in learner.named_parameters().items() if id(p) not in apart}
