"""Types that JSON can express: the part of an annotation that a configuration can write, and how people say it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
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
