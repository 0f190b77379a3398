"""Plain values: what JSON can write, and a sentence for what it cannot."""

from __future__ import annotations

import math
from typing import Any

from holdfast.config.words import dotted

DEPTH = 32
"""How deep a configuration may nest."""


def check_plain(value: Any, path: tuple[Any, ...] = ()) -> list[str]:
    """A sentence for everything in `value` that JSON cannot write."""
    where = f"{dotted(path)}: " if path else ""
    if len(path) > DEPTH:
        return [f"{where}nested more than {DEPTH} deep. `holdfast schema` shows the shape of a configuration."]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where}got {value}, expected a finite number."]
    if value is None or isinstance(value, (bool, int, float, str)):
        return []
    if isinstance(value, (list, tuple)):
        return [problem for i, item in enumerate(value) for problem in check_plain(item, (*path, i))]
    if isinstance(value, dict):
        keys = [
            f"{where}the key {key!r} is no string; write {str(key)!r}." for key in value if not isinstance(key, str)
        ]
        return keys + [problem for key, item in value.items() for problem in check_plain(item, (*path, key))]
    return [
        f"{where}got a {type(value).__name__}, expected a plain JSON value: number, string, true, null, list or object."
    ]


def as_plain(value: Any) -> Any:
    """`value` copied, with tuples as lists."""
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
