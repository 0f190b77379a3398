"""The schema of a job: pydantic models made from the signatures of everything that can be named."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, create_model, model_serializer

from holdfast.config import kinds
from holdfast.config.signatures import ARRIVAL, CHECKPOINT, FOLDERS, REQUIRED, Parameter, docs, parameters

TAG = "\x1f"
"""Opens the part of an error's location that says which model of a union was tried; no key starts with it."""

STRICT = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)

TRAINER_SUPPLIED = {
    "method",
    "model",
    "optimizer",
    "scheduler",
    "scheduler_every",
    "per_experience",
    "criterion",
    "seed",
    "device",
    "record",
    "progress",
    "checkpoint",
    "checkpoints",
    "compile",
}
"""Parameters of the trainer that are not configured, or have a key of their own."""

Fields = dict[str, Any]


def trainer_parameters() -> list[Parameter]:
    """The parameters of `Trainer` that belong to the key `trainer`."""
    trainer = importlib.import_module("holdfast.training.trainer").Trainer
    return [p for p in parameters(trainer) if p.configurable and p.name not in TRAINER_SUPPLIED]


@kinds.cached
def model_of(kind: str, name: str, inside: bool = False) -> type[BaseModel]:
    """The pydantic model of one block: `name` and the parameters of the callable of that name.

    Args:
        kind: of the block.
        name: of the callable.
        inside: whether it is a stream inside another one, which gives it its data set.

    Raises:
        ConfigError: where there is nothing of that name.
    """
    function = kinds.find(kind, name)
    return (_built if kind in ("streams", "sources") else _kept)(kind, name, function, inside)


def _built(kind: str, name: str, function: Any, inside: bool) -> type[BaseModel]:
    summary, _ = docs(function.__doc__)
    fields: Fields = {"name": (Literal[name], Field(description=summary))}
    if kind == "streams" and not inside:
        fields |= _dataset_fields(parameters(function))
    if kind == "sources" and any(parameter.name == "stream" for parameter in parameters(function)):
        fields["stream"] = (block("streams"), Field(description="whose experiences arrive one after another"))
    for parameter in kinds.configurable(kind, function):
        if kind == "streams" and parameter.name == "of":
            fields["of"] = (_inner_stream() | None, Field(None, description=parameter.doc))
        else:
            fields |= _field(parameter)
    if kind == "schedulers":
        every = "move the learning rate after every epoch or after every step"
        fields["every"] = (Literal["epoch", "step"], Field("epoch", description=every))
    return create_model(f"{kinds.KINDS[kind].word}_{name}", __config__=STRICT, __doc__=summary, **fields)


_kept = functools.lru_cache(maxsize=1024)(_built)  # has no block of another kind inside, which a plug-in may change


def _field(parameter: Parameter) -> Fields:
    """One parameter as a field; under another name inside, since `copy` or `schema` would hide pydantic's own."""
    default = ... if parameter.default is REQUIRED else parameter.default
    return {
        f"given_{parameter.name}": (
            parameter.type,
            Field(default, alias=parameter.name, description=parameter.doc or None),
        )
    }


def _dataset_fields(signature: list[Parameter]) -> Fields:
    fields: Fields = {}
    for parameter in signature:
        if parameter.name == "dataset":
            fields["dataset"] = (block("datasets"), Field(description=parameter.doc or "the data that is split"))
        elif parameter.name == "datasets":
            doc = parameter.doc or "one data set for each domain"
            fields["datasets"] = (list[block("datasets")], Field(min_length=1, description=doc))  # type: ignore[misc]
    return fields


def expand(value: Any) -> Any:
    """A bare name is short for a block with that name alone."""
    return {"name": value} if isinstance(value, str) else value


def expand_operations(value: Any) -> Any:
    """Operations as a mapping of names to parameters, as the list of blocks it stands for."""
    if not isinstance(value, dict):
        return value
    return [
        {"name": operation_name(key), **(values or {})} if values is None or isinstance(values, dict) else values
        for key, values in value.items()
    ]


def operation_name(key: str) -> str:
    """The operation that a key of a mapping stands for: `replay_2` is a second `replay`."""
    base, _, number = key.rpartition("_")
    names = kinds.names("operations")
    return base if key not in names and base in names and number.isdigit() else key


def _tag(value: Any) -> str:
    if isinstance(value, BaseModel):  # when dumping
        return TAG + str(getattr(value, "name", "operations"))
    if not isinstance(value, dict):
        return TAG
    return TAG + ("operations" if "operations" in value else str(value.get("name")))


def block(kind: str) -> Any:
    """The type of a block: any one thing of `kind` with its parameters, chosen by `name`."""
    return _block(kind)


