"""What a search is asked to do: objectives, limits, protocol and space, from a file and from words, checked at once."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]

from holdfast.config import kinds, schema
from holdfast.config.messages import check_block
from holdfast.config.read import read
from holdfast.config.words import nearest, shown
from holdfast.core.errors import ConfigError, unknown
from holdfast.core.operation import SHORT
from holdfast.discovery.axes import Axis, is_size, written
from holdfast.discovery.checks import flag, mapping, measure, quantity, whole
from holdfast.discovery.protocols import FRESH, PROTOCOLS, Protocol
from holdfast.metrics.table import METRICS
from holdfast.runs.stacks import wanted

SAMPLERS = ("auto", "tpe", "nsga2", "random")
PRICES = ("method_bytes", "method_bytes_peak", "memory_bytes", "memory_bytes_peak", "memory_items")
"""Measures that make a larger memory cost something."""

ADDING = ("train_seconds", "evaluation_seconds", "total_seconds", "steps")
"""Measures that grow with every experience."""

STACK = 8
"""How many trials wait for each other with `trainer.stack=auto`: more are proposed from what fewer have measured."""


@dataclass(frozen=True)
class Settings:
    """What a search does.

    Attributes:
        objectives: measures; with several, what is looked for is the set that nobody dominates.
        at_most: measure -> the most it may be.
        at_least: measure -> the least it may be.
        trials: how many compositions are tried; None for as many as the budget has room for.
        budget: seconds for everything, the final runs included; None for no limit.
        protocol: which data the choices may look at: `first-k`, `validation` or `transfer`.
        k: experiences that `first-k` looks at; three, or all but one, where nothing is said.
        transfer: the data set that `transfer` tunes on.
        sampler: `tpe`, `nsga2`, `random`; `auto` is neighbours of the leaders and `tpe` for one objective, and
            `nsga2` for several.
        shortest: experiences of the shortest prefix; None for a third of those that trials have, and at least 2.
        keep: part of those on a prefix that goes on to the next.
        whole: whether every composition learns all experiences at once, without prefixes.
        finals: how many compositions are run on test data.
        final_seeds: fresh seeds of each of them.
        fresh_orders: whether each of these has a class order of its own.
        seed: of the search and its trials.
        warm_start: whether what earlier searches found is tried first, and what this one finds is kept.
        memory: items in a memory: a number, a list of numbers, or a range.
        slots: role -> how many of its operations a composition may have.
        operations: role -> the operations to choose from.
        parameters: name of a parameter, or key of the job -> what it may be.
        methods: published methods to begin with; None for all that fit.
    """

    objectives: tuple[str, ...] = ("average_accuracy",)
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    trials: int | None = None
    budget: float | None = None
    protocol: str = "first-k"
    k: int | None = None
    transfer: Any = None
    sampler: str = "auto"
    shortest: int | None = None
    keep: float = 1 / 3
    whole: bool = False
    finals: int = 3
    final_seeds: int = 3
    fresh_orders: bool = True
    seed: int = 0
    warm_start: bool = True
    memory: Any = None
    slots: Mapping[str, int] = field(default_factory=dict)
    operations: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @property
    def better(self) -> tuple[str, ...]:
        """For each objective whether `up` or `down` is better."""
        return tuple(METRICS[name].direction for name in self.objectives)

    def turned(self, values: Sequence[float]) -> tuple[float, ...]:
        """The values of the objectives so that smaller is better; turning twice gives what was there."""
        return tuple(-value if way == "up" else value for value, way in zip(values, self.better))

    def over(self, values: Mapping[str, float], part: float = 1.0) -> dict[str, float]:
        """For each limit how far a composition is beyond it, as a part of the limit; 0 or less where it keeps to it.

        Args:
            values: measured after a part of the stream.
            part: of the stream; a limit on what adds up, such as time, is shared out over it.
        """
        shares = {name: part if name in ADDING else 1.0 for name in self.at_most}
        above = {name: values.get(name, 0.0) / (most * shares[name]) - 1 for name, most in self.at_most.items()}
        return above | {name: least - values.get(name, 0.0) for name, least in self.at_least.items()}

    @property
    def chosen_sampler(self) -> str:
        """The sampler, where nothing was said the one that fits the objectives."""
        return self.sampler if self.sampler != "auto" else "tpe" if len(self.objectives) == 1 else "nsga2"

    @property
    def mixed(self) -> bool:
        """Whether every other proposal is a neighbour of one of the best."""
        return self.sampler == "auto" and len(self.objectives) == 1

    def at_once(self, config: Mapping[str, Any]) -> int:
        """How many trials one program trains: as `trainer.stack` says, where nothing is decided by their time.

        Args:
            config: of the job.
        """
        timed = any("second" in name for name in (*self.objectives, *self.at_most, *self.at_least))
        if timed or self.budget is not None or not wanted(config):
            return 1
        stack = config["trainer"]["stack"]
        return stack if isinstance(stack, int) else STACK

    def made_protocol(self) -> Protocol:
        """The protocol, with its data set as a block."""
        other = None
        if self.transfer is not None:
            other = schema.dump(check_block("datasets", self.transfer, ("transfer",)))
        return Protocol(self.protocol, self.k, other, self.fresh_orders)

    def sizes(self, usual: int) -> Axis:
        """How large a memory may be, in items."""
        wanted = usual if self.memory is None else self.memory
        return written("memory.items", wanted, "search")


FIELDS = {one.name: one for one in dataclasses.fields(Settings)}


def parsed(path: str | None, words: Sequence[str]) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What a file and `key=value` words say of a search, the other words, and the job inside the file.

    Args:
        path: of a JSON or YAML file with keys of `Settings`, and `job`; None for none.
        words: as typed; those that name no setting are changes of the job.

    Raises:
        ConfigError: for a key that is neither.
    """
    settings: dict[str, Any] = {}
    job: dict[str, Any] = {}
    if path is not None:
        content = dict(read(path))
        content.pop("$schema", None)
        job = content.pop("job", {}) or {}
        if not isinstance(job, dict):
            raise ConfigError(f"{path}: job is {shown(job)}. Write a mapping with keys of a job.")
        for key in content:
            if key not in FIELDS:
                near = nearest(key, [*FIELDS, "job"])
                advice = f"did you mean {near!r}? " if near else ""
                raise ConfigError(f"{path}: unknown key {key!r}; {advice}Keys of the job go under `job`.")
        settings = content
    rest = []
    for word in words:
        key, _, text = word.partition("=")
        first, _, inner = key.partition(".")
        if first not in FIELDS or (inner and first not in ("at_most", "at_least", "slots", "operations", "parameters")):
            rest.append(word)
        elif inner:
            settings[first] = {**dict(settings.get(first) or {}), inner: _value(text)}
        else:
            settings[first] = _value(text)
    return settings, rest, job


