"""A job that learns from a source: how its batches arrive, what the model must fit, and what cannot be asked of it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.config import kinds, schema
from holdfast.config.job import Job, make_stream
from holdfast.config.messages import called, needs_argument
from holdfast.config.words import shown
from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError, HoldfastError, NeedError
from holdfast.core.experience import Batch, Stream
from holdfast.core.needs import ENDLESS, ENDLESS_WITH_BOUNDARY, check_needs
from holdfast.core.source import Source
from holdfast.core.tree import tree_map
from holdfast.sources import HoldOut, Queued, Window

TRAINER = (
    *("iterations", "batch_size", "clip_norm", "clip_by", "accumulate", "precision", "max_seconds", "deterministic"),
    *("detect_anomaly", "log_every", "on_divergence", "capture"),
)
"""Keys of `trainer` that mean something for a source."""

NAMED = (
    *("optimizer", "scheduler", "scheduler_every", "criterion", "seed", "device", "record", "progress", "checkpoints"),
    "compile",
)
"""Attributes of a trainer in Python that mean something for a source too."""

PASSED_ON = TRAINER[2:]
"""Those of them that `StreamTrainer` takes."""


@dataclass(repr=False)
class Outline(Stream):
    """What a model and a report must know of a source, in the shape of a stream without experiences.

    Attributes:
        width: outputs that a model needs.
    """

    width: int = 0

    @property
    def outputs(self) -> int:
        """How many outputs a model needs."""
        return self.width

    def plain(self) -> dict[str, Any]:
        """As JSON values, from which `from_plain` makes it again."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "outputs": self.width,
            "class_names": list(self.class_names),
            "table": self.table,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Outline:
        """The outline that plain values describe."""
        shape, names = tuple(values["input_shape"]), tuple(values.get("class_names") or ())
        about = (values["name"], names, dict[str, Any](), values.get("table"))
        return cls([], shape, values["classes"], "", None, *about, width=values["outputs"])


def make_source(job: Job) -> Source:
    """The source of a job, with what is around it: rows held out, a queue, a window. Opens files and connections."""
    block, arrival = job.block.source, job.block.arrival
    seed = job.config["seed"]
    function = kinds.find("sources", block.name)
    arguments = schema.arguments(block, "stream")
    if hasattr(block, "stream"):
        arguments["stream"] = make_stream(block.stream, seed)
    if needs_argument(function, "batch_size"):
        arguments["batch_size"] = job.config["trainer"]["batch_size"]
    if "seed" in arguments and arguments["seed"] is None:
        arguments["seed"] = seed
    source = called("source", function, arguments)
    if not isinstance(source, Source):
        raise ConfigError(f"source: {block.name!r} gave a {type(source).__name__} instead of a Source. Correct it.")
    return arranged(source, arrival, job.config["trainer"]["batch_size"], seed)


def arranged(source: Source, arrival: Any, batch_size: int, seed: int) -> Source:
    """A source with what a block `arrival` puts around it."""
    live = source.live
    if arrival.hold_out:
        source = HoldOut(source, arrival.hold_out)
    policy = arrival.policy if arrival.policy != "auto" else "block" if live else "none"
    if policy != "none":
        timeout = arrival.timeout
        if timeout is None:  # the source says by itself when it waited too long
            timeout = 10.0 + max(50.0, float(getattr(source, "timeout", 0.0)))
        size = batch_size if policy == "reservoir" else None
        capacity = arrival.capacity
        if capacity is None:
            capacity = 64 * batch_size if policy == "reservoir" else 64
        arguments = {
            "source": source,
            "policy": policy,
            "capacity": capacity,
            "timeout": timeout,
            "on_failure": arrival.on_failure,
            "batch_size": size,
            "watermark": arrival.watermark,
            "seed": seed,
        }
        source = called("arrival", Queued, arguments)
    if arrival.window is not None:
        rows = {
            "source": source,
            "rows": arrival.window,
            "batch_size": batch_size,
            "min_steps": arrival.min_steps,
            "max_steps": arrival.max_steps,
            "after_end": arrival.after_end,
            "seed": seed,
        }
        source = called("arrival", Window, rows)
    return source


def outline_of(source: Source, name: str, criterion: str) -> Outline:
    """What the model must fit; waits for the first batch where the source does not say it.

    Args:
        source: before anything was taken of it; afterwards it is as it was.
        name: for reports.
        criterion: of the job.

    Raises:
        ConfigError: for class labels of a source that does not say how many there are, or a source that says neither
            shape nor classes and cannot go back.
        DataError: for a source without a batch.
    """
    inner = innermost(source)
    shape, width = inner.input_shape, inner.classes
    if shape is None or width is None:
        first = _peeked(source)
        if not isinstance(first.inputs, torch.Tensor) and shape is None:
            raise ConfigError("source: a model of a configuration takes one tensor, and this source gives several.")
        shape = tuple(first.inputs.shape[1:]) if shape is None else shape  # type: ignore[union-attr]
        if width is None:
            if not first.targets.is_floating_point():
                takes = "classes" in inspect.signature(type(inner)).parameters
                raise ConfigError(
                    "source: it gives class labels and does not say how many there are. "
                    + ("Write source.classes=10." if takes else f"Write `classes = 10` in {type(inner).__name__}.")
                )
            width = first.targets[0].numel()
    labels = kinds.CRITERIA.get(criterion, "cross_entropy") in ("cross_entropy", "nll_loss", "multi_margin_loss")
    count = width if labels else 0
    names = tuple(inner.class_names or map(str, range(count)))[:count]
    return Outline([], shape, count, "", inner.prepare, name, names, {}, inner.table, width=width)


