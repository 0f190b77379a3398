"""The job: a validated configuration with the parts it names, each made when it is asked for."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.config import kinds, schema
from holdfast.config.messages import called, check_block, needs_argument
from holdfast.config.signatures import parameters
from holdfast.config.words import renamed_compile
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.models.hypernetwork import BACKBONES
from holdfast.models.weights import start_from
from holdfast.streams.dataset import Dataset

PROTOCOLS = ("independent", "random")
"""References that are not methods: a new model for each experience, and one that is never trained."""


@dataclass(eq=False)
class Job:
    """A configuration that was validated once, as it is carried from the command line to the training.

    Attributes:
        config: with every default, as plain JSON values: what `config.json` holds.
        block: the same, as validated blocks.
        notes: what a file of another project means differently here, in sentences.
    """

    config: dict[str, Any]
    block: Any
    notes: list[str] = field(default_factory=list)

    @functools.cached_property
    def method(self) -> Method:
        """The method, made once; `take_method` gives it away."""
        return make_method(self.block.method)

    def take_method(self) -> Method:
        """A method that nobody has: the one that was checked, then new ones."""
        method = self.method
        del self.__dict__["method"]
        return method

    @property
    def method_name(self) -> str:
        """What the method is called in a report."""
        return str(self.config["method"].get("name", "custom"))

    @property
    def learns_from_source(self) -> bool:
        """Whether it learns from a source, and not from a stream of experiences."""
        return self.config.get("source") is not None

    def make_stream(self) -> Stream:
        """The stream. Loads data."""
        return make_stream(self.block.stream, self.config["seed"]).first(self.config["trainer"]["limit_experiences"])

    def make_model(self, stream: Stream) -> nn.Module:
        """A new model for the inputs and classes of `stream`."""
        model = make_model(self.block.model, stream, self.config["seed"])
        if self.config.get("start_from"):
            left = start_from(model, self.config["start_from"])
            if left:
                warnings.warn(
                    f"start_from: {len(left)} of the model's {len(model.state_dict())} tensors have no counterpart in"
                    f" {self.config['start_from']!r} and keep their initial values: {', '.join(left[:5])}"
                    f"{', ...' if len(left) > 5 else ''}.",
                    stacklevel=2,
                )
        return model

    def check_weights(self) -> None:
        """Ask for the file of weights that the model is to start from, before any data are read.

        Raises:
            DataError: where it is not there.
        """
        model, start = self.config["model"], self.config.get("start_from")
        if start and not Path(start).exists():
            raise DataError(f"start_from: there is no {start!r}. Give a run folder, a checkpoint or a file of weights.")
        weights = model.get("weights")
        if isinstance(weights, str) and weights != "random" and not Path(weights).exists():
            raise DataError(
                f"model.weights: there is no {weights!r}, the weights of {model.get('architecture') or model['name']};"
                " nothing is downloaded. Write model.weights=FILE, or model.weights=random for random ones."
            )

    def make_device(self) -> torch.device:
        """The device, which may not be on this machine."""
        return make_device(self.config["device"])

    def trainer_arguments(self, method: Method | None = None, device: torch.device | None = None) -> dict[str, Any]:
        """Everything that `Trainer` takes from a configuration.

        Args:
            method: to train with; None takes the job's, which is then given away.
            device: instead of the job's, which this machine may not have.
        """
        scheduler = make_scheduler(self.block.scheduler)
        return {
            "method": self.take_method() if method is None else method,
            "optimizer": make_optimizer(self.block.optimizer),
            "scheduler": scheduler,
            "scheduler_every": "epoch" if scheduler is None else scheduler.every,
            "criterion": kinds.find("criteria", self.config["criterion"]),
            "seed": self.config["seed"],
            "device": self.make_device() if device is None else device,
            **trainer_arguments(self.block.trainer),
            **renamed_compile(self.config),
        }

    def changed(self, **values: Any) -> Job:
        """This job with other plain values at the top, for instance `seed`; they are not checked again."""
        return Job({**self.config, **values}, self.block.model_copy(update=values))

    def against(self, name: str) -> Job:
        """The job of a reference: another method, or another protocol, and everything else alike."""
        method = schema.model_of("methods", "finetune" if name in PROTOCOLS else name)
        block = method(name="finetune" if name in PROTOCOLS else name)
        job = self.changed(references=[], **({"protocol": name} if name in PROTOCOLS else {}))
        return Job({**job.config, "method": schema.dump(block)}, job.block.model_copy(update={"method": block}))

    @functools.cached_property
    def references(self) -> dict[str, Job]:
        """The jobs to compare with, by the names of the references."""
        names = (*PROTOCOLS, *kinds.names("methods"))
        return {name: self.against(name) for name in self.config["references"] if name in names}

    def parts(self) -> dict[str, Job]:
        """The single runs that a job stands for: by seed, and by reference; folder -> job. A plain one is itself."""
        seeds = self.config["seeds"]
        if seeds is None and not self.config["references"]:
            return {"": self}
        jobs: dict[str, Job] = {}
        for prefix, job in {"": self, **{f"references/{name}": job for name, job in self.references.items()}}.items():
            alone = job.changed(references=[], seeds=None)
            if "method" in job.__dict__:  # it was made to be checked, so that it need not be made again
                alone.__dict__["method"] = job.method
            if seeds is None:
                jobs[prefix] = alone
                continue
            for number, seed in enumerate(seeds):
                one = alone.changed(seed=seed)
                if number == 0 and "method" in alone.__dict__:
                    one.__dict__["method"] = alone.method
                jobs[f"{prefix}/seed-{seed}".lstrip("/")] = one
        return jobs


def make_stream(block: Any, seed: int = 0, dataset: Callable[[Any, int, str], Dataset] | None = None) -> Stream:
    """The stream of a validated block, over the data sets it names. Loads data.

    Args:
        block: of a stream.
        seed: of the run: takes the place of every seed that is null. A stream whose own `seed` is given does not depend
            on it: its other seeds, where they are null, are what Python takes by default.
        dataset: makes a data set of its block, a seed and the block's path; default: `make_dataset`.
    """
    make = make_dataset if dataset is None else dataset
    arguments = schema.arguments(block, "dataset", "datasets", "of")
    fixed = arguments.get("seed") is not None
    if hasattr(block, "dataset"):
        arguments["dataset"] = make(block.dataset, seed, "stream.dataset")
    elif hasattr(block, "datasets"):
        arguments["datasets"] = [make(part, seed, f"stream.datasets.{i}") for i, part in enumerate(block.datasets)]
    inner = getattr(block, "of", None)
    if inner is not None:
        within = {"dataset": arguments["dataset"], **schema.arguments(inner)}
        arguments["of"] = _stream(inner.name, within, seed, "stream.of", fixed)
    return _stream(block.name, arguments, seed, "stream", fixed)


def _stream(name: str, arguments: dict[str, Any], seed: int, path: str, fixed: bool) -> Stream:
    if fixed or arguments.get("seed") is not None:
        seeds = [one for one in parameters(kinds.find("streams", name)) if kinds.is_seed(one)]
        arguments |= {one.name: one.default for one in seeds if arguments[one.name] is None}
    stream = _made("streams", name, arguments, seed, path)
    if not isinstance(stream, Stream):
        raise ConfigError(f"{path}: {name!r} gave a {type(stream).__name__} instead of a Stream. Correct its source.")
    return stream


def make_dataset(block: Any, seed: int, path: str) -> Dataset:
    """The data set of a validated block. Loads data."""
    return _made("datasets", block.name, schema.arguments(block), seed, path)  # type: ignore[no-any-return]


def make_model(block: Any, stream: Stream, seed: int = 0) -> nn.Module:
    """The model of a validated block, for the inputs and classes of `stream`.

    Args:
        block: of a model.
        stream: what it will learn.
        seed: of the initial weights where the model's own `seed` is null; the global generator stays untouched.
    """
    function = kinds.find("models", block.name)
    arguments = schema.arguments(block)
    supplied = {"input_shape": stream.input_shape, "classes": stream.outputs}
    arguments |= {key: value for key, value in supplied.items() if needs_argument(function, key)}
    name = backbone.get("name") if isinstance(backbone := arguments.get("backbone"), dict) else backbone
    if isinstance(name, str) and name not in BACKBONES and name in kinds.names("models"):  # a chain of the user's own
        arguments["backbone"] = make_model(check_block("models", backbone, ("model", "backbone")), stream, seed)
    if needs_argument(function, "seed"):
        return _made("models", block.name, arguments, seed, "model")  # type: ignore[no-any-return]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _made("models", block.name, arguments, seed, "model")  # type: ignore[no-any-return]


def with_features(stream: Stream, model: nn.Module, device: str = "cpu", changes: Any = None) -> Stream:
    """The stream that a model with a cache of features learns from: features, each computed once; else the same stream.

    Args:
        stream: raw inputs.
        model: as `make_model` made it; `cache` in its configuration asks for a cache, or allows one.
        device: where the backbone runs over what is not in the cache yet.
        changes: `trainer.per_experience`; where it augments, the inputs are others each time.
    """
    wanted = getattr(model, "features_cache", None)
    if wanted is None:
        return stream
    from holdfast.streams.features import augments, cache_features

    entries = (changes or {}).values() if isinstance(changes, dict) else changes or ()
    if not model.features_needed and (augments(stream) or any((entry or {}).get("augment") for entry in entries)):
        return stream
    model.to(make_device(device))
    return cache_features(stream, model.backbone[0].frozen, **wanted)  # type: ignore[index, union-attr]


def _made(kind: str, name: str, arguments: dict[str, Any], seed: int, path: str) -> Any:
    function = kinds.find(kind, name)
    null = [key for key, value in arguments.items() if value is None]
    seeds = {p.name for p in parameters(function) if p.name in null and (p.name == "seed" or kinds.is_seed(p))}
    return called(path, function, {**arguments, **dict.fromkeys(seeds, seed)})


def make_method(block: Any) -> Method:
    """The method of a validated block.

    Raises:
        ConfigError: where the method refuses its arguments.
    """
    if hasattr(block, "operations"):
        return Method(*(make_operation(operation, i) for i, operation in enumerate(block.operations)))
    method = called("method", kinds.find("methods", block.name), schema.arguments(block))
    if not isinstance(method, Method):
        raise ConfigError(
            f"method: {block.name!r} gave a {type(method).__name__} instead of a Method. Correct its source."
        )
    return method


def make_operation(block: Any, index: int) -> Operation:
    """The operation of a validated block."""
    function = kinds.find("operations", block.name)
    return called(f"method.operations.{index}", function, schema.arguments(block))  # type: ignore[no-any-return]


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


def make_optimizer(block: Any) -> OptimizerFactory:
    """From parameters to the optimiser of a validated block."""
    return OptimizerFactory(block.name, schema.arguments(block))


def make_scheduler(block: Any) -> SchedulerFactory | None:
    """From an optimiser to the scheduler of a validated block; None for None."""
    return None if block is None else SchedulerFactory(block.name, schema.arguments(block, "every"), block.every)


def make_criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss called `name`: a function of outputs and targets."""
    return kinds.find("criteria", name)  # type: ignore[no-any-return]


