"""A run that learns from a source, by a job or in Python: trained to its end, and brought back from a checkpoint."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn

from holdfast.config.arrivals import (
    PASSED_ON,
    Outline,
    innermost,
    make_boundary,
    make_source,
    outline_of,
    without_meaning,
)
from holdfast.config.job import Job
from holdfast.core.boundary import Boundary
from holdfast.core.criteria import criterion_of
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.operation import snake_case
from holdfast.core.source import Source
from holdfast.metrics.log import LOG_NAME, read_log
from holdfast.runs.card import card_of
from holdfast.runs.given_back import StretchKeeper
from holdfast.runs.recording import Recording, profiled, start_event, stop_on_signals, write_summary
from holdfast.sources import Queued, Window
from holdfast.streams.dataset import Prepare
from holdfast.training.checks import CLASS_LOSSES
from holdfast.training.endless import StreamTrainer


def train_on_source(folder: Path, job: Job, quiet: bool) -> None:
    """Train from the start or from the newest checkpoint, to the end of the source or of the job.

    Args:
        folder: of the run.
        job: a single run.
        quiet: draw and print nothing.

    Raises:
        Interrupted: if it was stopped, after saving a checkpoint.
    """
    config = job.config
    source = make_source(job)
    try:
        outline = outline_in(folder)
        if outline is None:
            outline = outline_of(source, str(config["source"]["name"]), config["criterion"])
        outline.prepare = innermost(source).prepare
        with Recording(folder, config, config["loggers"], config["checkpoint"], card_of(outline)) as recording:
            model = job.make_model(outline)
            write_summary(folder, model, outline, quiet)
            boundary = None if config["boundary"] is None else config["boundary"]["name"]
            about = (config["seed"], job.method_name, boundary)
            state = recording.open(lambda: start_of(*about, outline, model, source))
            record = StretchKeeper(folder, model, recording.record, outline.prepare)
            trainer = make_stream_trainer(
                job, model, source, record=record, progress=not quiet, checkpoints=recording.checkpoints
            )
            record.watch(trainer.session.observations)
            wanted = config["trainer"]["iterations"]
            done = 0 if state is None else int(state["position"]["step"])
            with profiled(config["profiler"], folder), stop_on_signals(trainer):
                trainer.train(source, None if wanted is None else max(0, wanted - done), resume=state)
            _insist_on_a_batch(trainer, source)
            recording.checkpoints.save(trainer.state_dict())  # the last one may be some steps old
            recording.keep(model)
            recording.end(trainer.session.position.clock)
    finally:
        source.close()


def _insist_on_a_batch(trainer: StreamTrainer, source: Source) -> None:
    """Refuse to call a run finished that learned nothing."""
    if not trainer.steps:
        name = type(innermost(source)).__name__
        raise DataError(f"source: {name} gave no batch, so nothing was learned. Look at what it reads.")


def make_stream_trainer(job: Job, model: nn.Module, source: Source | None = None, **services: Any) -> StreamTrainer:
    """The trainer of a job that learns from a source, with a method that nobody else trains.

    Args:
        job: a single run.
        model: untrained.
        source: whose raw inputs the model gets prepared.
        services: `record`, `progress` and `checkpoints` of the trainer, and `prepare` if there is no source.
    """
    services.setdefault("prepare", None if source is None else innermost(source).prepare)
    arguments = job.trainer_arguments()
    arrival = job.config["arrival"]
    settings = {key: arguments[key] for key in (*PASSED_ON, "method", "optimizer", "criterion", "seed", "device")}
    return StreamTrainer(
        model,
        scheduler=arguments["scheduler"],
        boundary=make_boundary(job),
        observe_every=arrival["observe_every"],
        observe_rows=arrival["observe_rows"],
        **settings,
        **services,
    )


def start_of(
    seed: int, method: str, boundary: str | None, outline: Outline, model: nn.Module, source: Source
) -> dict[str, Any]:
    """The first event of a log: what is trained, on what."""
    about = {
        **outline.plain(),
        "seekable": source.seekable,
        "live": innermost(source).live,
        "length": source.length,
        "drifts": _drifts(source),
        "boundary": boundary,
    }
    return {**start_event(seed, method, outline, model), "source": about}


def _drifts(source: Source) -> list[int]:
    """Rows trained on before each known change, as the source says, or who holds some of them out."""
    while isinstance(source, Queued | Window):
        source = source.source
    return list(source.drifts)


def outline_in(folder: Path) -> Outline | None:
    """What the log of a run says of its source; None where it says nothing yet."""
    if not (folder / LOG_NAME).is_file():
        return None
    about: Mapping[str, Any] = read_log(folder).start.get("source") or {}
    return Outline.from_plain(dict(about)) if about else None


# In Python ---------------------------------------------------------------------------------------------------

OF_LABELS = (*CLASS_LOSSES, nn.functional.multi_margin_loss, nn.MultiMarginLoss)


@dataclasses.dataclass(repr=False)
class Arriving(Outline):
    """A source as what a `Trainer` is given: what a stream of no experiences says of it, and how it is learned.

    Attributes:
        source: what is read.
        boundary: finds where experiences begin, or None.
        observe_every: batches between two looks at rows held out and at the memory.
    """

    source: Source | None = None
    boundary: Boundary | None = None
    observe_every: int = 200

    @classmethod
    def of(cls, source: Source, settings: Any, boundary: Boundary | None, every: int, **refused: object) -> Self:
        """What there is to learn, for a trainer with these settings.

        Args:
            source: that nothing was taken of, or that goes back.
            settings: the trainer.
            boundary: of `fit`.
            every: batches between two looks.
            refused: arguments of `fit` that mean nothing here, if they were given.

        Raises:
            ConfigError: for settings and arguments that only a stream of experiences has.
        """
        usual = {field.name: field.default for field in dataclasses.fields(settings) if field.init}
        values = {name: getattr(settings, name) for name in usual if name not in ("method", "loggers")}
        problems = without_meaning(values, usual, "fit")
        if values["batch_size"] != usual["batch_size"]:
            problems.append(f"batch_size is {values['batch_size']}, and a source cuts its own. Give it to the source.")
        if settings.scheduler is not None and settings.scheduler_every != "step":
            problems.append('a source has no epochs. Write scheduler_every="step".')
        problems += [
            f"{name} are for a stream of experiences, and a source gives its data once. Leave them out."
            for name, value in refused.items()
            if value
        ]
        if problems:
            raise ConfigError(" ".join(problems))
        criterion = criterion_of(settings.criterion)
        labels = criterion in OF_LABELS or type(criterion) in OF_LABELS
        name = snake_case(type(innermost(source)).__name__)
        try:
            outline = outline_of(source, name, "cross_entropy" if labels else "mse")
        except ConfigError:  # the model is there already, so that nothing need be known of what passes by once
            outline = Outline([], (), 0, "", innermost(source).prepare, name)
        known = {field.name: getattr(outline, field.name) for field in dataclasses.fields(outline)}
        return cls(**known, source=source, boundary=boundary, observe_every=every)

    def start(self, seed: int, method: str, model: nn.Module) -> dict[str, Any]:
        """The first event of a log."""
        assert self.source is not None
        boundary = None if self.boundary is None else snake_case(type(self.boundary).__name__)
        return start_of(seed, method, boundary, self, model, self.source)

    def bound(self, settings: Any, model: nn.Module) -> StreamTrainer:
        """The endless trainer with the settings of a `Trainer`."""
        names = (*PASSED_ON, "optimizer", "scheduler", "criterion", "seed", "device", "checkpoints")
        record = settings.record
        trainer = StreamTrainer(
            model,
            settings.method,
            boundary=self.boundary,
            prepare=self.prepare,
            observe_every=self.observe_every,
            record=record,
            progress=settings.progress or False,
            **{name: getattr(settings, name) for name in names},
        )
        if isinstance(record, StretchKeeper):
            record.watch(trainer.session.observations)
        return trainer

    def learn(self, trainer: StreamTrainer, iterations: int | None, state: Mapping[str, Any] | None) -> None:
        """Train from the start or from a state, to the end of the source or after so many batches in all."""
        assert self.source is not None
        done = 0 if state is None else int(state["position"]["step"])
        trainer.train(self.source, None if iterations is None else max(0, iterations - done), resume=state)
        _insist_on_a_batch(trainer, self.source)
        if trainer.session.checkpoints is not None:
            trainer.session.checkpoints.save(trainer.state_dict())  # the last one may be some steps old

    def keeper(
        self, folder: Path, model: nn.Module, record: Callable[[dict[str, Any]], None]
    ) -> Callable[[dict[str, Any]], None]:
        """`record`, with what the model gives back of each stretch kept in the run folder before it."""
        return StretchKeeper(folder, model, record, self.prepare)


def restored_outline(job: Job, folder: Path, card: Mapping[str, Any]) -> Outline:
    """What a model of a run must fit: as the card of its checkpoint says, else its log, else the source.

    Args:
        job: of the run.
        folder: of the run.
        card: of the checkpoint; empty in those of 0.1.

    Raises:
        DataError: where none of them can be asked.
    """
    if "prepare" in card:
        names, shape, prepare = tuple(card["class_names"]), tuple(card["input_shape"]), card["prepare"]
        made = None if prepare is None else Prepare(**prepare)
        head = (card["classes"], "", made)
        return Outline([], shape, *head, card["name"], names, {}, card["table"], width=card["outputs"])
    outline = outline_in(folder)
    if outline is not None and not card:
        return outline
    warnings.warn(f"{folder} has no log, so the source is asked what the model was trained on.", stacklevel=2)
    try:
        with make_source(job) as source:
            return outline_of(source, str(job.config["source"]["name"]), job.config["criterion"])
    except DataError as error:
        raise DataError(f"{error} Give the run folder, whose log says what the model was trained on.") from error
