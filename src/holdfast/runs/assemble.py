"""From a job to a trainer, in one process or several, and from a checkpoint back to a model that can be asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from holdfast.config import plugins
from holdfast.config.check import validated
from holdfast.config.job import Job, make_model, with_features
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, DataError, HoldfastError, Interrupted
from holdfast.core.experience import Stream
from holdfast.metrics.log import LOG_NAME, write_json
from holdfast.runs.card import card_of, stream_of
from holdfast.runs.folder import (
    CONFIG,
    LAST,
    current,
    load_tensors,
    new_folder,
    read_config,
    read_info,
    refuse_objects,
    save_tensors,
    versions,
    write_info,
)
from holdfast.runs.on_source import make_stream_trainer, restored_outline
from holdfast.runs.recording import start_event
from holdfast.training import Trainer
from holdfast.training.endless import StreamTrainer
from holdfast.training.launch import together
from holdfast.training.precision import launched
from holdfast.training.ranks import Ranks

WITHOUT_EFFECT = (
    *("references", "checkpoint", "folders", "tags", "loggers", "experiment_name", "profiler", "threads", "$schema"),
)
"""Keys of a job that change nothing about what is learned."""

OF_SOURCES = ("source", "boundary", "arrival", "start_from")
"""Keys that a job did not have before 0.2; null, they change no key."""


@dataclass(frozen=True)
class Restored:
    """A trained model with everything around it.

    Attributes:
        config: of its run.
        stream: what it learned, without the data, unless the checkpoint is of a version that did not keep its card.
        card: what the checkpoint says of the stream.
        trainer: that trained it.
        engine: model and method; `engine.predict` asks them.
        path: the checkpoint.
        job: of the run.
        started_in: the folder that the run was started in, which its paths begin at; None if unknown.
    """

    config: dict[str, Any]
    stream: Stream
    card: dict[str, Any]
    trainer: Trainer | StreamTrainer
    engine: Engine
    path: Path
    job: Job
    started_in: Path | None = None

    def with_data(self) -> Stream:
        """The stream with its data, which are loaded for it.

        Raises:
            DataError: where they are not there any more.
        """
        try:
            with inside(self.started_in):
                return self.job.make_stream()
        except DataError as error:
            raise DataError(
                f"the data of this run cannot be loaded: {error} The model needs none of them: give it data of your"
                " own, with labels to be measured by."
            ) from error

    @property
    def eval_batch_size(self) -> int:
        """Samples per forward where the model is asked."""
        return getattr(self.trainer, "eval_batch_size", 512)


def job_key(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits for a resolved configuration, without what has no effect on its results.

    The plug-in files in use are part of it.

    Args:
        config: resolved, so that a default left out and one written down give the same key.

    Example:
        >>> job_key({"seed": 1, "tags": ["a"]}) == job_key({"tags": [], "seed": 1})
        True
    """
    kept = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    kept = {key: value for key, value in kept.items() if key not in OF_SOURCES or value is not None}
    if isinstance(kept.get("trainer"), dict):  # a run is the same whether others are trained beside it or not
        kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key != "stack"}
    if plugins.used():
        kept["plugins"] = plugins.digests()
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def make_trainer(job: Job, **services: Any) -> Trainer:
    """The trainer of a job, with a method that nobody else trains.

    Args:
        job: a single run.
        services: `record`, `progress` and `checkpoints` of the trainer.
    """
    return Trainer(**job.trainer_arguments(), **services)


