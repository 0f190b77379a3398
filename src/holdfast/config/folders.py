"""Where runs and multiruns go: patterns of folder names, and what stands in their braces."""

from __future__ import annotations

import re
import string
import time
from pathlib import Path

from holdfast.config.words import nearest

FIELDS = ("date", "time", "clock", "experiment", "method")
"""`date` 2025-01-31, `time` 13-59-00, `clock` 135900, the experiment's name (else the method's), the method's name."""


def filled(pattern: str, method: str, experiment: str | None = None) -> Path:
    """The folder that a pattern stands for now.

    Args:
        pattern: a path with fields in braces.
        method: its name.
        experiment: its name; the method's where there is none.

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
    known = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        found = [
            (name, form, change) for _, name, form, change in string.Formatter().parse(pattern) if name is not None
        ]
    except ValueError as error:
        return f"got {pattern!r}, which cannot be read ({error}). Write a path with {known}."
    for name, form, change in found:
        if name not in FIELDS or form or change:
            near = nearest(re.split(r"[.\[]", name)[0], FIELDS)
            advice = f"did you mean {{{near}}}?" if near else f"there are {known}."
            return f"got {pattern!r}, in which {{{name}}} stands for nothing; {advice}"
    return "" if pattern.strip() else f"got {pattern!r}. Write a path with {known}, or null."
