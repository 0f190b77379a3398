"""One number or choice that a search varies, and how it follows from a signature or from what a user wrote."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from holdfast.config import kinds
from holdfast.config.search import check_count
from holdfast.config.signatures import Parameter
from holdfast.config.words import nearest, shown
from holdfast.core.errors import ConfigError
from holdfast.core.operation import Operation
from holdfast.core.ranges import Range, rule

WHOLE_FACTOR, FACTOR, LOG_FACTOR = 4, 10, 100
"""How far a search goes from a default where the declared range has no end: whole numbers, numbers, strengths."""

SIZES = ("capacity", "bytes", "per_class", "per_experience")
"""Parameters of an operation that fills a memory that are the memory's size."""

EDGE = 1e-4
"""How near to an end that is left out a search goes, as a part of the range."""


class Trial(Protocol):
    """What an axis asks of a trial of Optuna's."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of `choices`."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""


@dataclass(frozen=True)
class Axis:
    """What one parameter of a search may be: one of `choices`, or a number from `low` to `high`.

    Attributes:
        name: the operation and its parameter (`replay.size`), a slot (`retention.1`), or a key of the job
            (`optimizer.lr`).
        choices: plain values; empty for numbers.
        low: the least number.
        high: the greatest number.
        log: whether it is gone through by factors.
        whole: whether the numbers are whole.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def labels(self) -> tuple[Any, ...]:
        """The choices as Optuna stores them: what is neither a number nor a word as JSON."""
        return tuple(label(choice) for choice in self.choices)

    def suggest(self, trial: Trial) -> Any:
        """The value for a trial, as it is stored."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.labels)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def value(self, stored: Any) -> Any:
        """The value that a stored one stands for."""
        for choice in self.choices:
            if same(label(choice), stored):
                return choice
        return stored

    def holds(self, value: Any) -> bool:
        """Whether `value` is among what it may be."""
        if self.choices:
            return any(same(label(value), one) for one in self.labels)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or float(value).is_integer())

    def nearest(self, value: Any) -> Any:
        """`value` as it is stored, or the nearest number that it may be; the first choice where it is not one."""
        if self.holds(value):
            return label(value)
        if self.choices or isinstance(value, bool) or not isinstance(value, (int, float)):
            return self.labels[0] if self.choices else self.low
        kept = min(max(value, self.low), self.high)
        return round(kept) if self.whole else float(kept)

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(shown(choice, 40) for choice in self.choices)
        return f"{self.low:g} to {self.high:g}{', by factors' if self.log else ''}"


def label(choice: Any) -> Any:
    """A choice as Optuna can store it."""
    return choice if choice is None or isinstance(choice, (str, int, float, bool)) else json.dumps(choice)


def same(one: Any, other: Any) -> bool:
    """Whether two stored values are one; True is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def declared(name: str, parameter: Parameter) -> Axis | None:
    """What a search varies of a parameter: from the range or the choices on its signature, around its default.

    Args:
        name: of the axis.
        parameter: with the JSON-able part of its annotation.

    Returns:
        None where nothing is declared, or the parameter is left out by default.

    Example:
        >>> from holdfast.operations import Replay
        >>> from holdfast.config.signatures import parameters
        >>> str(declared("replay.size", parameters(Replay)[0]))
        '8 to 128, by factors'
    """
    default = None if parameter.required else parameter.default
    if isinstance(default, bool):
        return Axis(name, (False, True))
    allowed = rule(parameter.type)
    if default is None or isinstance(default, list):
        return None
    if allowed.choices and isinstance(default, str):
        return Axis(name, tuple(allowed.choices))
    for numbers, whole in allowed.ranges:
        return around(name, numbers, default, whole)
    return Axis(name, tuple(allowed.choices)) if len(allowed.choices) > 1 else None


def around(name: str, numbers: Range, default: float, whole: bool) -> Axis:
    """The declared range where it has two ends, else as far from the default as its kind goes.

    Example:
        >>> from holdfast.core.ranges import Range
        >>> str(around("lr", Range(0, log=True, low_open=True), 0.1, False))
        '0.001 to 10, by factors'
    """
    low, high = numbers.low, numbers.high
    if low is not None and high is not None:
        if numbers.log and low <= 0:
            low = min(abs(default) or high, high) / LOG_FACTOR
        edge = 0 if whole else EDGE * (high - low)
        low, high = low + edge * numbers.low_open, high - edge * numbers.high_open
        low, high = (low + (whole and numbers.low_open), high - (whole and numbers.high_open))
        return Axis(name, (), low, high, numbers.log, whole)
    factor = WHOLE_FACTOR if whole else LOG_FACTOR if numbers.log else FACTOR
    if default == 0:
        return Axis(name, (), 0 if low is None else low, factor if whole else 1.0, False, whole)
    ends = sorted((default / factor, default * factor))
    if whole:
        ends = [math.ceil(ends[0]), math.floor(ends[1])]
    if low is not None:
        ends[0] = max(ends[0], low)
    if high is not None:
        ends[1] = min(ends[1], high)
    return Axis(name, (), ends[0], ends[1], ends[0] > 0, whole)


