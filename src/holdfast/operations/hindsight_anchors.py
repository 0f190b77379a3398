"""Hindsight anchors: points that would be forgotten most, on which a step may hardly change the model's answers."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.experience import Experience, Tree
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Operation, require
from holdfast.core.ranges import BelowOne, Count, NonNegative, Positive
from holdfast.core.services import Services
from holdfast.core.snapshot import Twin
from holdfast.core.step import Step
from holdfast.operations._parts.draws import memory_of
from holdfast.operations._parts.rows import HALF, row_losses, take
from holdfast.operations.lookahead import descend


class HindsightAnchors(Operation):
    r"""Predictions on one learned point for each class and past experience are held to what a step would leave of them.

    In each step, with the replayed samples that another operation joins to the batch,

    $$ \tilde\theta = \theta - \alpha \nabla_\theta \ell(B \cup B_M), \qquad
       \theta \leftarrow \theta - \alpha \nabla_\theta \Big( \ell(B \cup B_M)
       + \lambda \, \frac{1}{A C} \sum_{a=1}^{A} \lVert f_\theta(e_a) - f_{\tilde\theta}(e_a) \rVert_2^2 \Big) $$

    with the second gradient at the same weights and the first step's answers as constants. When an experience ends, the
    model is fine-tuned on the memory into a second one, M, which has forgotten some of the experience, and for each of
    its classes a point is moved to where that forgetting is largest, near the mean features of the experience:

    $$ e = \arg\max_e \; \ell(f_{\theta_M}(e), y) - \ell(f_\theta(e), y) - \gamma \, \lVert \phi(e) - \bar\phi
       \rVert_2^2, \qquad \bar\phi \leftarrow \beta \bar\phi + (1 - \beta) \, \text{mean of } \phi(B) $$

    It draws from the memory itself when an experience ends only; replay is another operation's (`JoinedReplay`).

    Args:
        weight: lambda.
        decay: beta, of the running mean of features, which starts at zero with each experience.
        closeness: gamma, how strongly an anchor's features are held to that mean.
        steps: of gradient ascent that move an anchor.
        epochs: passes over the memory that make M.
        size: samples of each of their steps.
        rate: learning rate of the virtual step, of the fine-tuning and of the ascent; default: the optimiser's, or 0.1
            where the loop has none.

    Raises:
        ConfigError: inputs that are not one tensor.

    Source: Chaudhry et al. 2021, "Using hindsight to anchor past knowledge in continual learning", section 3 and
    algorithm 1.
    Differences: the squared distance is a mean over anchors and outputs, as Buzzega et al. 2020 have it; steps of plain
    gradient descent whatever the optimiser; answers on anchors, and features, in eval mode. Anchors lie in the space of
    raw inputs and start uniform in 0..1, which suits images.

    Example:
        >>> HindsightAnchors(weight=0.1).steps
        100
    """

    asks = "loss"
    draws = True
    role = "knowledge retention"
    alone = "makes anchors at the end of an experience, from random points"
    needs = frozenset({"boundaries", "data", "classes", "update"})
    state = ("anchors", "tasks", "mean")
    scratch = ("_twin",)
    check_arguments = {"steps": 3}

    def __init__(
        self,
        weight: NonNegative = 0.1,
        decay: BelowOne = 0.5,
        closeness: NonNegative = 0.1,
        steps: Count = 100,
        epochs: Count = 1,
        size: Count = 128,
        rate: Positive | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.decay = decay
        self.closeness = closeness
        self.steps = steps
        self.epochs = epochs
        self.size = size
        self.rate = rate
        self.anchors: Tensor | None = None
        self.tasks: Tensor | None = None
        self.mean: Tensor | None = None
        self._twin: Twin | None = None

    def setup(self, learner: Services) -> None:
        """Take a model for the virtual step, and generators for the anchors."""
        self._twin = learner.twin()
        learner.rng(f"anchors/{self.name}")

    def begin(self, experience: Experience, learner: Services) -> None:
        """Start the mean of features anew."""
        self.mean = None

    def gradient(self, step: Step, learner: Services) -> None:
        """Add the gradient of the anchors' term: the gradient that is there is that of the virtual step."""
        if self.anchors is None or self.weight == 0:
            return
        assert self._twin is not None
        gradients, rate = learner.gradients(), learner.decide(lambda: self._rate(learner))
        names = list(learner.named_parameters())
        self._twin.copy_from(learner.model.state_dict())
        descend([self._twin.values[name] for name in names], gradients, rate)
        ahead = self._twin(self.anchors, self.tasks)
        with eval_mode(learner.model):
            term = (_full(learner(self.anchors, self.tasks)) - _full(ahead)).square().mean()
        learner.log(self.name, term, self.weight)
        torch._foreach_add_(gradients, learner.grad(term), alpha=self.weight)

    def update(self, step: Step, learner: Services) -> None:
        """Move the mean of features towards that of the batch."""
        with eval_mode(learner.model), torch.no_grad():
            batch = (1 - self.decay) * _full(_features(step.inputs, step.task, learner)).mean(0)
        self.mean = batch if self.mean is None else self.decay * self.mean + batch

    def end(self, experience: Experience, learner: Services) -> None:
        """Make an anchor of each class of the experience."""
        memory = memory_of(learner, self.name)
        if not len(experience.train) or not len(memory) or self.mean is None:
            return
        inputs = experience.train.gather(torch.zeros(1, dtype=torch.int64)).inputs
        require(
            isinstance(inputs, Tensor),
            "hindsight_anchors",
            "makes points of the inputs' shape, and these inputs are several tensors. Choose er or der_plus_plus.",
        )
        assert isinstance(inputs, Tensor)
        labels = torch.unique(experience.train.targets).to(learner.device)
        made = self._made(inputs, labels, learner)
        task = torch.full((len(labels),), -1 if learner.task is None else learner.task, device=learner.device)
        self.anchors = made if self.anchors is None else torch.cat([self.anchors, made])
        if learner.task is not None:
            self.tasks = task if self.tasks is None else torch.cat([self.tasks, task])

    def _made(self, like: Tensor, labels: Tensor, learner: Services) -> Tensor:
        """`[labels, ...]` points of the shape of an input, those of all labels moved at once."""
        assert self._twin is not None and self.mean is not None
        kind = like.dtype if like.is_floating_point() else torch.float32
        start = torch.rand(
            (len(labels), *like.shape[1:]), generator=learner.rng(f"anchors/{self.name}"), dtype=torch.float64
        )
        points = start.to(device=learner.device, dtype=kind)
        self._fine_tune(self._twin, learner)
        rate = self._rate(learner)
        with eval_mode(learner.model), torch.enable_grad():
            for _ in range(self.steps):
                points = points.detach().requires_grad_()
                losses = row_losses(learner.criterion, learner(points), labels)
                forgotten = row_losses(learner.criterion, learner.forward(points, None, self._twin.module), labels)
                apart = (_features(points, learner.task, learner) - self.mean).square().sum()
                total = (losses - forgotten).sum() + self.closeness * apart
                (gradient,) = torch.autograd.grad(total, [points])
                points = points - rate * gradient
        return points.detach()

    def _fine_tune(self, twin: Twin, learner: Services) -> None:
        """Make the second model: this one after `epochs` over the memory, in eval mode."""
        memory, rate = memory_of(learner, self.name), self._rate(learner)
        rows = memory.all()
        count = len(memory)
        twin.copy_from(learner.model.state_dict())
        named = dict(twin.module.named_parameters())
        values = [named[name] for name in learner.named_parameters()]
        generator = learner.rng(f"anchors/{self.name}")
        for value in values:
            value.requires_grad_()
        for _ in range(self.epochs):
            for chosen in torch.randperm(count, generator=generator).split(self.size):
                some = take(rows, chosen.to(learner.device))
                with torch.enable_grad():
                    outputs = learner.forward(some["inputs"], some.get("task"), twin.module)  # type: ignore[arg-type]
                    loss = learner.criterion(outputs, some["targets"])  # type: ignore[arg-type]
                    gradients = torch.autograd.grad(loss, values, allow_unused=True)
                with torch.no_grad():
                    for value, gradient in zip(values, gradients):
                        if gradient is not None:
                            value.sub_(gradient, alpha=rate)
        for value in values:
            value.requires_grad_(False)

    def _rate(self, learner: Services) -> float:
        if self.rate is not None:
            return self.rate
        rate = learner.trainable.rate
        return 0.1 if rate is None else rate


def _features(inputs: Tree, task: int | Tensor | None, learner: Services) -> Tensor:
    return learner.features(inputs, task).flatten(1)


def _full(values: Tensor) -> Tensor:
    """Values that autocast may have made of half precision, in full."""
    return values.float() if values.dtype in HALF else values
