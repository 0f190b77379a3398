"""What a configuration can say to a callable: its JSON-able parameters, read off the signature and the docstring."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import Field, Strict

from holdfast.core.ranges import Range

PYTHON_ONLY: Any = object()
"""Stands for the type of a parameter that JSON cannot express: a tensor, a callable, a module."""


def json_type(hint: Any) -> Any:
    """The JSON-able part of a type annotation, or `PYTHON_ONLY`.

    Example:
        >>> json_type(float | torch.Tensor), json_type(Sequence[int]), json_type(torch.Tensor) is PYTHON_ONLY
        (<class 'float'>, list[int], True)
    """
    if hint is None or hint is NoneType:
        return NoneType
    if hint in (Any, object):  # of the whole parameter it says that Python objects are meant
        return PYTHON_ONLY
    if hint in (bool, int, float, str):
        return hint
    if hint in (Path, torch.device) or hint is os.PathLike:
        return str
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return hint
    if origin is Annotated:
        inner = json_type(args[0])
        bounds = [bound(one) for one in args[1:] if isinstance(one, Range)]
        return PYTHON_ONLY if inner is PYTHON_ONLY else Annotated[(inner, *args[1:], *bounds)]
    if origin in (Union, UnionType):
        members = [member for member in map(json_type, args) if member is not PYTHON_ONLY]
        if all(member is NoneType for member in members):
            return PYTHON_ONLY
        return Union[tuple(members)]  # noqa: UP007
    if origin is tuple and args and args[-1] is not Ellipsis:
        members = [json_type(arg) for arg in args]
        return PYTHON_ONLY if PYTHON_ONLY in members else Annotated[tuple[tuple(members)], Strict(False)]  # type: ignore[misc]
    container = origin or hint
    if container in (list, tuple, set, frozenset, Sequence, Iterable, Collection):
        member = json_inside(args[0]) if args else Any
        return PYTHON_ONLY if member is PYTHON_ONLY else list[member]  # type: ignore[valid-type]
    if container in (dict, Mapping):
        value = json_inside(args[1]) if args else Any
        return PYTHON_ONLY if value is PYTHON_ONLY or (args and args[0] is not str) else dict[str, value]  # type: ignore[valid-type]
    return PYTHON_ONLY


def bound(numbers: Range) -> Any:
    """A range as pydantic knows it."""
    low, high = ("gt" if numbers.low_open else "ge"), ("lt" if numbers.high_open else "le")
    bounds: dict[str, Any] = {low: numbers.low, high: numbers.high}
    return Field(**{key: value for key, value in bounds.items() if value is not None})


def json_inside(hint: Any) -> Any:
    """The JSON-able part of what a container holds; anything at all is any JSON value there."""
    return Any if hint is Any else json_type(hint)


def plain(value: Any) -> Any:
    """`value` with tuples and sets as lists, or `PYTHON_ONLY` where JSON cannot write it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(item) for item in value]
        return PYTHON_ONLY if PYTHON_ONLY in items else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        pairs = {key: plain(item) for key, item in value.items()}
        return PYTHON_ONLY if PYTHON_ONLY in pairs.values() else pairs
    return PYTHON_ONLY


def type_name(kind: Any) -> str:
    """A JSON-able type as people write it.

    Example:
        >>> type_name(Union[int, None]), type_name(list[int]), type_name(Literal["a", "b"])
        ('int or null', 'list of int', '"a" or "b"')
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is PYTHON_ONLY:
        return "Python object"
    if kind is NoneType:
        return "null"
    if kind is Any:
        return "any"
    if origin is Annotated:
        numbers = next((f" {one!r}" for one in args[1:] if isinstance(one, Range)), "")
        return f"{type_name(args[0])}{numbers}"
    if origin is Literal:
        return " or ".join(f'"{value}"' if isinstance(value, str) else str(value).lower() for value in args)
    if origin in (Union, UnionType):
        return " or ".join(type_name(arg) for arg in args)
    if origin is tuple:
        return f"[{', '.join(type_name(arg) for arg in args)}]"
    if origin is list:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return f"object of {type_name(args[1])}"
    return getattr(kind, "__name__", str(kind))


REQUIRED: Any = inspect.Parameter.empty
"""Stands for the default of a parameter that has none."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a callable, as a configuration sees it.

    Attributes:
        name: its name in the signature and in JSON.
        type: the JSON-able part of its annotation, or `PYTHON_ONLY`.
        default: as JSON values, or `REQUIRED`.
        doc: its line in the docstring's `Args:`.
    """

    name: str
    type: Any
    default: Any
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def configurable(self) -> bool:
        """Whether JSON can express it."""
        return self.type is not PYTHON_ONLY


def docs(text: str | None) -> tuple[str, dict[str, str]]:
    r"""The first sentence of a docstring, and the description of each parameter under its `Args:`.

    Example:
        >>> docs("Say it.\n\nArgs:\n    word: what to say,\n        aloud.\n    lr (float): rate.")
        ('Say it.', {'word': 'what to say, aloud.', 'lr': 'rate.'})
    """
    text = inspect.cleandoc(text or "")
    summary = " ".join(text.split("\n\n", 1)[0].split())
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    described: dict[str, str] = {}
    if section is not None:
        lines = [line for line in section[1].splitlines() if line.strip()]
        margin = min((len(line) - len(line.lstrip()) for line in lines), default=0)
        current = ""
        for line in lines:
            head = re.match(r"\*{0,2}(\w+)(?:\s*\(.*?\))?:\s*(.*)", line[margin:])
            if head:
                current = head[1]
                described[current] = head[2].strip()
            elif current:
                described[current] = f"{described[current]} {line.strip()}".strip()
    return summary, described


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a function or of a class's constructor, in order, without `*args` and `**kwargs`."""
    return list(_parameters(function))