def restore(where: Path | str, changes: dict[str, Any] | None = None) -> Restored:
    """The newest state of a run, from its folder, from a checkpoint file, or from the address of one.

    Args:
        where: a run folder (its version in use), a `last.pt`, or an address that begins with http:// or https://.
        changes: top-level keys of the configuration to replace, for instance `device`.

    Raises:
        DataError: if there is no checkpoint, or the file is not one.
    """
    path = fetched(str(where)) if is_address(str(where)) else Path(where)
    if path.is_dir():
        checkpoint = current(path)[0] / "checkpoints" / LAST
        if not checkpoint.is_file():
            read_config(path)
            raise DataError(
                f"{path} has no checkpoint to evaluate. Give the folder of a single run, for instance {path}/seed-0."
            )
    elif path.is_file():
        checkpoint = path
    else:
        raise DataError(f"there is no checkpoint at {path}. Give a run folder, or its checkpoints/{LAST}.")
    loaded = load_tensors(checkpoint)
    if not isinstance(loaded, dict) or "state" not in loaded:
        raise DataError(
            f"{checkpoint} holds weights and no state of a run. Give {LAST}, which is beside it, or the run folder."
        )
    config = loaded.get("config") or _config_beside(checkpoint)
    folder = checkpoint.resolve().parent.parent
    refuse_objects(config, folder)
    info = read_info(folder)
    plugins.check_recorded(info.get("plugins", []), folder)
    started_in = Path(info["started_in"]) if info.get("started_in") else None
    job = validated({**config, **(changes or {})})
    if job.learns_from_source:
        return _restored_from_source(job, loaded, checkpoint, folder)
    card = loaded.get("data") or {}
    with inside(started_in):  # a model may read files of its own
        stream = stream_of(card) if "prepare" in card else job.make_stream()
        model = job.make_model(stream)
    trainer = make_trainer(job)
    parts = 1 + len(loaded["state"].get("ranks") or [])  # a process's part of the memory has its size
    engine = trainer.bind(model, stream, Ranks(count=parts))
    engine.load(loaded["state"]["engine"])
    return Restored(job.config, stream, card or card_of(stream), trainer, engine, checkpoint, job, started_in)


@contextlib.contextmanager
def inside(folder: Path | None) -> Iterator[None]:
    """Work in another folder for a while, where it is still there."""
    if folder is None or not folder.is_dir() or folder.resolve() == Path.cwd():
        yield
    else:
        with contextlib.chdir(folder):
            yield


def _restored_from_source(job: Job, loaded: Mapping[str, Any], checkpoint: Path, folder: Path) -> Restored:
    """The same for a run that learned from a source, which may be gone."""
    outline = restored_outline(job, folder, loaded.get("data") or {})
    model = make_model(job.block.model, outline, job.config["seed"])
    trainer, state = make_stream_trainer(job, model, prepare=outline.prepare), loaded["state"]
    trainer.engine.load(state["engine"])
    if trainer.session.observations is not None and "observations" in state:
        trainer.session.observations.load(state["observations"])
    return Restored(job.config, outline, card_of(outline), trainer, trainer.engine, checkpoint, job)


def keyed(config: dict[str, Any]) -> dict[str, str]:
    """The key of a single run, nothing for the folder of several seeds."""
    return {} if config["seeds"] is not None else {"key": job_key(config)}


def folder_of(checkpoint: Path) -> Path:
    """A new run folder that goes on where a checkpoint file was written.

    Raises:
        DataError: for a file that holds no state, or does not say of which job.
    """
    loaded = load_tensors(checkpoint)
    if not isinstance(loaded, dict) or "state" not in loaded or not loaded.get("config"):
        raise DataError(f"{checkpoint} holds no state of a run with its job. Give a run folder, or its {LAST}.")
    config = loaded["config"]
    refuse_objects(config, checkpoint)
    job = validated(config)
    folder = new_folder(None, job.method_name, config["experiment_name"], config["folders"]["run"])
    write_json(folder / CONFIG, config)
    about = {"versions": versions(), "started": time.time(), "resumed_from": str(checkpoint)}
    write_info(folder, state="interrupted", **about, tags=config["tags"], **keyed(config), **plugins.recorded(folder))
    beside = checkpoint.resolve().parents[2] / LOG_NAME
    lines = beside.read_text(encoding="utf-8").splitlines(keepends=True)[: loaded["lines"]] if beside.is_file() else []
    if len(lines) < loaded["lines"]:
        stream = job.make_stream()
        start = start_event(config["seed"], job.method_name, stream, job.make_model(stream))
        lines = [json.dumps(start) + "\n"]
    (folder / LOG_NAME).write_text("".join(lines), encoding="utf-8")
    (folder / "checkpoints").mkdir(exist_ok=True)
    save_tensors(folder / "checkpoints" / LAST, {**loaded, "lines": len(lines)})
    return folder


