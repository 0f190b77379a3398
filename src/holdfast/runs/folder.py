"""The folder of a run: made once, never overwritten, locked while a process works in it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.config.words import filled
from holdfast.core.errors import ConfigError, DataError
from holdfast.metrics.files import read_json, write_json
from holdfast.runs.result import CONFIG as CONFIG
from holdfast.runs.result import INFO as INFO

OBJECTS = "python"
"""Key of a configuration that holds what was an object of Python's, and no entry of a file."""

OLDER = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""What runs of earlier versions call a precision."""


def new_folder(out: Path | None, name: str, experiment: str | None = None, pattern: str | None = None) -> Path:
    """Make the folder of a new run.

    Args:
        out: where; default: `runs/<date>-<time>-<name>` in the current folder.
        name: of the method.
        experiment: where it has a name, the folder is `logs/<experiment>/runs/<date>-<time>`.
        pattern: where it goes instead, for instance `logs/{experiment}/{date}_{time}`; see `config.folders`.

    Raises:
        ConfigError: if there is something there already.
    """
    if out is None:
        usual = "logs/{experiment}/runs/{date}-{clock}" if experiment else "runs/{date}-{clock}-{method}"
        stem = filled(pattern or usual, name, experiment)
        for place in numbered(stem):
            with contextlib.suppress(FileExistsError):
                place.mkdir(parents=True)
                return place
        raise ConfigError(f"{stem} and all its numbers are taken. Give --out.")
    if out.is_dir() and all(is_leftover(path) for path in out.iterdir()):
        drop_leftovers(out)
    elif out.exists():
        raise ConfigError(
            f"{out} exists already, and runs are never overwritten. Choose another --out, or `holdfast resume {out}`."
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def numbered(stem: Path) -> Iterator[Path]:
    """`stem`, then `stem-2`, `stem-3` and so on: one of them is free."""
    yield stem
    yield from (Path(f"{stem}-{number}") for number in range(2, 1000))


def is_leftover(path: Path) -> bool:
    """Whether `path` is a half-written file that a killed process left behind (see `metrics.replace_file`)."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def drop_leftovers(folder: Path) -> None:
    """Remove half-written files; only for who has the folder to itself."""
    for path in filter(is_leftover, list(folder.rglob(".*.tmp"))):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration that made the run in `folder`.

    Raises:
        DataError: if the folder holds no run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(f"{folder} holds no run: it has no {CONFIG}. Give the folder that `holdfast run` printed last.")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON ({error}). Restore it, or start the run again.") from None
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if isinstance(trainer, dict) and "precision" in trainer:
        trainer["precision"] = OLDER.get(trainer["precision"], trainer["precision"])
    return config


def refuse_objects(config: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Refuse a configuration that no file can be built from again, since parts of it were objects of Python's.

    Raises:
        ConfigError: with what these are and how to go on in Python.
    """
    objects = config.get(OBJECTS)
    if objects:
        told = ", ".join(f"the {part} ({one.get('name')!s})" for part, one in objects.items())
        raise ConfigError(
            f"{folder} was trained in Python, and no file holds {told}. Go on there, with the same ones: "
            f'Trainer(...).fit(model, stream, out="{folder}", resume=True); then trainer.evaluate() and '
            "trainer.predict(inputs). The weights alone are in checkpoints/model.pt."
        )


def read_info(folder: Path) -> dict[str, Any]:
    """State, versions, seed and command of the run in `folder`; empty if it never started."""
    return read_json(folder / INFO)


def write_info(folder: Path, **changes: Any) -> None:
    """Update `run.json`."""
    write_json(folder / INFO, {**read_info(folder), **changes})


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    import numpy
    import torch

    import holdfast

    return {
        "holdfast": holdfast.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of `folder`; the lock goes with the process, however it ends.

    Raises:
        ConfigError: if another process works in the folder.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise ConfigError(f"another process is at work in {folder}. Wait for it to end, or stop it.") from None
    try:
        yield
    finally:
        os.close(file)
