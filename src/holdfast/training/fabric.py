"""Lightning Fabric, where several processes train together: which devices there are, and how they find each other."""

from __future__ import annotations

import logging
import os
from typing import Any

from holdfast.core.errors import ConfigError, needs_extra
from holdfast.training.ranks import Ranks

RANK_ZERO = ".utilities.rank_zero"


def fabric_types() -> tuple[Any, Any, Any]:
    """Fabric, its strategy for data-parallel training, and its environment of processes that are there already.

    Raises:
        ImportError: if lightning is not installed, with what to install.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
        from lightning.fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise needs_extra(
            "training in several processes (devices, num_nodes, strategy)", "lightning", "engine"
        ) from error
    return Fabric, DDPStrategy, LightningEnvironment


def launched() -> bool:
    """Whether somebody started this process as one of several: `torchrun`, SLURM, or this library itself."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def first() -> bool:
    """Whether this process is rank 0 of those that somebody else started, or on its own."""
    for name in ("RANK", "SLURM_PROCID"):
        if launched() and name in os.environ:
            return int(os.environ[name]) == 0
    return int(os.environ.get("NODE_RANK", 0)) == 0 and int(os.environ.get("LOCAL_RANK", 0)) == 0


def connect(kind: str, devices: int, num_nodes: int, own: bool) -> Ranks:
    """Join the other processes; all of them must call this.

    Args:
        kind: of device: `cpu`, `cuda` ...
        devices: processes on this machine, one device each.
        num_nodes: machines.
        own: whether this library started the processes.

    Raises:
        ConfigError: for devices that this machine has not, or other numbers of processes than were started.
    """
    _check_started(devices, num_nodes)
    fabric_type, strategy, environment = fabric_types()
    loggers = [
        logging.getLogger(f"lightning.{part}{name}") for part in ("fabric", "pytorch") for name in ("", RANK_ZERO)
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        fabric = fabric_type(
            accelerator=kind,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy(),
            plugins=[environment()] if own else None,
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{devices} processes on {kind} cannot train together: {error}") from error
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device)


def _check_started(devices: int, num_nodes: int) -> None:
    """Refuse numbers that the processes there are do not have; they would wait for one another without end."""
    place = int(os.environ.get("LOCAL_RANK", 0))
    started = int(os.environ.get("WORLD_SIZE", devices * num_nodes))
    if started != devices * num_nodes or place >= devices:
        raise ConfigError(
            f"devices={devices} and num_nodes={num_nodes} make {devices * num_nodes} processes, and this one has"
            f" LOCAL_RANK={place} of WORLD_SIZE={started}. Give devices the number of processes on each machine, and"
            " num_nodes that of machines."
        )
