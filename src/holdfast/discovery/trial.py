"""One composition at work: learn so many experiences, from where it was left, and measure what was learned by then."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from holdfast.config.check import validated
from holdfast.config.job import Job, with_features
from holdfast.core.errors import ConfigError, Diverged, HoldfastError, Interrupted
from holdfast.core.experience import Stream
from holdfast.discovery.protocols import tuning_stream
from holdfast.metrics.log import LOG_NAME, Event, Log, write_json
from holdfast.metrics.summary import compute
from holdfast.metrics.table import METRICS
from holdfast.runs.assemble import job_key, make_trainer
from holdfast.runs.folder import CONFIG, drop_leftovers, locked, read_config, read_info, versions, write_info
from holdfast.runs.recording import Recording, derive, start_event, stop_on_signals
from holdfast.runs.result import ENDED
from holdfast.runs.stacks import together

TRIALS = "trials"
"""Folder of the trials of a search."""

COSTS = ("seconds", "bytes", "parameters", "items", "steps")
"""What the names of measures of cost have in them."""


@dataclass(frozen=True)
class Measured:
    """What became of a composition after so many experiences.

    Attributes:
        state: `done`, `diverged`, or `stopped` when the time was over.
        values: every measure, in the family that counts for the paradigm, on validation data.
        reason: why it diverged or was stopped.
        seconds: that this call took.
    """

    state: str
    values: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Entry:
    """One trial: a composition, and how many experiences it was to learn.

    Attributes:
        number: of the trial.
        state: `waiting`, `running`, `done`, `diverged`, `failed`, or `lost` with its worker.
        key: of the composition; the name of its folder.
        length: experiences.
        params: as they are stored.
        origin: where the composition comes from: `sampler`, the name of a method, or `earlier search`.
        values: every measure.
        reason: why it failed or diverged.
        seconds: that it took.
        worker: who works on it.
        extra: what the sampler wrote down.
        tries: how often it was lost.
        seed: above that of the search; the leaders are trained with others, too.
    """

    number: int
    state: str
    key: str
    length: int
    params: dict[str, Any]
    origin: str = "sampler"
    values: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    worker: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    tries: int = 0
    seed: int = 0

    @property
    def outcome(self) -> tuple[tuple[str, float], ...]:
        """All that was measured but what it cost: equal where what two compositions differ in changes nothing.

        Losses, which a factor before all answers changes, count only where every answer is right.
        """
        left_out = COSTS if self.values.get("average_accuracy", 1.0) == 1.0 else (*COSTS, "loss")
        kept = ((name, value) for name, value in self.values.items() if not any(word in name for word in left_out))
        return tuple(sorted(kept)) if self.state == "done" else ()


def entry(trial: Any) -> Entry:
    """A trial of Optuna's, as what it stands for."""
    told = trial.user_attrs
    name = trial.state.name
    fallback = {"COMPLETE": "done", "WAITING": "waiting", "RUNNING": "running"}.get(name, "lost")
    state = fallback if name in ("WAITING", "RUNNING") else str(told.get("state", fallback))
    params = {**dict(trial.system_attrs.get("fixed_params", {})), **trial.params}
    return Entry(
        trial.number,
        state,
        str(told.get("key", "")),
        int(told.get("length", 0)),
        params,
        str(told.get("origin", "sampler")),
        dict(told.get("values", {})),
        str(told.get("reason", "")),
        float(told.get("seconds", 0.0)),
        str(told.get("worker", "")),
        dict(told.get("extra", {})),
        int(told.get("tries", 0)),
        int(told.get("seed", 0)),
    )


class OutOfTime(Exception):  # noqa: N818
    """The time of the search is over."""


def reach(
    folder: Path,
    config: Mapping[str, Any],
    length: int,
    most_seconds: float | None = None,
    until: float | None = None,
) -> Measured:
    """Train a job until it has learned `length` experiences, and measure it there.

    What its folder holds already is continued, so that a promoted trial gives what it would have given in one piece.

    Args:
        folder: of the trial; an ordinary run folder, unfinished.
        config: of a job that measures on validation data; resolved.
        length: experiences.
        most_seconds: of training, after which it ends with the experience it is at.
        until: when it is stopped where it is, by `time.time`.

    Raises:
        ConfigError: where the folder holds another job.
        HoldfastError: where the composition cannot be trained.
    """
    started = time.perf_counter()
    job = validated(dict(config))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        drop_leftovers(folder)
        if not (folder / CONFIG).is_file():
            write_json(folder / CONFIG, job.config)
            write_info(folder, state="running", started=time.time(), versions=versions())
        elif read_config(folder) != job.config:
            raise ConfigError(f"{folder} holds another job. Choose another --out.")
        if learned(folder) < length and not _log(folder).diverged:
            try:
                _train(folder, job, tuning_stream(job), length, most_seconds, until)
            except Diverged:
                write_info(folder, state="diverged")
            except OutOfTime:
                return Measured("stopped", {}, "the time was over", time.perf_counter() - started)
        log = _log(folder)
        state = "diverged" if log.diverged else "done"
        return Measured(state, measures(log, length), log.diverged, time.perf_counter() - started)


