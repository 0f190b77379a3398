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


def connect(kind: str, devices: int, num_nodes: int, own: bool) -> Ranks:
    """Join the other processes; all of them must call this.

    Args:
        kind: of device: `cpu`, `cuda` ...
        devices: processes on this machine, one device each.
        num_nodes: machines.
        own: whether this library started the processes.

    Raises:
        ConfigError: for devices that this machine has not.
    """
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
