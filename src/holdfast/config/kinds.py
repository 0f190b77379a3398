"""The one table of kinds: what can be named, where its names come from, and where they stand in a job."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Union

from holdfast.config.signatures import Parameter, parameters, table_of
from holdfast.config.words import nearest
from holdfast.core.criteria import CRITERIA as CRITERIA
from holdfast.core.errors import ConfigError
from holdfast.core.operation import Operation, snake_case

Names = dict[str, Any]


def _functions(module: ModuleType) -> Names:
    """The factories among what a module exports."""
    exported = getattr(module, "FACTORIES", None) or module.__all__
    return {name: getattr(module, name) for name in exported if inspect.isfunction(getattr(module, name))}


def _subclasses(base: str, listed: bool = True, snake: bool = False) -> Callable[[ModuleType], Names]:
    """Takes the classes of a module that can be made and inherit from what it calls `base`."""

    def select(module: ModuleType) -> Names:
        parent = getattr(module, base)
        exported = sorted(module.__all__ if listed else vars(module))
        classes = {name: getattr(module, name) for name in exported if isinstance(getattr(module, name), type)}
        return {
            snake_case(name) if snake else name: value
            for name, value in classes.items()
            if issubclass(value, parent) and value is not parent and not inspect.isabstract(value)
        }

    return select


def _operations(module: ModuleType) -> Names:
    """The operations that a module exports, by their names in JSON."""
    classes = (getattr(module, name) for name in module.__all__)
    return {
        snake_case(value.__name__): value
        for value in classes
        if isinstance(value, type) and issubclass(value, Operation) and not inspect.isabstract(value)
    }


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        plural: of its word: the argument of `holdfast list`, and the end of the entry-point group `holdfast.<plural>`.
        word: for one of it.
        module: whose exports are its names.
        select: takes them from there.
        key: the key of a job whose block is one of it; empty if there is none.
        inside: keys of blocks of this kind inside other blocks.
        supplied: parameters that the builder fills in, never written in a configuration.
        leading: how many positional parameters it fills in besides, whatever they are called.
        refused: name -> why a configuration cannot use it.
        made: whether a configuration makes one from parameters; else its names stand for what they name.
        open: whether other packages and plug-in files can add to it.
    """

    plural: str
    word: str
    module: str
    select: Callable[[ModuleType], Names] = _functions
    key: str = ""
    inside: tuple[str, ...] = ()
    supplied: frozenset[str] = frozenset()
    leading: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    made: bool = True
    open: bool = True


KINDS = {
    kind.plural: kind
    for kind in (
        Kind(
            "streams", "stream", "holdfast.streams", _functions, "stream", ("of",), frozenset({"dataset", "datasets"})
        ),
        Kind("datasets", "dataset", "holdfast.streams.datasets", inside=("dataset", "datasets")),
        Kind("models", "model", "holdfast.models", _functions, "model", (), frozenset({"input_shape", "classes"})),
        Kind("methods", "method", "holdfast.methods", _functions, "method"),
        Kind("operations", "operation", "holdfast.operations", _operations, inside=("operations",)),
        Kind(
            *("optimizers", "optimizer", "torch.optim", _subclasses("Optimizer", False), "optimizer", ()),
            supplied=frozenset({"params"}),
            refused={
                "LBFGS": "it needs a closure that evaluates the loss several times a step, which no loop here has",
                "SparseAdam": "it takes sparse gradients only, which no model here has",
            },
        ),
        Kind(
            *("schedulers", "scheduler", "torch.optim.lr_scheduler", _subclasses("LRScheduler"), "scheduler", ()),
            supplied=frozenset({"optimizer", "last_epoch", "verbose"}),
        ),
        Kind(
            *("criteria", "criterion", "torch.nn.functional"),
            lambda module: {
                **{name: getattr(module, function) for name, function in CRITERIA.items() if hasattr(module, function)},
                **importlib.import_module("holdfast.models.losses").LOSSES,
            },
            leading=2,
            made=False,
            refused={
                "multilabel_margin_loss": "it takes several class indices a row, which no data set of a configuration"
                " has; multilabel_soft_margin_loss takes a 0 or 1 for each class"
            },
        ),
        Kind(
            *("sources", "source", "holdfast.sources", _subclasses("Source", True, True), "source", ()),
            supplied=frozenset({"batch_size", "stream"}),
            refused=dict.fromkeys(("queued", "window", "hold_out", "in_step"), "a job says it under `arrival`"),
        ),
        Kind("boundaries", "boundary", "holdfast.boundaries", _subclasses("Boundary", True, True), "boundary"),
        Kind("metrics", "metric", "holdfast.metrics", lambda module: dict(module.METRICS), made=False),
        *(
            Kind(plural, word, module, table_of(table), made=made, open=False)
            for plural, word, module, table, made in (
                ("heads", "head", "holdfast.models.build", "HEADS", False),
                ("transforms", "transform", "holdfast.streams.transforms", "TRANSFORMS", True),
                ("loggers", "logger", "holdfast.config.schema", "LOGGERS", False),
                ("experiments", "experiment", "holdfast.config.overrides", "experiments", False),
            )
        ),
    )
}
"""Every kind of thing that has a name, by its plural."""

