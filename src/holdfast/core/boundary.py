"""Who says that one experience ended and the next began: the user, a step counter, or the labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from holdfast.core.errors import ConfigError
from holdfast.core.step import Step


class Boundary(ABC):
    """Decides before each step whether it opens a new experience.

    Attributes:
        window: how many recent samples are kept for methods that go over an experience's data when it ends.
        check_arguments: what `holdfast.testing` makes one with, where an argument has no default.
    """

    window: int = 1024
    check_arguments: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def crossed(self, step: Step) -> bool:
        """Whether a new experience begins with `step`. Called once per step, in order."""

    def state(self) -> dict[str, Any]:
        """Plain values that restore this boundary."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what `state` returned."""


class Every(Boundary):
    """A boundary every `steps` optimisation steps.

    Args:
        steps: length of one experience, in steps.
        window: recent samples kept for a pass over the data at the boundary.

    Example:
        >>> Every(steps=1000)
        Every(steps=1000, window=1024)
    """

    check_arguments = {"steps": 7}

    def __init__(self, steps: int, window: int = 1024) -> None:
        if steps < 1:
            raise ConfigError(f"`Every` got steps={steps}. Give the number of steps between boundaries, at least 1.")
        self.steps = steps
        self.window = window
        self._count = 0

    def crossed(self, step: Step) -> bool:
        """True on step `steps`, `2 * steps`, ..."""
        crossed = self._count > 0 and self._count % self.steps == 0
        self._count += 1
        return crossed

    def state(self) -> dict[str, Any]:
        """The number of steps seen."""
        return {"count": self._count}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the number of steps seen."""
        self._count = int(state["count"])

    def __repr__(self) -> str:
        return f"Every(steps={self.steps}, window={self.window})"


class OnNewClass(Boundary):
    """A boundary whenever a batch holds a class never seen before.

    Reads the targets on the host, so it waits for the device once a step.

    Args:
        window: recent samples kept for a pass over the data at the boundary.
    """

    def __init__(self, window: int = 1024) -> None:
        self.window = window
        self._seen: set[int] = set()

    def crossed(self, step: Step) -> bool:
        """True where `step.targets` holds a new class and some class was seen before."""
        if step.targets.is_floating_point():
            raise ConfigError(
                f"`OnNewClass` watches class labels, but the targets are {step.targets.dtype}. "
                "Use Every(steps=...) or call begin() and end() yourself."
            )
        classes = set(torch.unique(step.targets).tolist())
        new = classes - self._seen
        first = not self._seen
        self._seen |= new
        return bool(new) and not first

    def state(self) -> dict[str, Any]:
        """The classes seen."""
        return {"seen": sorted(self._seen)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the classes seen."""
        self._seen = set(state["seen"])

    def __repr__(self) -> str:
        return f"OnNewClass(window={self.window})"
