"""Ranges of numbers that stand on signatures: checked where a thing is defined and where it is made.

`strength: Annotated[float, Range(0, 1e6, log=True)] = 1.0` is read by the constructor's check, by the schema of
configurations, by the pages, by `holdfast list NAME` and by a search. `Literal["a", "b"]` is checked in the same way.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from holdfast.core.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

GUARDED = "__guarded__"
_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
        low: the least; None for no bound.
        high: the greatest; None for no bound.
        log: whether a search goes through it by factors rather than by differences.
        low_open: whether `low` itself is left out.
        high_open: whether `high` itself is left out.

    Example:
        >>> 0.5 in Range(0, 1), 1 in Range(0, 1, high_open=True), 7 in Range(1)
        (True, False, True)
        >>> Range(0, 1, high_open=True)
        from 0 to below 1
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    low_open: bool = False
    high_open: bool = False

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(f"a range from {self.low} to {self.high} is empty. Give the smaller number first.")
        if self.log and (self.low is None or self.low < 0):
            raise ConfigError(f"a range from {self.low} has no logarithms. Start at 0 or above.")

    def __contains__(self, number: float) -> bool:
        low = self.low is None or (number > self.low if self.low_open else number >= self.low)
        high = self.high is None or (number < self.high if self.high_open else number <= self.high)
        return low and high and not math.isnan(number)

    def __repr__(self) -> str:
        low = "" if self.low is None else f"{self.low:g}"
        high = "" if self.high is None else f"{self.high:g}"
        if low and high:
            start = f"above {low}" if self.low_open else f"from {low}"
            return f"{start} to below {high}" if self.high_open else f"{start} to {high}"
        if low:
            return f"above {low}" if self.low_open else f"of {low} or more"
        if high:
            return f"below {high}" if self.high_open else f"of {high} or less"
        return "of any size"


Count = Annotated[int, Range(1)]
"""How many of something that has to be there: 1 or more."""

Size = Annotated[int, Range(0)]
"""How many of something that may be missing: 0 or more."""

Positive = Annotated[float, Range(0, log=True, low_open=True)]
"""A number above 0: a learning rate, a temperature."""

NonNegative = Annotated[float, Range(0)]
"""A number that may be 0."""

Strength = Annotated[float, Range(0, log=True)]
"""The factor of a penalty; 0 leaves it out."""

Share = Annotated[float, Range(0, 1)]
"""A part of a whole, from nothing to all."""

BelowOne = Annotated[float, Range(0, 1, high_open=True)]
"""A part of a whole that is not all of it: what is held out or forgotten."""

UpToOne = Annotated[float, Range(0, 1, low_open=True)]
"""A part of a whole that is not nothing."""

Inside = Annotated[float, Range(0, 1, low_open=True, high_open=True)]
"""A part of a whole, neither nothing nor all."""


@dataclass(frozen=True)
class Doc:
    """What docstrings say under `Args:` of a parameter of this type, where they say nothing of their own."""

    text: str


@dataclass
class Rule:
    """What one parameter may be, as far as its annotation says it in ranges and choices.

    Attributes:
        ranges: each with whether its numbers are whole.
        choices: of a `Literal`.
        element: the rule for each element of a sequence.
        optional: whether None is allowed.
        numbers: whether any number is allowed.
        others: whether it may also be something that no rule speaks of.
    """

    ranges: list[tuple[Range, bool]] = field(default_factory=list)
    choices: list[object] = field(default_factory=list)
    element: Rule | None = None
    optional: bool = False
    numbers: bool = False
    others: bool = False

    def speaks(self) -> bool:
        """Whether there is anything to check."""
        return bool(self.ranges or self.choices) or (self.element is not None and self.element.speaks())

    def allows(self, value: object) -> bool:
        """Whether the parameter may be `value`."""
        if value is None:
            return self.optional or self.others
        alike = [one for one in self.choices if isinstance(one, bool) == isinstance(value, bool)]  # True is 1 otherwise
        if any(isinstance(value, type(choice)) and value == choice for choice in alike):
            return True
        if isinstance(value, Real) and not isinstance(value, bool):
            whole = isinstance(value, Integral)
            if any(float(value) in one and (whole or not wanted) for one, wanted in self.ranges):
                return True
            return self.numbers or (self.others and not self.ranges)
        if self.element is not None and isinstance(value, (list, tuple, set, frozenset)):
            return all(map(self.element.allows, value))
        return self.others or (self.element is not None and not isinstance(value, (str, bool)))

    def words(self) -> str:
        """What to write instead, as the second sentence of an error."""
        wanted = [f"a {'whole ' if whole else ''}number {one}" for one, whole in self.ranges]
        if self.element is not None and self.element.ranges:
            [one, whole] = self.element.ranges[0]
            wanted.append(f"a list of {'whole ' if whole else ''}numbers {one}")
        if self.optional and not self.choices:
            wanted.append("None")
        if not self.choices:
            return f"Give {', or '.join(wanted)}."
        listed = list(map(str, self.choices)) + (["None"] if self.optional else [])
        chosen = f"{listed[0]} or {listed[1]}" if len(listed) == 2 else f"one of {', '.join(listed)}"
        return f"Choose {chosen}{', or give ' + ', or '.join(wanted) if wanted else ''}."


def rule(annotation: object) -> Rule:
    """The rule that an annotation stands for."""
    made = Rule()
    _add(made, annotation)
    return made


def _add(into: Rule, hint: object) -> None:
    origin, args = get_origin(hint), get_args(hint)
    if hint is None or hint is NoneType:
        into.optional = True
    elif origin is Annotated:
        ranges = [one for one in args[1:] if isinstance(one, Range)]
        if not ranges:
            _add(into, args[0])
            return
        members = set(get_args(args[0]) or [args[0]])
        if not members & {int, float} or members - {int, float, NoneType}:
            raise ConfigError(f"{ranges[0]!r} stands on {args[0]}. A range is for int, float, or one of them or None.")
        into.ranges += [(one, float not in members) for one in ranges]
        into.optional |= NoneType in members
    elif origin is Literal:
        into.choices += [choice for choice in args if choice is not None]
        into.optional |= None in args
    elif origin in (Union, UnionType):
        for member in args:
            _add(into, member)
    elif origin in _SEQUENCES and args:
        into.element = rule(args[0])
    elif hint in (int, float):
        into.numbers = True
    else:
        into.others = True


def rules(function: Callable[..., object]) -> dict[str, Rule]:
    """The rules of a signature: for each parameter whose annotation holds a range or choices."""
    made = {}
    for parameter, hint in _hints(function):
        one = rule(hint)
        if parameter.default is None:
            one.optional = True
        if one.speaks():
            made[parameter.name] = one
    return made


def _hints(function: Callable[..., object]) -> Iterator[tuple[inspect.Parameter, object]]:
    """The parameters of a function with what their annotations stand for."""
    target = inspect.unwrap(function)
    namespace = {**vars(typing), **vars(collections.abc), **getattr(target, "__globals__", {})}
    for parameter in inspect.signature(target).parameters.values():
        hint = parameter.annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, namespace)  # our own source or a plug-in's, never a configuration's
            except Exception:  # imported for type checkers only, so nothing that can be checked
                continue
        yield parameter, hint


def completed(text: str, names: Iterable[str], shared: Mapping[str, str]) -> str:
    """A docstring whose `Args:` also say what is shared, in the order of the signature.

    Args:
        text: the docstring.
        names: of all parameters, in order.
        shared: what to say of some of them, where the docstring does not.
    """
    section = re.search(r"^( *)Args:\n((?:\1    .*\n)+)", text, re.MULTILINE)
    if section is None:
        return text
    margin = f"{section[1]}    "
    entries = re.split(rf"^(?={margin}\S)", section[2], flags=re.MULTILINE)[1:]
    described = {re.match(r"[ *]*(\w*)", entry)[1]: entry for entry in entries}  # type: ignore[index]
    added = {name: f"{margin}{name}: {words}\n" for name, words in shared.items()}
    whole = {**dict.fromkeys(names, ""), **added, **described}
    return text[: section.start(2)] + "".join(whole.values()) + text[section.end(2) :]


def check(owner: str, allowed: Mapping[str, Rule], arguments: Iterable[tuple[str, object]]) -> None:
    """Raise a `ConfigError` for the first argument that its rule does not allow."""
    for name, value in arguments:
        one = allowed.get(name)
        if one is None or one.allows(value):
            continue
        words = [choice for choice in one.choices if isinstance(choice, str)]
        near = difflib.get_close_matches(value, words, n=1, cutoff=0.5) if isinstance(value, str) else []
        if near:
            raise ConfigError(f"`{owner}` got {name}={value!r}; did you mean {near[0]!r}?")
        raise ConfigError(f"`{owner}` got {name}={value!r}. {one.words()}")


def ranged(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are checked against the ranges and choices of its signature when it is called.

    Raises:
        ConfigError: at once, for a default that its own range does not hold.

    Example:
        >>> @ranged
        ... def soften(temperature: Positive = 2.0) -> float:
        ...     return 1 / temperature
        >>> soften(0.0)
        Traceback (most recent call last):
        holdfast.core.errors.ConfigError: `soften` got temperature=0.0. Give a number above 0.
    """
    allowed, signature = _defined(function, function.__name__)
    docs = {p.name: one.text for p, hint in _hints(function) for one in get_args(hint) if isinstance(one, Doc)}
    if docs and function.__doc__:
        function.__doc__ = completed(function.__doc__, signature.parameters, docs)
    if not allowed:
        return function

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        check(function.__name__, allowed, signature.bind_partial(*args, **kwargs).arguments.items())
        return function(*args, **kwargs)

    return wrapped


