"""From a checked configuration to objects: streams, models, methods, optimisers, schedulers, losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.config import kinds, schema
from holdfast.config.blocks import check_block, refuse
from holdfast.config.check import check_job
from holdfast.config.cross import check_device_name
from holdfast.config.defaults import completed
from holdfast.config.load import load
from holdfast.config.make import called, make_method, needs_argument
from holdfast.config.plain import as_plain, check_plain
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.method import Method

Spec = dict[str, Any] | str


def resolve(config: dict[str, Any], source: str = "") -> dict[str, Any]:
    """A configuration with every default filled in, as plain JSON values; a resolved one stays as it is.

    Args:
        config: what a file says; every key may be left out.
        source: the file's name, for error messages.

    Raises:
        ConfigError: with everything that is wrong, each in a sentence with its path.
    """
    if not isinstance(config, dict):
        raise ConfigError(f'a configuration is an object, not a {type(config).__name__}. Write {{"method": "er"}}.')
    refuse(check_plain(config), source)
    return schema.dump(check_job(completed(as_plain(config)), source))


def resolved(path: Any = None, overrides: tuple[str, ...] | list[str] = ()) -> dict[str, Any]:
    """`load` and `resolve` in one: the job that a file and overrides describe."""
    return resolve(load(path, overrides), "" if path is None else str(path))


def build_stream(spec: Spec, seed: int = 0) -> Stream:
    """The stream that `spec` names, over the data sets it names. Loads data.

    Args:
        spec: name, `dataset` (or `datasets`) and arguments of a factory in `holdfast.streams`.
        seed: takes the place of a `seed` that is null.
    """
    block = check_block("streams", spec, ("stream",))
    arguments = schema.arguments(block, "dataset", "datasets")
    if hasattr(block, "dataset"):
        arguments["dataset"] = _dataset(block.dataset, seed, "stream.dataset")
    elif hasattr(block, "datasets"):
        built = [_dataset(part, seed, f"stream.datasets.{i}") for i, part in enumerate(block.datasets)]
        arguments["datasets"] = built
    stream = _made("streams", block.name, arguments, seed, "stream")
    if not isinstance(stream, Stream):
        raise ConfigError(
            f"stream: {block.name!r} gave a {type(stream).__name__} instead of a Stream. Correct its package."
        )
    return stream


def build_dataset(spec: Spec, seed: int = 0) -> Any:
    """The data set that `spec` names. Loads data."""
    return _dataset(check_block("datasets", spec, ("dataset",)), seed, "dataset")


def _dataset(block: Any, seed: int, path: str) -> Any:
    return _made("datasets", block.name, schema.arguments(block), seed, path)


def build_model(spec: Spec, stream: Stream, seed: int = 0) -> nn.Module:
    """The model that `spec` names, for the inputs and classes of `stream`.

    Args:
        spec: name and arguments of a factory in `holdfast.models`.
        stream: what it will learn.
        seed: of the initial weights where the model's own `seed` is null; the global generator stays untouched.
    """
    block = check_block("models", spec, ("model",))
    function = kinds.find("models", block.name)
    arguments = schema.arguments(block)
    supplied = {"input_shape": stream.input_shape, "classes": stream.outputs}
    arguments |= {key: value for key, value in supplied.items() if needs_argument(function, key)}
    if needs_argument(function, "seed"):
        return _made("models", block.name, arguments, seed, "model")  # type: ignore[no-any-return]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _made("models", block.name, arguments, seed, "model")  # type: ignore[no-any-return]


def with_features(stream: Stream, model: nn.Module, device: str = "cpu") -> Stream:
    """The stream that a model with a cache of features learns from: features, each computed once; else the same stream.

    Args:
        stream: raw inputs.
        model: as `build_model` made it; `cache` in its configuration asks for a cache.
        device: where the backbone runs over what is not in the cache yet.
    """
    wanted = getattr(model, "features_cache", None)
    if wanted is None:
        return stream
    from holdfast.streams.features import cache_features

    model.to(build_device(device))
    return cache_features(stream, model.backbone[0].frozen, **wanted)  # type: ignore[index, union-attr]


def _made(kind: str, name: str, arguments: dict[str, Any], seed: int, path: str) -> Any:
    if "seed" in arguments and arguments["seed"] is None:
        arguments["seed"] = seed
    return called(path, kinds.find(kind, name), arguments)


def build_method(spec: Spec) -> Method:
    """The method that `spec` names, or the one made of the operations it lists."""
    return make_method(check_block("methods", spec, ("method",)))


@dataclass(frozen=True)
class OptimizerFactory:
    """Makes the optimiser of a configuration over given parameters: `factory(model.parameters())`."""

    name: str
    arguments: dict[str, Any]

    def __call__(self, params: Any) -> torch.optim.Optimizer:
        """A new optimiser over `params`."""
        return called("optimizer", kinds.find("optimizers", self.name), {"params": params, **self.arguments})  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SchedulerFactory:
    """Makes the scheduler of a configuration over an optimiser: `factory(optimizer)`, moved `every` step or epoch."""

    name: str
    arguments: dict[str, Any]
    every: str

    def __call__(self, optimizer: torch.optim.Optimizer) -> Any:
        """A new scheduler over `optimizer`."""
        return called("scheduler", kinds.find("schedulers", self.name), {"optimizer": optimizer, **self.arguments})


def build_optimizer(spec: Spec) -> OptimizerFactory:
    """From parameters to the optimiser that `spec` names, any of `torch.optim`."""
    block = check_block("optimizers", spec, ("optimizer",))
    return OptimizerFactory(block.name, schema.arguments(block))


def build_scheduler(spec: Spec | None) -> SchedulerFactory | None:
    """From an optimiser to the scheduler that `spec` names, any of `torch.optim.lr_scheduler`; None for null."""
    if spec is None:
        return None
    block = check_block("schedulers", spec, ("scheduler",))
    return SchedulerFactory(block.name, schema.arguments(block, "every"), block.every)


def build_criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss called `name`: a function of outputs and targets."""
    return kinds.find("criteria", name)


def build_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        ConfigError: where torch does not know it, or this machine has none.
    """
    refuse(check_device_name(name))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device: {name!r} is not to be had on this machine ({reason}). Write device=cpu.") from None
    return device


def trainer_arguments(trainer: dict[str, Any]) -> dict[str, Any]:
    """The `trainer` part of a resolved configuration as keyword arguments of `Trainer`."""
    arguments = {key: value for key, value in trainer.items() if not (key == "epochs" and value is None)}
    changes = arguments.pop("per_experience", None)
    if isinstance(changes, list):
        arguments["per_experience"] = [None if entry is None else _changes(entry) for entry in changes]
    elif changes:
        arguments["per_experience"] = {key: _changes(entry) for key, entry in changes.items()}
    return arguments


def _changes(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `per_experience`, with factories where it names an optimiser or a scheduler."""
    built = {key: value for key, value in entry.items() if not (key == "epochs" and value is None)}
    if built.get("optimizer") is not None:
        built["optimizer"] = build_optimizer(built["optimizer"])
    if "scheduler" in built:
        scheduler = build_scheduler(built["scheduler"])
        built |= {"scheduler": scheduler, "scheduler_every": "epoch" if scheduler is None else scheduler.every}
    return {key: value for key, value in built.items() if value is not None or key != "optimizer"}