@kinds.cached
def _block(kind: str) -> Any:
    choices = [Annotated[model_of(kind, name, False), Tag(TAG + name)] for name in kinds.names(kind)]
    if kind == "methods":
        choices.append(Annotated[_composition(), Tag(TAG + "operations")])
    return Annotated[Union[tuple(choices)], Discriminator(_tag), BeforeValidator(expand)]  # noqa: UP007


def inner_streams() -> list[str]:
    """The streams that another one can cut: those of one data set that cut none themselves."""
    return list(_inner_streams())


@kinds.cached
def _inner_streams() -> tuple[str, ...]:
    accepted = {name: {p.name for p in parameters(value)} for name, value in kinds.names("streams").items()}
    return tuple(name for name, taken in accepted.items() if "dataset" in taken and "of" not in taken)


@kinds.cached
def _inner_stream() -> Any:
    """The type of a stream inside another one."""
    choices = [Annotated[model_of("streams", name, True), Tag(TAG + name)] for name in inner_streams()]
    return Annotated[Union[tuple(choices)], Discriminator(_tag), BeforeValidator(expand)]  # noqa: UP007


def _composition() -> type[BaseModel]:
    operations: Any = Annotated[list[block("operations")], BeforeValidator(expand_operations)]  # type: ignore[misc, valid-type]
    return create_model(
        "method_operations",
        __config__=STRICT,
        __doc__="A method composed of operations.",
        operations=(operations, Field(description="in the order in which they act")),
    )


DURING = 0.05
"""Share of a run's steps that goes into measuring older experiences inside one."""

MOST_SEEDS = 10_000
"""Seeds that a number may be short for."""


def count(value: Any) -> Any:
    """A number of seeds is short for 0, 1, 2, ..."""
    return list(range(value)) if type(value) is int and 0 < value <= MOST_SEEDS else value


@kinds.cached
def job_model() -> type[BaseModel]:
    """The pydantic model of a whole job."""
    trainer: Fields = {}
    for parameter in trainer_parameters():
        if parameter.name == "epochs":  # null where `iterations` is given
            parameter = dataclasses.replace(parameter, type=Union[parameter.type, None])  # noqa: UP007
        if parameter.name == "evaluate_during":  # a run folder has a report that shows it
            parameter = dataclasses.replace(parameter, default=DURING)
        trainer |= _field(parameter)
    trainer["per_experience"] = (changes_type() | None, Field(None, description=CHANGES))
    seed: Any = Annotated[int, Field(ge=0)]
    several: Any = list[seed]  # type: ignore[valid-type]
    seeds: Any = Annotated[several | None, BeforeValidator(count)]  # type: ignore[valid-type]
    criteria: Any = Literal[tuple(kinds.names("criteria"))]  # type: ignore[valid-type]
    fields: Fields = {
        "stream": (block("streams") | None, Field(None, description="the experiences, in order; or a source")),
        "source": (block("sources") | None, Field(None, description="where endless batches come from; or a stream")),
        "boundary": (
            block("boundaries") | None,
            Field(None, description="of a source: who says that one experience ended and the next began"),
        ),
        "arrival": (
            _part("arrival", "How batches of a source arrive.", ARRIVAL) | None,
            Field(None, description="how batches of a source arrive"),
        ),
        "model": (block("models"), Field(description="what learns")),
        "start_from": (
            str | None,
            Field(None, description="weights to begin with, where they fit: a run, a checkpoint, a file; or null"),
        ),
        "method": (block("methods"), Field(description="how it learns without losing the old")),
        "optimizer": (block("optimizers"), Field(description="any of torch.optim, by its torch name")),
        "scheduler": (block("schedulers") | None, Field(None, description="of the learning rate; null for none")),
        "criterion": (criteria, Field("cross_entropy", description="the loss, a function of torch.nn.functional")),
        "trainer": (_part("trainer", "How the training goes.", trainer), Field(description="how the training goes")),
        "seed": (
            seed,
            Field(0, description="of every random choice, also those of a stream that has no `seed` of its own"),
        ),
        "seeds": (
            seeds,
            Field(None, min_length=1, description="a run for each, or for 0 ... n-1; null for `seed` alone"),
        ),
        "device": (str, Field("cpu", description="where the model lives: cpu, cuda, cuda:1, mps, or auto")),
        "threads": (
            int | None,
            Field(None, ge=1, description="threads that torch computes with; null for its default"),
        ),
        "references": (
            list[str],
            Field([], description="methods to run beside this one, with their defaults; also independent and random"),
        ),
        "experiment_name": (str | None, Field(None, description="its runs lie under logs/<name>/; null for runs/")),
        "protocol": (
            Literal["continual", "independent", "random"],
            Field(
                "continual", description="one model over the stream, a new one for each experience, or one untrained"
            ),
        ),
        "tags": (list[str], Field([], description="words to find the run by: `holdfast show --tag`")),
        "loggers": (list[logger_type()], Field([], description="where to log besides the run folder")),  # type: ignore[misc]
        "profiler": (
            Literal["simple", "pytorch"] | None,
            Field(None, description="writes where the time went to profile.txt: by function, or by torch operation"),
        ),
        "compile": (bool, Field(False, description="the old name of `trainer.capture=compile`")),
        "checkpoint": (_part("checkpoint", "When to save.", CHECKPOINT), Field(description="when to save")),
        "folders": (_part("folders", "Where runs go.", FOLDERS), Field({}, description="where runs go")),
    }
    return create_model("job", __config__=STRICT, __doc__="A continual-learning job of Holdfast.", **fields)


