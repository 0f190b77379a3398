"""Who says that one experience ended and the next began: the user, a step counter, the labels, or a detector."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.step import Step
from holdfast.core.tree import Saved, State, Tree

__all__ = ["Boundary", "Every", "OnNewClass"]


class Boundary(ABC):
    """Decides before each step of the optimiser whether it opens a new experience.

    Subclass this for a detector: `crossed` may look at everything the step has before the weights move (inputs,
    targets, outputs, loss), store the constructor's arguments under their own names, and name in `keeps` what changes
    from step to step, so that a resumed run detects what the whole one would have.

    Attributes:
        window: how many recent samples are kept for methods that go over an experience's data when it ends.
        check_arguments: what `holdfast.testing` makes one with, where an argument has no default.
        keeps: names of the attributes that change: numbers, strings, tensors, None, lists and mappings of these.

    Example:
        >>> class Surprise(Boundary):
        ...     keeps = ("average",)
        ...     def __init__(self, factor=2.0):
        ...         self.factor, self.average = factor, None
        ...     def crossed(self, step):
        ...         loss = float(step.loss.detach())
        ...         crossed = self.average is not None and loss > self.factor * self.average
        ...         self.average = loss if crossed or self.average is None else 0.9 * self.average + 0.1 * loss
        ...         return crossed
        >>> Surprise().state()
        {'average': None}
    """

    window: int = 1024
    keeps: ClassVar[tuple[str, ...]] = ()
    check_arguments: ClassVar[Mapping[str, object]] = {}

    @abstractmethod
    def crossed(self, step: Step) -> bool:
        """Whether a new experience begins with `step`. Called once per step of the optimiser, in order."""

    def bind(self, features: Callable[[Tree], Tensor]) -> None:  # noqa: B027
        """Take what gives the model's features before its head, `[rows, d]`; called once, before the first step."""

    def reason(self) -> dict[str, object]:
        """Plain values for the log on why the last boundary was crossed; nothing by default."""
        return {}

    def state(self) -> State:
        """What restores this boundary, as plain values and tensors: a copy of each attribute in `keeps`.

        Raises:
            ConfigError: for an attribute that is neither an argument of the constructor nor in `keeps`: a run that is
                resumed would go on without it.
        """
        described = {*inspect.signature(type(self).__init__).parameters, *self.keeps, "window"}
        for name in vars(self):
            if name not in described:
                raise ConfigError(
                    f"the boundary {type(self).__name__} has an attribute {name!r} that a checkpoint would lose. Write"
                    f" keeps = ({name!r},) in its class, or give it state() and load() of its own."
                )
        return {name: _plain(type(self).__name__, name, getattr(self, name)) for name in self.keeps}

    def load(self, state: Saved) -> None:
        """Restore what `state` returned."""
        for name in self.keeps:
            setattr(self, name, copy.deepcopy(state[name]))


def _plain(kind: str, name: str, value: object) -> object:
    """A copy of `value`, if a checkpoint can hold it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _plain(kind, name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(kind, name, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"the boundary {kind} keeps a {type(value).__name__} in {name!r}, which a checkpoint cannot hold. Keep numbers,"
        " strings, tensors, lists and mappings, or write state() and load()."
    )


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

    def state(self) -> State:
        """The number of steps seen."""
        return {"count": self._count}

    def load(self, state: Saved) -> None:
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
        classes = {label for label in torch.unique(step.targets).tolist() if label >= 0}
        new = classes - self._seen
        first = not self._seen
        self._seen |= new
        return bool(new) and not first

    def state(self) -> State:
        """The classes seen."""
        return {"seen": sorted(self._seen)}

    def load(self, state: Saved) -> None:
        """Restore the classes seen."""
        self._seen = set(state["seen"])

    def __repr__(self) -> str:
        return f"OnNewClass(window={self.window})"
