"""A run as its folder tells it, each file read once: for reports, `holdfast show`, sweeps, and `holdfast.open`."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from holdfast.core.errors import ConfigError, DataError
from holdfast.metrics.classes import confusion
from holdfast.metrics.log import LOG_NAME, Log, read_json
from holdfast.metrics.references import scale_order
from holdfast.metrics.summary import compute

CONFIG, INFO, METRICS_FILE = "config.json", "run.json", "metrics.json"
ENDED = ("finished", "diverged")
"""States of a run that there is nothing left to do for."""


class Result:
    """One run, read from its folder when something is asked for, and never changed by that.

    Args:
        path: its folder.

    Attributes:
        path: its folder.

    Raises:
        DataError: the folder holds no run. A damaged file is told when it is read.
    """

    together: type[Results]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not ((self.path / LOG_NAME).is_file() or (self.path / METRICS_FILE).is_file()):
            raise DataError(f"{self.path} holds no run: it has no {LOG_NAME}. Name a folder that `holdfast run` made.")

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, every default written out; empty if there is none."""
        return read_json(self.path / CONFIG)

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        """`run.json`: state, versions, command, tags; empty if there is none."""
        return read_json(self.path / INFO)

    @functools.cached_property
    def log(self) -> Log:
        """The events that count; arrays and tables of them: `log.arrays("train")`, `log.frame("evaluate")`."""
        return Log.read(self.path) if (self.path / LOG_NAME).is_file() else Log([])

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """Every measure, computed from the log as far as it goes (see `holdfast.metrics.compute`)."""
        if (self.path / LOG_NAME).is_file():
            return compute(self.log)
        return read_json(self.path / METRICS_FILE)

    def read(self) -> Self:
        """This run with all its files read, so that a damaged one is told now.

        Raises:
            DataError: a file is damaged.
        """
        _ = self.config, self.info, self.metrics
        return self

    @property
    def matrix(self) -> np.ndarray:
        """The accuracy matrix that counts for the paradigm, `[T, T]`: row i after learning experience i, NaN elsewhere.

        Among all classes, or among those of the sample's experience where the stream is task-incremental.
        """
        return self.table(self.prefix + "accuracy_matrix")

    def table(self, key: str = "accuracy_matrix") -> np.ndarray:
        """One of the matrices of `metrics`, `[T, T]` with NaN.

        Args:
            key: `accuracy_matrix`, `task_aware_accuracy_matrix` or `loss_matrix`.
        """
        rows = self.metrics.get(key) or []
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows))

    def confusion(self, after: int | None = None, experience: int | None = None) -> tuple[list[int], np.ndarray]:
        """The classes, and how often each was taken for each; see `holdfast.metrics.confusion`.

        Args:
            after: the experience learned last; None for the end.
            experience: counts the samples of this one only.
        """
        seen = self.log.experiences if after is None and self.finished else None
        return confusion(self.log, after, str(self.metrics["split"]), seen, experience)

    @property
    def seed(self) -> int | None:
        """Its seed; None where the log does not say."""
        return self.metrics.get("seed")

    @property
    def prefix(self) -> str:
        """Which family of measures counts for the paradigm: `""` or `"task_aware_"`."""
        return str(self.metrics.get("headline") or "")

    def value(self, name: str) -> float | None:
        """A measure in the family that counts for the paradigm, or the only one of that name."""
        value = self.metrics.get(self.prefix + name)
        return self.metrics.get(name) if value is None else value

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.metrics.get("finished"))

    @property
    def diverged(self) -> str:
        """Why it was found to diverge, in a sentence; empty where it was not."""
        return str(self.metrics.get("diverged") or "")

    @property
    def captured(self) -> str:
        """How many of its steps were run as recorded, and why others were not; empty where none were to be."""
        events = self.log.of("capture")
        if not events:
            return ""
        run, recorded, written = (sum(e[key] for e in events) for key in ("captured", "recorded", "as_written"))
        reasons = list(dict.fromkeys(reason for event in events for reason in event["reasons"]))
        told = f"{run} of {run + recorded + written} steps were run as recorded ({events[0]['how']})"
        stacked, runs = sum(e.get("stacked", 0) for e in events), max(e.get("runs", 0) for e in events)
        told += f", {stacked} of them in one program with {runs - 1} other runs" if stacked else ""
        return f"{told}; others as written, because {'; '.join(reasons[:3])}" if reasons else told

    @property
    def state(self) -> str:
        """In a word: `finished`, `diverged`, `running`, `interrupted`, `failed`, or `unfinished` where nothing says."""
        if self.finished:
            return "finished"
        told = str(self.info.get("state") or "")
        return "diverged" if self.diverged else told if told and told != "finished" else "unfinished"

    @property
    def progress(self) -> str:
        """The state in a few words: how far an unfinished run came, why one diverged."""
        if self.state in ("finished", "diverged"):
            word = self.state if self.state == "diverged" else "finished, though it diverged"
            return f"{word}: {self.diverged}" if self.diverged else self.state
        note = "" if self.state == "unfinished" else f" ({self.state})"
        return f"unfinished{note}: {self.learned} of {self.metrics.get('experiences', 0)} experiences"

    @property
    def learned(self) -> int:
        """How many experiences were learned to their end."""
        done = [int(event["experience"]) + 1 for event in self.log.of("experience")]
        return max([int(self.metrics.get("learned") or 0), *done])

    @property
    def title(self) -> str:
        """The method and the stream, or the folder's name."""
        method, stream = self.metrics.get("method"), self.metrics.get("stream")
        return f"{method} on {stream}" if method and stream else str(method or self.path.name)

    @property
    def names(self) -> list[str]:
        """A name for each experience; those that repeat are numbered."""
        if len(self.log):
            names = self.log.experience_names
            return [f"{index}: {name}" if names.count(name) > 1 else name for index, name in enumerate(names)]
        return [str(index) for index in range(int(self.metrics.get("experiences") or 0))]

    @property
    def tags(self) -> list[str]:
        """The tags that it was given."""
        return [str(tag) for tag in self.info.get("tags") or self.config.get("tags") or []]

    @property
    def references(self) -> dict[str, Results]:
        """The runs that it is compared with, by name."""
        return self.together(self.path, [self]).references

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.title}, {self.progress}>"


