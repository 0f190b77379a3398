"""What a configuration can say to a callable: its JSON-able parameters, read off the signature and the docstring."""

from __future__ import annotations

import collections.abc
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

from holdfast.config.json_types import PYTHON_ONLY, json_type, plain

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
    target = inspect.unwrap(function)
    owner = getattr(target, "__init__", target) if isinstance(target, type) else target
    namespace = getattr(inspect.unwrap(owner), "__globals__", {})
    _, described = docs(target.__doc__)
    if isinstance(target, type):
        described = {**docs(owner.__doc__)[1], **described}
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = REQUIRED if parameter.default is parameter.empty else plain(parameter.default)
        kind = json_type(_resolve(parameter.annotation, namespace, parameter.default))
        if default is PYTHON_ONLY:
            kind, default = PYTHON_ONLY, None
        if default is None and kind is not PYTHON_ONLY:
            kind = Union[kind, None]  # noqa: UP007
        found.append(Parameter(parameter.name, kind, default, described.get(parameter.name, "")))
    return found


def _resolve(annotation: Any, namespace: dict[str, Any], default: Any) -> Any:
    """The type an annotation of our own source stands for; of an unannotated parameter, that of its default."""
    if annotation is inspect.Parameter.empty:
        return PYTHON_ONLY if default is None or default is inspect.Parameter.empty else type(default)
    if not isinstance(annotation, str):
        return annotation
    holder = type("_", (), {"__annotations__": {"it": annotation}})
    known = {**vars(typing), **vars(collections.abc), **namespace}
    try:
        return typing.get_type_hints(holder, globalns=known, include_extras=True)["it"]
    except (NameError, AttributeError, TypeError):  # imported for type checkers only: an object, never JSON
        return PYTHON_ONLY
