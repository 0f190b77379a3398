"""Calling what a configuration names, with what it refuses as a `ConfigError` that begins with its path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from holdfast.config import kinds, schema
from holdfast.config.plain import as_plain
from holdfast.config.signatures import parameters
from holdfast.config.words import shown
from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.core.method import Method
from holdfast.core.operation import Operation


def make_method(value: Any) -> Method:
    """The method of a validated block.

    Raises:
        ConfigError: where the method refuses its arguments.
    """
    if hasattr(value, "operations"):
        return Method(*(make_operation(operation, i) for i, operation in enumerate(value.operations)))
    method = called("method", kinds.find("methods", value.name), schema.arguments(value))
    if not isinstance(method, Method):
        raise ConfigError(
            f"method: {value.name!r} gave a {type(method).__name__} instead of a Method. Correct its package."
        )
    return method


def make_operation(value: Any, index: int) -> Operation:
    """The operation of a validated block."""
    function = kinds.find("operations", value.name)
    return called(f"method.operations.{index}", function, schema.arguments(value))  # type: ignore[no-any-return]


def called(path: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """`function(**arguments)`, with what it refuses as a `ConfigError` that begins with `path`."""
    try:
        return function(**arguments)
    except HoldfastError as error:
        text = str(error)
        raise type(error)(text if text.startswith(path) else f"{path}: {text}") from None
    except (TypeError, ValueError, AssertionError, ZeroDivisionError, KeyError, IndexError) as error:
        name = getattr(function, "__name__", str(function))
        seen = ", ".join(f"{key}={shown(value)}" for key, value in changed(function, arguments).items())
        reason = str(error).rstrip(".") or type(error).__name__
        raise ConfigError(
            f"{path}: {name} refuses {seen or 'its defaults'}: {reason}. `holdfast list` shows what it takes."
        ) from None


def changed(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that are plain values and not the default of `function`."""
    defaults = {p.name: p.default for p in parameters(function) if p.configurable}
    return {
        key: value
        for key, value in arguments.items()
        if key in defaults and key != "params" and as_plain(value) != defaults[key]
    }


def needs_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` takes an argument of this name."""
    return name in inspect.signature(function).parameters
