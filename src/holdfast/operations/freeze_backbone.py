"""Freezing the backbone after the first experience: later ones train the head only."""

from __future__ import annotations

from typing import Any

from torch import nn

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation
from holdfast.core.ranges import Size
from holdfast.core.services import Services


class FreezeBackbone(Operation):
    r"""After so many experiences, everything before the head stays as it is.

    $$ \theta_{\text{backbone}}^{(t)} = \theta_{\text{backbone}}^{(n)} \quad \text{for } t > n $$

    Normalisation layers use their running statistics from then on and no longer update them. With a head per task,
    the outputs of finished tasks stay as they are too, so that nothing learnt since is forgotten; another head goes
    on learning. Works without task labels.

    Args:
        after: the number of experiences n that the backbone learns from.

    Source: the linear-probe control; "Repr_Adapted" in CLMixer. Differences: CLMixer freezes parameters only, and lets
    the running statistics of normalisation move.

    Example:
        >>> FreezeBackbone(after=1)
        FreezeBackbone(after=1)
    """

    asks = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries"})
    state = ("begun", "fixed")

    def __init__(self, after: Size = 1) -> None:
        super().__init__()
        self.after = after
        self.begun = 0
        self.fixed: list[str] = []

    def setup(self, learner: Services) -> None:
        """Attach hooks that keep normalisation layers still once the backbone is frozen."""
        self._learner = learner
        head = set() if learner.head is None else set(learner.head.modules())
        for module in learner.model.modules():
            if module not in head and getattr(module, "track_running_stats", False):
                module.register_forward_pre_hook(Still(self))
        if hasattr(learner.head, "apart"):
            learner.head.apart = True  # type: ignore[union-attr, assignment]

    @property
    def frozen(self) -> bool:
        """Whether the backbone is frozen."""
        return self.begun > self.after

    def begin(self, experience: Experience, learner: Services) -> None:
        """Freeze the backbone when its time has come, and with a head per task what earlier tasks read."""
        self.begun += 1
        if self.frozen:
            head = set() if learner.head is None or learner.multi_head else {id(p) for p in learner.head.parameters()}
            self.fixed = [name for name, p in learner.model.named_parameters() if id(p) not in head]
            self._freeze()

    def load(self, values: Any) -> None:
        """Restore what `save` returned."""
        super().load(values)
        self._freeze()

    def _freeze(self) -> None:
        named = dict(self._learner.model.named_parameters())
        self._learner.trainable.freeze([named[name] for name in self.fixed])


class Still:
    """Lets a normalisation layer run on its kept statistics while `owner` is frozen; copied models share it."""

    def __init__(self, owner: FreezeBackbone) -> None:
        self.owner = owner

    def __call__(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        """Switch to evaluation before the forward; `model.train()` switches back."""
        if self.owner.frozen:
            module.training = False

    def __deepcopy__(self, _: Any) -> Still:
        return self
