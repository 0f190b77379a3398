"""What an operation keeps without declaring it, noticed before a checkpoint is written that would not have it."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.core.operation import Operation
from holdfast.core.services import Services

DEPTH = 4
"""How far containers and objects are walked into."""

OURS = frozenset({"bound", "name", "needs", "training"})
"""What the engine and torch set; `vars` also has torch's tables, which begin with an underscore and are left out."""


class Undeclared:
    """Remembers what each operation holds right after it was set up, and says what has changed since.

    Whatever an operation keeps from one step to the next must be in its `state`, or a resumed run goes on with another
    value. What it works out anew when it is needed is scratch, and named in `scratch`.

    Args:
        operations: set up.
        services: that they got: what belongs to the learner is saved with it.
    """

    def __init__(self, operations: Iterable[Operation], services: Services) -> None:
        self._services = services
        self._before = [(operation, self._noted(operation)) for operation in operations]

    def check(self) -> None:
        """Refuse to go on where something changed that no checkpoint would have.

        Raises:
            UsageError: with the names of the attribute and of its operation.
        """
        for operation, before in self._before:
            for name, now in self._noted(operation).items():
                if name not in before and _empty(now):
                    continue
                if name not in before or not _same(before[name], now):
                    raise UsageError(
                        f"operation {operation.name!r} keeps `{name}`, which changes while it learns, and its `state`"
                        " does not name it: a resumed run would go on with another value. "
                        f"Write state = {(*operation.state, name)!r}, or scratch = ({name!r},) if it is worked out anew"
                        " whenever it is needed."
                    )

    def _noted(self, operation: Operation) -> dict[str, object]:
        if type(operation).save is not Operation.save:
            return {}  # it saves what it wants to
        scratch = (name for kind in type(operation).__mro__ for name in vars(kind).get("scratch", ()))
        spared = {*operation.state, *scratch, *OURS, *vars(nn.Module()), *_properties(type(operation))}
        return {name: self._note(value, 0) for name, value in vars(operation).items() if name not in spared}

    def _note(self, value: object, depth: int) -> object:
        """A value to compare with later: plain values and copies of tensors, in tuples; objects as themselves."""
        if isinstance(value, nn.Parameter):
            return value  # the model's, or saved with the operation's parameters
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, torch.Generator):
            return value if value in self._services.generators else (value, value.get_state())
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return value
        if depth > DEPTH or isinstance(value, nn.Module | type | Services) or callable(value):
            return value
        if isinstance(value, dict):
            return dict, {key: self._note(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | deque):
            return list, [self._note(item, depth + 1) for item in value]
        if isinstance(value, set | frozenset):
            return set(value)
        if value is self._services.memory or not hasattr(value, "__dict__"):
            return value
        state: Callable[[], object] | None = getattr(value, "state", None)
        if callable(state) and hasattr(value, "load"):
            return value, self._note(state(), depth + 1)
        return value, {key: self._note(item, depth + 1) for key, item in vars(value).items()}


def _properties(kind: type) -> Iterable[str]:
    return [name for name, value in inspect.getmembers(kind) if isinstance(value, property)]


def _empty(noted: object) -> bool:
    """Whether what was noted holds nothing: None, or a container without elements."""
    return noted is None or noted in ((dict, {}), (list, []), set())


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if isinstance(one, nn.Parameter) or isinstance(other, nn.Parameter):
            return one is other
        alike = (one.shape, one.dtype) == (other.shape, other.dtype)
        return alike and torch.equal(torch.nan_to_num(one.cpu()), torch.nan_to_num(other.cpu()))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool | int | float | complex | str | bytes | set):
        return one == other or one != one  # nan stays nan
    return one is other
