"""The operation: the smallest part of a method, with the eleven moments it can act at."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.ranges import guard
from holdfast.core.snapshot import Snapshot, Twin
from holdfast.core.tree import Plain, Saved, State

Term = Tensor | tuple[Tensor, float]
"""A term of the loss: a scalar with its graph, alone or with the factor it enters the total with."""

if TYPE_CHECKING:
    from holdfast.core.experience import Batch, Data, Experience
    from holdfast.core.services import Services
    from holdfast.core.step import Step
    from holdfast.core.tree import Tree

ROLES = (
    "knowledge incorporation",
    "knowledge retention",
    "bias mitigation",
    "representation learning",
    "uncertainty reduction",
)
"""What an operation is for: the CLMixer taxonomy."""

SHORT = dict(zip(ROLES, ("incorporation", "retention", "bias", "representation", "uncertainty")))
"""Role -> its word in names of a search's parameters."""

ENTRY_POINTS = (
    "setup",
    "begin",
    "batch",
    "criterion",
    "loss",
    "gradient",
    "observe",
    "update",
    "end",
    "predict",
    "take_step",
)
"""Every moment an operation can act at, in the order of a run."""


def snake_case(name: str) -> str:
    """`LogitReplay` -> `logit_replay`: the name of a class in JSON, logs and reports.

    Example:
        >>> snake_case("LogitReplay"), snake_case("EWC")
        ('logit_replay', 'ewc')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@runtime_checkable
class Stateful(Protocol):
    """Something that can be saved by itself: declared in an operation's `state`, it is saved with it."""

    def state(self) -> Any:
        """All that `load` needs, as tensors and plain values."""

    def load(self, state: Any) -> None:
        """Go on where `state` was taken."""