@dataclass(frozen=True)
class Asked:
    """What is to be trained and measured; its fields are the arguments of `reach`."""

    folder: Path
    config: dict[str, Any]
    length: int
    most_seconds: float | None = None
    until: float | None = None

    def reach(self) -> Measured:
        """Train it alone."""
        return reach(self.folder, self.config, self.length, self.most_seconds, self.until)


@dataclass(frozen=True)
class Task:
    """A trial of a study, the part of the stream that it sees, and what is to be trained for it."""

    trial: Any
    part: float
    asked: Asked


def reach_together(asked: Sequence[Asked]) -> list[Measured | BaseException]:
    """Train several trials at once, by one program where their steps are of equal shape; one is trained alone.

    Returns:
        For each what was measured, or what broke it off.
    """
    if len(asked) > 1:
        members = together([one.reach for one in asked], asked[0].config)
        return [
            one.error or dataclasses.replace(one.result, seconds=one.result.seconds / len(asked)) for one in members
        ]
    try:
        return [one.reach() for one in asked]
    except BaseException as error:  # told to whoever asked
        return [error]


def finish(folder: Path, config: Mapping[str, Any], command: str = "") -> tuple[str, str]:
    """Do a whole run, or what is left of it, and measure it on test data; its page is made by `run_finals`.

    Args:
        folder: of the run.
        config: of its job.
        command: kept in its `run.json`.

    Returns:
        Its state, `finished`, `diverged` or `failed`, and why.
    """
    job = validated(dict(config))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if read_info(folder).get("state") in ENDED:
            return str(read_info(folder)["state"]), ""
        drop_leftovers(folder)
        write_json(folder / CONFIG, job.config)
        about = {"command": command, "versions": versions(), "started": time.time(), "key": job_key(job.config)}
        write_info(folder, state="running", **about, tags=job.config["tags"])
        state, reason = "finished", ""
        try:
            stream = job.make_stream()
            _train(folder, job, stream, len(stream), end=True)
        except Diverged:
            state, reason = "diverged", _log(folder).diverged
        except (Interrupted, KeyboardInterrupt):
            write_info(folder, state="interrupted")
            raise
        except Exception as error:
            state, reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
            if not isinstance(error, HoldfastError):
                traceback.print_exc()
        if state != "failed":
            derive(folder)
        write_info(folder, state=state, finished=time.time(), **({"reason": reason} if reason else {}))
        return state, reason


def _train(
    folder: Path,
    job: Job,
    stream: Stream,
    length: int,
    most_seconds: float | None = None,
    until: float | None = None,
    end: bool = False,
) -> None:
    model = job.make_model(stream)
    stream = with_features(stream, model, job.config["device"])
    with Recording(folder, job.config, (), job.config["checkpoint"]) as recording:
        start = functools.partial(start_event, job.config["seed"], job.method_name, stream, model)
        state = recording.open(start)
        trainer = make_trainer(job, checkpoints=recording.checkpoints)

        def record(event: dict[str, Any]) -> None:
            if until is not None and time.time() > until:
                raise OutOfTime
            recording.record(event)
            if event["event"] == "experience":
                spent = most_seconds is not None and trainer.session.seconds > most_seconds
                if event["experience"] + 1 >= length or spent:
                    trainer.session.late = True  # ends after the checkpoint that follows, before the next experience

        trainer.record = record
        with stop_on_signals(trainer):
            trainer.fit(model, stream, resume=state)
        if end:
            recording.end(trainer.session.seconds)
            recording.keep(model)


def learned(folder: Path) -> int:
    """How many experiences the trial in a folder has learned and was measured on."""
    return len(_log(folder).of("experience"))


def _log(folder: Path) -> Log:
    return Log.read(folder) if (folder / LOG_NAME).is_file() else Log([])


def prefix(log: Sequence[Event], length: int) -> Log:
    """The log as it was when `length` experiences had been learned."""
    kept = []
    for event in log:
        index = event.get("after") if event["event"] == "evaluate" else event.get("experience")
        if event["event"] != "end" and (index is None or index < length):
            kept.append(event)
    return Log(kept)


def measures(log: Log, length: int) -> dict[str, float]:
    """Every measure after `length` experiences, on validation data; what has no value is left out."""
    computed = compute(prefix(log, length), "validation")
    family = str(computed.get("headline") or "")
    values: dict[str, float] = {}
    for name in METRICS:
        value = computed.get(family + name, computed.get(name))
        if isinstance(value, (int, float)) and math.isfinite(value):
            values[name] = float(value)
    return values


def impossible(config: Mapping[str, Any]) -> str:
    """Why a job cannot be trained, found out by binding its method to its model; empty where it can.

    Args:
        config: of a trial.
    """
    try:
        job = validated(dict(config))
        stream = tuning_stream(job)
        model = job.make_model(stream)
        with torch.random.fork_rng(devices=[]):
            make_trainer(job).bind(model, with_features(stream, model, job.config["device"]))
    except (HoldfastError, ImportError) as error:
        return " ".join(str(error).split())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
