"""Balanced fine-tuning: after an experience the head alone is trained on, with as many samples of every class."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.experience import Experience, tree_map
from holdfast.core.operation import Operation, require
from holdfast.core.ranges import BelowOne, Count, Positive
from holdfast.core.services import Services
from holdfast.operations._parts.draws import memory_of
from holdfast.operations._parts.scores import vectors


class BalancedFinetune(Operation):
    r"""Gradient descent with momentum on the head, over a class-balanced draw from the memory; the backbone is frozen.

    $$ \min_{W} \; \frac{1}{K n} \sum_{k=1}^{K} \sum_{i=1}^{n} \ell\big( W h(x_{k,i}), k \big) $$

    As many samples n are drawn of each class in the memory as the rarest of them has, at most `per_class`; with
    `equal="repeat"` a class with fewer than `per_class` is repeated until it has as many. The features
    are computed once, in eval mode and without augmentation, so that the epochs cost next to nothing. The memory and
    the
    main optimiser's state stay as they are. A class without a sample in the memory takes no part: give the memory
    room for every class (`policy="balanced_reservoir"`).

    Args:
        epochs: passes over the drawn samples.
        batch_size: samples per step.
        lr: learning rate.
        momentum: of the descent.
        per_class: most samples drawn of a class; none for no limit.
        over: whether samples are drawn from the `memory`, or from the `memory_and_data` of the experience that ended.
        equal: how classes get equally many: as many as the `rarest` has, or by `repeat`ing those of rare classes.
        plain: whether the loss is plain cross-entropy, whatever loss the method has.

    Source: Castro et al. 2018, "End-to-end incremental learning", section 3.4 (balanced fine-tuning); Kang et al. 2020,
    "Decoupling representation and classifier for long-tailed recognition", section 4 (the head alone). Differences:
    Castro
    et al. train the whole network on a small learning rate and distil; here only the head moves.

    Example:
        >>> BalancedFinetune(epochs=10, lr=0.1).momentum
        0.9
    """

    draws = True
    role = "bias mitigation"
    needs = frozenset({"boundaries", "classes"})

    def __init__(
        self,
        epochs: Count = 30,
        batch_size: Count = 32,
        lr: Positive = 0.01,
        momentum: BelowOne = 0.9,
        per_class: Count | None = None,
        over: Literal["memory", "memory_and_data"] = "memory",
        equal: Literal["rarest", "repeat"] = "rarest",
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.per_class = per_class
        self.over = over
        self.equal = equal
        self.plain = plain
        if over == "memory_and_data":
            self.needs = self.needs | {"data"}

    def setup(self, learner: Services) -> None:
        """Refuse models that have no one head over all classes."""
        require(
            not learner.multi_head,
            self.name,
            "balances classes of all tasks, which task heads do not compare. Drop it.",
        )
        require(
            learner.head is not None, self.name, "trains the head, and found none in this model. Name it: head='path'."
        )

    def end(self, experience: Experience, learner: Services) -> None:
        """Draw, compute features, and train the head."""
        rows = memory_of(learner, self.name).all()
        data = experience.train if self.over == "memory_and_data" else None
        generator = learner.rng(f"finetune/{self.name}")
        remembered_targets = rows["targets"] if rows else torch.zeros(0, dtype=torch.int64, device=learner.device)
        every = (
            remembered_targets
            if data is None
            else torch.cat([remembered_targets, data.targets.to(remembered_targets.device)])
        )
        if not len(every):
            return
        chosen = balanced(every, self.per_class, generator, self.equal == "repeat")
        remembered = chosen[chosen < len(remembered_targets)]
        parts = [
            vectors(learner, tree_map(lambda leaf, part=part: leaf[part], rows["inputs"]), "features")  # type: ignore[misc]
            for part in (remembered.split(256) if len(remembered) else ())
        ]
        order = chosen
        if data is not None:
            arrived = chosen[chosen >= len(remembered_targets)]
            for batch in data.batches((arrived - len(remembered_targets)).cpu(), 256) if len(arrived) else ():
                inputs = tree_map(lambda leaf: leaf.to(learner.device), batch.inputs)
                parts.append(vectors(learner, inputs, "features"))
            order = torch.cat([remembered, arrived])
        self._train(learner, torch.cat(parts), every[order], generator)

    def _train(self, learner: Services, features: Tensor, targets: Tensor, generator: torch.Generator) -> None:
        head = learner.head
        assert head is not None
        criterion = F.cross_entropy if self.plain else learner.criterion
        parameters = [p for p in head.parameters() if p.requires_grad]
        bare = [p.detach() for p in parameters]
        features = features.to(next(iter(bare), features).dtype)  # a head of doubles takes doubles
        speed = [torch.zeros_like(p) for p in bare]
        for _ in range(self.epochs):
            for rows in torch.randperm(len(targets), generator=generator).to(targets.device).split(self.batch_size):
                with torch.enable_grad():
                    loss = criterion(head(features[rows]), targets[rows])
                    grads = torch.autograd.grad(loss, parameters)
                torch._foreach_mul_(speed, self.momentum)
                torch._foreach_add_(speed, grads)
                torch._foreach_add_(bare, speed, alpha=-self.lr)


def balanced(targets: Tensor, most: int | None, generator: torch.Generator, repeat: bool = False) -> Tensor:
    """Indices of equally many rows of each class, drawn without replacement, by ascending class.

    Args:
        targets: `[rows]`.
        most: of a class; None for no limit but the rarest class.
        generator: of the draw.
        repeat: whether classes with fewer rows than `most` are repeated, so that none limits the others; without
            `most` until each has as many as the most frequent.

    Example:
        >>> rows = balanced(torch.tensor([0, 1, 1, 1, 0]), None, torch.Generator().manual_seed(0))
        >>> torch.tensor([0, 1, 1, 1, 0])[rows].tolist()
        [0, 0, 1, 1]
    """
    labels, counts = targets.unique(return_counts=True)
    order = torch.randperm(len(targets), generator=generator).to(targets.device)
    if repeat:
        share = int(counts.max()) if most is None else most
        members = [order[targets[order] == label] for label in labels]
        return torch.cat([rows.repeat(-(-share // len(rows)))[:share] for rows in members])
    share = int(counts.min()) if most is None else min(most, int(counts.min()))
    return torch.cat([order[targets[order] == label][:share] for label in labels])
