"""The method: an ordered list of operations, and the decorator that gives a published one its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec

from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.operation import ROLES, Operation
from holdfast.core.ranges import ranged
from holdfast.core.services import Services
from holdfast.core.tree import Plain

P = ParamSpec("P")
Wrap = Callable[[nn.Module, Services], nn.Module | None]
"""A change of the model: returns another one to train, or None where it changed the model itself."""


class Method:
    """An ordered list of operations, and nothing more.

    Args:
        *operations: in the order in which they act within an entry point.
        name: of the method, for logs and reports.
        paper: where it was published.
        wrap: a change of the model that the method brings: masks, prompts, generated weights. `wrap(model, services)`
            is called once, when the method is bound and before its operations are set up. It returns another module,
            which is trained in the place of the one given (its parameters and buffers are saved with it), or changes
            the model or attaches hooks to it and returns None. One that keeps more has `state()` and `load()`; one
            that keeps anything of the model it changed has `clone()`, for `Method.clone`.

    Raises:
        ConfigError: where two operations own the criterion or the step, or do what one alone can do, or one is used
            twice.
    """

    def __init__(self, *operations: Operation, name: str = "custom", paper: str = "", wrap: Wrap | None = None) -> None:
        self.operations = operations
        self.wrap = wrap
        self.name = name
        self.paper = paper
        self._config: dict[str, Any] | None = None
        for operation in operations:
            if not isinstance(operation, Operation):
                raise ConfigError(
                    f"a method is made of operations, but got {operation!r}. "
                    "Write Method(Replay(...), Remember(...)); `holdfast list operations` shows them all."
                )
            if operation.role not in ROLES:
                raise ConfigError(f"{operation!r} has role {operation.role!r}. Choose one of {', '.join(ROLES)}.")
        if len({id(operation) for operation in operations}) < len(operations):
            raise ConfigError("the same operation object stands twice in a method. Write a second one, or use clone().")
        for problem in conflicts(operations):
            raise ConfigError(problem)
        counts: dict[str, int] = {}
        for operation in operations:
            base = operation.config()["name"]
            counts[base] = counts.get(base, 0) + 1
            operation.name = base if counts[base] == 1 else f"{base}_{counts[base]}"

    @property
    def needs(self) -> dict[str, str]:
        """Need -> name of the first operation that has it."""
        needs: dict[str, str] = {}
        for operation in self.operations:
            for need in sorted(operation.needs):
                needs.setdefault(need, operation.name)
        return needs

    @property
    def unfilled(self) -> str:
        """The first operation that draws from a memory where none is declared to fill one; empty where all is well."""
        if any(operation.fills for operation in self.operations):
            return ""
        return next((one.name for one in self.operations if one.remembers or one.draws), "")

    @property
    def infers_task(self) -> bool:
        """Whether evaluation finds each sample's task by itself, so that accuracy over all classes counts."""
        return any(operation.once == "infer the task" for operation in self.operations)

    @property
    def remembers(self) -> tuple[str, ...]:
        """The extra fields that the memory must keep for these operations, each once."""
        return tuple(dict.fromkeys(field for operation in self.operations for field in operation.remembers))

    def config(self) -> Plain:
        """What JSON writes down: the published name and its arguments, or the list of operations."""
        if self._config is not None:
            return dict(self._config)
        operations: dict[str, Any] = {"operations": [operation.config() for operation in self.operations]}
        return operations if self.wrap is None else {**operations, "wrap": called(self.wrap)}

    def clone(self) -> Method:
        """A method of the same operations, without their state."""
        clone = getattr(self.wrap, "clone", None)
        wrap = clone() if callable(clone) else self.wrap
        copies = (operation.clone() for operation in self.operations)
        twin = Method(*copies, name=self.name, paper=self.paper, wrap=wrap)
        twin._config = self._config
        return twin

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def __repr__(self) -> str:
        if self._config is not None:
            arguments = ", ".join(f"{key}={value!r}" for key, value in self._config.items() if key != "name")
            return f"{self.name}({arguments})"
        wrap = [] if self.wrap is None else [f"wrap={called(self.wrap)}"]
        return f"Method({', '.join([*map(repr, self.operations), *wrap])})"


def called(wrap: Wrap) -> str:
    """The name of a function, or of an object's class."""
    return getattr(wrap, "__name__", type(wrap).__name__)


FILLS = "fill the memory that others draw from"
"""What operations do that `fills`."""


def conflicts(operations: Iterable[Operation | type[Operation]]) -> list[str]:
    """Why operations cannot stand in one method, read off what they declare: nothing is bound, and nothing made.

    Args:
        operations: themselves, or their classes.

    Returns:
        A sentence for each thing that one operation alone can do and several of them do.

    Example:
        >>> class First(Operation):
        ...     once = "sort the samples"
        >>> class Second(Operation):
        ...     once = "sort the samples"
        >>> conflicts([First, Second])
        ['First and Second both sort the samples. Keep one of them.']
    """
    listed = list(operations)
    kinds = {id(one): one if isinstance(one, type) else type(one) for one in listed}
    acts = {point: f"own the {point!r} of a step" for point in ("criterion", "take_step")}
    owners: dict[str, list[Operation | type[Operation]]] = {}
    for one in listed:
        kind = kinds[id(one)]
        does = [what for point, what in acts.items() if getattr(kind, point) is not getattr(Operation, point)]
        does = [what for what in does if not (kind.adds and what == acts["criterion"])]
        does += [kind.once] if kind.once else []
        does += [FILLS] if kind.fills else []
        for what in does:
            owners.setdefault(what, []).append(one)
    filling = owners.get(FILLS, [])
    if all(kinds[id(one)].joins for one in filling) and len({kinds[id(one)] for one in filling}) == 1:
        del owners[FILLS]
    names = {what: list(map(_called, ones)) for what, ones in owners.items()}
    problems = [
        f"{' and '.join(named)} both {what}. Keep one of them." for what, named in names.items() if len(named) > 1
    ]
    for filler in (one for one in listed if one.fills and one.lacks):
        problems += [
            f"{_called(filler)} fills the memory with rows without {' and '.join(sorted(filler.lacks))}, and"
            f" {_called(one)} draws whole rows from it. Keep one of them, or fill the memory with Remember."
            for one in listed
            if one.draws and not one.fills
        ]
    return problems


def _called(one: Operation | type[Operation]) -> str:
    return one.__name__ if isinstance(one, type) else repr(one)


def published(paper: str) -> Callable[[Callable[P, Method]], Callable[P, Method]]:
    """Make a function that returns a `Method` a published one: named after the function, its arguments recorded.

    Args:
        paper: authors, title, where and when.
    """

    def decorate(factory: Callable[P, Method]) -> Callable[P, Method]:
        signature, make = inspect.signature(factory), ranged(factory)

        @functools.wraps(factory)
        def build(*args: P.args, **kwargs: P.kwargs) -> Method:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            method = make(*args, **kwargs)
            method.name = factory.__name__
            method.paper = paper
            method._config = {"name": factory.__name__, **bound.arguments}
            return method

        build.paper = paper  # type: ignore[attr-defined]
        return build

    return decorate