@functools.lru_cache(maxsize=2048)  # types and docstrings are read slowly, and every check of a job asks for many
def _parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    target = inspect.unwrap(function)
    owner = getattr(target, "__init__", target) if isinstance(target, type) else target
    namespace = getattr(inspect.unwrap(owner), "__globals__", {})
    _, described = docs(target.__doc__)
    if isinstance(target, type):
        described = {**docs(owner.__doc__)[1], **described}
    read = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = REQUIRED if parameter.default is parameter.empty else plain(parameter.default)
        kind = json_type(_resolve(parameter.annotation, namespace, parameter.default))
        if default is PYTHON_ONLY:
            kind, default = PYTHON_ONLY, None
        if default is None and kind is not PYTHON_ONLY:
            kind = Union[kind, None]  # noqa: UP007
        read.append(Parameter(parameter.name, kind, default, described.get(parameter.name, "")))
    return tuple(read)


def _resolve(annotation: Any, namespace: dict[str, Any], default: Any) -> Any:
    """The type an annotation of our own source stands for; of an unannotated parameter, that of its default."""
    if annotation is inspect.Parameter.empty:
        return PYTHON_ONLY if default is None or default is inspect.Parameter.empty else type(default)
    if not isinstance(annotation, str):
        return annotation
    holder = type("_", (), {"__annotations__": {"it": annotation}})
    names = {**vars(typing), **vars(collections.abc), **namespace}
    try:
        return typing.get_type_hints(holder, globalns=names, include_extras=True)["it"]
    except (NameError, AttributeError, TypeError):  # imported for type checkers only: an object, never JSON
        return PYTHON_ONLY


def table_of(name: str) -> Callable[[ModuleType], dict[str, Any]]:
    """Takes what stands in the mapping of this name, or what a function of this name gives."""

    def select(module: ModuleType) -> dict[str, Any]:
        table = getattr(module, name)
        return {
            key: _said(one) if isinstance(one, str) else one
            for key, one in (table() if callable(table) else table).items()
        }

    return select


def _said(sentence: str) -> Callable[[], str]:
    """Something that is nothing but its description, in a form that can be described."""

    def say() -> str:
        return sentence

    say.__doc__ = sentence
    return say


# The blocks of a job that choose nothing by name: when to save, where runs go, how batches arrive -----------------

Fields = dict[str, Any]

PATTERN = "pattern of new folders, with {date}, {time}, {clock}, {experiment} and {method}; null for"

CHECKPOINT: Fields = {
    "every_seconds": (float | None, Field(30.0, gt=0, description="seconds between checkpoints; null for none")),
    "every_steps": (int | None, Field(None, ge=1, description="steps between checkpoints; null for none")),
}

FOLDERS: Fields = {
    "run": (str | None, Field(None, description=f"{PATTERN} runs/... or logs/<experiment>/runs/...")),
    "multirun": (
        str | None,
        Field(None, description=f"{PATTERN} multiruns/... or logs/<experiment>/multiruns/..."),
    ),
    "experiences": (
        bool,
        Field(False, description="a folder for each experience: checkpoint after it, results and training as CSV"),
    ),
}

ARRIVAL: Fields = {
    "policy": (
        Literal["auto", "none", "block", "drop", "reservoir"],
        Field(
            "auto",
            description="what happens while training is slower than the source: the source waits (block), rows are"
            " dropped and counted (drop), seen rows are drawn again and no unseen one is lost (reservoir); none reads"
            " without a queue; auto is block for what is live",
        ),
    ),
    "capacity": (int | None, Field(None, ge=1, description="of the queue, in batches (64); in rows of a reservoir")),
    "timeout": (float | None, Field(None, gt=0, description="seconds to wait for a batch; null for the source's own")),
    "on_failure": (
        Literal["raise", "end"],
        Field("raise", description="whether a source that fails is an error, or an end"),
    ),
    "watermark": (int | None, Field(None, ge=1, description="rows in a reservoir before the first batch")),
    "window": (
        int | None,
        Field(
            None, ge=1, description="newest rows that batches are drawn from at random; null takes them as they come"
        ),
    ),
    "min_steps": (int, Field(1, ge=1, description="with a window: steps between two arrivals, at least")),
    "max_steps": (int, Field(3, ge=1, description="with a window: steps after an arrival, at most; then it waits")),
    "after_end": (int, Field(0, ge=0, description="with a window: further steps after the source ended")),
    "hold_out": (float, Field(0.0, ge=0, lt=1, description="share of the rows never trained on, to be asked about")),
    "observe_every": (int, Field(200, ge=1, description="batches between two looks at rows held out and memory")),
    "observe_rows": (int, Field(1000, ge=1, description="rows held out that are kept, at most")),
}
"""The keys of the block `arrival`."""
