"""One configuration becomes one run folder: run, resume, evaluate."""

from __future__ import annotations

import errno
import functools
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from holdfast.config import plugins
from holdfast.config.check import validated
from holdfast.config.job import Job, with_features
from holdfast.config.messages import refuse
from holdfast.config.trial import at_hand, disagreements
from holdfast.core.errors import ConfigError, DataError, Diverged, HoldfastError, Interrupted, NeedError
from holdfast.core.experience import Stream
from holdfast.metrics.log import LOG_NAME, read_log, write_json
from holdfast.runs.assemble import (
    fetched,
    folder_of,
    is_address,
    job_key,
    keyed,
    learn_too,
    make_trainer,
    restore,
    with_others,
)
from holdfast.runs.card import card_of
from holdfast.runs.console import console_log
from holdfast.runs.folder import (
    CONFIG,
    LAST,
    drop_leftovers,
    locked,
    new_folder,
    read_config,
    read_info,
    refuse_objects,
    versions,
    write_info,
)
from holdfast.runs.given_back import keeping
from holdfast.runs.loggers import specified
from holdfast.runs.on_source import train_on_source
from holdfast.runs.predict import evaluated, write_samples
from holdfast.runs.recording import Recording, derive, naming, profiled, start_event, stop_on_signals, write_summary
from holdfast.runs.references import APART, evaluate_untrained, reuse, train_apart
from holdfast.runs.report import write_report
from holdfast.runs.reports import kept_up, write_reports
from holdfast.runs.result import ENDED, Results
from holdfast.runs.stacks import groups_of, train_at_once
from holdfast.runs.words import write_against


def run(job: Job | dict[str, Any], out: Path | None = None, *, quiet: bool = False, command: str = "") -> Path:
    """Do what a job says in a new folder.

    Args:
        job: validated, or a configuration, which is checked whole before anything is made.
        out: the folder; default: a new one under `runs/`.
        quiet: draw and print nothing.
        command: what the user typed, kept in `run.json`.

    Returns:
        The run folder; the state in its `run.json` is `finished`, or `diverged` where training was stopped for that.

    Raises:
        ConfigError: for a wrong configuration, or a folder that exists.
        Interrupted: if the user stopped it; `resume` goes on.
    """
    job = job if isinstance(job, Job) else validated(job)
    config = job.config
    job.make_device()
    job.check_weights()
    if len(job.parts()) > 1 or not at_hand(job):  # before any data are read, or another part is trained
        refuse(disagreements(job, here=True))
    specified(config["loggers"])

    def work() -> Path:
        folder = new_folder(out, job.method_name, config["experiment_name"], config["folders"]["run"])
        write_json(folder / CONFIG, config)
        about: dict[str, Any] = {"command": command, "versions": versions(), "started": time.time()}
        about["started_in"] = str(Path.cwd())
        about |= {"translated": job.notes} if job.notes else {}
        write_info(folder, state="running", **about, tags=config["tags"], **keyed(config), **plugins.recorded(folder))
        try:
            with naming(folder):
                return _work(folder, job, quiet)
        except (ConfigError, DataError, NeedError):
            if not trained(folder):
                shutil.rmtree(folder, ignore_errors=True)  # refused: the name is free for the run that is put right
            raise

    return with_others(job, work)


def resume(folder: Path | str, *, quiet: bool = False) -> Path:
    """Go on with a run that was interrupted, from its newest checkpoint; one that ended is left as it is.

    Args:
        folder: the run folder, or a checkpoint file in it. From a file that lies elsewhere, or the address of one
            (http://...), training goes on in a new run folder; its log has what came before only where the log of the
            run lies beside.
        quiet: draw and print nothing.

    Returns:
        The run folder.
    """
    folder = fetched(str(folder)) if is_address(str(folder)) else Path(folder)
    if folder.is_file():
        run_folder = folder.resolve().parent.parent
        in_checkpoints = folder.name == LAST and folder.resolve().parent.name == "checkpoints"
        folder = run_folder if in_checkpoints and (run_folder / CONFIG).is_file() else folder_of(folder)
    config = read_config(folder)
    refuse_objects(config, folder)
    plugins.check_recorded(read_info(folder).get("plugins", []), folder)
    job = validated(config)

    def work() -> Path:
        with naming(folder):
            return _work(folder, job, quiet)

    return with_others(job, work)