def innermost(source: Source) -> Source:
    """What is read, without what is around it."""
    while isinstance(source, HoldOut | Queued | Window):
        source = source.source
    return source


def _peeked(source: Source) -> Batch:
    """The first batch, which stays where it is."""
    inner = source.source if isinstance(source, Window) else source
    if isinstance(inner, Queued):
        return inner.peek()
    if not source.seekable:
        name = type(innermost(source)).__name__
        raise ConfigError(
            f"source: {name} cannot go back, and its first batch would be lost to a look. Write `input_shape` and"
            " `classes` in it, or a `seek`."
        )
    begin = source.position()
    batch = next(source.batches(), None)
    if batch is None:
        raise ConfigError("source: it gives no batch at all. Look at what it reads.")
    batch = Batch(tree_map(lambda leaf: leaf.clone(), batch.inputs), batch.targets.clone())
    source.seek(begin)
    return batch


def make_boundary(job: Job) -> Boundary | None:
    """The boundary of a job."""
    block = job.block.boundary
    if block is None:
        return None
    return called("boundary", kinds.find("boundaries", block.name), schema.arguments(block))  # type: ignore[no-any-return]


# What cannot be right ----------------------------------------------------------------------------------------


SHARED = "write the loop of several processes (sources.InStep, docs/streams_from_outside.md) and start it by torchrun"


def problems_of(job: Job) -> list[str]:
    """What is wrong with the source of a job, and what is asked for that only a stream of experiences has."""
    config, problems = job.config, []
    if config["stream"] is not None:
        problems.append("source: both a stream and a source are given. Keep one of them.")
    for reference in config["references"]:
        if reference not in kinds.names("methods") or "stream" in reference or reference in ("joint", "cumulative"):
            problems.append(
                f"references: {reference!r} takes all data at once, and a source gives them once. Leave it out."
            )
    if config["protocol"] != "continual":
        problems.append(f"protocol: {config['protocol']!r} is for a stream of experiences. Leave it out.")
    if config["scheduler"] is not None and config["scheduler"]["every"] != "step":
        problems.append("scheduler.every: a source has no epochs. Write scheduler.every=step.")
    if config["folders"]["experiences"]:
        problems.append("folders.experiences: a source has no experiences beforehand. Leave it out.")
    fields = type(job.block.trainer).model_fields
    usual = {field.alias or name: field.default for name, field in fields.items()}
    problems += without_meaning(config["trainer"], {**usual, "epochs": None})
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        problems.append(f"source: one process learns from it, and several were started here. Start one, or {SHARED}.")
    return [*problems, *_problems_of_arrival(job.block.arrival), *_problems_of_method(job)]


def without_meaning(values: Mapping[str, Any], usual: Mapping[str, Any], where: str = "trainer") -> list[str]:
    """A sentence for each setting of a trainer that means nothing for a source and was given nevertheless.

    Args:
        values: of the settings, by name.
        usual: those that nobody gave.
        where: the settings are, for the sentences; `fit` for a trainer in Python.
    """
    problems = []
    for key, value in values.items():
        if key not in (*TRAINER, *NAMED) and value != usual.get(key) and not (key == "epochs" and value == 1):
            path = "trainer.iterations" if where == "trainer" else "iterations"
            advice = f"write {path} for a number of batches" if key == "epochs" else "leave it out"
            advice = f"leave it out, or {SHARED}" if key in ("devices", "num_nodes") else advice
            name = f"trainer.{key}: got {shown(value)}, which" if where == "trainer" else f"{key} is {value!r:.60} and"
            problems.append(f"{name} means nothing for a source; {advice}.")
    return problems


def _problems_of_arrival(arrival: Any) -> list[str]:
    problems = []
    if arrival.policy != "reservoir" and arrival.watermark is not None:
        problems.append("arrival.watermark: it is for the policy reservoir. Write arrival.policy=reservoir.")
    if arrival.policy == "reservoir" and arrival.window is not None:
        problems.append("arrival.window: a reservoir gives rows again by itself. Choose one of the two.")
    if arrival.max_steps < arrival.min_steps:
        problems.append(
            f"arrival.max_steps: got {arrival.max_steps}, below arrival.min_steps={arrival.min_steps}. Give more."
        )
    return problems


def _problems_of_method(job: Job) -> list[str]:
    try:
        boundary = make_boundary(job)
    except (HoldfastError, ImportError) as error:
        return [str(error) if str(error).startswith("boundary") else f"boundary: {error}"]
    try:
        method = job.method
    except HoldfastError as error:
        return [str(error)]
    way = ENDLESS if boundary is None else ENDLESS_WITH_BOUNDARY
    try:
        check_needs(method.name, method.needs, way.offers, way.advice)
    except NeedError as error:
        advice = " In a job, write boundary=every boundary.steps=1000." if boundary is None else ""
        return [f"method: {' '.join(str(error).split())}{advice}"]
    head = job.config["model"].get("head")
    if head not in (None, "fixed", "linear", "cosine"):
        return [f"model.head: got {shown(head)}, which grows or is chosen by experiences. Leave it out for a source."]
    return []
