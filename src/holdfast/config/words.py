"""Words for error messages: the nearest right name, and values as they were written."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
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
    found = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.5)
    return folded[found[0]] if found else None


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
