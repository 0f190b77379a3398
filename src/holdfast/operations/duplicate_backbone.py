"""Duplicating the backbone: each experience freezes what is there, and goes on with a copy; the head reads all."""

from __future__ import annotations

import torch
from torch import nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count
from holdfast.core.services import Services
from holdfast.models.expanding import ExpandingBackbone
from holdfast.operations._parts.layers import ExchangeHook, GateHook
from holdfast.operations.lateral_connections import Shared


class DuplicateBackbone(Operation):
    r"""From the second experience on, the backbone is frozen as it is and a copy of it learns; no task labels.

    $$ f_t(x) = W \Big( \phi_1(x) + \sum_{k=2}^{t} A_k \, \phi_k(x) \Big), \qquad
       \phi_1 \ldots \phi_{t-1} \text{ frozen}, \quad \phi_t \text{ starts as } \phi_{t-1} $$

    The maps A start at zero: the new copy changes no output before it has learned something. They and the head go on
    learning, so old outputs can still be lost; with replay or distillation beside it less is. A step costs one more
    forward, without a gradient, per frozen copy; the model grows by one backbone an experience.

    Args:
        copies: the most experiences there can be; maps are made for so many at the start.

    Source: Yan et al. 2021, "DER: dynamically expandable representation for class incremental learning", section 3.2;
    the copy (the paper starts a new backbone) is that of CLMixer's `DuplicateNetworkBackboneOperation`, whose
    classifier is never widened, so that it stops with an error of shapes.
    Differences: the weights on a later copy's features are the product W A instead of columns of a wider head, so that
    every head (cosine, growing, one per task) does; no auxiliary loss and no pruning. With a head per task,
    `methods.duplicate_backbone` forgets nothing.

    Example:
        >>> DuplicateBackbone(copies=5)
        DuplicateBackbone(copies=5)
    """

    asks = "nothing"
    role = "representation learning"
    needs = frozenset({"boundaries"})
    state = ("begun",)

    def __init__(self, copies: Count = 10) -> None:
        super().__init__()
        self.copies = copies
        self.begun = 0
        self.mix = nn.Parameter(torch.empty(0))

    def setup(self, learner: Services) -> None:
        """Put the expanding backbone in the place of the model's own, and make the maps, which join the optimiser."""
        backbone = getattr(learner.model, "backbone", None)
        if not isinstance(backbone, nn.Module) or learner.head is not getattr(learner.model, "head", None):
            raise ConfigError(
                f"`{self.name}` copies `model.backbone`, whose features `model.head` reads, and this model is made "
                "otherwise. Use a model of holdfast.models, or put yours into a `Classifier`."
            )
        first = next(backbone.parameters(), None)
        if first is None:
            raise ConfigError(f"`{self.name}` copies a backbone, and this model has only a head. Use mlp or cnn.")
        self._refuse_hooks(backbone)
        features = int(getattr(learner.head, "features", 0) or learner.head.weight.shape[1])  # type: ignore[union-attr, index]
        zeros = torch.zeros(self.copies - 1, features, features, device=learner.device, dtype=first.dtype)
        self.mix = nn.Parameter(zeros)
        self._backbone = ExpandingBackbone(backbone, self.mix).train(backbone.training)
        learner.model.backbone = self._backbone
        learner.trainable.add({f"{self.name}/mix": self.mix})

    def _refuse_hooks(self, backbone: nn.Module) -> None:
        for module in backbone.modules():
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
                if isinstance(getattr(hook, "__self__", hook), GateHook | ExchangeHook | Shared):
                    raise ConfigError(
                        f"`{self.name}` copies a backbone into which another operation of this method reaches with "
                        "gates or masks. Keep one of the two."
                    )

    def begin(self, experience: Experience, learner: Services) -> None:
        """Freeze a copy from the second experience on; the optimiser forgets what it knew of the one that learns."""
        self._refuse_hooks(self._backbone.live)
        if self.begun == self.copies:
            raise UsageError(
                f"`{self.name}` has copies={self.copies}, and another experience begins. Give it more copies."
            )
        self.begun += 1
        if self.begun > 1:
            self._backbone.duplicate()
            learner.trainable.forget_moments(list(self._backbone.live.parameters()))