def _value(text: str) -> Any:
    if re.match(r"(choice|range|interval|tag)\(", text):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def made(changes: Mapping[str, Any]) -> Settings:
    """The settings of a search, each value checked.

    Args:
        changes: key -> value, plain.

    Raises:
        ConfigError: for the first one that makes no sense.

    Example:
        >>> made({"objectives": "accuracy,memory", "at_most": {"memory": "200 kB"}, "trials": 8}).at_most
        {'method_bytes_peak': 200000.0}
    """
    for key in changes:
        if key not in FIELDS:
            raise ConfigError(unknown("setting of a search", key, FIELDS))
    values = {key: value for key, value in changes.items() if value is not None or FIELDS[key].default is None}
    names = values.get("objectives", ("average_accuracy",))
    names = [one.strip() for one in names.split(",")] if isinstance(names, str) else names
    if not isinstance(names, list | tuple):
        raise ConfigError(f"objectives: got {shown(names)}. Name one measure, or write a list of several.")
    values["objectives"] = tuple(measure(one, "objectives") for one in names)
    if not values["objectives"] or len(set(values["objectives"])) < len(values["objectives"]):
        raise ConfigError(f"objectives: got {shown(names)}. Name one measure or several different ones.")
    for key in ("at_most", "at_least"):
        limits = mapping(values.get(key) or {}, key)
        values[key] = {measure(name, key): quantity(one, f"{key}.{name}") for name, one in limits.items()}
        for name, limit in zip(limits, values[key].values()):
            if limit <= 0 and key == "at_most":
                raise ConfigError(f"at_most.{name}: got {limit:g}, which leaves nothing. Give a number above 0.")
    if values.get("budget") is not None:
        values["budget"] = quantity(values["budget"], "budget")
        if values["budget"] <= 0:
            raise ConfigError(f"budget: got {values['budget']:g}. Give a time above 0, for instance 30m.")
    for key, least in (("trials", 1), ("k", 2), ("shortest", 1), ("finals", 0), ("final_seeds", 1), ("seed", 0)):
        whole(values.get(key, least), key, least, FIELDS[key].default is None)
    for key in ("whole", "fresh_orders", "warm_start"):
        flag(values.get(key, False), key)
    if isinstance(values.get("seed"), int) and values["seed"] >= FRESH:
        raise ConfigError(
            f"seed: got {values['seed']}, and those from {FRESH} on are for final runs. Give a smaller one."
        )
    for key, choices in (("protocol", PROTOCOLS), ("sampler", SAMPLERS)):
        if values.get(key, choices[0]) not in choices:
            raise ConfigError(f"{key}: {unknown(key, values[key], choices)}")
    _check_protocol(values)
    keep = values.get("keep", 1 / 3)
    if not isinstance(keep, float) or not 0 < keep < 1:
        raise ConfigError(f"keep: got {shown(keep)}. Give the part that goes on, between 0 and 1.")
    _check_space(values)
    settings = Settings(**values)
    _check_memory(settings)
    return settings