def make_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        ConfigError: where this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].split(" with arguments")[0].rstrip(".")
        raise ConfigError(f"device: this machine has no {name!r} ({reason}). Write device=cpu.") from None
    return device


def trainer_arguments(block: Any) -> dict[str, Any]:
    """A validated block `trainer` as keyword arguments of `Trainer`."""
    values = schema.arguments(block, "per_experience")
    arguments = {key: value for key, value in values.items() if not (key == "epochs" and value is None)}
    entries = block.per_experience
    if isinstance(entries, list):
        arguments["per_experience"] = [None if entry is None else _changes(entry) for entry in entries]
    elif entries:
        arguments["per_experience"] = {key: _changes(entry) for key, entry in entries.items()}
    return arguments


def _changes(entry: Any) -> dict[str, Any]:
    """An entry of `per_experience`, with factories where it names an optimiser or a scheduler."""
    built = schema.dump(entry)
    built = {key: value for key, value in built.items() if value is not None or key not in ("epochs", "optimizer")}
    if "optimizer" in built:
        built["optimizer"] = make_optimizer(entry.optimizer)
    if "scheduler" in built:
        scheduler = make_scheduler(entry.scheduler)
        built |= {"scheduler": scheduler, "scheduler_every": "epoch" if scheduler is None else scheduler.every}
    return built
