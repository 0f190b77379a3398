"""One configuration becomes one run folder: run, resume, evaluate."""

from __future__ import annotations

import errno
import functools
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from holdfast.config import build, plugins
from holdfast.core.errors import DataError, HoldfastError, Interrupted
from holdfast.core.experience import Stream
from holdfast.metrics import accuracy_matrix, compute, read_log, write_matrix
from holdfast.runs.assemble import make_trainer, restore
from holdfast.runs.checkpoints import CheckpointFolder
from holdfast.runs.folder import (
    CONFIG,
    drop_leftovers,
    locked,
    new_folder,
    read_config,
    read_info,
    versions,
    write_info,
    write_json,
)
from holdfast.runs.journal import LOG, Journal
from holdfast.runs.keys import job_key
from holdfast.runs.loggers import Loggers
from holdfast.runs.model_summary import write_summary
from holdfast.runs.profiling import profiled
from holdfast.runs.reference_measures import measure_against
from holdfast.runs.references import evaluate_untrained, reference, reuse, train_apart
from holdfast.runs.report import write_report
from holdfast.runs.several import learn_too, with_others
from holdfast.runs.tensors import MODEL, save_tensors
from holdfast.training import Trainer
from holdfast.training.evaluation import evaluate as evaluate_data


def run(config: dict[str, Any], out: Path | None = None, *, quiet: bool = False, command: str = "") -> Path:
    """Do what `config` says in a new folder.

    Args:
        config: a configuration; checked whole before anything is made.
        out: the folder; default: a new one under `runs/`.
        quiet: draw and print nothing.
        command: what the user typed, kept in `run.json`.

    Returns:
        The run folder.

    Raises:
        ConfigError: for a wrong configuration, or a folder that exists.
        Interrupted: if the user stopped it; `resume` goes on.
    """
    config = build.resolve(config)
    build.build_device(config["device"])

    def work() -> Path:
        folder = new_folder(
            out, config["method"].get("name", "custom"), config["experiment_name"], config["folders"]["run"]
        )
        write_json(folder / CONFIG, config)
        about = {"command": command, "versions": versions(), "started": time.time()}
        write_info(folder, state="running", **about, tags=config["tags"], **_keyed(config), **plugins.recorded(folder))
        return _work(folder, config, quiet)

    return with_others(config, work)


def resume(folder: Path, *, quiet: bool = False) -> Path:
    """Go on with a run that was interrupted, from its newest checkpoint; a finished one is left as it is.

    Args:
        folder: the run folder.
        quiet: draw and print nothing.

    Returns:
        The run folder.
    """
    config = read_config(folder)
    plugins.check_recorded(read_info(folder).get("plugins", []), folder)
    config = build.resolve(config)
    return with_others(config, lambda: _work(folder, config, quiet))


def _keyed(config: dict[str, Any]) -> dict[str, str]:
    """The key of a single run, nothing for the folder of several seeds."""
    return {} if config["seeds"] is not None else {"key": job_key(config)}


