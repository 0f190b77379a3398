"""Every tensor and plain value that objects hold, by path, with a way to put another in its place."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.experience import Data, Experience, Stream
from holdfast.core.tape import Alias, alias_of

PLAIN = (bool, int, float, complex, str, bytes, type(None))
KINDS = frozenset(PLAIN)
HOOKS = frozenset(
    f"_{when}_hooks{more}"
    for when in ("forward", "forward_pre", "backward", "backward_pre", "state_dict", "load_state_dict_post")
    for more in ("", "_with_kwargs", "_always_called")
)
PASSING = {
    "Services": frozenset({"now", "logged", "generators"}),
    "Trainable": frozenset({"optimizer", "on_growth"}),
    "Storage": frozenset({"_arrays"}),
}
"""By class: attributes that the loop sets anew before each step, that only decisions change, that lead to loops, or
that look at the same memory once more."""


class Held(NamedTuple):
    """What stands at a path.

    Attributes:
        value: to compare, if there is no tensor.
        tensor: the tensor that stands there.
        bare: its values, which stay the same memory if the tensor is given other memory.
        alias: of the tensor.
        put: puts another tensor in its place; None where nothing can be put.
    """

    value: object = None
    tensor: Tensor | None = None
    bare: Tensor | None = None
    alias: Alias | None = None
    put: Callable[[Tensor], None] | None = None

    def differs(self, other: Held) -> bool:
        """Whether another value stands there, or another tensor; what is in the tensors does not count."""
        if self.alias is not None or other.alias is not None:
            return self.alias != other.alias
        return type(self.value) is not type(other.value) or (self.value != other.value and self.value == self.value)

    @property
    def storage(self) -> int | None:
        """Which memory the tensor lies in; None for a plain value."""
        return None if self.alias is None else self.alias[0]

    def replaceable(self, new: Held) -> bool:
        """Whether the values of another tensor fit into this one."""
        if self.bare is None or new.bare is None or (new.put is None and new.tensor is not self.tensor):
            return False
        old = self.bare
        return (old.shape, old.dtype, old.device) == (new.bare.shape, new.bare.dtype, new.bare.device)

    def take(self, now: Held) -> None:
        """Take over the values that stand there now, and the place."""
        assert self.tensor is not None and self.bare is not None and now.tensor is not None
        if now.tensor is self.tensor:  # it was given other memory
            self.tensor.data = self.bare
        elif now.put is not None:
            now.put(self.tensor)


def held_by(roots: Mapping[str, object], without: Sequence[object] = ()) -> dict[str, Held]:
    """Path -> what stands there, for all that can be reached from `roots`.

    Modules, containers, closures, and objects of any class that is not of a library are walked into; data sets are not.

    Args:
        roots: by name.
        without: objects that are not walked into.
    """
    walk = _Walk()
    walk.seen.update({id(one): one for one in without})
    for name, root in roots.items():
        walk.into(root, name, None)
    return walk.entries


def changed(before: Mapping[str, Held], after: Mapping[str, Held]) -> set[str]:
    """The paths where something else stands, or where there was nothing."""
    gone = before.keys() ^ after.keys()
    return gone | {path for path, value in before.items() if path in after and value.differs(after[path])}


def how_changed(before: Mapping[str, Held], after: Mapping[str, Held], path: str) -> str:
    """What happened to what stands at a path, as a verb phrase."""
    if path not in before:
        return "is added"
    if path not in after:
        return "is removed"
    if before[path].bare is None and after[path].bare is None:
        return f"changes from {before[path].value!r:.40} to {after[path].value!r:.40}"
    return "turns into a tensor" if before[path].bare is None else "is a tensor no more"


class _Walk:
    def __init__(self) -> None:
        self.entries: dict[str, Held] = {}
        self.seen: dict[int, object] = {}  # holds what it identifies, so that no other object can take its place

    def into(self, value: object, path: str, put: Callable[[Tensor], None] | None) -> None:
        kind = type(value)
        if kind in KINDS or isinstance(value, PLAIN):
            self.entries[path] = Held(value)
            return
        if isinstance(value, Tensor):
            if value.layout is torch.strided:
                self.entries[path] = Held(None, value, value.detach(), alias_of(value), put)
            return
        if id(value) in self.seen or kind is torch.Generator:
            return
        if isinstance(value, type | Data | Experience | Stream):
            return
        self.seen[id(value)] = value
        if isinstance(value, Mapping):
            self._mapping(value, path)
        elif isinstance(value, list | tuple | deque | set | frozenset):
            self._sequence(value, path)
        elif isinstance(value, np.ndarray | np.generic | random.Random | np.random.Generator | Iterator):
            self.entries[path] = Held(_state_of(value))
        elif isinstance(value, FunctionType):
            self._function(value, path)
        elif isinstance(value, MethodType):
            self.into(value.__self__, path, None)
        elif isinstance(value, functools.partial):
            for number, one in enumerate((value.func, value.args, value.keywords)):
                self.into(one, f"{path}({number})", None)
        elif isinstance(value, nn.Module) or not type(value).__module__.startswith(LIBRARIES):
            self._object(value, path)

    def _mapping(self, value: Mapping[object, object], path: str) -> None:
        for position, (key, one) in enumerate(value.items()):
            name = key if isinstance(key, str | int) else position

            def put(new: Tensor, key: object = key) -> None:
                value[key] = new  # type: ignore[index]

            self.into(one, f"{path}[{name!r}]", put)

    def _sequence(self, value: Sequence[object] | set[object] | frozenset[object], path: str) -> None:
        if KINDS.issuperset(map(type, value)) or all(isinstance(one, PLAIN) for one in value):
            self.entries[path] = Held(frozenset(value) if isinstance(value, set | frozenset) else tuple(value))
            return
        for number, one in enumerate(value):

            def put(new: Tensor, number: int = number) -> None:
                value[number] = new  # type: ignore[index]

            self.into(one, f"{path}[{number}]", None if isinstance(value, tuple | set | frozenset) else put)

    def _function(self, value: FunctionType, path: str) -> None:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):

            def put(new: Tensor, cell: object = cell) -> None:
                cell.cell_contents = new  # type: ignore[attr-defined]

            try:
                self.into(cell.cell_contents, f"{path}.{name}", put)
            except ValueError:  # the cell is empty
                continue
        self.into(value.__defaults__ or (), f"{path}()", None)

    def _object(self, value: object, path: str) -> None:
        passing = PASSING.get(type(value).__name__, frozenset())
        for key, one in list(getattr(value, "__dict__", {}).items()):
            if key in passing or (key in HOOKS and isinstance(value, nn.Module)):
                continue

            def put(new: Tensor, key: str = key) -> None:
                value.__dict__[key] = new

            self.into(one, f"{path}.{key}", put)
        slots, functions = _of_class(type(value))  # type: ignore[arg-type]
        for key in slots:
            if key not in passing and hasattr(value, key):
                self.into(getattr(value, key), f"{path}.{key}", functools.partial(setattr, value, key))
        for function in functions:
            self.into(function, function.__qualname__, None)


LIBRARIES = (
    *("torch", "builtins", "collections", "functools", "typing", "numpy", "itertools", "threading", "abc", "weakref"),
    "_",
)
"""Beginnings of the names of modules whose objects hold nothing of a training's."""


@functools.cache
def _of_class(kind: Hashable) -> tuple[list[str], list[FunctionType]]:
    """The slots of a class, and those of its functions that are closures."""
    slots: list[str] = []
    functions: list[FunctionType] = []
    assert isinstance(kind, type)
    for base in kind.__mro__:
        if base.__module__.startswith(LIBRARIES):
            continue
        named = vars(base).get("__slots__", ())
        slots += [name for name in ((named,) if isinstance(named, str) else named) if not name.startswith("__")]
        every = [one for one in vars(base).values() if isinstance(one, FunctionType)]
        functions += [one for one in every if set(one.__code__.co_freevars) - {"__class__"}]
    return slots, functions


def _state_of(value: object) -> object:
    """Something that differs once the state of a random generator, an array or an iterator is another."""
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    frame = getattr(value, "gi_frame", None)
    if frame is not None:
        return (frame.f_lasti, repr(frame.f_locals))
    return repr(value)
