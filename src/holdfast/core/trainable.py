"""Which parameters are trained, and what the optimiser keeps of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import unwrap

import torch
from torch import Tensor, nn

Listener = Callable[[list[nn.Parameter]], None]


class Trainable:
    """The model's trainable parameters, those that operations added, and the optimiser's state of them.

    Args:
        model: whose parameters they are.

    Attributes:
        added: parameters that operations brought along, by name.
        brought: parameters of the model that the method's `wrap` put there: an optimiser of before lacks them.
        on_growth: called with new parameters; whoever owns the optimiser listens.
        optimizer: returns the optimiser, or None if there is none; whoever owns it sets this.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.added: dict[str, nn.Parameter] = {}
        self.brought: list[nn.Parameter] = []
        self.on_growth: list[Listener] = []
        self.optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None
        self._parameters: list[nn.Parameter] | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The model's trainable parameters, in the order of `model.named_parameters()`.

        It is the same list until they change.
        """
        if self._parameters is None:
            self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        return self._parameters

    def named(self) -> dict[str, nn.Parameter]:
        """The model's trainable parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def add(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Let the optimiser move `parameters` of an operation too: embeddings, scores of masks, new columns.

        They are not in `parameters()`, which is the model's: no other operation penalises or projects them.

        Args:
            parameters: by a name that is unique within the method (`f"{self.name}/..."`); one of before is replaced.
        """
        new = [p for name, p in parameters.items() if self.added.get(name) is not p]
        self.added.update(parameters)
        if new:
            self.announce(new)

    def freeze(self, parameters: Sequence[nn.Parameter]) -> None:
        """Stop training `parameters` of the model: no gradient, and no move of the optimiser from now on."""
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        self.changed()

    def optimized(self) -> list[nn.Parameter]:
        """Everything that the optimiser moves: the model's trainable parameters, then those that were added."""
        return [*self.parameters(), *self.added.values()] if self.added else self.parameters()

    def every(self) -> dict[str, nn.Parameter]:
        """The model's and the added parameters by name, those that are frozen too: the names in checkpoints."""
        return {**dict(self.model.named_parameters()), **{f"added/{name}": p for name, p in self.added.items()}}

    def moments(self, parameter: nn.Parameter) -> list[Tensor]:
        """What the optimiser keeps for each value of `parameter` (momentum, Adam's averages), to be edited in place."""
        optimizer = unwrap(self.optimizer)()  # none of its numbers is read, which is what a wrapper is there to see
        if optimizer is None or parameter not in optimizer.state:
            return []
        kept = optimizer.state[parameter].values()
        return [value for value in kept if isinstance(value, Tensor) and value.shape == parameter.shape]

    def forget_moments(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let the optimiser forget all it remembers of `parameters`, as if they were new."""
        optimizer = unwrap(self.optimizer)()
        for parameter in parameters if optimizer is not None else ():
            optimizer.state.pop(parameter, None)  # type: ignore[union-attr]

    @property
    def kind(self) -> type | None:
        """The class of the optimiser; None if there is none."""
        optimizer = unwrap(self.optimizer)()
        return None if optimizer is None else type(optimizer)

    @property
    def rate(self) -> float | None:
        """The learning rate of the optimiser's first group; None if there is no optimiser."""
        optimizer = self.optimizer()
        return None if optimizer is None else float(optimizer.param_groups[0]["lr"])

    def changed(self) -> None:
        """The model has other trainable parameters than before."""
        self._parameters = None

    def announce(self, new: list[nn.Parameter]) -> None:
        """Tell whoever owns the optimiser of new parameters."""
        for listener in self.on_growth:
            listener(new)
