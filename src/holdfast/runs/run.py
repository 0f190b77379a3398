"""One configuration becomes one run folder: run, resume, evaluate."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from holdfast.config import build, plugins
from holdfast.core.errors import Diverged, HoldfastError, Interrupted
from holdfast.core.experience import Stream
from holdfast.metrics.files import write_json
from holdfast.metrics.log import LOG_NAME, read_log
from holdfast.runs.answers import evaluated
from holdfast.runs.assemble import make_trainer, restore
from holdfast.runs.diagnostics import profiled, write_summary
from holdfast.runs.folder import (
    CONFIG,
    drop_leftovers,
    locked,
    new_folder,
    read_config,
    read_info,
    refuse_objects,
    versions,
    write_info,
)
from holdfast.runs.keys import job_key
from holdfast.runs.loggers import specified
from holdfast.runs.recording import Recording, derive, start_event, stop_on_signals
from holdfast.runs.references import evaluate_untrained, reference, reuse, train_apart
from holdfast.runs.report import write_report
from holdfast.runs.result import ENDED, Results
from holdfast.runs.seeds import write_against
from holdfast.runs.several import learn_too, with_others


def run(config: dict[str, Any], out: Path | None = None, *, quiet: bool = False, command: str = "") -> Path:
    """Do what `config` says in a new folder.

    Args:
        config: a configuration; checked whole before anything is made.
        out: the folder; default: a new one under `runs/`.
        quiet: draw and print nothing.
        command: what the user typed, kept in `run.json`.

    Returns:
        The run folder; the state in its `run.json` is `finished`, or `diverged` where training was stopped for that.

    Raises:
        ConfigError: for a wrong configuration, or a folder that exists.
        Interrupted: if the user stopped it; `resume` goes on.
    """
    config = build.resolve(config)
    build.build_device(config["device"])
    specified(config["loggers"])

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
    """Go on with a run that was interrupted, from its newest checkpoint; one that ended is left as it is.

    Args:
        folder: the run folder.
        quiet: draw and print nothing.

    Returns:
        The run folder.
    """
    config = read_config(folder)
    refuse_objects(config, folder)
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
        if info.get("state") in ENDED:
            return folder
        drop_leftovers(folder)
        write_info(folder, **{"versions": versions(), "started": time.time(), **info, "state": "running"})
        todo = parts(config)
        for where, part in todo.items():
            place = folder / where if where else folder
            if where and read_info(place).get("state") in ENDED:
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
                    with suppress(Diverged):  # the log says why, and so do the report and the state of the run
                        _train(place, part, quiet)
                state = derive(place)
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
                write_info(place, state=state, finished=time.time())
            elif state == "diverged":
                break  # nothing is left to compare with references
        runs = Results.load(folder)
        write_against(runs)
        write_report(runs)
        state = "diverged" if any(run.state == "diverged" for run in runs) else "finished"
        write_info(folder, state=state, finished=time.time())
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
    return (place / LOG_NAME).is_file() and read_log(place).finished


def _train(folder: Path, config: dict[str, Any], quiet: bool) -> None:
    """One method, one seed: train from the start or from the newest checkpoint, to the end."""
    stream = build.build_stream(config["stream"], config["seed"])
    model = build.build_model(config["model"], stream, config["seed"])
    stream = build.with_features(stream, model, config["device"])
    with Recording(folder, config, config["loggers"], config["checkpoint"]) as recording:
        write_summary(folder, model, stream, quiet)
        with profiled(config["profiler"], folder):
            seconds = _learn(config, stream, model, recording, quiet)
        recording.end(seconds)


def _learn(config: dict[str, Any], stream: Stream, model: torch.nn.Module, recording: Recording, quiet: bool) -> float:
    """Train by the protocol of the configuration; returns the seconds."""
    begun, protocol = time.perf_counter(), config["protocol"]
    method = config["method"].get("name", "custom") if protocol == "continual" else protocol
    start = functools.partial(start_event, config["seed"], method, stream, model)
    if protocol != "continual":
        if not recording.journal.lines:
            recording.journal.write(start())
        learn = train_apart if protocol == "independent" else evaluate_untrained
        learn(config, stream, recording.journal, functools.partial(make_trainer, config))
        return time.perf_counter() - begun
    state = recording.open(start)
    trainer = make_trainer(config, record=recording.record, progress=not quiet, checkpoints=recording.checkpoints)
    learn_too(config, state)
    with stop_on_signals(trainer):
        trainer.fit(model, stream, resume=state)
    recording.keep(model)
    return trainer.seconds


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
    return evaluated(restored.engine, restored.stream, split, restored.trainer.eval_batch_size)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
