"""A folder for each experience of a run: the checkpoint after it, what was measured then, and its training."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.metrics.log import Event, read_log
from holdfast.runs.journal import LOG
from holdfast.runs.tensors import LAST, MODEL, save_tensors

RESULTS, TRAIN = "results.csv", "train.csv"
RESULT_COLUMNS = ("experience", "split", "samples", "accuracy", "task_aware_accuracy", "loss")
TRAIN_COLUMNS = ("epoch", "step", "samples", "loss", "accuracy", "lr")


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
    events = read_log(folder / LOG) if (folder / LOG).is_file() else []
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


_COUNTS = ("correct", "correct_task")


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