def written(name: str, values: Any, path: str = "parameters") -> Axis:
    """What a user wrote for a parameter: a list of choices, or `{"low": .., "high": .., "log": .., "whole": ..}`.

    Text is read in Hydra's grammar: `choice(1,2)`, `range(1,4)`, `interval(0.1,1)`, `tag(log,interval(0.1,1))`.

    Args:
        name: of the parameter.
        values: as written.
        path: of the mapping it stands in, for messages.

    Raises:
        ConfigError: for anything else.

    Example:
        >>> str(written("optimizer.lr", {"low": 0.01, "high": 1})), written("a", [1, 2]).choices
        ('0.01 to 1, by factors', (1, 2))
        >>> str(written("optimizer.lr", "interval(0.1,0.2)"))
        '0.1 to 0.2'
    """
    if isinstance(values, str):
        return _hydra(name, values, path)
    if isinstance(values, list) and values:
        return Axis(name, tuple(values))
    if isinstance(values, Mapping) and {"low", "high"} <= set(values) <= {"low", "high", "log", "whole"}:
        low, high = values["low"], values["high"]
        numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (low, high))
        if not numbers or not low < high:
            raise ConfigError(f"{path}.{name}: got {shown(dict(values))}. Give the smaller number as low.")
        log = bool(values.get("log", low > 0 and high >= 10 * low))
        if log and low <= 0:
            raise ConfigError(f"{path}.{name}: {low} has no logarithm. Start above 0, or write log: false.")
        whole = bool(values.get("whole", isinstance(low, int) and isinstance(high, int)))
        return Axis(name, (), low, high, log, whole)
    if isinstance(values, (int, float, bool)) or values is None:
        return Axis(name, (values,))
    raise ConfigError(
        f'{path}.{name}: got {shown(values)}. Write a list of values, or {{"low": 0.01, "high": 1, "log": true}}.'
    )


def _hydra(name: str, text: str, path: str) -> Axis:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(f"{name}={text}").value()
    except HydraException as error:
        raise ConfigError(f"{path}.{name}: cannot read {text!r}: {str(error).splitlines()[0]}.") from None
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        whole = isinstance(low, int) and isinstance(high, int)
        log = "log" in value.tags
        return written(name, {"low": low, "high": high, "log": log, "whole": whole}, path)
    if isinstance(value, RangeSweep):
        check_count(value, f"{path}.{name}={text}")
        return Axis(name, tuple(value.range()))
    if isinstance(value, ChoiceSweep):
        return Axis(name, tuple(plain(one) for one in value.list))
    return Axis(name, (plain(value),))


def plain(value: Any) -> Any:
    """A value of Hydra's parser as a plain one."""
    from hydra.core.override_parser.types import QuotedString

    return value.text if isinstance(value, QuotedString) else value


def get(config: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    value: Any = config
    for key in path.split("."):
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[int(key)] if key.isdigit() and int(key) < len(value) else None
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set what stands at a dotted path, as a copy; a name alone stands for a block of that name."""
    *parents, last = path.split(".")
    node: Any = config
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    if not parents and last in kinds.BLOCKS and isinstance(value, str):
        value = {"name": value}
    node[int(last) if isinstance(node, list) else last] = copy.deepcopy(value)  # a choice is put into many jobs


def is_size(name: str) -> bool:
    """Whether a parameter, or a key of a job, says how much a memory holds: `remember.capacity`, `method.capacity`."""
    owner, _, key = name.rpartition(".")
    operation = kinds.names("operations").get(owner)
    return key in SIZES and (operation is None or operation.fills)


def size_of(kind: type[Operation], items: int, experiences: int) -> dict[str, Any]:
    """The arguments that give a memory so many items."""
    names = {parameter.name for parameter in kinds.configurable("operations", kind)}
    if "capacity" in names:
        return {"capacity": items}
    if "per_experience" in names:
        return {"per_experience": max(1, items // max(1, experiences))}
    raise ConfigError(f"`{kind.__name__}` fills a memory, and has none of {', '.join(SIZES)} to say how large it is")


def of_operation(name: str, kind: type[Operation], parameters: Mapping[str, Any]) -> tuple[Axis, ...]:
    """What a search may vary of an operation: what its signature declares, or what was written of it.

    Args:
        name: of the operation.
        kind: its class.
        parameters: name of a parameter -> what it may be, of this operation and others.

    Raises:
        ConfigError: where something written is no argument of it, or a value that it cannot have.
    """
    kept: list[Axis] = []
    listed = {f"{name}.{parameter.name}": parameter for parameter in kinds.configurable("operations", kind)}
    for key in (key for key in parameters if key.split(".")[0] == name and key not in listed):
        near = nearest(key, listed)
        raise ConfigError(
            f"parameters.{key}: " + (f"did you mean {near!r}?" if near else f"choose of {', '.join(listed)}.")
        )
    for key, parameter in listed.items():
        if key in parameters:
            axis = written(key, parameters[key])
            for value in axis.choices or (axis.low, axis.high):
                problem = refused(kind, parameter.name, int(value) if axis.whole else value)
                if problem:
                    raise ConfigError(f"parameters.{key}: {problem}")
            kept.append(axis)
        elif not (kind.fills and parameter.name in SIZES):
            declared_axis = declared(key, parameter)
            if (
                declared_axis is not None and declared_axis.choices
            ):  # some are for a base class, and refused by this one
                choices = tuple(one for one in declared_axis.choices if not refused(kind, parameter.name, one))
                declared_axis = replace(declared_axis, choices=choices) if len(choices) > 1 else None
            kept += [declared_axis] if declared_axis is not None else []
    return tuple(kept)


def refused(kind: type[Operation], name: str, value: Any) -> str:
    """Why an operation cannot be made with this value, everything else as it is by default; empty where it can."""
    required = {p.name: 10 for p in kinds.configurable("operations", kind) if p.required}
    sizes = size_of(kind, 10, 1) if kind.fills and name not in SIZES else {}
    try:
        kind(**{**required, **sizes, name: value})
    except ConfigError as error:
        return str(error)
    return ""