class Results(Sequence[Result]):
    """Several runs of one folder: the seeds of a run, or the jobs of a multirun.

    Args:
        path: the folder they lie in.
        runs: in order.

    Attributes:
        path: the folder they lie in.
    """

    one: type[Result] = Result

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a run folder: the run itself, or one run per `seed-*` folder in it, in order of seed.

        Args:
            folder: of a run.

        Raises:
            DataError: the folder holds no run.
        """
        path = Path(folder)
        seeds = [] if (path / LOG_NAME).is_file() else seed_folders(path)
        return cls(path, [cls.one(child) for child in seeds or [path]])

    def __init__(self, path: str | os.PathLike[str], runs: Iterable[Result]) -> None:
        self.path = Path(path)
        self._runs = list(runs)

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> Results: ...

    def __getitem__(self, index: int | slice) -> Result | Results:
        return type(self)(self.path, self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return f"<{len(self)} runs in {self.path}>"

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        """`run.json` of the folder, of its first run where it has none."""
        return read_json(self.path / INFO) or (self[0].info if self else {})

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` of the folder, of its first run where it has none."""
        return read_json(self.path / CONFIG) or (self[0].config if self else {})

    @functools.cached_property
    def references(self) -> dict[str, Results]:
        """The runs under `references/*/`, of the folder and of its seeds, by name: fine-tuning first, joint last."""
        groups: dict[str, list[Result]] = {}
        for child in sorted([*self.path.glob("references/*"), *self.path.glob("seed-*/references/*")]):
            if child.is_dir() and (any(child.glob(LOG_NAME)) or any(child.glob("seed-*/" + LOG_NAME))):
                groups.setdefault(child.name, []).extend(self.load(child))
        return {
            name: type(self)(self.path / "references" / name, groups[name]) for name in sorted(groups, key=scale_order)
        }


Result.together = Results


def seed_folders(path: Path) -> list[Path]:
    """The folders of the seeds of a run, in order."""
    children = [c for c in path.glob("seed-*") if (c / LOG_NAME).is_file() or (c / METRICS_FILE).is_file()]
    return sorted(children, key=lambda child: (len(child.name), child.name))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, of one seed or several."""
    return any((folder / name).is_file() for name in (CONFIG, LOG_NAME, METRICS_FILE)) or bool(seed_folders(folder))


def found_runs(folders: Iterable[Path], tags: Sequence[str] = ()) -> list[Path]:
    """The run folders that are given, or that lie in what is given, and have all of `tags`.

    Args:
        folders: runs, multiruns, or folders of them.
        tags: words that a run must have been given.

    Raises:
        ConfigError: where no run has the tags, with those there are.
    """
    runs: list[Path] = []
    for folder in folders:
        runs += [folder] if is_run(folder) else _inside(folder) or [folder]  # whoever reads it says that it holds none
    if not tags:
        return runs
    kept = [run for run in runs if set(tags) <= set(_tags(run))]
    if not kept:
        every_tag = sorted({tag for run in runs for tag in _tags(run)})
        raise ConfigError(f"no run has the tag {', '.join(tags)}. There are {', '.join(every_tag) or 'none'}.")
    return kept


def _tags(run: Path) -> list[str]:
    try:
        told = read_json(run / INFO).get("tags") or read_json(run / CONFIG).get("tags") or []
    except DataError:  # told when it is shown
        return []
    return [str(tag) for tag in told]


def _inside(folder: Path) -> list[Path]:
    """The runs below a folder, not those within another run; numbers in their order."""
    folders: list[Path] = []
    children = [child for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []
    for child in sorted(children, key=lambda one: (len(one.name) if one.name.isdigit() else 0, one.name)):
        folders += [child] if is_run(child) else _inside(child)
    return folders
