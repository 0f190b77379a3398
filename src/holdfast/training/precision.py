"""Around a training: number formats, compilation, torch's own checks, and Lightning Fabric for several processes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, needs_extra
from holdfast.core.experience import Tree, tree_map
from holdfast.training.ranks import Ranks

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
Prepare = Callable[[Any, bool, torch.Generator | None], Any]

PRECISIONS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "64-true": None,
}
"""Each precision with the dtype of its autocast, if it has one."""


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse an unknown precision, and one that makes no sense on this device.

    Raises:
        ConfigError: an unknown name, or `16-mixed` on a CPU, which computes no faster in it and overflows sooner.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"the trainer got precision={precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    if precision == "16-mixed" and device.type == "cpu":
        raise ConfigError("precision 16-mixed is for GPUs, and the device is the CPU. Write precision=bf16-mixed.")


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """The gradient scaler that float16 needs, None for every other precision."""
    return torch.amp.GradScaler(device.type) if precision == "16-mixed" else None


def as_precise(model: nn.Module, prepare: Prepare | None, precision: str) -> Prepare | None:
    """Under `64-true` the model in double precision, and a `prepare` that makes doubles; else nothing changes."""
    if precision != "64-true":
        return prepare
    model.double()
    return Doubles(prepare)


class Doubles:
    """Prepares inputs as another does, and makes doubles of the floats.

    Args:
        prepare: what is called first; None leaves inputs as they are.
    """

    def __init__(self, prepare: Prepare | None) -> None:
        self.prepare = prepare

    def __call__(self, inputs: Tree, training: bool = False, generator: torch.Generator | None = None) -> Tree:
        """Prepare a batch; see `streams.dataset.Prepare`."""
        prepared = inputs if self.prepare is None else self.prepare(inputs, training, generator)
        return tree_map(_double, prepared)

    def __getattr__(self, name: str) -> Any:
        if name == "prepare":
            raise AttributeError(name)
        return getattr(self.prepare, name)


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


# Checks ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torch_checks(deterministic: bool, detect_anomaly: bool) -> Iterator[None]:
    """Torch's own checks inside, what was set before afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(True) if detect_anomaly else contextlib.nullcontext():
            yield
    finally:
        torch.use_deterministic_algorithms(before)


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


def connect(kind: str, devices: int, num_nodes: int, started_here: bool) -> Ranks:
    """Join the other processes; all of them must call this.

    Args:
        kind: of device: `cpu`, `cuda` ...
        devices: processes on this machine, one device each.
        num_nodes: machines.
        started_here: whether this library started the processes.

    Raises:
        ConfigError: for devices that this machine does not have, or another number of processes than was started.
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
            plugins=[environment()] if started_here else None,
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
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    started = int(os.environ.get("WORLD_SIZE", devices * num_nodes))
    if started != devices * num_nodes or local_rank >= devices:
        raise ConfigError(
            f"devices={devices} and num_nodes={num_nodes} make {devices * num_nodes} processes, and this one has"
            f" LOCAL_RANK={local_rank} of WORLD_SIZE={started}. Give devices the number of processes on each machine,"
            " and num_nodes that of machines."
        )
