"""Checking one block, and raising everything that is wrong as one `ConfigError`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from holdfast.config import schema
from holdfast.config.messages import sentences
from holdfast.config.plain import as_plain, check_plain
from holdfast.core.errors import ConfigError


def refuse(problems: Sequence[str], source: str = "") -> None:
    """Raise one `ConfigError` with all `problems`, if there are any."""
    if not problems:
        return
    where = f"{source}: " if source else ""
    if len(problems) == 1:
        raise ConfigError(f"{where}{problems[0]}")
    listing = "\n".join(f"  {problem}" for problem in problems)
    raise ConfigError(f"{where}{len(problems)} things are wrong in this configuration:\n{listing}")


def check_block(kind: str, spec: Any, path: tuple[str, ...]) -> Any:
    """The validated pydantic block of one thing of `kind`.

    Raises:
        ConfigError: with everything that is wrong, under `path`.
    """
    value, problems = try_block(kind, spec, path)
    refuse(problems)
    return value


def try_block(kind: str, spec: Any, path: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The validated pydantic block of one thing of `kind`, or None and what is wrong with it."""
    problems = check_plain(spec, path)
    if problems:
        return None, problems
    spec = as_plain(spec)
    try:
        return TypeAdapter(schema.block(kind)).validate_python(spec), []
    except ValidationError as error:
        return None, sentences(error.errors(include_url=False), spec, path)
