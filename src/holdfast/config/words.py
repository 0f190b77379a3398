"""Words for messages: the nearest right name, and values as they were written; patterns of folder names."""

from __future__ import annotations

import difflib
import functools
import json
import logging
import re
import string
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The right name that `name` most likely stands for, or None; case and hyphens do not count.

    Example:
        >>> nearest("sgd", ["SGD", "Adam"]), nearest("FINE-TUNE", ["finetune"]), nearest("xyz", ["SGD"])
        ('SGD', 'finetune', None)
    """
    folded: dict[str, str] = {}
    for choice in known:
        folded.setdefault(choice.casefold(), choice)
    wanted = str(name).casefold().replace("-", "_").strip()
    close = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else None


def shown(value: Any, limit: int = 60) -> str:
    """`value` as JSON writes it, cut to `limit` characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def dotted(path: Iterable[str | int]) -> str:
    """`("method", "operations", 0)` -> `method.operations.0`."""
    return ".".join(str(part) for part in path)


FIELDS = ("date", "time", "clock", "experiment", "method")
"""`date` 2025-01-31, `time` 13-59-00, `clock` 135900, the experiment's name (else the method's), the method's name."""


def filled(pattern: str, method: str, experiment: str | None = None) -> Path:
    """The folder that a pattern stands for now.

    Args:
        pattern: a path with fields in braces.
        method: its name.
        experiment: its name; the method's if there is none.

    Example:
        >>> filled("logs/{experiment}/{method}", "er", "first").as_posix()
        'logs/first/er'
    """
    now = time.localtime()
    return Path(
        pattern.format(
            date=time.strftime("%Y-%m-%d", now),
            time=time.strftime("%H-%M-%S", now),
            clock=time.strftime("%H%M%S", now),
            experiment=experiment or method,
            method=method,
        )
    )


def pattern_problem(pattern: str) -> str:
    """What is wrong with a pattern, in a sentence; nothing for a right one.

    Example:
        >>> pattern_problem("runs/{data}")
        "got 'runs/{data}', in which {data} stands for nothing; did you mean {date}?"
    """
    listed = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        fields = [
            (name, form, change) for _, name, form, change in string.Formatter().parse(pattern) if name is not None
        ]
    except ValueError as error:
        return f"got {pattern!r}, which cannot be read ({error}). Write a path with {listed}."
    for name, form, change in fields:
        if name not in FIELDS or form or change:
            near = nearest(re.split(r"[.\[]", name)[0], FIELDS)
            advice = f"did you mean {{{near}}}?" if near else f"there are {listed}."
            return f"got {pattern!r}, in which {{{name}}} stands for nothing; {advice}"
    return "" if pattern.strip() else f"got {pattern!r}. Write a path with {listed}, or null."


def renamed_compile(config: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's arguments that the old key `compile` of a job stands for; it is said once what to write."""
    if not (config["compile"] or config["trainer"].get("compile")):
        return {}
    _say_renamed("compile=true" if config["compile"] else "trainer.compile=true")
    return {"capture": "compile", "compile": False}


@functools.cache  # said once, however often a job is read and its trainer made
def _say_renamed(key: str) -> None:
    logging.getLogger("holdfast").warning(
        f"`{key}` is written `trainer.capture=compile` now; the old key works until the next release"
    )


def without_json(text: str) -> str:
    """A change whose value is JSON in Hydra's grammar, which has no quotes around keys; any other as it is.

    Example:
        >>> without_json('method={"name": "er", "size": [1, null]}')
        'method={name:"er",size:[1,null]}'
    """
    key, _, value = text.partition("=")
    if value[:1] not in ("{", "["):
        return text
    try:
        return f"{key}={_grammar(json.loads(value))}"
    except ValueError:
        return text


def _grammar(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_grammar(one)}' for key, one in value.items())}}}"
    return f"[{','.join(map(_grammar, value))}]" if isinstance(value, list) else json.dumps(value)
