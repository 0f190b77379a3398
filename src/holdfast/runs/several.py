"""One run in processes that somebody else started (torchrun, SLURM): rank 0 makes it, the others learn with it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from holdfast.config.job import Job, with_features
from holdfast.core.errors import ConfigError, HoldfastError, Interrupted
from holdfast.runs.assemble import make_trainer
from holdfast.training.launch import together
from holdfast.training.precision import launched


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
    """On rank 0, before it trains: let the others do the same. Nothing where there are none.

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
    found: dict[str, Any] = told[0]
    return found