def _apply_to(value: object, function: Callable[[Tensor], Tensor]) -> object:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Snapshot | Twin):
        value.apply_(function)
    if isinstance(value, dict):
        return {key: _apply_to(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [_apply_to(item, function) for item in value]
    return value


class Operation(nn.Module):
    """One idea of a method. Override the entry points you need; the others cost nothing.

    A subclass stores its constructor's arguments under their own names, which makes `repr`, JSON and
    `clone` free, and declares the class attributes below.

    Attributes:
        role: what it is for, one of `ROLES`.
        needs: what it cannot do without, names from `core.needs.NEEDS`.
        alone: why it cannot share its batches with other processes; empty where it can.
        captured: why its step cannot be recorded once and run again (`trainer.capture`); empty where it can, or where
            recording it finds out.
        remembers: extra fields of the step that the memory must keep (for instance `logits`).
        once: what one operation of a method alone can do, as a verb phrase; two that do the same are refused.
        adds: whether the criterion it brings adds to that of others, instead of being the only one of its method.
        fills: whether it makes the memory of its method and fills it; two that do are refused.
        lacks: fields that rows of the memory it fills do not have; whoever draws whole rows is refused beside it.
        joins: whether its memory can stand beside another one of its kind in one method; both are drawn from as one.
        draws: whether it draws from the memory that another operation fills; a method without one is refused.
        asks: what it asks of the model beside the step it gets: its `loss` on other samples (or the softmax of its
            outputs), its `outputs` only, or `nothing`. A loop that does not call the model's forward can have no other.
        positions: of an operation that needs class labels: whether it also works where a class stands at each
            position (segmentation, language models); else such targets are refused before the first step.
        heads: the heads of our models that it works with, by name; empty where it works with all.
        state: names of attributes that hold what was learnt: tensors of any shape, plain values, None,
            lists and mappings of these, or objects with `state()` and `load()`. Saved, restored, moved.
        scratch: names of attributes that change while it learns and are worked out anew whenever they are needed, so
            that no checkpoint must have them. What changes and is in neither is refused at the first checkpoint.
        check_arguments: what `holdfast.testing` makes one with, where defaults are missing or take long.
        name: the name in logs; unique within a method (a second instance is called `replay_2`).
    """

    role: ClassVar[str] = "knowledge retention"
    needs: frozenset[str] = frozenset()
    bound: bool = False
    alone: ClassVar[str] = ""
    captured: ClassVar[str] = ""
    remembers: tuple[str, ...] = ()
    state: ClassVar[tuple[str, ...]] = ()
    scratch: ClassVar[tuple[str, ...]] = ()
    once: ClassVar[str] = ""
    check_arguments: ClassVar[Mapping[str, object]] = {}
    adds: ClassVar[bool] = False
    fills: ClassVar[bool] = False
    lacks: ClassVar[frozenset[str]] = frozenset()
    joins: ClassVar[bool] = False
    draws: bool = False
    asks: ClassVar[str] = "outputs"
    positions: ClassVar[bool] = False
    heads: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Let the constructor check its arguments against the ranges and choices of its signature."""
        super().__init_subclass__(**kwargs)
        guard(cls, lambda kind: snake_case(kind.__name__))

    def __init__(self) -> None:
        super().__init__()
        self.name = snake_case(type(self).__name__)

    # The eleven entry points -------------------------------------------------------------------------

    def setup(self, learner: Services) -> None:
        """Once, when the method is bound: attach hooks, create parameters, take generators."""

    def begin(self, experience: Experience, learner: Services) -> Data | None:
        """Before an experience's first step, before the head grows. Returns replacement data, or None."""

    def batch(self, batch: Batch, learner: Services) -> Batch:
        """Before the forward. Returns the batch to use; rows are added with `batch.append`."""
        return batch

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The current data's loss instead of the default one. At most one operation of a method, beside those that add.

        Losses of operations with `adds` are summed; without one that owns the criterion they stand in its place.
        """
        raise NotImplementedError

    def loss(self, step: Step, learner: Services) -> Term | None:
        """Before backward. Returns a scalar to add to the total, alone or as `(scalar, factor)`, or None.

        A factor given beside the scalar costs nothing; multiplying costs two operations a step.
        """

    def gradient(self, step: Step, learner: Services) -> None:
        """After backward. Edits `p.grad` in place."""

    def observe(self, step: Step, learner: Services) -> None:
        """When the step's gradient is final, before the optimiser moves."""

    def update(self, step: Step, learner: Services) -> None:
        """After the optimiser moved."""

    def end(self, experience: Experience, learner: Services) -> None:
        """After an experience's last step."""

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """A forward in eval mode. Returns the outputs to use."""
        return outputs

    def take_step(self, step: Step, learner: Services, optimizer: torch.optim.Optimizer) -> None:
        """Instead of backward and step (meta-learning). At most one operation of a method."""
        raise NotImplementedError

    # What every operation can do ---------------------------------------------------------------------

    def config(self) -> Plain:
        """Name and arguments: what JSON writes down and what builds an equal operation."""
        parameters = inspect.signature(type(self).__init__).parameters
        arguments = {key: getattr(self, key) for key in parameters if key != "self"}
        return {"name": snake_case(type(self).__name__), **arguments}

    def clone(self) -> Self:
        """A new operation with the same arguments and no state."""
        config = self.config()
        del config["name"]
        return type(self)(**config)

    def save(self) -> State:
        """Everything learnt, as plain values and tensors: declared state, and parameters if there are any."""
        values: dict[str, Any] = {}
        for key in self.state:
            value = getattr(self, key)
            values[key] = value.state() if isinstance(value, Stateful) else value
        snapshots = [key for key in self.state if isinstance(getattr(self, key), Snapshot)]
        if snapshots:
            values["snapshots"] = snapshots
        parameters = self.state_dict()
        if parameters:
            values["parameters"] = dict(parameters)
        return values

    def load(self, values: Saved) -> None:
        """Restore what `save` returned."""
        for key in self.state:
            current = getattr(self, key)
            if isinstance(current, Stateful) and values[key] is not None:
                current.load(values[key])
            else:
                setattr(self, key, _apply_to(values[key], Tensor.clone))  # the state stays its owner's
        if "parameters" in values:
            self.load_state_dict(values["parameters"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for key in self.state:
            setattr(self, key, _apply_to(getattr(self, key), fn))
        return self

    def __repr__(self) -> str:
        config = self.config()
        del config["name"]
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in config.items())})"


def acts_at(operation: Operation, entry_point: str) -> bool:
    """Whether an operation acts at `entry_point`: whether its class overrides the function of that name."""
    return getattr(type(operation), entry_point) is not getattr(Operation, entry_point)


def require(condition: bool, operation: str, message: str) -> None:
    """Raise `ConfigError` naming `operation` unless `condition` holds; for checks in constructors."""
    if not condition:
        raise ConfigError(f"`{operation}` {message}")