def guard(cls: type, name: Callable[[type], str] = lambda cls: cls.__name__) -> None:
    """Make the constructor of a class check its arguments against the ranges and choices of its signature.

    Args:
        cls: whose own `__init__` is replaced; one that it inherits checks by itself.
        name: what a class is called in messages.

    Raises:
        ConfigError: at once, for a default that its own range does not hold.
    """
    constructor = cls.__dict__.get("__init__")
    if constructor is None or hasattr(constructor, GUARDED):
        return
    allowed, signature = _defined(constructor, name(cls))
    if not allowed:
        return

    @functools.wraps(constructor)
    def wrapped(self: object, *args: object, **kwargs: object) -> None:
        with_self = signature.bind_partial(self, *args, **kwargs).arguments
        check(name(type(self)), allowed, with_self.items())
        constructor(self, *args, **kwargs)

    setattr(wrapped, GUARDED, True)
    cls.__init__ = wrapped  # type: ignore[misc]


def check_fields(made: object, owner: str) -> None:
    """Check the fields of a dataclass, from its `__post_init__`, against the ranges and choices of their annotations.

    Args:
        made: the dataclass.
        owner: what it is called in messages.

    Raises:
        ConfigError: for a value, or a default, outside of its range.
    """
    kind: Any = type(made)
    fields = _field_rules(kind, owner)
    check(owner, fields, ((name, getattr(made, name)) for name in fields))


@functools.cache
def _field_rules(cls: Any, owner: str) -> dict[str, Rule]:
    return _defined(cls.__init__, owner)[0]


def _defined(function: Callable[..., object], owner: str) -> tuple[dict[str, Rule], inspect.Signature]:
    """The rules of a function whose defaults keep to them, and its signature."""
    allowed, signature = rules(function), inspect.signature(function)
    for name, one in allowed.items():
        default = signature.parameters[name].default
        if default is not inspect.Parameter.empty and not one.allows(default):
            raise ConfigError(f"`{owner}` has the default {name}={default!r}. {one.words()}")
    return allowed, signature
