"""A run that learns from a source: trained to its end or its number of batches, and brought back from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from holdfast.config.arrivals import PASSED_ON, Outline, innermost, make_boundary, make_source, outline_of
from holdfast.config.job import Job
from holdfast.core.errors import DataError
from holdfast.core.source import Source
from holdfast.metrics.log import LOG_NAME, read_log
from holdfast.runs.card import card_of
from holdfast.runs.recording import Recording, profiled, start_event, stop_on_signals, write_summary
from holdfast.sources import Queued, Window
from holdfast.streams.dataset import Prepare
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
            state = recording.open(lambda: start_of(job, outline, model, source))
            trainer = make_stream_trainer(
                job, model, source, record=recording.record, progress=not quiet, checkpoints=recording.checkpoints
            )
            wanted = config["trainer"]["iterations"]
            done = 0 if state is None else int(state["position"]["step"])
            with profiled(config["profiler"], folder), stop_on_signals(trainer):
                trainer.train(source, None if wanted is None else max(0, wanted - done), resume=state)
            recording.checkpoints.save(trainer.state_dict())  # the last one may be some steps old
            recording.keep(model)
            recording.end(trainer.session.position.clock)
    finally:
        source.close()


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


def start_of(job: Job, outline: Outline, model: nn.Module, source: Source) -> dict[str, Any]:
    """The first event of a log: what is trained, on what."""
    about = {
        **outline.plain(),
        "seekable": source.seekable,
        "live": innermost(source).live,
        "length": source.length,
        "drifts": _drifts(source),
        "boundary": None if job.config["boundary"] is None else job.config["boundary"]["name"],
    }
    return {**start_event(job.config["seed"], job.method_name, outline, model), "source": about}


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
