"""The names a configuration may use: what our namespaces export, and what installed entry points add."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from holdfast.config.signatures import Parameter, parameters
from holdfast.config.words import nearest
from holdfast.core.errors import ConfigError
from holdfast.core.operation import Operation, snake_case

SINGULAR = {
    "methods": "method",
    "operations": "operation",
    "streams": "stream",
    "datasets": "dataset",
    "models": "model",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
    "criteria": "criterion",
}
"""Every kind of thing that has a name, and the word for one of it."""

MODULES = {
    "methods": "holdfast.methods",
    "operations": "holdfast.operations",
    "streams": "holdfast.streams",
    "datasets": "holdfast.streams.datasets",
    "models": "holdfast.models",
    "optimizers": "torch.optim",
    "schedulers": "torch.optim.lr_scheduler",
    "criteria": "torch.nn.functional",
}

SUPPLIED = {
    "streams": {"dataset", "datasets"},
    "models": {"input_shape", "classes"},
    "optimizers": {"params"},
    "schedulers": {"optimizer", "last_epoch", "verbose"},
    "criteria": {"input", "target"},
}
"""Parameters that the builder fills in: never written as plain values."""

PLUGINS = ("methods", "operations", "streams", "datasets", "models")
"""Kinds that other packages can add to, each by the entry-point group `holdfast.<kind>`."""

REFUSED = {
    ("optimizers", "LBFGS"): "needs a closure that evaluates the loss several times a step, which `Trainer` has not",
    ("optimizers", "SparseAdam"): "takes sparse gradients only, which no model here has",
    ("schedulers", "ReduceLROnPlateau"): "needs a measured value at every step, which a configuration cannot name",
}

CRITERIA = {
    "cross_entropy": "cross_entropy",
    "mse": "mse_loss",
    "bce": "binary_cross_entropy_with_logits",
    "l1": "l1_loss",
    **{
        name: name
        for name in (
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
            "binary_cross_entropy_with_logits",
            "nll_loss",
            "multi_margin_loss",
            "multilabel_margin_loss",
            "multilabel_soft_margin_loss",
            "soft_margin_loss",
        )
    },
}
"""Name in a configuration -> function of `torch.nn.functional`."""


@dataclass(frozen=True)
class Namespace:
    """Everything of one kind.

    Attributes:
        names: what a configuration can name.
        problems: name -> why it cannot be named: for Python only, refused, broken, or offered twice.
    """

    names: dict[str, Callable[..., Any]]
    problems: dict[str, str]


def names(kind: str) -> dict[str, Callable[..., Any]]:
    """Everything of `kind` that a configuration can name, by name.

    Args:
        kind: a key of `SINGULAR`.
    """
    return namespace(kind).names


def problems(kind: str) -> dict[str, str]:
    """What is there but cannot be named, with the reason."""
    return namespace(kind).problems


def find(kind: str, name: object) -> Callable[..., Any]:
    """The callable called `name`.

    Raises:
        ConfigError: where there is none, with the nearest right name.
    """
    space = namespace(kind)
    if isinstance(name, str) and name in space.names:
        return space.names[name]
    raise ConfigError(unknown_name(kind, name))


def unknown_name(kind: str, name: object) -> str:
    """The sentence for a name that is not in the namespace of `kind`."""
    space = namespace(kind)
    word = SINGULAR[kind]
    if isinstance(name, str) and name in space.problems:
        return f"{word} {name!r} cannot be used: {space.problems[name]}."
    near = nearest(name, space.names)
    advice = f"did you mean {near!r}?" if near else f"there are {len(space.names)} to choose from."
    listing = f" `holdfast list {kind}` shows all {len(space.names)}." if kind != "criteria" else ""
    if not near and not listing:
        advice = f"choose one of {', '.join(space.names)}."
    return f"unknown {word} {name!r}; {advice}{listing}"


def configurable(kind: str, function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of `function` that a configuration may give."""
    skipped = SUPPLIED.get(kind, set())
    return [p for p in parameters(function) if p.configurable and p.name not in skipped and p.name != "name"]


@functools.cache
def namespace(kind: str) -> Namespace:
    """What our own modules export, then what installed packages add."""
    if kind not in SINGULAR:
        near = nearest(kind, SINGULAR)
        advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(SINGULAR)}."
        raise ConfigError(f"there is nothing called {kind!r} to list; {advice}")
    space = Namespace({}, {})
    for name, value in _own(kind).items():
        _admit(space, kind, name, value)
    if kind in PLUGINS:
        _add_plugins(space, kind)
    return space


def _own(kind: str) -> dict[str, Any]:
    """Candidates of our own modules and of torch, by name."""
    module = importlib.import_module(MODULES[kind])
    if kind == "criteria":
        return {name: getattr(module, function) for name, function in CRITERIA.items()}
    if kind == "optimizers":
        base = module.Optimizer
        exported = {name: value for name, value in vars(module).items() if isinstance(value, type)}
        return {
            name: exported[name]
            for name in sorted(exported)
            if issubclass(exported[name], base) and exported[name] is not base
        }
    if kind == "schedulers":
        base = module.LRScheduler
        return {
            name: getattr(module, name)
            for name in sorted(module.__all__)
            if issubclass(getattr(module, name), base) and name != base.__name__
        }
    exported = {name: getattr(module, name) for name in getattr(module, "FACTORIES", module.__all__)}
    if kind == "operations":
        classes = (value for value in exported.values() if isinstance(value, type) and issubclass(value, Operation))
        return {
            snake_case(value.__name__): value
            for value in classes
            if value is not Operation and not inspect.isabstract(value)
        }
    return {name: value for name, value in exported.items() if inspect.isfunction(value)}


def _admit(space: Namespace, kind: str, name: str, value: Any) -> None:
    """Put `value` among the names, or among the problems with the reason."""
    reason = REFUSED.get((kind, name), "")
    if not callable(value) or (kind == "operations" and not (isinstance(value, type) and issubclass(value, Operation))):
        reason = f"it is no {SINGULAR[kind]} but {value!r:.60}"
    elif not reason:
        given = [p for p in parameters(value) if p.name not in SUPPLIED.get(kind, set())]
        objects = [p.name for p in given if p.required and not p.configurable]
        if objects:
            reason = f"its {', '.join(objects)} can only be given from Python"
        elif any(p.name == "name" and p.required for p in given):
            reason = "it has a parameter called `name`, which is the key that chooses it"
    if reason:
        space.problems[name] = reason
    else:
        space.names[name] = value


def _add_plugins(space: Namespace, kind: str) -> None:
    """Load the entry points of other packages; a broken or clashing one becomes a problem, never a crash."""
    offers: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=f"holdfast.{kind}"):
        offers.setdefault(point.name, []).append(point)
    own = set(space.names)
    for name, points in offers.items():
        packages = [point.dist.name if point.dist else point.value for point in points]
        if name in own:
            space.problems[f"{name} ({', '.join(packages)})"] = f"Holdfast has its own {SINGULAR[kind]} of this name"
            continue
        if len(points) > 1:
            space.problems[name] = f"it is offered by {' and by '.join(packages)}; uninstall one of them"
            continue
        try:
            value = points[0].load()
        except Exception as error:
            space.problems[name] = (
                f"the package {packages[0]} that offers it is broken ({type(error).__name__}: {error})"
            )
            continue
        _admit(space, kind, name, value)
