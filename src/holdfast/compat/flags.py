"""Lightning's names for the flags of a trainer, and what each means here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.config.words import shown
from holdfast.core.errors import ConfigError

Changes = dict[tuple[str, ...], Any]

ACCELERATORS = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps", "auto": "auto"}
PRECISIONS = {
    "32": "32-true", "32-true": "32-true", "float32": "32-true",
    "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed", "bfloat16": "bf16-mixed",
    "16": "16-mixed", "16-mixed": "16-mixed", "64": "64-true", "64-true": "64-true",
}  # fmt: skip
STRATEGIES = {
    "auto": "auto", "single_device": "auto",
    "ddp": "ddp", "ddp_find_unused_parameters_true": "ddp", "ddp_find_unused_parameters_false": "ddp",
    "ddp_fork": "ddp_fork", "ddp_notebook": "ddp_fork", "ddp_spawn": "ddp_spawn",
}  # fmt: skip
SAME = {
    "max_epochs": "epochs",
    "max_steps": "iterations",
    "log_every_n_steps": "log_every",
    "gradient_clip_val": "clip_norm",
    "accumulate_grad_batches": "accumulate",
}
JOB = ("profiler",)
"""Flags that are keys of the job here."""


def flag(key: str, value: Any) -> Changes | None:
    """What `trainer.<key>=value` changes, by path in the job; None where it is not a flag of Lightning's.

    Args:
        key: as Lightning calls it.
        value: of it.

    Raises:
        ConfigError: for a flag that has no meaning here, with what does the same.
    """
    if key == "max_time":
        return {("trainer", "max_seconds"): seconds(value)}
    if key in SAME:
        return {("trainer", SAME[key]): value}
    if key == "compile":
        return {("trainer", "capture"): "compile" if value is True else "auto"}
    if key in JOB:
        return {(key,): value}
    if key == "gradient_clip_algorithm":
        return {("trainer", "clip_by"): value}
    if key == "accelerator":
        if value not in ACCELERATORS:
            raise ConfigError(f"trainer.accelerator: got {shown(value)}, expected one of {', '.join(ACCELERATORS)}.")
        return {("device",): ACCELERATORS[value]}
    if key == "precision":
        if str(value) not in PRECISIONS:
            raise ConfigError(f"trainer.precision: got {shown(value)}, expected 32, bf16, 16 or 64.")
        return {("trainer", "precision"): PRECISIONS[str(value)]}
    if key in ("devices", "num_nodes"):
        return {("trainer", key): count(key, value)}
    if key == "strategy":
        if value not in STRATEGIES:
            raise ConfigError(
                f"trainer.strategy: got {shown(value)}, and every process holds the whole model here. "
                "Write ddp, ddp_spawn, ddp_fork or auto."
            )
        return {("trainer", key): STRATEGIES[value]}
    if key == "fast_dev_run":
        one = {f"limit_{part}_batches": 1 for part in ("train", "val", "test")} if value else {}
        return {("trainer", name): count for name, count in {**one, **({"epochs": 1} if value else {})}.items()}
    if key in ("val_check_interval", "check_val_every_n_epoch"):
        if value in (1, 1.0):
            return {}
        raise ConfigError(
            f"trainer.{key}: got {shown(value)}, and validation comes once an epoch where it decides something. "
            "Leave it out; trainer.patience and trainer.restore_best look at it."
        )
    if key == "tpu_cores":
        raise ConfigError(
            f"trainer.tpu_cores: got {shown(value)}, and TPUs are not supported. Write device=cuda or leave it out."
        )
    if key in ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger", "callbacks"):
        raise ConfigError(
            f"trainer.{key}: a run folder always has its log, checkpoints and model summary. "
            "Leave it out; `--quiet` draws nothing, and loggers=[tensorboard] adds a logger."
        )
    return None


def translated(content: Mapping[str, Any], package: tuple[str, ...] = ()) -> dict[str, Any]:
    """A part of a job with Lightning's flags under our names.

    Args:
        content: of a file.
        package: the key it goes under.

    Example:
        >>> translated({"trainer": {"max_epochs": 3, "accelerator": "gpu"}})
        {'trainer': {'epochs': 3}, 'device': 'cuda'}
    """
    if package and package != ("trainer",):
        return dict(content)
    trainer = content if package else content.get("trainer")
    if not isinstance(trainer, Mapping):
        return dict(content)
    kept: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for key, value in trainer.items():
        changes = flag(str(key), value)
        for path, new in ({("trainer", key): value} if changes is None else changes).items():
            if path[0] == "trainer":
                kept[path[1]] = new
            else:
                outside[path[0]] = new
    if not package:
        return {**content, "trainer": kept, **outside}
    if outside:
        raise ConfigError(
            f"trainer: {', '.join(outside)} is no part of `trainer`. Open the file with `# @package _global_`."
        )
    return kept


def count(key: str, value: Any) -> Any:
    """A number of devices or machines; `auto` is one.

    Example:
        >>> count("devices", "auto"), count("devices", "4")
        (1, 4)
    """
    if value == "auto":
        return 1
    if value == -1 or isinstance(value, (list, tuple)):
        raise ConfigError(
            f"trainer.{key}: got {shown(value)}, expected how many there are to be. Write trainer.{key}=2, and choose"
            " which by CUDA_VISIBLE_DEVICES."
        )
    return int(value) if isinstance(value, str) and value.isdigit() else value


def seconds(value: Any) -> float | None:
    """A length of time: seconds, `"DD:HH:MM:SS"`, or a mapping such as `{"minutes": 5}`.

    Example:
        >>> seconds("00:00:02:05"), seconds({"minutes": 1.5}), seconds(10)
        (125.0, 90.0, 10.0)
    """
    units = {"weeks": 604800, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None if value is None else float(value)
    if isinstance(value, Mapping) and value and all(key in units for key in value):
        return float(sum(units[key] * float(number) for key, number in value.items()))
    parts = str(value).split(":") if isinstance(value, str) else []
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ConfigError(f'trainer.max_time: got {shown(value)}, expected seconds or "DD:HH:MM:SS".')
    days, hours, minutes, rest = map(int, parts)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
