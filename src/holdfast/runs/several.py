"""One run in processes that somebody else started (torchrun, SLURM): rank 0 makes it, the others learn with it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from holdfast.config import build
from holdfast.core.errors import ConfigError, HoldfastError, Interrupted
from holdfast.runs.assemble import make_trainer
from holdfast.training.fabric import launched
from holdfast.training.launch import together


def shared(config: dict[str, Any]) -> bool:
    """Whether a run of `config` is the work of processes that somebody else started."""
    return launched() and config["trainer"]["devices"] * config["trainer"]["num_nodes"] > 1


def with_others(config: dict[str, Any], work: Callable[[], Path]) -> Path:
    """Do `work` where this process is on its own, or rank 0 of several; in the others learn what it learns.

    Args:
        config: of the run, the same in every process.
        work: makes the run, and returns its folder.

    Returns:
        The folder; that of rank 0, which may be on another machine.

    Raises:
        HoldfastError: in the others, if rank 0 failed.
    """
    if not shared(config):
        return work()
    if config["protocol"] == "independent" or "independent" in config["references"]:
        raise ConfigError(
            "references: independent trains a model for each experience, which processes that somebody else started"
            " (torchrun, SLURM) cannot share. Leave it out, or run it alone."
        )
    trainer = config["trainer"]
    with together(build.build_device(config["device"]).type, trainer["devices"], trainer["num_nodes"]) as ranks:
        return _lead(work) if ranks.rank == 0 else _follow()


def learn_too(config: dict[str, Any], resume: dict[str, Any] | None) -> None:
    """On rank 0, before it trains: let the others do the same. Nothing where there are none.

    Args:
        config: of the single run that is to be trained.
        resume: the state it goes on from.
    """
    if shared(config):
        _tell({"config": config, "resume": resume})


def _lead(work: Callable[[], Path]) -> Path:
    try:
        folder = work()
    except Interrupted:  # all have stopped after the same step
        _tell({"folder": ""})
        raise
    _tell({"folder": str(folder)})
    return folder


def _follow() -> Path:
    """Learn until rank 0 has nothing more to learn; only that one is asked to stop, and tells the others."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while "folder" not in (message := _hear()):
            with contextlib.suppress(Interrupted):
                _learn(message["config"], message["resume"])
        return Path(message["folder"])
    except RuntimeError as error:
        if "peer" not in str(error):
            raise
        raise HoldfastError("the first process ended early, and says why.") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _learn(config: dict[str, Any], resume: dict[str, Any] | None) -> None:
    stream = build.build_stream(config["stream"], config["seed"])
    model = build.build_model(config["model"], stream, config["seed"])
    stream = build.with_features(stream, model, config["device"])
    make_trainer(config).fit(model, stream, resume=resume)


def _tell(message: dict[str, Any]) -> None:
    dist.broadcast_object_list([message], src=0)


def _hear() -> dict[str, Any]:
    told: list[Any] = [None]
    dist.broadcast_object_list(told, src=0)
    found: dict[str, Any] = told[0]
    return found