def trained(folder: Path) -> bool:
    """Whether something was learned in a run's folder, or in one below it: a checkpoint, or a line after the start."""
    logs = (path.read_bytes().splitlines() for path in folder.rglob(LOG_NAME))
    return any(len(lines) > 1 for lines in logs) or any(folder.rglob("checkpoints/*"))


def _work(folder: Path, job: Job, quiet: bool) -> Path:
    with locked(folder), _full_disk_reported(folder), console_log(folder), _threads(job.config["threads"]):
        info = read_info(folder)
        if info.get("state") in ENDED:
            return folder
        drop_leftovers(folder)
        write_info(folder, **{"versions": versions(), "started": time.time(), **info, "state": "running"})
        reported = time.monotonic()
        _train_together(folder, parts := job.parts(), quiet)
        unreported: dict[Path, str] = {}
        for where, part in parts.items():
            part_folder = _opened(folder, where, part)
            if part_folder is None:
                continue
            together = _ended(part_folder)
            try:
                if not together:
                    with suppress(Diverged), explained(part_folder):  # the log says why, and so do report and state
                        _train(part_folder, where, part, quiet)
                state = derive(part_folder)
            except BaseException as error:
                _broken_off(error, folder, part_folder)
                raise
            if where and together:
                unreported[part_folder] = state
            elif where:
                reported = kept_up(folder, reported)
                write_report(part_folder)
                write_info(part_folder, state=state, finished=time.time())
            elif state == "diverged":
                break  # nothing is left to compare with references
        runs = Results.load(folder)
        write_against(runs)
        write_reports([folder, *unreported])
        for part_folder, state in unreported.items():
            write_info(part_folder, state=state, finished=time.time())
        state = "diverged" if any(run.state == "diverged" for run in runs) else "finished"
        write_info(folder, state=state, finished=time.time())
    return folder


def _opened(folder: Path, where: str, part: Job) -> Path | None:
    """The folder of a part of a run, made if there is none; None where the part has ended, or was done before."""
    part_folder = folder / where if where else folder
    if where and read_info(part_folder).get("state") in ENDED:
        return None
    again = where.startswith("references/") and not part_folder.exists()
    if again and reuse(part_folder, job_key(part.config), folder.resolve().parent):
        return None
    if where and not (part_folder / CONFIG).is_file():
        part_folder.mkdir(parents=True, exist_ok=True)
        write_json(part_folder / CONFIG, part.config)
        info = read_info(folder)
        kept = {key: info.get(key) for key in ("command", "versions", "started_in")}
        about = {**kept, **keyed(part.config), **plugins.recorded(part_folder)}
        write_info(part_folder, state="running", started=time.time(), tags=part.config["tags"], **about)
    return part_folder


def _broken_off(error: BaseException, folder: Path, *places: Path) -> None:
    """Write down that parts of a run were broken off by an error, and raise what says how to go on."""
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    with suppress(OSError):  # the disk may be full, which is what `error` says then
        for part_folder in (*places, folder):
            write_info(part_folder, state="interrupted" if stopped else "failed")
    if isinstance(error, Interrupted):
        command = f"holdfast resume {folder}{plugins.flags()}"
        raise Interrupted(f"training was stopped, and its state saved. Go on with: {command}") from None


def _train_together(folder: Path, parts: dict[str, Job], quiet: bool) -> None:
    """Train the parts of a run that may be stacked, each in its folder; what is left of the run is done as ever."""

    def train(where: str, part_folder: Path, silent: bool) -> None:
        with suppress(Diverged), explained(part_folder):  # the log says why, and so do report and state
            _train(part_folder, where, parts[where], silent)

    for group in groups_of(parts):
        opened = {where: made for where in group if (made := _opened(folder, where, parts[where])) is not None}
        places = {where: made for where, made in opened.items() if not _ended(made)}
        broken = train_at_once(places, parts, train, quiet)
        if broken:
            _broken_off(next(iter(broken.values())), folder, *broken)
            raise next(iter(broken.values()))