KEYS = {key: kind for kind in KINDS.values() for key in (kind.key, *kind.inside) if key}
"""Key of a block -> its kind."""

BLOCKS = {kind.key: kind for kind in KINDS.values() if kind.key}
"""Key of a job -> the kind of its block."""


@dataclass(frozen=True)
class Namespace:
    """Everything of one kind.

    Attributes:
        names: what a configuration can name.
        problems: name -> why it cannot be named: for Python only, refused, broken, or offered twice.
    """

    names: Names
    problems: dict[str, str]


_caches: list[Any] = []
_files: dict[str, dict[str, Names]] = {}


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """`functools.cache` for what follows from the table; `forget` empties it."""
    remembered = functools.cache(function)
    _caches.append(remembered)
    return remembered


def forget() -> None:
    """Read every namespace again, for instance after a package was installed."""
    for remembered in _caches:
        remembered.cache_clear()


def add_file(source: str, names: Mapping[str, Names] | None) -> None:
    """Enter what a plug-in file defines, by kind and name, instead of what it defined before; None takes it out."""
    _files.pop(source, None)
    if names is not None:
        _files[source] = {plural: dict(values) for plural, values in names.items()}
    forget()


def kind_of(plural: str) -> Kind:
    """The row of the table.

    Raises:
        ConfigError: if there is none, with the nearest right one.
    """
    if plural not in KINDS:
        near = nearest(plural, KINDS)
        advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(KINDS)}."
        raise ConfigError(f"there is nothing called {plural!r} to list; {advice}")
    return KINDS[plural]


def names(kind: str) -> Names:
    """Everything of `kind` that a configuration can name, by name.

    Args:
        kind: a key of `KINDS`.
    """
    return namespace(kind).names


def problems(kind: str) -> dict[str, str]:
    """What is there but cannot be named, with the reason."""
    return namespace(kind).problems


def find(kind: str, name: object) -> Any:
    """What is called `name`.

    Raises:
        ConfigError: if there is none, with the nearest right name.
    """
    space = namespace(kind)
    if isinstance(name, str) and name in space.names:
        return space.names[name]
    raise ConfigError(unknown_name(kind, name))


def unknown_name(kind: str, name: object) -> str:
    """The sentence for a name that is not in the namespace of `kind`."""
    space = namespace(kind)
    word = KINDS[kind].word
    if isinstance(name, str) and name in space.problems:
        return f"{word} {name!r} cannot be used: {space.problems[name]}."
    near = nearest(name, space.names)
    advice = f"did you mean {near!r}?" if near else f"there are {len(space.names)} to choose from."
    if not near and KINDS[kind].open:
        advice += " If a plug-in has it, that is not installed here: install it, or name its file with --plugin."
    return f"unknown {word} {name!r}; {advice} `holdfast list {kind}` shows all {len(space.names)}."


