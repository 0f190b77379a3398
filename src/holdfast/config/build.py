"""From configurations to objects, in one call each: jobs, streams, models, methods, optimisers, schedulers, losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from holdfast.config import job as parts
from holdfast.config import schema
from holdfast.config.check import validated
from holdfast.config.compose import compose
from holdfast.config.job import (
    OptimizerFactory,
    SchedulerFactory,
    make_criterion,
    make_device,
    make_method,
    make_model,
    make_optimizer,
    make_scheduler,
    make_stream,
    with_features,
)
from holdfast.config.messages import check_block, refuse
from holdfast.config.trial import check_device_name
from holdfast.core.experience import Stream
from holdfast.core.method import Method

__all__ = ["resolve", "resolved", "trainer_arguments", "with_features"]
Spec = dict[str, Any] | str


def resolve(config: dict[str, Any], source: str = "") -> dict[str, Any]:
    """A configuration with every default filled in, as plain JSON values; a resolved one stays as it is.

    Args:
        config: what a file says; every key may be left out.
        source: the file's name, for error messages.

    Raises:
        ConfigError: with everything that is wrong, each in a sentence with its path.
    """
    return validated(config, source).config


def resolved(path: Path | str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`compose` and `resolve` in one: the job that a file and overrides describe."""
    return resolve(compose(path, overrides).config, "" if path is None else str(path))


def build_stream(spec: Spec, seed: int = 0) -> Stream:
    """The stream that `spec` names, over the data sets it names. Loads data.

    Args:
        spec: name, `dataset` (or `datasets`) and arguments of a factory in `holdfast.streams`.
        seed: takes the place of a `seed` that is null.
    """
    return make_stream(check_block("streams", spec, ("stream",)), seed)


def build_dataset(spec: Spec, seed: int = 0) -> Any:
    """The data set that `spec` names. Loads data."""
    return parts.make_dataset(check_block("datasets", spec, ("dataset",)), seed, "dataset")


def build_model(spec: Spec, stream: Stream, seed: int = 0) -> nn.Module:
    """The model that `spec` names, for the inputs and classes of `stream`.

    Args:
        spec: name and arguments of a factory in `holdfast.models`.
        stream: what it will learn.
        seed: of the initial weights where the model's own `seed` is null; the global generator stays untouched.
    """
    return make_model(check_block("models", spec, ("model",)), stream, seed)


def build_method(spec: Spec) -> Method:
    """The method that `spec` names, or the one made of the operations it lists."""
    return make_method(check_block("methods", spec, ("method",)))


def build_optimizer(spec: Spec) -> OptimizerFactory:
    """From parameters to the optimiser that `spec` names, any of `torch.optim`."""
    return make_optimizer(check_block("optimizers", spec, ("optimizer",)))


def build_scheduler(spec: Spec | None) -> SchedulerFactory | None:
    """From an optimiser to the scheduler that `spec` names, any of `torch.optim.lr_scheduler`; None for null."""
    return None if spec is None else make_scheduler(check_block("schedulers", spec, ("scheduler",)))


def build_criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss called `name`: a function of outputs and targets."""
    return make_criterion(name)


def build_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        ConfigError: where torch does not know it, or this machine has none.
    """
    refuse(check_device_name(name))
    return make_device(name)


def trainer_arguments(trainer: dict[str, Any]) -> dict[str, Any]:
    """The `trainer` part of a resolved configuration as keyword arguments of `Trainer`."""
    part: Any = schema.job_model().model_fields["trainer"].annotation
    return parts.trainer_arguments(TypeAdapter(part).validate_python(trainer))