def is_address(where: str) -> bool:
    """Whether `where` is to be fetched."""
    return where.startswith(("http://", "https://", "file://"))


def fetched(address: str) -> Path:
    """The file at an address, in a new temporary folder.

    Raises:
        DataError: if it cannot be read.
    """
    name = Path(urllib.parse.urlparse(address).path).name or LAST
    target = Path(tempfile.mkdtemp(prefix="holdfast-")) / name
    try:
        urllib.request.urlretrieve(address, target)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"{address} cannot be fetched: {reason}. Give its right address, or a file.") from error
    return target


def _config_beside(checkpoint: Path) -> dict[str, Any]:
    folder = checkpoint.resolve().parent.parent
    if not (folder / CONFIG).is_file():
        raise DataError(f"{checkpoint} does not say of which run it is. Give the run folder that it was written in.")
    return read_config(folder)


def shared(config: Mapping[str, Any]) -> bool:
    """Whether a run of `config` is the work of processes that somebody else started."""
    return launched() and config["trainer"]["devices"] * config["trainer"]["num_nodes"] > 1


def with_others(job: Job, work: Callable[[], Path]) -> Path:
    """Do `work` where this process is on its own, or rank 0 of several; in the others learn what it learns.

    Args:
        job: of the run, the same in every process.
        work: makes the run, and returns its folder.

    Returns:
        The folder; that of rank 0, which may be on another machine.

    Raises:
        HoldfastError: in the others, if rank 0 failed.
    """
    config = job.config
    if not shared(config):
        return work()
    if config["protocol"] == "independent" or "independent" in config["references"]:
        raise ConfigError(
            "references: independent trains a model for each experience, which processes that somebody else started"
            " (torchrun, SLURM) cannot share. Leave it out, or run it alone."
        )
    trainer = config["trainer"]
    with together(job.make_device().type, trainer["devices"], trainer["num_nodes"]) as ranks:
        return _lead(work) if ranks.rank == 0 else _follow(job)


def learn_too(job: Job, part: str, resume: dict[str, Any] | None) -> None:
    """On rank 0, before it trains: let the others do the same. Nothing without other ranks.

    Args:
        job: of the single run that is to be trained.
        part: its folder in the run, a key of `Job.parts`.
        resume: the state it goes on from.
    """
    if shared(job.config):
        _tell({"part": part, "resume": resume})


def _lead(work: Callable[[], Path]) -> Path:
    try:
        folder = work()
    except Interrupted:  # all have stopped after the same step
        _tell({"folder": ""})
        raise
    _tell({"folder": str(folder)})
    return folder


def _follow(job: Job) -> Path:
    """Learn until rank 0 has nothing more to learn; only that one is asked to stop, and tells the others."""
    parts = job.parts()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while "folder" not in (message := _hear()):
            with contextlib.suppress(Interrupted):
                _learn(parts[message["part"]], message["resume"])
        return Path(message["folder"])
    except RuntimeError as error:
        if "peer" not in str(error):
            raise
        raise HoldfastError("the first process ended early, and says why.") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _learn(job: Job, resume: dict[str, Any] | None) -> None:
    stream = job.make_stream()
    model = job.make_model(stream)
    stream = with_features(stream, model, job.config["device"], job.config["trainer"]["per_experience"])
    make_trainer(job).fit(model, stream, resume=resume)


def _tell(message: dict[str, Any]) -> None:
    dist.broadcast_object_list([message], src=0)


def _hear() -> dict[str, Any]:
    told: list[Any] = [None]
    dist.broadcast_object_list(told, src=0)
    record: dict[str, Any] = told[0]
    return record
