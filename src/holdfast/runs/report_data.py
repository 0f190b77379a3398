"""What a run folder says, read back from its files alone: for the report and for `holdfast show`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from holdfast.core.errors import DataError
from holdfast.metrics.continual import share_of_gap
from holdfast.metrics.log import LOG_NAME, Event, read_log
from holdfast.metrics.summary import METRICS, compute

LOWER = ("finetune", "finetuning", "naive", "sequential")
UPPER = ("joint", "jointtraining", "cumulative")


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it.

    Attributes:
        path: its folder.
        config: `config.json`, resolved (empty where there is none).
        info: `run.json`: versions, command, seed, state (empty where there is none).
        events: those of `log.jsonl` that count.
        metrics: computed from the log (from `metrics.json` only where there is no log).
    """

    path: Path
    config: dict[str, Any]
    info: dict[str, Any]
    events: list[Event]
    metrics: dict[str, Any]

    @property
    def title(self) -> str:
        """The method and the stream, or the folder's name."""
        method, stream = self.metrics.get("method"), self.metrics.get("stream")
        return f"{method} on {stream}" if method and stream else str(method or self.path.name)

    @property
    def state(self) -> str:
        """`finished`, or how far an unfinished run came."""
        if self.metrics.get("finished"):
            return "finished"
        said = str(self.info.get("state") or "")
        note = f" ({said})" if said and said not in ("finished", "done", "completed") else ""
        return f"unfinished{note}: {self.learned} of {self.metrics.get('experiences', 0)} experiences"

    @property
    def learned(self) -> int:
        """How many experiences were learned to their end."""
        done = [int(event["experience"]) + 1 for event in self.events if event["event"] == "experience"]
        return max([int(self.metrics.get("learned") or 0), *done])

    def matrix(self, key: str = "accuracy_matrix") -> np.ndarray:
        """One of the matrices in `metrics`, `[T, T]` with NaN."""
        rows = self.metrics.get(key) or []
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows))

    def names(self) -> list[str]:
        """A name for each experience."""
        for event in reversed(self.events):
            if event["event"] == "start":
                known = (event.get("stream") or {}).get("experience_names") or []
                break
        else:
            known = []
        count = int(self.metrics.get("experiences") or 0)
        return [str(known[index]) if index < len(known) and known[index] else str(index) for index in range(count)]


class Spread(NamedTuple):
    """Several values of one measure: their mean, the standard error of the mean (None for one value), how many."""

    mean: float
    error: float | None
    runs: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard error (`s / sqrt(n)`, s with n - 1) of the values that are there; None where there are none.

    Example:
        >>> spread([1.0, 3.0, None])
        Spread(mean=2.0, error=1.0, runs=2)
    """
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    mean = sum(known) / len(known)
    if len(known) == 1:
        return Spread(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
    return Spread(mean, math.sqrt(variance / len(known)), len(known))


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read one run folder, never changing it.

    Args:
        folder: it holds `log.jsonl` (or at least `metrics.json`).

    Returns:
        The run, its measures computed from the log as far as it goes.

    Raises:
        DataError: the folder holds no run, or a file in it is damaged.
    """
    path = Path(folder)
    if (path / LOG_NAME).is_file():
        events = read_log(path)
        return Run(path, read_json(path / "config.json"), read_json(path / "run.json"), events, compute(events))
    stored = read_json(path / "metrics.json")
    if not stored:
        raise DataError(f"{path} holds no run: it has no {LOG_NAME}. Name a folder that `holdfast run` made.")
    return Run(path, read_json(path / "config.json"), read_json(path / "run.json"), [], stored)


def load_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """Read a run folder: the run itself, or one run per `seed-*` folder in it, in order of seed."""
    path = Path(folder)
    seeds = sorted(
        (child for child in path.glob("seed-*") if (child / LOG_NAME).is_file() or (child / "metrics.json").is_file()),
        key=lambda child: (len(child.name), child.name),
    )
    if seeds and not (path / LOG_NAME).is_file():
        return [load_run(child) for child in seeds]
    return [load_run(path)]


def load_references(folder: str | os.PathLike[str]) -> dict[str, list[Run]]:
    """The runs under `references/*/`, of the folder and of its seeds, by name: fine-tuning first, joint last."""
    found: dict[str, list[Run]] = {}
    path = Path(folder)
    for child in sorted([*path.glob("references/*"), *path.glob("seed-*/references/*")]):
        if child.is_dir() and (any(child.glob(LOG_NAME)) or any(child.glob("seed-*/" + LOG_NAME))):
            found.setdefault(child.name, []).extend(load_runs(child))
    return dict(sorted(found.items(), key=lambda item: (_end(item[0]) == 1, _end(item[0]) != 0, item[0])))


def ends_of_scale(references: dict[str, list[Run]]) -> tuple[str | None, str | None]:
    """The names of the lower (fine-tuning) and upper (joint) reference, None where missing."""
    low = next((name for name in references if _end(name) == 0), None)
    return low, next((name for name in references if _end(name) == 1), None)


def measure(runs: Sequence[Run], name: str) -> Spread | None:
    """Mean and standard error of one measure over runs."""
    return spread(run.metrics.get(name) for run in runs)


def measures(runs: Sequence[Run]) -> dict[str, Spread | None]:
    """Mean and standard error over runs of every measure in `METRICS`."""
    return {name: measure(runs, name) for name in METRICS}


def mean_matrix(runs: Sequence[Run], key: str) -> np.ndarray:
    """The mean over runs of one matrix, cell by cell over the runs that evaluated it, `[T, T]`."""
    tables = [run.matrix(key) for run in runs]
    size = max((len(table) for table in tables), default=0)
    total, count = np.zeros((size, size)), np.zeros((size, size))
    for table in tables:
        known = np.isfinite(table)
        total[: len(table), : len(table)] += np.where(known, table, 0.0)
        count[: len(table), : len(table)] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def place_between(value: Spread | None, low: Spread | None, high: Spread | None) -> float | None:
    """`share_of_gap` of the means, None where one is unknown or the references are equal."""
    if value is None or low is None or high is None:
        return None
    share = share_of_gap(value.mean, low.mean, high.mean)
    return share if math.isfinite(share) else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty where there is no such file; DataError where it is something else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}. Restore it, or remove it to do without.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object. Restore it, or remove it.")
    return content


def _end(name: str) -> int | None:
    plain = "".join(letter for letter in name.lower() if letter.isalpha())
    return 0 if plain in LOWER else 1 if plain in UPPER else None