def _check_protocol(values: Mapping[str, Any]) -> None:
    protocol = values.get("protocol", "first-k")
    if protocol == "transfer" and values.get("transfer") is None:
        raise ConfigError("protocol: transfer tunes on another data set. Name it: transfer=digits.")
    if protocol != "transfer" and values.get("transfer") is not None:
        raise ConfigError(f"transfer: names a data set, and the protocol is {protocol}. Write protocol=transfer.")
    if protocol == "transfer":
        other = values["transfer"]
        _named("datasets", other.get("name") if isinstance(other, Mapping) else other, "transfer")
    if protocol != "first-k" and values.get("k") is not None:
        raise ConfigError(f"k: is for protocol=first-k, and the protocol is {protocol}. Leave it out.")


def _check_space(values: dict[str, Any]) -> None:
    for key in ("slots", "operations", "parameters"):
        values[key] = mapping(values.get(key) or {}, key)
    for key in ("slots", "operations"):
        for role in values[key]:
            if role not in SHORT.values():
                raise ConfigError(f"{key}: {unknown('role', role, SHORT.values())}")
    for role, count in values["slots"].items():
        whole(count, f"slots.{role}", 0)
    values["operations"] = {role: names for role, names in values["operations"].items() if names is not None}
    for role, names in values["operations"].items():
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, (list, tuple)):
            raise ConfigError(f"operations.{role}: got {shown(names)}. Write a list of names.")
        for name in listed:
            kind = _named("operations", name, f"operations.{role}")
            if SHORT[kind.role] != role:
                raise ConfigError(f"operations.{role}: {name!r} is for {SHORT[kind.role]}. List it there.")
        values["operations"][role] = tuple(listed)
    for name, what in values["parameters"].items():
        written(name, what)
    if values.get("methods") is not None:
        listed = values["methods"]
        listed = [one.strip() for one in listed.split(",") if one.strip()] if isinstance(listed, str) else listed
        if not isinstance(listed, (list, tuple)):
            raise ConfigError(f"methods: got {shown(listed)}. Write a list of names.")
        for name in listed:
            _named("methods", name, "methods")
        values["methods"] = tuple(listed)


def _named(kind: str, name: object, key: str) -> Any:
    try:
        return kinds.find(kind, name)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_memory(settings: Settings) -> None:
    """Refuse a search that may take the largest memory without paying for it."""
    free = [key for key, what in settings.parameters.items() if is_size(key) and len(written(key, what).choices) != 1]
    if settings.memory is not None:
        axis = written("memory", settings.memory, "search")
        sizes = axis.choices or (axis.low, axis.high)
        if any(not isinstance(one, int) or isinstance(one, bool) or one < 1 for one in sizes):
            raise ConfigError(f"memory: got {shown(settings.memory)}. Give items: 200, or [50, 100, 200].")
        free += ["memory"] if len(axis.choices) != 1 else []
    if free and not set(PRICES) & {*settings.objectives, *settings.at_most}:
        raise ConfigError(
            f"{free[0]}: this search is free to take the largest memory, which nearly always wins. Fix it "
            f"({'' if free[0] == 'memory' else 'parameters.'}{free[0]}=200), limit it (at_most.memory=200kB), or make "
            "it an objective (objectives=accuracy,memory)."
        )
