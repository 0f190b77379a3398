"""What a run saves while it trains: its state, written beside the last and renamed over it, and each experience's."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.core.errors import ConfigError, DataError, HoldfastError
from holdfast.metrics.log import LOG_NAME, Event, read_log

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
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float | None = 30.0,
        every_steps: int | None = None,
        lines: Callable[[], int] = lambda: 0,
        config: dict[str, Any] | None = None,
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
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()

    def due(self, seconds: float, steps: int) -> bool:
        """Whether so many seconds or steps after the last checkpoint another one is due."""
        late = self.every_seconds is not None and seconds >= self.every_seconds
        return late or (self.every_steps is not None and steps >= self.every_steps)

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` as the newest, safe against a kill at any moment."""
        content = {"format": FORMAT, "lines": self._lines(), "config": self._config, "state": state}
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


def keep_experience(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `experience<k>/` where a state is that after an experience k; one that is there is left as it is.

    The folder gets its name when all is in it, so that there is never half of one.

    Args:
        folder: of the run.
        content: of a checkpoint: `state` of the trainer with its `position`, and the configuration.
    """
    position = content["state"]["position"]
    index = int(position["experience"]) - 1
    place = folder / f"experience{index}"
    if position["phase"] != "before" or index < 0 or place.exists():
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
    beside.rename(place)


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
