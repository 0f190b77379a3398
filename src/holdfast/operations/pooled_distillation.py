"""Pooled outputs distillation (POD): sums of inner maps along height and width stay what they were."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, unknown
from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, Term, require
from holdfast.core.ranges import NonNegative
from holdfast.core.services import Services
from holdfast.core.snapshot import Snapshot
from holdfast.core.step import Step
from holdfast.operations._parts.functional_model import Taps

Pooling = Literal["pixel", "channel", "gap", "width", "height", "spatial"]


class PooledDistillation(Operation):
    r"""Distance between pooled maps of the model before this experience and of the model today, over several layers.

    $$ L = L(x, y) + w \sqrt{\frac{N_{\text{seen}}}{N_{\text{new}}}} \; \frac{1}{K} \sum_{k=1}^{K}
       \big\lVert P(h^{\text{old}}_k) - P(h_k) \big\rVert_2, \qquad
       P(h) = \frac{p(h^2)}{\lVert p(h^2) \rVert_2} $$

    For maps `[channels, height, width]` the paper's *spatial* pooling p joins the sums along width `[c, h]` and along
    height `[c, w]`. Features without height and width (of a perceptron) are not pooled.

    Args:
        weight: w, the paper's lambda_c.
        pooling: `pixel` (none), `channel` (summed over channels), `gap` (over height and width), `width` (over width),
            `height` (over height), or `spatial` (both).
        adaptive: whether to multiply by the root of seen classes over new ones; `classes` multiplies by the number of
            old classes over the number of classes in the current data, what is replayed with them included, as CLMixer
            does.
        layers: dotted names of the layers; default: the backbone's activations and stages.

    Source: Douillard et al. 2020, "PODNet: pooled outputs distillation for small-tasks incremental learning", eq. 1 to
    5
    and 8. The paper's second term, on the final features, is `FeatureDistillation(metric="cosine")`.
    Differences: maps are squared and pooled vectors normalised, and the distance is not squared, as in the authors'
    code; the paper takes a stage's maps before its last ReLU, here they are what the named layer gives.

    Example:
        >>> PooledDistillation(weight=3.0, pooling="spatial").needs == {"boundaries"}
        True
    """

    role = "knowledge retention"
    needs = frozenset({"boundaries"})
    state = ("teacher", "factor")
    scratch = ("_taps",)

    def __init__(
        self,
        weight: NonNegative = 1.0,
        pooling: Pooling = "spatial",
        adaptive: bool | Literal["classes"] = True,
        layers: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.pooling = pooling
        self.adaptive = adaptive
        self.layers = layers
        self.teacher: Snapshot | None = None
        self.factor = 1.0
        self._taps: Taps | None = None

    def setup(self, learner: Services) -> None:
        """Tap the layers."""
        self._taps = Taps(learner, _chosen(learner.model, self.layers))

    def begin(self, experience: Experience, learner: Services) -> None:
        """Take the teacher, from the second experience on, and the ratio of seen to new classes."""
        if learner.experience < 0:
            return
        self.teacher = learner.snapshot()
        old = {label for members in learner.members for label in members}
        new = set(experience.classes) - old
        if self.adaptive == "classes":
            self.factor = len(old) / max(1, len(set(experience.classes)))
        else:
            self.factor = (len(old | new) / len(new)) ** 0.5 if self.adaptive and new else 1.0

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Mean distance of the pooled maps over layers and rows, once there is a teacher."""
        if self.teacher is None or self._taps is None:
            return None
        today = self._taps.of_step(step, learner)
        before = self._taps.of_teacher(self.teacher, step, learner)
        terms = [(self._pooled(before[name]) - self._pooled(today[name])).norm(dim=1).mean() for name in today]
        return torch.stack(terms).mean(), self.weight * self.factor

    def _pooled(self, maps: Tensor) -> Tensor:
        """`[rows, ...]` squared, pooled and normalised."""
        maps = maps.square()
        if maps.dim() == 4:
            dims = {"pixel": [()], "channel": [1], "gap": [(2, 3)], "width": [3], "height": [2], "spatial": [3, 2]}
            sums = [maps.sum(dim) if dim != () else maps for dim in dims[self.pooling]]  # type: ignore[arg-type, attr-defined]
            maps = torch.cat([part.flatten(1) for part in sums], 1)
        return F.normalize(maps.flatten(1), dim=1)

    def observe(self, step: Step, learner: Services) -> None:
        """Let go of the step's maps."""
        if self._taps is not None:
            self._taps.clear()


def _chosen(model: nn.Module, names: list[str] | None) -> dict[str, nn.Module]:
    """The layers called `names`, or activations and stages of the backbone."""
    modules = dict(model.named_modules())
    if names is not None:
        for name in names:
            if name not in modules:
                raise ConfigError(unknown("layer", name, modules, "Names are those of `model.named_modules()`."))
        return {name: modules[name] for name in names}
    path = "backbone" if "backbone" in modules else ""
    children = modules[path].named_children()
    head = getattr(model, "head", None)
    activation = nn.modules.activation.__name__
    stages = {
        f"{path}.{name}" if path else name: child
        for name, child in children
        if child is not head and (type(child).__module__ == activation or any(True for _ in child.children()))
    }
    require(bool(stages), "pooled_distillation", "finds neither activations nor stages in this model. Name its layers.")
    return stages
