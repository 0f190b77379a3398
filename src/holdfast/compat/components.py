"""Parts of an estimator: a name, a mapping with arguments or an object, and arguments as nested parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from holdfast.config import kinds
from holdfast.config.build import build_method, build_model, build_optimizer
from holdfast.config.signatures import REQUIRED
from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.operations import JoinedReplay, Remember

Spec = str | Mapping[str, Any]
"""A name, or a mapping with `name` and arguments, as in a configuration."""

KINDS = {"method": "methods", "model": "models", "optimizer": "optimizers"}
"""Parameter of an estimator -> the kind of thing that its names stand for."""


class ParameterError(ConfigError, ValueError):
    """A parameter of an estimator is wrong; a `ValueError` too, which scikit-learn's tools expect."""


class InputError(DataError, ValueError):
    """Samples or labels given to an estimator are wrong; a `ValueError` too, which scikit-learn's tools expect."""


# Nested parameters ---------------------------------------------------------------------------------------


def nested(key: str, value: Any) -> dict[str, Any]:
    """The arguments of a part of an estimator, each under the name that a search over parameters writes.

    Args:
        key: of the estimator's parameter.
        value: that it has; an object that is not made of names has no arguments to offer.

    Example:
        >>> nested("method", {"name": "er", "capacity": 50})["method__capacity"]
        50
    """
    if isinstance(value, Method) and "name" not in value.config():
        return {
            f"{key}__{operation.name}__{name}": argument
            for operation in value
            for name, argument in operation.config().items()
            if name != "name"
        }
    spec = _spec(value)
    if key not in KINDS or spec is None:
        return {}
    try:
        function = kinds.find(KINDS[key], str(spec.get("name")))
    except ConfigError:  # said when it is used
        return {}
    arguments = {p.name: spec.get(p.name, p.default) for p in kinds.configurable(KINDS[key], function)}
    return {f"{key}__{name}": value for name, value in arguments.items() if value is not REQUIRED}


def changed(key: str, value: Any, arguments: Mapping[str, Any]) -> Any:
    """A part of an estimator with other arguments.

    Args:
        key: of the estimator's parameter.
        value: that it has.
        arguments: by the names that `nested` gives, without the key.

    Raises:
        ParameterError: for an argument that the part does not have.
    """
    offered = nested(key, value)
    for name in arguments:
        if f"{key}__{name}" not in offered:
            choices = [other.removeprefix(f"{key}__") for other in offered]
            if not choices:
                raise ParameterError(
                    f"{key}__{name} cannot be set: {key} is {value!r}, which has no arguments by name. Write its name"
                    f" as a string, or a mapping with `name`."
                )
            raise ParameterError(unknown(f"argument of {key}", name, choices))
    if isinstance(value, Method) and "name" not in value.config():
        operations = []
        for operation in value:
            mine = {n.split("__", 1)[1]: v for n, v in arguments.items() if n.split("__", 1)[0] == operation.name}
            current = {name: argument for name, argument in operation.config().items() if name != "name"}
            operations.append(type(operation)(**{**current, **mine}))
        return Method(*operations, name=value.name, paper=value.paper)
    new = {**(_spec(value) or {}), **arguments}
    return build_method(new) if isinstance(value, Method) else new


def _spec(value: Any) -> dict[str, Any] | None:
    """Name and arguments of what is written as a name, a mapping, or a published method; None for any other object."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Method) and "name" in value.config():
        return value.config()
    return None


# What they stand for -------------------------------------------------------------------------------------


def is_method(value: Any) -> bool:
    """Whether `value` is a method, or names one that there is."""
    name = (_spec(value) or {}).get("name")
    return isinstance(value, Method) or (isinstance(name, str) and name in kinds.names("methods"))


def method_of(value: Method | Spec | None, lacking: Mapping[str, str]) -> Method:
    """The method of an estimator, new and without state.

    Args:
        value: a method, or its name; None for experience replay from 1000 samples.
        lacking: what the estimator cannot offer, with the reason.

    Raises:
        ParameterError: for a method that needs it, or something that is not a method.
    """
    if value is None:
        method = Method(JoinedReplay(size=32), Remember(capacity=1000))
    elif isinstance(value, Method):
        method = value.clone()
    elif isinstance(value, str | Mapping):
        method = build_method(dict(value) if isinstance(value, Mapping) else value)
    else:
        raise ParameterError(f"method is {value!r}. Give a Method, or a name such as 'er'; `holdfast list methods`.")
    for need, operation in method.needs.items():
        if need in lacking:
            raise ParameterError(
                f"the method {method.name!r} (its operation {operation!r}) {lacking[need]}. Choose another, for"
                " instance 'er', 'der_plus_plus' or 'ewc'."
            )
    return method


def optimizer_of(value: Any, network: nn.Module) -> Optimizer:
    """The optimiser of an estimator's network.

    Args:
        value: a name of `torch.optim`, a mapping with `name` and arguments, or a callable that takes the parameters.
        network: whose parameters it moves.
    """
    make: Callable[[Any], Optimizer]
    if isinstance(value, str | Mapping):
        make = build_optimizer(dict(value) if isinstance(value, Mapping) else value)
    elif callable(value):
        make = value
    else:
        raise ParameterError(f"optimizer is {value!r}. Give a name of torch.optim, or a mapping with name and lr.")
    made = make(list(network.parameters()))
    if not isinstance(made, Optimizer):
        raise ParameterError(
            f"optimizer made {made!r}. Give a callable that takes parameters and returns an optimizer."
        )
    return made


def network_of(value: Any, shape: Sequence[int], outputs: int, hidden: Sequence[int], seed: int) -> nn.Module:
    """The network of an estimator.

    Args:
        value: None for a perceptron, of images a small convolutional network; a name of `holdfast.models` or a mapping
            with `name` and arguments; a module, which is copied; or a callable that takes the number of features (of
            images and other arrays their shape) and the seed.
        shape: of one sample.
        outputs: 0 for a head that grows with the classes.
        hidden: units of the hidden layers, where `value` is None.
        seed: of the initial weights.
    """
    if isinstance(value, nn.Module):
        return copy.deepcopy(value)
    if callable(value):
        made = value(shape[0] if len(shape) == 1 else tuple(shape), seed)
        if not isinstance(made, nn.Module):
            raise ParameterError(f"model made {made!r}. Give a callable that returns a torch module.")
        return made
    if value is None:
        image = len(shape) == 3 and min(shape[1:]) >= 8
        value = {"name": "cnn", "channels": [16, 32]} if image else {"name": "mlp"}
        value["hidden"] = [int(units) for units in hidden]
    elif not isinstance(value, str | Mapping):
        raise ParameterError(f"model is {value!r}. Give a name such as 'mlp', a mapping, a module or a callable.")
    spec = {"name": value} if isinstance(value, str) else dict(value)
    if not outputs:
        spec.setdefault("head", "growing")
    return build_model(spec, Stream([], tuple(shape), outputs), seed)


def join_groups(optimizer: Any) -> None:
    """Make one group of an optimiser's groups if all have the same settings; each costs as much as a small layer.

    Args:
        optimizer: whose head grew, which made a group of each chunk; its arithmetic is by parameter and stays.
    """
    first, *rest = optimizer.param_groups
    settings = {name: value for name, value in first.items() if name != "params"}
    if all({name: value for name, value in one.items() if name != "params"} == settings for one in rest):
        for one in rest:
            first["params"].extend(one["params"])
        del optimizer.param_groups[1:]
