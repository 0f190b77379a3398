"""A model cut in two for operations: what lies below the cut, and what runs above it on latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from holdfast.core.body import Chain, chain_of
from holdfast.core.operation import require
from holdfast.models import Hypernetwork


class Cut:
    """The two parts of a model: `above(below(inputs))` is its forward.

    Args:
        model: one that runs stages in order (`core.body`), or a hypernetwork, which has its own cut.
        cut: how many stages lie below, or the name of the last of them; None takes the model's own cut, or for a model
            without one everything but the output layer.
        operation: for the message.

    Attributes:
        parts: the modules below, in order.

    Raises:
        ConfigError: for a model that cannot be cut, a cut that it does not have, or one other than its own.
    """

    def __init__(self, model: nn.Module, cut: int | str | None, operation: str) -> None:
        self.parts: Sequence[nn.Module]
        self.above: Callable[[Tensor], Tensor]
        inner = next((module for module in model.modules() if isinstance(module, Hypernetwork)), None)
        if inner is not None:
            require(
                cut is None,
                operation,
                f"got cut={cut!r}, and a hypernetwork has a cut of its own. Leave it out, and give it to the model.",
            )
            self.parts, self.above = [inner.below], inner.above
            return
        chain = chain_of(model)
        place = len(chain.stages) if cut is None else chain.position(cut)
        stages = list(chain.stages.values())
        self.parts, self.above = stages[:place], _Rest(chain, place)

    def below(self, inputs: Tensor) -> Tensor:
        """Latents at the cut, `[rows, ...]`, of prepared inputs."""
        for part in self.parts:
            inputs = part(inputs)
        return inputs

    def parameters(self) -> list[nn.Parameter]:
        """Those below the cut."""
        return [parameter for part in self.parts for parameter in part.parameters()]


class _Rest:
    """The stages above a cut, then the output layer."""

    def __init__(self, chain: Chain, place: int) -> None:
        self.stages = [*list(chain.stages.values())[place:], chain.output]

    def __call__(self, latents: Tensor) -> Tensor:
        for stage in self.stages:
            latents = stage(latents)
        return latents


class StayInEval:
    """Lets a module run in eval mode while `owner` has it frozen; copied models share it."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __call__(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        """Switch to evaluation before the forward; `model.train()` switches back."""
        if self.owner.frozen and module.training:
            module.eval()

    def __deepcopy__(self, _: Any) -> StayInEval:
        return self