def parts(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The single runs that a configuration stands for: by seed, and by reference method; folder -> configuration."""
    seeds = config.get("seeds")
    found: dict[str, dict[str, Any]] = {}
    for prefix, method in [("", None), *((f"references/{name}", name) for name in config.get("references") or [])]:
        for seed in [config["seed"]] if seeds is None else seeds:
            part = {**config, "seeds": None, "seed": seed, "references": []}
            if method is not None:
                part = reference(part, method)
            where = prefix if seeds is None else f"{prefix}/seed-{seed}".lstrip("/")
            found[where] = part
    return found


def _work(folder: Path, config: dict[str, Any], quiet: bool) -> Path:
    with locked(folder), _full_disk_reported(folder), _threads(config.get("threads")):
        info = read_info(folder)
        if info.get("state") == "finished":
            return folder
        drop_leftovers(folder)
        write_info(folder, **{"versions": versions(), "started": time.time(), **info, "state": "running"})
        todo = parts(config)
        for where, part in todo.items():
            place = folder / where if where else folder
            if where and read_info(place).get("state") == "finished":
                continue
            part = build.resolve(part)
            again = where.startswith("references/") and not place.exists()
            if again and reuse(place, job_key(part), folder.resolve().parent):
                continue
            if where and not (place / CONFIG).is_file():
                place.mkdir(parents=True, exist_ok=True)
                write_json(place / CONFIG, part)
                info = read_info(folder)
                write_info(
                    place,
                    state="running",
                    command=info.get("command"),
                    versions=info.get("versions"),
                    started=time.time(),
                    tags=part["tags"],
                    **_keyed(part),
                    **plugins.recorded(place),
                )
            try:
                if not _ended(place):
                    _train(place, part, quiet)
                _derive(place)
            except BaseException as error:
                state = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
                with suppress(OSError):  # the disk may be full, which is what `error` says then
                    write_info(place, state=state)
                    write_info(folder, state=state)
                if isinstance(error, Interrupted):
                    command = f"holdfast resume {folder}{plugins.flags()}"
                    raise Interrupted(f"training was stopped, and its state saved. Go on with: {command}") from None
                raise
            if where:
                write_report(place)
                write_info(place, state="finished", finished=time.time())
        measure_against(folder)
        write_report(folder)
        write_info(folder, state="finished", finished=time.time())
    return folder


@contextmanager
def _full_disk_reported(folder: Path) -> Iterator[None]:
    """A file that could not be written for want of room, as an error that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise HoldfastError(
            f"could not write in {folder}: {error.strerror}. Make room; `holdfast resume {folder}` then goes on."
        ) from error


def _ended(place: Path) -> bool:
    return (place / LOG).is_file() and any(event["event"] == "end" for event in read_log(place / LOG))


def _derive(folder: Path) -> None:
    """Write what follows from the log: accuracy matrix and metrics."""
    events = read_log(folder / LOG)
    write_matrix(folder / "accuracy_matrix.csv", accuracy_matrix(events))
    write_json(folder / "metrics.json", compute(events))


def _train(folder: Path, config: dict[str, Any], quiet: bool) -> None:
    """One method, one seed: train from the start or from the newest checkpoint, to the end."""
    stream = build.build_stream(config["stream"], config["seed"])
    model = build.build_model(config["model"], stream, config["seed"])
    stream = build.with_features(stream, model, config["device"])
    journal = Journal(folder / LOG)
    try:
        loggers = Loggers(config["loggers"], folder, config)
        try:
            write_summary(folder, model, stream, quiet)
            with profiled(config["profiler"], folder):
                seconds = _learn(folder, config, stream, model, journal, loggers, quiet)
            journal.write({"event": "end", "seconds": seconds})
        finally:
            loggers.close()
    finally:
        journal.close()


def _learn(
    folder: Path,
    config: dict[str, Any],
    stream: Stream,
    model: torch.nn.Module,
    journal: Journal,
    loggers: Loggers,
    quiet: bool,
) -> float:
    """Train by the protocol of the configuration; returns the seconds."""
    begun = time.perf_counter()
    if config["protocol"] != "continual":
        if not journal.lines:
            journal.write(_start(config, stream, model))
        learn = train_apart if config["protocol"] == "independent" else evaluate_untrained
        learn(config, stream, journal, functools.partial(make_trainer, config))
        return time.perf_counter() - begun

    def record(event: dict[str, Any]) -> None:
        journal.write(event)
        loggers.event(event)

    checkpoints = CheckpointFolder(folder / "checkpoints", **config["checkpoint"], lines=journal.settle, config=config)
    trainer = make_trainer(config, record=record, progress=not quiet, checkpoints=checkpoints)
    loaded = checkpoints.load()
    if journal.lines:
        journal.resume(loaded["lines"] if loaded else 0)
    if loaded is None:
        journal.write(_start(config, stream, model))
    state = None if loaded is None else loaded["state"]
    learn_too(config, state)
    with _stop_on_signals(trainer):
        trainer.fit(model, stream, resume=state)
    save_tensors(folder / "checkpoints" / MODEL, dict(model.state_dict()))
    return trainer.seconds


def _start(config: dict[str, Any], stream: Any, model: torch.nn.Module) -> dict[str, Any]:
    return {
        "event": "start",
        "time": time.time(),
        "seed": config["seed"],
        "method": config["method"].get("name", "custom") if config["protocol"] == "continual" else config["protocol"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "stream": {
            "name": stream.name,
            "experiences": len(stream),
            "classes": stream.classes,
            "paradigm": stream.paradigm,
            "experience_classes": [list(experience.classes) for experience in stream],
            "experience_names": [experience.name for experience in stream],
            "train_samples": [len(experience.train) for experience in stream],
            "test_samples": [0 if experience.test is None else len(experience.test) for experience in stream],
            "class_names": list(stream.class_names),
            "description": stream.description,
        },
    }


def evaluate(where: Path | str, split: str = "test") -> dict[str, Any]:
    """Evaluate the newest state of a run again, without changing its folder.

    Args:
        where: the folder of a single run (with several seeds: one of its `seed-*` folders), a checkpoint file, or the
            address of one.
        split: `test` or `validation`.

    Returns:
        `{"experiences": [evaluate events], "average_accuracy": ..}`.
    """
    restored = restore(where)
    size = restored.trainer.eval_batch_size
    found = []
    for experience in restored.stream:
        data = getattr(experience, split)
        if data is not None and len(data):
            counts = evaluate_data(restored.engine, data, experience.classes, experience.task, size)
            found.append({"experience": experience.index, "name": experience.name, "split": split, **counts})
    if not found:
        raise DataError(f"{where} has no {split} data. Give --split test, or make the stream with validation=0.1.")
    accuracies = [one["correct"] / one["samples"] for one in found if one["correct"] is not None]
    return {"experiences": found, "average_accuracy": sum(accuracies) / len(accuracies) if accuracies else None}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the step, saves a checkpoint and stops; the second stops at once."""

    def stop(number: int, frame: object) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
