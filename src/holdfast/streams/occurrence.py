"""Distributions of when a class first appears in a stream, and of how likely it is to come back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, unknown


def first_distribution(described: str | dict[str, Any], experiences: int) -> Tensor:
    """The probability of each experience to be the first with a class, `[experiences]` float64; they sum to 1.

    Args:
        described: a name, or a mapping with `name` and parameters; see `repetition_sampling`.
        experiences: how many.

    Raises:
        ConfigError: an unknown name or parameter, or one out of its range.

    Example:
        >>> first_distribution({"name": "uniform_alpha", "alpha": 0.5}, 4).tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    index = torch.arange(experiences, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.ones(experiences, dtype=torch.float64)

    def uniform_alpha(alpha: float = 0.5) -> Tensor:
        _within("alpha", alpha, 0 < alpha <= 1, "a share above 0 and up to 1")
        return (index < math.ceil(alpha * experiences)).double()

    def poisson(mu: float = 1.0) -> Tensor:
        _within("mu", mu, mu > 0, "a positive number")
        return _poisson(index, mu)

    def zipf(exponent: float = 1.0) -> Tensor:
        _within("exponent", exponent, exponent >= 0, "a number from 0 up")
        return (index + 1) ** -exponent

    def zipf_reversed(exponent: float = 1.0) -> Tensor:
        return zipf(exponent).flip(0)

    def geometric(p: float = 0.1) -> Tensor:
        _within("p", p, 0 < p <= 1, "a probability above 0")
        return p * (1 - p) ** index

    weights = _call(
        "distribution of the first appearance",
        described,
        {
            "uniform": uniform,
            "uniform_alpha": uniform_alpha,
            "poisson": poisson,
            "zipf": zipf,
            "zipf_reversed": zipf_reversed,
            "geometric": geometric,
        },
    )
    return weights / weights.sum()


def recurrence_distribution(described: str | dict[str, Any], classes: int, generator: torch.Generator) -> Tensor:
    """The probability of each class to be in an experience after its first, `[classes]` float64.

    Args:
        described: a name, or a mapping with `name` and parameters; see `repetition_sampling`.
        classes: how many.
        generator: of what is drawn, and of which class gets which value.

    Raises:
        ConfigError: an unknown name or parameter, or one out of its range.

    Example:
        >>> dual = {"name": "fixed_dual", "fraction": 0.25, "low": 0.1, "high": 1.0}
        >>> sorted(round(p, 3) for p in recurrence_distribution(dual, 4, torch.Generator().manual_seed(0)).tolist())
        [0.1, 1.0, 1.0, 1.0]
    """
    index = torch.arange(classes, dtype=torch.float64)

    def random() -> Tensor:
        return torch.rand(classes, generator=generator, dtype=torch.float64)

    def fixed(p: float = 0.5) -> Tensor:
        _within("p", p, 0 <= p <= 1, "a probability")
        return torch.full((classes,), p, dtype=torch.float64)

    def poisson(mu: float = 1.0) -> Tensor:
        _within("mu", mu, mu > 0, "a positive number")
        return _poisson(index, mu)

    def zipf(exponent: float = 1.0) -> Tensor:
        _within("exponent", exponent, exponent >= 0, "a number from 0 up")
        return (index + 1) ** -exponent

    def fixed_dual(fraction: float = 0.5, low: float = 0.1, high: float = 1.0) -> Tensor:
        for name, value in (("fraction", fraction), ("low", low), ("high", high)):
            _within(name, value, 0 <= value <= 1, "a number from 0 to 1")
        return high + (low - high) * (index < int(classes * fraction)).double()

    chances = _call(
        "distribution of recurrence",
        described,
        {"random": random, "fixed": fixed, "poisson": poisson, "zipf": zipf, "fixed_dual": fixed_dual},
    )
    return chances[torch.randperm(classes, generator=generator)]


def _call(what: str, described: str | dict[str, Any], functions: dict[str, Callable[..., Tensor]]) -> Tensor:
    arguments = {"name": described} if isinstance(described, str) else dict(described)
    name = arguments.pop("name", None)
    if name not in functions:
        raise ConfigError(unknown(what, name, functions))
    try:
        return functions[name](**arguments)
    except TypeError as error:
        raise ConfigError(f"the {what} {name!r} cannot take {sorted(arguments)}. Its error says: {error}.") from error


def _poisson(index: Tensor, mu: float) -> Tensor:
    return torch.exp(index * math.log(mu) - mu - torch.lgamma(index + 1))


def _within(name: str, value: float, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}. Give {wanted}.")
