"""What every operation and every method must offer before it is ever trained with."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.operation import ENTRY_POINTS, ROLES, Operation, acts_at, snake_case
from holdfast.testing import toys
from holdfast.testing.checking import DoesNotApply, expect


@dataclass(frozen=True)
class OperationSubject:
    """An operation that is checked.

    Attributes:
        kind: its class.
        arguments: to make one with.
        beside: operations that it cannot do without.
        stream: makes a stream of a paradigm, `class` or `task`.
        model: makes a model of a stream with a kind of head: `fixed`, `growing` or `task`.
    """

    kind: type[Operation]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[Operation, ...] = ()
    stream: Callable[..., Stream] = toys.small
    model: Callable[..., nn.Module] = toys.model

    def make(self) -> Operation:
        """A new one."""
        return self.kind(**self.arguments)


@dataclass(frozen=True)
class MethodSubject:
    """A method that is checked.

    Attributes:
        name: as messages call it.
        make: makes a new one, bound to nothing.
            factory: the function that makes it, where it has one; it is named in JSON.
        stream: makes a stream of a paradigm, `class` or `task`.
        model: makes a model of a stream with a kind of head: `fixed`, `growing` or `task`.
    """

    name: str
    make: Callable[[], Method]
    factory: Callable[..., Method] | None = None
    stream: Callable[..., Stream] = toys.small
    model: Callable[..., nn.Module] = toys.model

    def stream_for(self, method: Method) -> Stream:
        """A stream with task labels if the method needs them."""
        return self.stream(toys.paradigm_for(method))

    def heads(self, method: Method) -> list[str]:
        """The kinds of head that a method is trained with: all that the stream for it allows."""
        return ["task", "fixed", "growing"] if "task" in method.needs else ["fixed", "growing"]


def explained(value: Any) -> set[str]:
    """The names that stand with a meaning under `Args:` or `Attributes:` of a docstring."""
    return set(re.findall(r"^ +\*{0,2}(\w+)(?: \([^)]*\))?: ", inspect.getdoc(value) or "", re.MULTILINE))


def check_documentation(value: Any) -> None:
    """Fail unless the first line of a docstring says what something is, and `Args:` what each argument means."""
    name = getattr(value, "__name__", repr(value))
    text = inspect.getdoc(value) if value.__doc__ else ""
    expect(
        text and re.match(r".{10,}", text),
        f"`{name}` has no docstring. Its first line is what `holdfast list` shows; write one sentence.",
    )
    signature = inspect.signature(value)
    named = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    silent = [key for key in named if key not in explained(value)]
    expect(
        not silent,
        f"{', '.join(silent)} of `{name}` stand in no line under `Args:` of its docstring. That line is the help on the"
        " command line and in the schema; write one for each argument.",
    )
    untyped = [key for key in named if signature.parameters[key].annotation is inspect.Parameter.empty]
    expect(not untyped, f"{', '.join(untyped)} of `{name}` have no type. Annotate them, so that JSON can be checked.")


# Operations ------------------------------------------------------------------------------------------------


def documented(subject: OperationSubject) -> None:
    """Its docstring says what it is, and what each argument means."""
    check_documentation(subject.kind)


def arguments_kept(subject: OperationSubject) -> None:
    """Its arguments are plain values, stored under their own names."""
    operation, name = subject.make(), subject.kind.__name__
    for key in inspect.signature(subject.kind).parameters:
        expect(
            hasattr(operation, key),
            f"`{name}` takes {key!r} and does not store it. Write self.{key} = {key} in its constructor.",
        )
        value = getattr(operation, key)
        expect(
            not isinstance(value, torch.Tensor | torch.nn.Module),
            f"`{name}` takes a {type(value).__name__} as {key!r}, which no JSON can hold. Take a plain value that it is"
            " made of.",
        )


def operation_clone(subject: OperationSubject) -> None:
    """Its clone is another object with equal arguments and needs."""
    operation = subject.make()
    twin = operation.clone()
    name = subject.kind.__name__
    expect(twin is not operation and type(twin) is type(operation), f"the clone of `{name}` is {twin!r}.")
    expect(
        same(twin.config(), operation.config()),
        f"a clone of `{name}` has other arguments: {twin.config()} instead of {operation.config()}. Store each argument"
        " under its own name as it was given.",
    )
    expect(twin.needs == operation.needs, f"a clone of `{name}` needs {set(twin.needs)}, not {set(operation.needs)}.")


def operation_repr(subject: OperationSubject) -> None:
    """Its `repr` evaluates back to it."""
    operation = subject.make()
    built = evaluated(repr(operation), {subject.kind.__name__: subject.kind})
    expect(same(built.config(), operation.config()), f"{operation!r} evaluates to {built!r}. Leave `__repr__` alone.")


def operation_json(subject: OperationSubject) -> None:
    """It survives a round trip through JSON."""
    operation = subject.make()
    config = through_json(operation.config(), repr(operation))
    expect(
        config["name"] == snake_case(subject.kind.__name__),
        f"`{subject.kind.__name__}` is called {config['name']!r} in JSON, not {snake_case(subject.kind.__name__)!r}.",
    )
    built = subject.kind(**{key: value for key, value in config.items() if key != "name"})
    expect(
        same(built.config(), operation.config()),
        f"{operation!r} comes back from JSON as {built!r}. Its arguments must be plain values: numbers, words, lists.",
    )
    by_name = named_in_json("operations", config["name"], subject.kind)
    if by_name is not None:
        (built,) = by_name({"operations": [config]}).operations
        expect(same(built.config(), operation.config()), f"{operation!r} is built from JSON as {built!r}.")


def declarations(subject: OperationSubject) -> None:
    """Its role and needs are among those that there are, and it acts at some moment."""
    operation, name = subject.make(), subject.kind.__name__
    expect(operation.role in ROLES, f"`{name}` has role {operation.role!r}. Choose one of {', '.join(ROLES)}.")
    strange = sorted(set(operation.needs) - set(NEEDS))
    expect(not strange, f"`{name}` needs {', '.join(strange)}. What can be needed is {', '.join(NEEDS)}.")
    acts = any(acts_at(operation, point) for point in ENTRY_POINTS) or any(True for _ in operation.children())
    expect(acts, f"`{name}` overrides none of its entry points, so it does nothing: {', '.join(ENTRY_POINTS)}.")


def state_declared(subject: OperationSubject) -> None:
    """What it declares as state is there when it is made."""
    operation = subject.make()
    missing = [name for name in operation.state if not hasattr(operation, name)]
    expect(
        not missing,
        f"`{subject.kind.__name__}` declares the state {', '.join(map(repr, missing))} and never sets it. Set it in the"
        " constructor, to None or something empty.",
    )
    arguments = [name for name in operation.state if name in inspect.signature(subject.kind).parameters]
    expect(
        not arguments,
        f"`{subject.kind.__name__}` changes its own arguments {', '.join(arguments)} as state: its clone would start"
        " with what was learnt. Keep what is learnt under another name.",
    )


OPERATION_CHECKS: dict[str, Callable[[OperationSubject], None]] = {
    "documented": documented,
    "arguments": arguments_kept,
    "clone": operation_clone,
    "repr": operation_repr,
    "json": operation_json,
    "declared": declarations,
    "state": state_declared,
}


# Methods ---------------------------------------------------------------------------------------------------


def method_documented(subject: MethodSubject) -> None:
    """Its docstring says what it is and what each argument means, and it names its paper."""
    if subject.factory is None:
        raise DoesNotApply("it is an expression and has no name")
    check_documentation(subject.factory)
    method = subject.make()
    if method.name == "custom":
        raise DoesNotApply("it is not decorated with @published")
    expect(len(method.paper) > 10, f"`{subject.name}` names no paper. Write @published(paper='authors, title, where').")
    expected = {"name", *inspect.signature(subject.factory).parameters}
    expect(set(method.config()) == expected, f"`{subject.name}` is configured by {set(method.config())}.")


def method_clone(subject: MethodSubject) -> None:
    """Its clone shares no operation with it, and is equal otherwise."""
    method = subject.make()
    twin = method.clone()
    told = [(one.name, one.paper, one.config()) for one in (method, twin)]
    expect(same(*told), f"the clone of {method!r} is {twin!r}.")
    expect(not {id(one) for one in twin} & {id(one) for one in method}, f"{method!r} shares operations with its clone.")
    expect(
        same([one.config() for one in twin], [one.config() for one in method]),
        f"the operations of {method!r} are {list(twin)} in its clone and {list(method)} in itself.",
    )


def method_repr(subject: MethodSubject) -> None:
    """Its `repr` evaluates back to it."""
    method = subject.make()
    names: dict[str, Any] = {type(operation).__name__: type(operation) for operation in method} | {"Method": Method}
    if subject.factory is not None:
        names[method.name] = subject.factory
    built = evaluated(repr(method), names)
    expect(same(built.config(), method.config()), f"{method!r} evaluates to {built!r}.")


def method_json(subject: MethodSubject) -> None:
    """It survives a round trip through JSON, by its name and as the list of its operations."""
    method = subject.make()
    config = through_json(method.config(), repr(method))
    name = config.get("name", "")
    if subject.factory is not None and name:
        built = subject.factory(**{key: value for key, value in config.items() if key != "name"})
        expect(same(built.config(), method.config()), f"{method!r} comes back from JSON as {built!r}.")
        expect(
            same([one.config() for one in built], [one.config() for one in method]),
            f"{method!r} comes back from JSON with other operations: {list(built)}.",
        )
        by_name = named_in_json("methods", name, subject.factory)
        if by_name is not None:
            expect(same(by_name(config).config(), method.config()), f"{method!r} is not built from its own JSON.")
    parts = [through_json(operation.config(), repr(operation)) for operation in method]
    builders = [named_in_json("operations", one["name"], type(of)) for one, of in zip(parts, method)]
    if parts and all(builders):
        built = builders[0]({"operations": parts})  # type: ignore[misc]
        expect(
            same([one.config() for one in built], parts),
            f"the operations of {method!r}, written as a list, are built as {list(built)}.",
        )


METHOD_CHECKS: dict[str, Callable[[MethodSubject], None]] = {
    "documented": method_documented,
    "clone": method_clone,
    "repr": method_repr,
    "json": method_json,
}


# Helpers ---------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Whether two configurations say the same in JSON, which has lists and no tuples."""
    return bool(json.dumps(one, sort_keys=True, default=repr) == json.dumps(other, sort_keys=True, default=repr))


def through_json(config: Mapping[str, Any], who: str) -> dict[str, Any]:
    """A configuration as it comes back from JSON."""
    try:
        return dict(json.loads(json.dumps(config)))
    except (TypeError, ValueError) as error:
        expect(False, f"the arguments of {who} cannot be written as JSON ({error}). Take plain values only.")
        raise


def evaluated(text: str, names: Mapping[str, Any]) -> Any:
    """What the `repr` of something evaluates to."""
    try:
        return eval(text, dict(names))
    except Exception as error:
        expect(False, f"its repr is {text!r}, which does not evaluate ({type(error).__name__}: {error}).")


def named_in_json(kind: str, name: str, value: Any) -> Callable[[Any], Method] | None:
    """The function that builds a method from JSON, where `name` stands for `value` there."""
    from holdfast.config import kinds
    from holdfast.config.build import build_method

    try:
        named = kinds.find(kind, name)
    except ConfigError:
        return None  # nobody offered it to JSON
    return build_method if named is value else None
