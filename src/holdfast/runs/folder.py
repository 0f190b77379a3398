"""The folder of a run: made once, never overwritten, locked; and what is saved in it while the run trains."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.config.words import filled
from holdfast.core.errors import DAMAGED_ARRAYS, ConfigError, DataError, HoldfastError
from holdfast.metrics.log import LOG_NAME, Event, read_json, read_log, write_json
from holdfast.runs.result import CONFIG as CONFIG
from holdfast.runs.result import INFO as INFO

VERSION, VERSIONS = "version.json", "versions"
"""In a run folder: which version is in use, and the folders of those that updates made."""

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
        for folder in numbered(stem):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
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


def current(folder: Path) -> tuple[Path, int]:
    """The folder of the version of a run that is in use, and its number: the run itself, 0, or an update of it."""
    number = int(read_json(folder / VERSION).get("version", 0))
    return (folder / VERSIONS / str(number), number) if number else (folder, 0)


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
        config = json.loads(path.read_bytes())
    except ValueError as error:  # no JSON, or no text
        raise DataError(f"{path} is no JSON ({error}). Restore it, or start the run again.") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} holds a {type(config).__name__}, no job. Restore it, or start the run again.")
    trainer = config.get("trainer")
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


LAST = "last.pt"
MODEL = "model.pt"
FORMAT = 1
RESULTS, TRAIN = "results.csv", "train.csv"
RESULT_COLUMNS = ("experience", "split", "samples", "accuracy", "task_aware_accuracy", "loss")
TRAIN_COLUMNS = ("epoch", "step", "samples", "loss", "accuracy", "lr")
_COUNTS = ("correct", "correct_task")


class CheckpointFolder:
    """Keeps the newest state of a run.

    Args:
        folder: made if it does not exist.
        every_seconds: seconds between checkpoints within an experience; None for none by time.
        every_steps: steps between checkpoints within an experience; None for none by steps.
        lines: how many lines the log has now; kept with the state, so that a resumed log knows what to drop.
        config: of the run; kept with the state, so that the file alone can be evaluated.
        card: of the stream; kept too, so that the model can be asked without the data.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float | None = 30.0,
        every_steps: int | None = None,
        lines: Callable[[], int] = lambda: 0,
        config: dict[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        if (every_seconds is not None and every_seconds <= 0) or (every_steps is not None and every_steps < 1):
            raise ConfigError(
                f"checkpoints got every_seconds={every_seconds}, every_steps={every_steps}. Give positive numbers, or"
                " null."
            )
        self.folder = folder
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self._lines = lines
        self._config = config
        self._card = None if card is None else dict(card)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()

    def due(self, seconds: float, steps: int) -> bool:
        """Whether so many seconds or steps after the last checkpoint another one is due."""
        late = self.every_seconds is not None and seconds >= self.every_seconds
        return late or (self.every_steps is not None and steps >= self.every_steps)

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` as the newest, safe against a kill at any moment."""
        content = {"format": FORMAT, "lines": self._lines(), "config": self._config, "data": self._card, "state": state}
        if ((self._config or {}).get("folders") or {}).get("experiences"):
            keep_experience(self.folder.parent, content)
        save_tensors(self.folder / LAST, content)

    def load(self) -> dict[str, Any] | None:
        """The newest state with the number of log lines it goes with, or None if there is none yet."""
        path = self.folder / LAST
        return load_tensors(path) if path.exists() else None


def save_tensors(path: Path, content: Any) -> None:
    """Write tensors and plain values to `path`: whole, or not at all.

    Raises:
        HoldfastError: if the disk is full or the folder cannot be written; what was at `path` is still there.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise HoldfastError(
            f"could not write {path}: {reason}. Make room and run `holdfast resume`; the checkpoint before it is whole."
        ) from error


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote; nothing in the file is ever run.

    Raises:
        DataError: if the file is damaged or of another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a checkpoint: {error}. Start the run again in another folder."
        ) from error
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"{path} has format {content['format']}, this version reads {FORMAT}. Use the version that wrote it."
        )
    return content


def load_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray] | None:
    """Arrays of a file in a run folder, by name; None where there is no file.

    Raises:
        DataError: a damaged file.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except DAMAGED_ARRAYS as error:
        raise DataError(f"{path} cannot be read: {error}. Remove it, and make the report again.") from error


def keep_experience(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `experience<k>/` where a state is that after an experience k; one that is there is left as it is.

    The folder gets its name when all is in it, so that there is never half of one.

    Args:
        folder: of the run.
        content: of a checkpoint: `state` of the trainer with its `position`, and the configuration.
    """
    position = content["state"]["position"]
    index = int(position["experience"]) - 1
    kept = folder / f"experience{index}"
    if position["phase"] != "before" or index < 0 or kept.exists():
        return
    beside = folder / f".experience{index}.tmp"
    if beside.exists():
        shutil.rmtree(beside)
    (beside / "checkpoints").mkdir(parents=True)
    save_tensors(beside / "checkpoints" / LAST, dict(content))
    save_tensors(beside / "checkpoints" / MODEL, dict(content["state"]["engine"]["learner"]["model"]))
    events = read_log(folder / LOG_NAME) if (folder / LOG_NAME).is_file() else []
    _write(beside / RESULTS, RESULT_COLUMNS, results(events, index))
    training = (event for event in events if event["event"] == "train" and event["experience"] == index)
    _write(beside / TRAIN, TRAIN_COLUMNS, ([event.get(key) for key in TRAIN_COLUMNS] for event in training))
    beside.rename(kept)


def results(events: Iterable[Event], after: int) -> list[list[Any]]:
    """What was measured after experience `after`: one row for each experience and split.

    Example:
        >>> results([{"event": "evaluate", "after": 0, "experience": 0, "split": "test", "samples": 4, "correct": 3,
        ...           "loss": 0.5}], after=0)
        [[0, 'test', 4, 0.75, None, 0.5]]
    """
    rows = []
    for event in events:
        if event["event"] == "evaluate" and event["after"] == after:
            shares = [None if event.get(key) is None else event[key] / event["samples"] for key in _COUNTS]
            rows.append([event["experience"], event["split"], event["samples"], *shares, event.get("loss")])
    return rows


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
