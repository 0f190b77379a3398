"""What is checked of optimisers and schedulers, and of what is different in some experiences."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from holdfast.config import kinds, schema
from holdfast.config.messages import called
from holdfast.config.words import shown
from holdfast.core.errors import ConfigError
from holdfast.training.settings import indices


def check_optimizer(optimizer: Any, path: str = "optimizer") -> list[str]:
    """Ask torch itself: without parameters it checks the values, then stops before it imports its compiler."""
    function = kinds.find("optimizers", optimizer.name)
    try:
        called(path, function, {"params": [], **schema.arguments(optimizer)})
    except ConfigError as error:
        return [] if "empty parameter list" in str(error) else [str(error)]
    return []


def check_scheduler(optimizer: Any, scheduler: Any, path: str = "scheduler") -> list[str]:
    """Make the scheduler over one number and move it once. Its optimiser imports torch's compiler, for a second."""
    if scheduler is None:
        return []
    function = kinds.find("schedulers", scheduler.name)
    measured = [0.0] if scheduler.name == "ReduceLROnPlateau" else []
    if measured and scheduler.every == "step":
        return [f'{path}.every: got "step", and ReduceLROnPlateau looks at the loss of an epoch. Write every=epoch.']
    size = getattr(scheduler, "given_step_size", 1)
    if isinstance(size, int) and size < 0:
        return [f"{path}.step_size: got {size}, expected a number of at least 1."]

    def moved(**arguments: Any) -> None:
        make = kinds.find("optimizers", optimizer.name)
        made = function(make([torch.nn.Parameter(torch.zeros(1, 1))], **schema.arguments(optimizer)), **arguments)
        made.step(*measured)

    moved.__name__, moved.__wrapped__ = scheduler.name, function  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            called(path, moved, schema.arguments(scheduler, "every"))
    except ConfigError as error:
        return [str(error)]
    return []


def check_changes(block: Any, stream: dict[str, Any]) -> list[str]:
    """What is wrong with `trainer.per_experience`: experiences that the stream lacks, and combinations in an entry."""
    changes = block.trainer.per_experience
    if changes is None:
        return []
    experiences = stream.get("experiences")
    count = experiences if isinstance(experiences, int) else None
    entries = changes.items() if isinstance(changes, dict) else enumerate(changes)
    problems = []
    if isinstance(changes, dict):
        for key in changes:
            try:
                indices(key, count)
            except ConfigError as error:
                problems.append(f"trainer.{error}")
    elif count is not None and len(changes) != count:
        problems.append(
            f"trainer.per_experience: lists {len(changes)} experiences, and the stream has {count}. "
            'Give one entry for each (null where nothing changes), or name them: {"0": ..., "3-": ...}.'
        )
    for key, entry in entries:
        path = f"trainer.per_experience.{key}"
        if entry is None:
            continue
        values = schema.dump(entry)
        if values.get("epochs") is not None and values.get("iterations") is not None:
            problems.append(f"{path}: both epochs and iterations are given. Keep one.")
        optimizer = entry.optimizer or block.optimizer
        scheduler = entry.scheduler if "scheduler" in values else None
        wrong = check_optimizer(optimizer, f"{path}.optimizer") if entry.optimizer else []
        problems += wrong or check_scheduler(optimizer, scheduler, f"{path}.scheduler")
        if values.get("patience") or values.get("restore_best"):
            problems += check_held_out(stream, path, values)
    return problems


def check_held_out(
    stream: dict[str, Any], path: str, trainer: dict[str, Any], keys: tuple[str, ...] = ("patience", "restore_best")
) -> list[str]:
    """Whether what looks at validation data has any: `keys` of a trainer's settings."""
    if stream.get("validation", 1) not in (0, None) or trainer.get("monitor_on") == "test":
        return []
    return [
        f"{path}.{key}: got {shown(trainer[key])}, but the stream holds no validation data out. "
        "Write stream.validation=0.1."
        for key in keys
        if trainer.get(key)
    ]