def configurable(kind: str, function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of `function` that a configuration may give.

    Seeds of a stream or a data set may be null, which is the run's seed; those of a stream are, unless they are given.
    """
    if not KINDS[kind].made:
        return []
    skipped = KINDS[kind].supplied
    chosen = [p for p in parameters(function) if p.configurable and p.name not in skipped and p.name != "name"]
    return [_seed_of_a_run(kind, p) if kind in SEEDED and is_seed(p) else p for p in chosen]


SEEDED = ("streams", "datasets")
"""Kinds whose seeds may be the run's."""


def is_seed(parameter: Parameter) -> bool:
    """Whether a parameter is a seed, by its name and its default."""
    named = parameter.name == "seed" or parameter.name.endswith("_seed")
    return named and type(parameter.default) is int


def _seed_of_a_run(kind: str, parameter: Parameter) -> Parameter:
    doc = f"{parameter.doc.rstrip('.')}; null for the run's seed"
    default = None if kind == "streams" else parameter.default
    return dataclasses.replace(parameter, type=Union[parameter.type, None], default=default, doc=doc)  # noqa: UP007


@cached
def namespace(kind: str) -> Namespace:
    """What our own modules export, then what plug-in files and installed packages add."""
    row = kind_of(kind)
    space = Namespace({}, {})
    if kind == "metrics":
        _load_metrics(space)
        return space
    for name, value in row.select(importlib.import_module(row.module)).items():
        admit(space, row, name, value)
    for values in _files.values():
        for name, value in values.get(kind, {}).items():
            admit(space, row, name, value)
    if row.open:
        for name, point in _offers(row, space, set(space.names)).items():
            value = _loaded(space, name, point)
            if value is not None:
                admit(space, row, name, value)
    return space


def _load_metrics(space: Namespace) -> None:
    """Metrics enter their own table when their module is imported, which the measuring reads."""
    table: dict[str, Any] = importlib.import_module(KINDS["metrics"].module).METRICS
    for name, point in _offers(KINDS["metrics"], space, set()).items():
        value = table.get(name) or _loaded(space, name, point)
        if name not in table and hasattr(value, "direction"):
            table[name] = value
        elif name not in table and name not in space.problems:
            space.problems[name] = f"it is not a metric but {value!r:.60}"
    space.names.update(table)


def admit(space: Namespace, kind: Kind, name: str, value: Any) -> None:
    """Put `value` among the names, or among the problems with the reason."""
    reason = kind.refused.get(name, "")
    operation = isinstance(value, type) and issubclass(value, Operation)
    if not callable(value) or (kind.plural == "operations" and not operation):
        reason = f"it is no {kind.word} but {value!r:.60}"
    elif not reason:
        taken = [p for p in parameters(value)[kind.leading :] if p.name not in kind.supplied]
        objects = [p.name for p in taken if p.required and not p.configurable]
        if objects:
            reason = f"its {', '.join(objects)} can only be given from Python"
        elif any(p.name == "name" and p.required for p in taken):
            reason = "it has a parameter called `name`, which is the key that chooses it"
    if reason:
        space.problems[name] = reason
    else:
        space.names[name] = value


def _offers(kind: Kind, space: Namespace, taken: set[str]) -> dict[str, EntryPoint]:
    """The entry points of other packages; one that clashes becomes a problem, never a crash."""
    offers: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=f"holdfast.{kind.plural}"):
        offers.setdefault(point.name, []).append(point)
    chosen = {}
    for name, points in offers.items():
        if name in taken:
            listed = ", ".join(map(_package, points))
            space.problems[f"{name} ({listed})"] = f"Holdfast has its own {kind.word} of this name"
        elif len(points) > 1:
            space.problems[name] = f"it is offered by {' and by '.join(map(_package, points))}; uninstall one of them"
        else:
            chosen[name] = points[0]
    return chosen


def _loaded(space: Namespace, name: str, point: EntryPoint) -> Any:
    """What an entry point names; None, and a problem, where its package is broken."""
    try:
        return point.load()
    except Exception as error:
        space.problems[name] = (
            f"the package {_package(point)} that offers it is broken ({type(error).__name__}: {error})"
        )
        return None


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
