"""Several runs of one configuration: each seed once, and what all of them say together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from holdfast.metrics.log import read_json, write_json
from holdfast.metrics.references import against
from holdfast.metrics.statistics import Spread, spread
from holdfast.metrics.table import METRICS
from holdfast.runs.result import METRICS_FILE, Result, Results


def distinct(runs: Iterable[Result]) -> list[Result]:
    """The runs in order of seed, each seed once: the same run twice is no second seed, and the one started last counts.

    Args:
        runs: of one configuration; one whose log does not say its seed counts by its folder.
    """
    kept: dict[Any, Result] = {}
    for run in sorted(runs, key=lambda run: float(run.info.get("started") or 0.0)):
        kept[str(run.path.resolve()) if run.seed is None else run.seed] = run
    return sorted(kept.values(), key=lambda run: (run.seed is None, run.seed or 0, str(run.path)))


def measure(runs: Sequence[Result], name: str) -> Spread | None:
    """One measure over runs: mean, interval and range."""
    return spread(run.metrics.get(name) for run in runs)


def measures(runs: Sequence[Result]) -> dict[str, Spread | None]:
    """Every measure in `METRICS` over runs."""
    return {name: measure(runs, name) for name in METRICS}


def over_runs(runs: Sequence[Result], value: Callable[[Result], float | None]) -> Spread | None:
    """A number of each run as mean, interval and range."""
    return spread(value(run) for run in runs)


def mean_matrix(runs: Sequence[Result], key: str) -> np.ndarray:
    """The mean over runs of one matrix, cell by cell over the runs that evaluated it, `[T, T]`."""
    tables = [run.table(key) for run in runs]
    size = max((len(table) for table in tables), default=0)
    total, count = np.zeros((size, size)), np.zeros((size, size))
    for table in tables:
        known = np.isfinite(table)
        total[: len(table), : len(table)] += np.where(known, table, 0.0)
        count[: len(table), : len(table)] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def measure_against(runs: Results) -> dict[str, Spread]:
    """What the references of a run make measurable, seed by seed, over the seeds; see `metrics.references.against`.

    Args:
        runs: the seeds of a run; those that did not finish do not count.

    Returns:
        Name -> mean, interval and range; empty where the references are not there.
    """
    values: dict[str, list[float]] = {}
    for _, measured in _against(runs):
        for name, value in measured.items():
            values.setdefault(name, []).append(value)
    return {name: told for name, numbers in values.items() if (told := spread(numbers)) is not None}


def write_against(runs: Results) -> None:
    """Write what references make measurable into `metrics.json` of each seed, under `references`."""
    for run, measured in _against(runs):
        path = run.path / METRICS_FILE
        if measured and path.is_file():
            write_json(path, {**read_json(path), "references": measured})


def _against(runs: Results) -> list[tuple[Result, dict[str, float]]]:
    references = {name: {run.seed: run for run in others} for name, others in runs.references.items()}
    measured = []
    for run in distinct(run for run in runs if run.finished) if references else []:
        family = run.prefix + "accuracy_matrix"
        tables = {name: others[run.seed].table(family) for name, others in references.items() if run.seed in others}
        measured.append((run, against(run.table(family), tables)))
    return measured