@contextmanager
def _full_disk_reported(folder: Path) -> Iterator[None]:
    """A file that could not be written for want of room, as an error that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = f"Make room; `holdfast resume {folder}` then goes on."
        raise HoldfastError(f"could not write in {folder}: {error.strerror}. {advice}") from error


TRACEBACK = "traceback.txt"
"""In a run folder: where in the code a run failed that torch, or a part of another package, broke off."""


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What torch raises, as an error in a sentence; the traceback goes into the folder.

    Args:
        folder: of the run.

    Raises:
        HoldfastError: instead of an error that torch raised.
    """
    try:
        yield
    except (HoldfastError, ImportError, OSError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not isinstance(error, RuntimeError) and "torch" not in Path(frames[-1].filename).parts:
            raise  # a fault of ours, or of code that the user wrote: its author needs the line
        (folder / TRACEBACK).write_text(traceback.format_exc())
        outside = next((one for one in reversed(frames) if "holdfast" not in one.filename), frames[-1])
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".") or "no reason given"
        advice = "Give values that fit: `holdfast list KIND NAME` says what they mean."
        if isinstance(error, torch.OutOfMemoryError):
            advice = "Write a smaller trainer.batch_size, or trainer.eval_batch_size."
        elif "optim" in Path(outside.filename).parts:
            advice = "Change the optimizer's or the scheduler's values."
        raise HoldfastError(
            f"training failed in {Path(outside.filename).name}: {type(error).__name__}: {reason}. {advice} Where it"
            f" happened stands in {folder / TRACEBACK}."
        ) from error


def _ended(folder: Path) -> bool:
    return (folder / LOG_NAME).is_file() and read_log(folder).finished


def _train(folder: Path, part: str, job: Job, quiet: bool) -> None:
    """One method, one seed: train from the start or from the newest checkpoint, to the end."""
    if job.learns_from_source:
        train_on_source(folder, job, quiet)
        return
    config = job.config
    stream = job.make_stream()
    model = job.make_model(stream)
    card = card_of(stream)
    stream = with_features(stream, model, config["device"], config["trainer"]["per_experience"])
    with Recording(folder, config, config["loggers"], config["checkpoint"], card, write_report) as recording:
        write_summary(folder, model, stream, quiet)
        with profiled(config["profiler"], folder):
            seconds = _learn(part, job, stream, model, recording, quiet)
        recording.end(seconds)


def _learn(part: str, job: Job, stream: Stream, model: torch.nn.Module, recording: Recording, quiet: bool) -> float:
    """Train by the protocol of the job; returns the seconds."""
    begun, protocol = time.perf_counter(), job.config["protocol"]
    method = job.method_name if protocol == "continual" else protocol
    start = functools.partial(start_event, job.config["seed"], method, stream, model)
    if protocol != "continual":
        if not recording.journal.lines:
            recording.journal.write(start())
        new, make = functools.partial(job.make_model, stream), functools.partial(make_trainer, job)
        (train_apart if protocol == APART else evaluate_untrained)(new, stream, recording.journal, make)
        return time.perf_counter() - begun
    state = recording.open(start)
    record = keeping(recording.record, recording.folder, model, stream)
    trainer = make_trainer(job, record=record, progress=not quiet, checkpoints=recording.checkpoints)
    learn_too(job, part, state)
    with stop_on_signals(trainer):
        trainer.fit(model, stream, resume=state)
    recording.keep(model)
    if not part.startswith("references"):
        write_samples(recording.folder, trainer.engine, stream)
    return trainer.seconds


def evaluate(where: Path | str, split: str = "test") -> dict[str, Any]:
    """Evaluate the newest state of a run again, without changing its folder.

    Args:
        where: the folder of a single run (with several seeds: one of its `seed-*` folders), a checkpoint file, or the
            address of one.
        split: `test` or `validation`, of the data that the run was trained on.

    Returns:
        `{"experiences": [evaluate events], "average_accuracy": ..}`.

    Raises:
        DataError: where the data are not there any more; `runs.predict.measured` takes others.
    """
    restored = restore(where)
    if restored.config.get("source") is not None:
        raise DataError(
            "this run learned from a source, which has no test data; what it knew of rows held out is in its log. Write"
            f" `holdfast show {where}`, or `holdfast predict {where} FILE`."
        )
    return evaluated(restored.engine, restored.with_data(), split, restored.eval_batch_size)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
