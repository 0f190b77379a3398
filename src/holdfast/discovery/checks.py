"""What single settings of a search may be: measures, amounts with units, whole numbers, mappings, true or false."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from holdfast.config.words import nearest, shown
from holdfast.core.errors import ConfigError
from holdfast.metrics.table import METRICS

ALIASES = {
    "accuracy": "average_accuracy",
    "forgetting": "forgetting_first",
    "memory": "method_bytes_peak",
    "memory_bytes": "memory_bytes_peak",
    "time": "train_seconds",
}
"""Short words for measures."""

NUMBER = r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?)\s*([a-zA-Z]*)\s*"
UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def measure(name: object, key: str) -> str:
    """The measure that a word stands for.

    Raises:
        ConfigError: for one that there is not.
    """
    measure_name = ALIASES.get(str(name), str(name))
    if measure_name not in METRICS:
        near = nearest(measure_name, [*METRICS, *ALIASES])
        advice = f"did you mean {near!r}?" if near else "`holdfast list metrics` shows them all."
        raise ConfigError(f"{key}: unknown measure {shown(name)}; {advice}")
    return measure_name


def quantity(value: Any, key: str) -> float:
    """A number with its unit as bytes or seconds.

    Raises:
        ConfigError: for something else.

    Example:
        >>> quantity("200 kB", "at_most"), quantity("1.5h", "budget"), quantity(3, "budget")
        (200000.0, 5400.0, 3.0)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    parts = re.fullmatch(NUMBER, value) if isinstance(value, str) else None
    if parts is None or (parts[2] and parts[2].lower() not in UNITS):
        raise ConfigError(f"{key}: got {shown(value)}. Write a number, or one with a unit: 30m, 2h, 200kB, 5MB.")
    return float(parts[1]) * UNITS.get(parts[2].lower(), 1)


def mapping(value: Any, key: str) -> dict[str, Any]:
    """A mapping.

    Raises:
        ConfigError: for something else.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: got {shown(value)}. Write a mapping, or {key}.NAME=VALUE.")
    return dict(value)


def whole(value: Any, key: str, least: int, optional: bool = False) -> None:
    """Refuse what is no whole number from `least` up, nor None where that is allowed.

    Raises:
        ConfigError: for something else.
    """
    if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return
    raise ConfigError(f"{key}: got {shown(value)}, expected a whole number from {least} up.")


def flag(value: Any, key: str) -> None:
    """Refuse what is neither true nor false.

    Raises:
        ConfigError: for something else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: got {shown(value)}, expected true or false.")
