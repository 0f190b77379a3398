"""Runs side by side: grouped by configuration, what differs between them, as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.metrics.statistics import Spread, named
from holdfast.metrics.table import METRICS
from holdfast.runs.result import Result, Results
from holdfast.runs.words import distinct, measures

NOT_THE_EXPERIMENT = (
    *("seed", "seeds", "references", "folders", "tags", "experiment_name", "threads", "checkpoint", "folder"),
    *("output", "out", "loggers", "profiler", "$schema"),
)
"""Keys of a configuration that make no other experiment."""
COLUMNS = {
    "average_accuracy": "kept",
    "plasticity": "learned",
    "forgetting_first": "forgot",
    "worst_class": "worst class",
    "average_loss": "loss",
    "train_seconds": "seconds",
}

SOURCE_COLUMNS = {
    "prequential_accuracy": "predicted",
    "windowed_accuracy": "lately",
    "old_accuracy": "kept",
    "old_loss": "old loss",
    "share_idle": "idle",
    "train_seconds": "seconds",
}
"""The same of runs that learned from a source."""


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: method and stream, or the folder's name.
        runs: as read from their folders, one for each seed.
        values: every measure in `metrics.METRICS` over the seeds.
        state: `finished`, or how far the unfinished ones came.
        settings: what the configuration says that those of the other rows do not.
    """

    name: str
    runs: list[Result]
    values: dict[str, Spread | None]
    state: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """Which family of measures counts for the paradigm: `""` or `"task_aware_"`."""
        return self.runs[0].prefix

    def value(self, name: str) -> Spread | None:
        """A measure in the family that counts for the paradigm, or the only one of that name."""
        value = self.values.get(self.prefix + name)
        return self.values.get(name) if value is None else value


def summarise(
    run_dirs: Iterable[str | os.PathLike[str]], problems: list[str] | None = None, references: bool = False
) -> list[Row]:
    """Read run folders and group those whose configuration is equal but for the seed.

    A folder of `seed-*` folders counts as its seeds, and the same seed twice counts once. Runs that did not finish, and
    runs that diverged, stand in rows of their own: their numbers are not averaged with those of finished runs.

    Args:
        run_dirs: run folders.
        problems: gets a sentence for each folder that cannot be read, which then does not hide the others.
        references: whether to add the references of each run, as rows of their own.

    Returns:
        One row per configuration, in order of first appearance.

    Raises:
        DataError: a folder holds no run, or a file in it is damaged, and there is nobody to tell.
    """
    groups: dict[str, list[Result]] = {}
    seen = set()
    for folder in run_dirs:
        try:
            together = Results.load(folder)
            added = [run for runs in together.references.values() for run in runs] if references else []
            named = [(_identity(run.read()), run) for run in [*together, *added]]
        except DataError as error:
            if problems is None:
                raise
            problems.append(str(error))
            continue
        for identity, run in named:
            if (where := run.path.resolve()) not in seen:
                seen.add(where)
                groups.setdefault(identity, []).append(run)
    together_by_row = [distinct(runs) for runs in groups.values()]
    differing = differences([runs[0].config for runs in together_by_row])
    names = _distinct_names(together_by_row)
    return [
        Row(name, runs, measures(runs), _state(runs), settings)
        for name, runs, settings in zip(names, together_by_row, differing)
    ]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each of several configurations, the keys whose values are not the same in all of them.

    Example:
        >>> differences([{"method": {"name": "er", "size": 8}}, {"method": {"name": "er", "size": 16}}])
        [{'method.size': 8}, {'method.size': 16}]
    """
    flat = [_flat(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    differing = [key for key in keys if len({json.dumps(one.get(key), sort_keys=True) for one in flat}) > 1]
    return [{key: one[key] for key in differing if key in one} for one in flat]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in NOT_THE_EXPERIMENT:
            continue
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def sort(rows: Sequence[Row], by: str) -> list[Row]:
    """The rows with the best first, by a measure or by the name of its column; those without it come last.

    Raises:
        ConfigError: for a measure that there is not.
    """
    measures = {**{title: name for name, title in COLUMNS.items()}, **{name: name for name in METRICS}}
    if by not in measures:
        raise ConfigError(unknown("measure", by, measures))
    name = measures[by]
    sign = -1 if METRICS[name].direction == "up" else 1
    values = {id(row): row.value(name) for row in rows}
    return sorted(rows, key=lambda row: float("inf") if (one := values[id(row)]) is None else sign * one.mean)


def gathered(
    run_dirs: Iterable[str | os.PathLike[str]], by: str | None = None, references: bool = False
) -> tuple[list[Row], list[str]]:
    """The rows of what can be read, and a sentence for each folder that cannot.

    Raises:
        DataError: where nothing can be read.
    """
    problems: list[str] = []
    rows = summarise(run_dirs, problems, references)
    if problems and not rows:
        raise DataError("\n".join(problems))
    return (rows if by is None else sort(rows, by)), problems


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each run: folder, state, seed, what differs between the configurations, and every measure."""
    settings = list(dict.fromkeys(key for row in rows for key in row.settings))
    lines = [
        {**row_of(run), **{f"config.{key}": row.settings.get(key) for key in settings}}
        for row in rows
        for run in row.runs
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["folder"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """The rows as JSON: name, state, settings that differ, runs, and each measure over the seeds."""
    content = [
        {
            "name": row.name,
            "state": row.state,
            "settings": row.settings,
            "statistic": named(len(row.runs)),
            "values": {name: None if one is None else one._asdict() for name, one in row.values.items()},
            "runs": [row_of(run) for run in row.runs],
        }
        for row in rows
    ]
    return json.dumps(content, indent=2)


def row_of(run: Result) -> dict[str, Any]:
    """One run as plain values: its folder, state and seed, what it was, and every measure."""
    about = {key: run.metrics.get(key) for key in ("method", "stream", "paradigm", "experiences", "learned")}
    return {
        "folder": str(run.path),
        "state": run.state,
        "seed": run.seed,
        **about,
        **{name: run.metrics.get(name) for name in METRICS},
    }


def _identity(run: Result) -> str:
    """The configuration without its seed, and whether it finished; without a configuration a run is like no other."""
    if not run.config:
        return f"folder {run.path.resolve()}"
    kept: dict[str, Any] = {key: value for key, value in run.config.items() if key not in NOT_THE_EXPERIMENT}
    told = [run.metrics.get(key) for key in ("method", "stream", "experiences", "finished")]
    return json.dumps([kept, told, bool(run.diverged)], sort_keys=True)


def _distinct_names(groups: Sequence[Sequence[Result]]) -> list[str]:
    """Method and stream of each group; the folder's name is added where two would be called alike."""
    titles = [runs[0].title for runs in groups]
    return [
        title if titles.count(title) == 1 else f"{title} ({runs[0].path.name})" for title, runs in zip(titles, groups)
    ]


def _state(runs: Sequence[Result]) -> str:
    waiting = [run.progress for run in runs if run.progress != "finished"]
    if not waiting:
        return "finished"
    if len(runs) == 1 or len(set(waiting)) == 1:
        return waiting[0]
    diverged = sum(bool(run.diverged) for run in runs)
    return f"{diverged} of {len(runs)} diverged" if diverged else f"{len(waiting)} of {len(runs)} unfinished"
