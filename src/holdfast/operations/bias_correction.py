"""Bias correction (BiC): two numbers per experience set its classes' outputs right, fitted on held-out data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Data, Experience, Tree, tree_cat, tree_map
from holdfast.core.inspect import eval_mode
from holdfast.core.operation import Operation, require
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.models.heads import MASKED


class BiasCorrection(Operation):
    r"""Outputs of the classes of each experience after the first are mapped by two numbers of its own.

    $$ q_k = \begin{cases} o_k & k \text{ old} \\ \alpha \, o_k + \beta & k \text{ new} \end{cases}, \qquad
       (\alpha, \beta) = \arg\min \; - \sum_i \log \operatorname{softmax}(q(x_i))_{y_i} $$

    Of every class, `held_out` samples are kept from training, and with it from every memory: they are the balanced
    validation set that the two numbers are fitted on when the experience ends, with the network as it is. The numbers
    of
    earlier experiences stay. Predictions are corrected, training is not.

    Args:
        held_out: samples per class kept for the fit.

    Source: Wu et al. 2019, "Large scale incremental learning", eq. 4 and 5.
    Differences: the fit, convex in two unknowns, is solved by Newton's method instead of by gradient steps; a class
    keeps
    its held-out samples for ever, where the paper splits a shrinking exemplar memory 9 to 1 (10 percent of 2000
    exemplars for 100 classes are 2 a class).

    Example:
        >>> BiasCorrection(held_out=10).needs == {"boundaries", "replacement", "classes"}
        True
    """

    heads = frozenset({"fixed", "growing", "cosine", "cosine_learnable", "plain_cosine"})
    role = "bias mitigation"
    needs = frozenset({"boundaries", "replacement", "classes"})
    state = ("inputs", "targets", "scale", "shift")

    def __init__(self, held_out: Count = 20) -> None:
        super().__init__()
        self.held_out = held_out
        self.inputs: Tree | None = None
        self.targets: Tensor | None = None
        self.scale: Tensor | None = None
        self.shift: Tensor | None = None

    def setup(self, learner: Services) -> None:
        """Refuse a head per task."""
        require(not learner.multi_head, self.name, "weighs classes against another, which task heads do not. Drop it.")

    def begin(self, experience: Experience, learner: Services) -> Data:
        """Hold samples of each class out, and leave the rest to train on."""
        data = experience.train
        order = torch.randperm(len(data), generator=learner.rng(f"hold/{self.name}"))
        targets = data.targets[order]
        held_rows = []
        old_labels = set() if self.targets is None else set(self.targets.tolist())
        for label in sorted(set(targets.tolist()) - old_labels):
            rows = order[targets == label]
            held_rows.append(rows[: min(self.held_out, len(rows) // 2)])
        chosen = torch.cat(held_rows) if held_rows else order[:0]
        if len(chosen):
            batch = data.gather(chosen)
            inputs = tree_map(lambda leaf: leaf.to(learner.device), batch.inputs)
            labels = batch.targets.to(learner.device)
            self.inputs = inputs if self.inputs is None else tree_cat([self.inputs, inputs])
            self.targets = labels if self.targets is None else torch.cat([self.targets, labels])
        rest = torch.ones(len(data), dtype=torch.bool)
        rest[chosen] = False
        return data.subset(rest.nonzero().flatten())

    def end(self, experience: Experience, learner: Services) -> None:
        """Fit the two numbers of the experience's new classes."""
        old = {label for members in learner.members[:-1] for label in members}
        new = sorted(set(learner.members[-1]) - old)
        if self.inputs is None or self.targets is None:
            return
        outputs = self._outputs(learner)
        self.scale, self.shift = _padded(self.scale, outputs, 1.0), _padded(self.shift, outputs, 0.0)
        if not old or not new:
            return
        seen = sorted(old | set(new))
        position = torch.full((outputs.shape[1],), -1, device=outputs.device)
        position[seen] = torch.arange(len(seen), device=outputs.device)
        corrected = (outputs * self.scale + self.shift)[:, seen]
        is_new = torch.zeros(outputs.shape[1], dtype=torch.bool, device=outputs.device)
        is_new[new] = True
        alpha, beta = fit_two(corrected, position[self.targets], is_new[seen])
        self.scale[new] = self.scale[new] * alpha
        self.shift[new] = self.shift[new] * alpha + beta

    def _outputs(self, learner: Services) -> Tensor:
        """The network's outputs `[held, width]` on the held-out samples, in double precision."""
        assert self.inputs is not None and self.targets is not None
        with eval_mode(learner.model), torch.no_grad():
            rows = torch.arange(len(self.targets), device=learner.device).split(256)
            parts = [
                learner(tree_map(lambda leaf, part=part: leaf[part], self.inputs))  # type: ignore[misc]
                for part in rows
            ]
        return torch.cat(parts).double()

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The corrected outputs."""
        if self.scale is None or self.shift is None:
            return outputs
        scale, shift = _padded(self.scale, outputs, 1.0), _padded(self.shift, outputs, 0.0)
        return torch.where(outputs == MASKED, outputs, outputs * scale.to(outputs.dtype) + shift.to(outputs.dtype))


def _padded(values: Tensor | None, outputs: Tensor, value: float) -> Tensor:
    """`values` as wide as the outputs, in double precision."""
    if values is None:
        return torch.full((outputs.shape[1],), value, dtype=torch.float64, device=outputs.device)
    return F.pad(values, (0, outputs.shape[1] - values.shape[0]), value=value)


def fit_two(outputs: Tensor, targets: Tensor, new: Tensor, iterations: int = 30, ridge: float = 1e-3) -> Tensor:
    r"""The scale and shift of some classes' outputs that minimise the mean cross-entropy.

    $$ \min_{\alpha, \beta} \; \frac{1}{n} \sum_i \ell\big( q(x_i), y_i \big)
       + \frac{r}{2} \big( (\alpha - 1)^2 + \beta^2 \big) $$

    Newton's method with steps that are halved until the loss falls; the small ridge r keeps a separable problem finite.

    Args:
        outputs: `[rows, classes]`, double.
        targets: `[rows]`.
        new: `[classes]` bool, the classes to map.
        iterations: at most.
        ridge: the paper's weight decay.

    Returns:
        `[2]`: alpha and beta.
    """
    start = torch.tensor([1.0, 0.0], dtype=outputs.dtype, device=outputs.device)
    # A row per class and unknown: how the corrected outputs change with alpha and with beta.
    slope = torch.stack([outputs * new, new.to(outputs.dtype).expand_as(outputs)], -1)

    def objective(values: Tensor) -> Tensor:
        corrected = torch.where(new, outputs * values[0] + values[1], outputs)
        return F.cross_entropy(corrected, targets) + 0.5 * ridge * (values - start).square().sum()

    values, loss = start, objective(start)
    for _ in range(iterations):
        p = torch.where(new, outputs * values[0] + values[1], outputs).softmax(1)
        mean = (p.unsqueeze(-1) * slope).sum(1)
        at_target = slope[torch.arange(len(targets), device=targets.device), targets]
        gradient = (mean - at_target).mean(0) + ridge * (values - start)
        centred = slope - mean.unsqueeze(1)
        hessian = torch.einsum("nk,nka,nkb->ab", p, centred, centred) / len(targets)
        hessian = hessian + ridge * torch.eye(2, dtype=outputs.dtype, device=outputs.device)
        move = torch.linalg.solve(hessian, gradient)
        length = 1.0
        while length > 1e-6 and objective(values - length * move) > loss:
            length /= 2
        if length <= 1e-6:
            break
        values = values - length * move
        loss = objective(values)
        if float(move.abs().max()) < 1e-10:
            break
    return values
