"""Freezing what lies below a cut after the first experience: later ones train what lies above it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from holdfast.core.body import Body, chain_of
from holdfast.core.experience import Experience
from holdfast.core.operation import Operation
from holdfast.core.ranges import Size
from holdfast.core.services import Services
from holdfast.models import Hypernetwork


class StayInEval:
    """Lets a module run in eval mode while `owner` has it frozen; copied models share it."""

    def __init__(self, owner: FreezeBelow) -> None:
        self.owner = owner

    def __call__(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        """Switch to evaluation before the forward; `model.train()` switches back."""
        if self.owner.frozen and module.training:
            module.eval()

    def __deepcopy__(self, _: Any) -> StayInEval:
        return self


class FreezeBelow(Operation):
    r"""After so many experiences the stages below a cut stay as they are, running statistics included.

    $$ \psi^{(t)} = \psi^{(n)} \quad \text{for } t > n $$

    From then on they run in eval mode, so that normalisation uses its kept statistics and dropout drops nothing. A
    partial hypernetwork has its own cut, and this freezes its stem.

    Args:
        cut: how many stages lie below, or the name of the last of them; null takes a hypernetwork's own cut, and of any
            other model all but the output layer.
        after: the number of experiences n that they learn from; 0 freezes them from the start, as they were loaded.

    Source: Hemati et al. 2023, "Partial hypernetworks for continual learning", section 3.2, and its control with
    frozen layers. Difference: there the statistics of frozen layers go on moving.

    Example:
        >>> FreezeBelow(cut=2)
        FreezeBelow(cut=2, after=1)
    """

    asks: ClassVar[Literal["loss", "outputs", "nothing"]] = "nothing"
    role = "knowledge retention"
    needs = frozenset({"boundaries"})
    once = "freeze what lies below a cut"
    state: ClassVar[tuple[str, ...]] = ("begun",)

    def __init__(self, cut: int | str | None = None, after: Size = 1) -> None:
        super().__init__()
        self.cut = cut
        self.after = after
        self.begun = 0

    def setup(self, learner: Services) -> None:
        """Find the stages, and attach the hooks that keep them in eval mode once they are frozen."""
        super().setup(learner)
        self._learner = learner
        inner = next((part for part in learner.model.modules() if isinstance(part, Hypernetwork)), None)
        self._body = learner.body if inner is None else Body(inner)  # it may stand inside another module
        parts, self._above = self._body.parts(self.cut)
        if parts is None:
            chain_of(learner.model)  # refuses it: only the whole model gives its features, so nothing lies below a cut
        for part in parts or ():
            assert isinstance(part, nn.Module)
            part.register_forward_pre_hook(StayInEval(self))

    @property
    def frozen(self) -> bool:
        """Whether the stages are frozen."""
        return self.begun > self.after

    def begin(self, experience: Experience, learner: Services) -> None:
        """Freeze the stages when their time has come."""
        self.begun += 1
        self._freeze()

    def load(self, values: Any) -> None:
        """Restore what `save` returned."""
        super().load(values)
        self._freeze()

    def _freeze(self) -> None:
        if self.frozen:
            self._learner.trainable.freeze(self._body.parameters_below(self.cut))
