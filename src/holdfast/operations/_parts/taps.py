"""Taps: what inner layers gave in the main forward, and what they give in the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import tree_rows
from holdfast.core.services import Services
from holdfast.core.snapshot import Snapshot
from holdfast.core.step import Step
from holdfast.models import Hypernetwork

Values = dict[str, Tensor]
"""What each tapped layer gave in one forward, by name."""


class Taps:
    """Hooks on layers that keep what they gave, for losses on features and maps.

    Nothing is computed twice: the main forward's values are found by the outputs that the same forward made. Only where
    the loop has none (or changed them) does the model run again. Hooks are plain functions, which copies of the model
    share, so that they act in a teacher too.

    Args:
        learner: whose model is tapped.
        layers: by name.
        inputs: keep what enters a layer instead of what leaves it.

    Raises:
        UsageError: if a layer is the whole model.
    """

    def __init__(self, learner: Services, layers: dict[str, nn.Module], inputs: bool = False) -> None:
        if any(isinstance(module, Hypernetwork) for module in learner.model.modules()):
            raise ConfigError(
                "what goes through the layers of a hypernetwork is another for each task, so it cannot be compared "
                "with what was. Use a model with weights of its own."
            )
        if any(layer is learner.model for layer in layers.values()):
            raise UsageError("the model is one layer, and has no features before it. Use a model with a hidden layer.")
        self._running: Values = {}
        self._forwards: list[tuple[Tensor, Values]] = []
        self._teaching = False
        for name, layer in layers.items():
            if inputs:
                layer.register_forward_pre_hook(self._before(name), with_kwargs=True)
            else:
                layer.register_forward_hook(self._after(name))
        learner.model.register_forward_hook(self._end())

    def of_step(self, step: Step, learner: Services) -> Values:
        """The values of the step's current rows, with their graph."""
        values = None
        if step.outputs is not None:
            place = step.outputs.data_ptr()
            values = next((held for outputs, held in self._forwards if outputs.data_ptr() == place), None)
        if values is None:
            self._forwards.clear()
            learner(step.inputs, step.task)
            values = self._forwards[-1][1]
        rows = tree_rows(step.inputs)
        return {name: value[:rows] for name, value in values.items()}

    def of_teacher(self, snapshot: Snapshot, step: Step, learner: Services) -> Values:
        """The values of the step's current rows in the model as it was at `snapshot`, without a graph."""
        self._teaching, self._running = True, {}
        try:
            snapshot(step.inputs, "all" if learner.multi_head else None)
        finally:
            self._teaching, values, self._running = False, self._running, {}
        return values

    def clear(self) -> None:
        """Let go of all values, and of the graphs behind them."""
        self._forwards.clear()

    def _keep(self, name: str, value: Any) -> None:
        if self._teaching or torch.is_grad_enabled():
            self._running[name] = value

    def _before(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(name, args[0] if args else next(iter(kwargs.values())))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._keep(name, output)

        return hook

    def _end(self) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if torch.is_grad_enabled() and isinstance(output, Tensor):
                self._forwards.append((output, self._running))
                self._running = {}

        return hook