CHANGES = 'what is different in some experiences: {"0": {"epochs": 5}, "2-": {...}}, or a list with one entry for each'


class Given(BaseModel):
    """A block of which only what was given counts, and is written down again."""

    model_config = STRICT

    @model_serializer(mode="plain")
    def given(self) -> dict[str, Any]:
        """What was given, under the names it was given by."""
        fields = type(self).model_fields
        values = {fields[name].alias or name: getattr(self, name) for name in fields if name in self.model_fields_set}
        return {name: dump(value) if isinstance(value, BaseModel) else value for name, value in values.items()}


@kinds.cached
def changes_model() -> type[BaseModel]:
    """The pydantic model of what may be different in an experience."""
    settings = importlib.import_module("holdfast.training.settings").ExperienceSettings
    names = {field.name for field in dataclasses.fields(settings)}
    fields: Fields = {}
    for parameter in trainer_parameters():
        if parameter.name in names:
            kind: Any = Union[parameter.type, None]  # noqa: UP007
            fields |= _field(dataclasses.replace(parameter, type=kind, default=None))
    fields["optimizer"] = (block("optimizers") | None, Field(None, description="a new one, for this experience"))
    fields["scheduler"] = (block("schedulers") | None, Field(None, description="of its learning rate; null for none"))
    augmentations: Fields = {
        "crop": (int, Field(0, ge=0, description="black pixels on each side before a random crop")),
        "flip": (bool, Field(False, description="whether half of the images are mirrored")),
    }
    augment = create_model("augment", __base__=Given, __doc__="Random changes of training images.", **augmentations)
    fields["augment"] = (augment | None, Field(None, description="random changes of its training images"))
    return create_model("changes", __base__=Given, __doc__="What is different in an experience.", **fields)


def changes_type() -> Any:
    """The type of `trainer.per_experience`: changes by experience, or one entry for each."""
    one = changes_model()
    by_name: Any = Annotated[dict[str, one], Tag(TAG + "by experience")]  # type: ignore[valid-type]
    listed: Any = Annotated[list[one | None], Tag(TAG + "for each")]  # type: ignore[valid-type]
    kind = Discriminator(lambda value: TAG + ("for each" if isinstance(value, list) else "by experience"))
    return Annotated[Union[by_name, listed], kind]  # noqa: UP007


LOGGERS = {
    "tensorboard": "Event files for TensorBoard, in the run folder.",
    "wandb": "A run of Weights & Biases; offline unless told otherwise.",
    "mlflow": "A run of MLflow, in the run folder or where MLFLOW_TRACKING_URI says.",
    "comet": "An experiment of Comet; offline unless told otherwise.",
}
"""Where a run can log to besides its own folder, each by its optional library."""


LOGGER_FIELDS = ("name", "project", "offline", "folder")


def logger_type() -> Any:
    """The type of one entry of `loggers`: a name, or an object with a name, a project and where to put its files."""
    names: Any = Literal[tuple(LOGGERS)]
    fields: Fields = {
        "name": (names, Field(description="of the logger")),
        "project": (str, Field("holdfast", description="the project or experiment that the run belongs to")),
        "offline": (bool, Field(True, description="whether nothing is sent to a server")),
        "folder": (str | None, Field(None, description="for its files; null for one in the run folder")),
    }
    return Annotated[_part("logger", "A logger.", fields), BeforeValidator(expand)]


def _part(name: str, summary: str, fields: Fields) -> type[BaseModel]:
    return create_model(name, __config__=STRICT, __doc__=summary, **fields)


def dump(value: BaseModel) -> dict[str, Any]:
    """A validated block or job as plain JSON values."""
    return value.model_dump(mode="json", by_alias=True)


def arguments(value: BaseModel, *without: str) -> dict[str, Any]:
    """The keyword arguments that a validated block gives to its callable."""
    fields = type(value).model_fields
    return {
        field.alias or name: getattr(value, name)
        for name, field in fields.items()
        if name != "name" and (field.alias or name) not in without
    }
