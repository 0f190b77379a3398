"""The report of a sweep: `table.csv`, `comparison.json` and `report.html` over all its runs, from their folders."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.metrics.log import read_json, replace_file, write_json
from holdfast.metrics.statistics import FEWEST, Paired, Spread, named, paired, side_by_side, spread
from holdfast.metrics.summary import compute
from holdfast.metrics.table import METRICS
from holdfast.runs.report import page
from holdfast.runs.result import Result, Results, found_runs
from holdfast.runs.words import over_runs, spread_of

SWEEP = "sweep.json"

MEASURES = {
    "average_accuracy": "kept",
    "plasticity": "learned",
    "forgetting_first": "forgot",
    "average_incremental_accuracy": "on average",
    "worst_class": "worst class",
    "train_seconds": "seconds",
}
OF_SOURCES = {
    "prequential_accuracy": "predicted",
    "windowed_accuracy": "lately",
    "old_accuracy": "kept",
    "old_loss": "old loss",
    "train_seconds": "seconds",
}
"""The same of runs that learned from a source."""

PER_CENT = (*tuple(MEASURES)[:-1], *tuple(OF_SOURCES)[:3])
MOST_PAIRED = 6
"""With more settings than this, each is compared with the best only."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone.

    Attributes:
        name: the changes that make it.
        runs: by seed.
        values: measure -> mean, interval and range.
    """

    name: str
    runs: dict[int, Result]
    values: dict[str, Spread | None]

    def by_seed(self, measure: str) -> dict[int, float]:
        """Seed -> value of one measure."""
        values = {seed: run.value(measure) for seed, run in self.runs.items()}
        return {seed: number for seed, number in values.items() if number is not None}


def settings(folder: str | os.PathLike[str]) -> list[Setting]:
    """The finished runs of a sweep, grouped by everything but their seed, in the order of their numbers."""
    path = Path(folder)
    changes = {str(job["number"]): job["changes"] for job in read_json(path / SWEEP).get("jobs", [])}
    always = set.intersection(*map(set, changes.values())) if len(changes) > 1 else set()
    grouped: dict[str, dict[int, Result]] = {}
    for run_folder in found_runs([path]):
        texts = [text for text in changes.get(run_folder.name, []) if text not in always]
        name = " ".join(text for text in texts if not text.lstrip("+").startswith("seed=")) or "this job"
        for run in Results.load(run_folder):
            if run.finished:
                grouped.setdefault(name, {})[int(run.seed or 0)] = run
    return [
        Setting(name, runs, {key: _over(runs, key) for key in {**MEASURES, **OF_SOURCES}})
        for name, runs in grouped.items()
    ]


def measures_of(all_settings: list[Setting]) -> dict[str, str]:
    """What is shown of these settings, the most important first."""
    first = next((run for setting in all_settings for run in setting.runs.values()), None)
    return OF_SOURCES if first is not None and first.log.start.get("source") else MEASURES


def _over(runs: Mapping[int, Result], measure: str) -> Spread | None:
    return over_runs(list(runs.values()), lambda run: run.value(measure))


def pairs(all_settings: list[Setting], measure: str = "") -> list[tuple[Setting, Setting, Paired]]:
    """The better of two settings, the other, and how they compare over common seeds, corrected for all of them."""
    measure = measure or next(iter(measures_of(all_settings)))
    ordered = sorted(all_settings, key=lambda one: -(one.values[measure].mean if one.values[measure] else -1.0))  # type: ignore[union-attr]
    both = list(itertools.combinations(ordered, 2))
    if len(ordered) > MOST_PAIRED:
        both = [(ordered[0], other) for other in ordered[1:]]
    compared = [(one, other, paired(one.by_seed(measure), other.by_seed(measure))) for one, other in both]
    comparable = [(one, other, result) for one, other, result in compared if result is not None]
    corrected = side_by_side([result for *_, result in comparable])
    return [(one, other, result) for (one, other, _), result in zip(comparable, corrected)]


def write_sweep_report(folder: str | os.PathLike[str]) -> str:
    """Write the three files, and return the table as text.

    Args:
        folder: of the sweep.
    """
    path = Path(folder)
    all_settings = settings(path)
    compared = pairs(all_settings)
    chosen = best(all_settings, read_json(path / SWEEP).get("search"))
    replace_file(path / "table.csv", _csv(all_settings))
    write_json(path / "comparison.json", _plain(all_settings, compared))
    if chosen is not None:
        write_json(path / "best.json", chosen)
    sentence = "" if chosen is None else _chosen(chosen)
    replace_file(path / "report.html", _html(path, all_settings, compared, sentence))
    return (
        (_text(all_settings, compared) if all_settings else "no run finished\n")
        + _left_out(read_json(path / SWEEP))
        + sentence
    )


def _left_out(record: Mapping[str, Any]) -> str:
    """Which runs of a sweep are in no mean, since they diverged or failed; a line for each state."""
    jobs = record.get("jobs", [])
    always = set.intersection(*(set(job["changes"]) for job in jobs)) if len(jobs) > 1 else set()
    lines = []
    for state in ("diverged", "failed"):
        names = [
            " ".join(text for text in job["changes"] if text not in always) for job in jobs if job.get("state") == state
        ]
        if names:
            lines.append(f"{state}, so not in the table: {'; '.join(names[:6])}{'; ...' if len(names) > 6 else ''}\n")
    return "".join(lines)


def best(all_settings: list[Setting], search: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The setting that a search chooses: the best mean on validation data, of those with the most seeds.

    Test data have no part in the choice; what they say of it is written beside it.

    Args:
        all_settings: the settings with finished runs.
        search: what `sweep.json` says of it; None where the sweep is no search.

    Returns:
        Name, measure, `validation` and `test` intervals, the resolved `config`, and every setting's validation mean.
    """
    if not search:
        return None
    metric = str(search["metric"])
    more = 1 if METRICS[metric].direction == "up" else -1
    measured = {}
    for setting in all_settings:
        values = [compute(run.log, "validation") for run in setting.runs.values()]
        values_of_seeds = [one.get(str(one.get("headline") or "") + metric, one.get(metric)) for one in values]
        result = spread(values_of_seeds)
        if result is not None:
            measured[setting.name] = (setting, result)
    if not measured:
        return None
    most = max(result.runs for _, result in measured.values())
    setting, result = max((one for one in measured.values() if one[1].runs == most), key=lambda one: more * one[1].mean)
    tested = _over(setting.runs, metric)
    first = setting.runs[min(setting.runs)]
    return {
        "name": setting.name,
        "metric": metric,
        "seeds": sorted(setting.runs),
        "validation": result._asdict(),
        "test": None if tested is None else tested._asdict(),
        "settings": {name: one.mean for name, (_, one) in measured.items()},
        "config": first.config,
    }


def _chosen(chosen: Mapping[str, Any]) -> str:
    """The choice of a search in a sentence."""
    validation, test = (None if chosen[key] is None else Spread(**chosen[key]) for key in ("validation", "test"))
    return (
        f"best on validation data: {chosen['name']} ({chosen['metric']} {shown(chosen['metric'], validation)} over "
        f"{len(chosen['seeds'])} seeds; on test data {shown(chosen['metric'], test)})\n"
    )


def _csv(all_settings: list[Setting]) -> str:
    """One row per run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shown_of = measures_of(all_settings)
    writer.writerow(["folder", "setting", "seed", *shown_of])
    for setting in all_settings:
        for seed, run in setting.runs.items():
            writer.writerow([run.path.name, setting.name, seed, *(run.value(key) for key in shown_of)])
    return text.getvalue()


def _plain(all_settings: list[Setting], compared: list[tuple[Setting, Setting, Paired]]) -> dict[str, Any]:
    return {
        "level": 0.95,
        "statistic": "half: half of the 95 % t interval, from three seeds on; p: paired t-test; corrected: by Holm",
        "settings": [
            {
                "name": setting.name,
                "seeds": sorted(setting.runs),
                **{key: None if one is None else one._asdict() for key, one in setting.values.items()},
            }
            for setting in all_settings
        ],
        "paired": [{"better": one.name, "other": other.name, **result._asdict()} for one, other, result in compared],
    }


def shown(key: str, one: Spread | None) -> str:
    """A mean with its interval for reading, accuracies in per cent."""
    if one is None:
        return "–"
    factor = 100 if key in PER_CENT else 1
    return f"{factor * one.mean:.1f}{spread_of(one, factor)}"


def _rows(all_settings: list[Setting]) -> list[list[str]]:
    measures = measures_of(all_settings)
    head = ["setting", "seeds", *measures.values()]
    return [
        head,
        *([one.name, str(len(one.runs)), *(shown(key, one.values[key]) for key in measures)] for one in all_settings),
    ]


def _pair(one: Setting, other: Setting, result: Paired, many: bool) -> str:
    told = f"{one.name} keeps {100 * result.difference:.1f}"
    if result.half is None or result.corrected is None:
        return f"{told} points more than {other.name} over {result.seeds} seeds, too few for an interval"
    sure = "" if result.corrected < 0.05 else ", which may be chance"
    corrected = ", corrected by Holm for all of these" if many else ""
    return (
        f"{told} ± {100 * result.half:.1f} points more than {other.name} over {result.seeds} seeds "
        f"(95 % t interval; p = {result.corrected:.2g}{corrected}{sure})"
    )


def _compared(compared: list[tuple[Setting, Setting, Paired]]) -> list[str]:
    many = sum(result.p is not None for *_, result in compared) > 1
    return [_pair(*one, many) for one in compared]


def _statistic(all_settings: list[Setting]) -> str:
    """What the numbers of the table are."""
    counts = {len(one.runs) for one in all_settings}
    if len(counts) == 1:
        return named(counts.pop())
    return f"mean ± 95 % t interval over seeds, from {FEWEST} of them on; of two seeds both values"


def _text(all_settings: list[Setting], compared: list[tuple[Setting, Setting, Paired]]) -> str:
    rows = _rows(all_settings)
    rows[0][0] = f"setting ({_statistic(all_settings)})"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *_compared(compared)]) + "\n"


def _html(
    path: Path, all_settings: list[Setting], compared: list[tuple[Setting, Setting, Paired]], chosen: str = ""
) -> str:
    record = read_json(path / SWEEP)
    failed = [job for job in record.get("jobs", []) if job.get("state") not in ("finished", None)]
    runs = [(setting.name, seed, run) for setting in all_settings for seed, run in setting.runs.items()]
    head, *rows = _rows(all_settings)
    main = next(iter(measures_of(all_settings)))
    content = {
        "title": path.resolve().name,
        "command": record.get("command") or "",
        "series": [],
        "statistic": _statistic(all_settings),
        "sentence": f"{chosen[0].upper()}{chosen[1:].strip()}." if chosen else _sentence(all_settings, compared),
        "head": head,
        "rows": rows,
        "paired": _compared(compared),
        "bars": _bars(all_settings),
        "diverged": [job for job in failed if job["state"] == "diverged"],
        "failed": [job for job in failed if job["state"] != "diverged"],
        "runs": [
            {
                "link": f"{os.path.relpath(run.path, path)}/report.html",
                "name": run.path.name,
                "setting": name,
                "seed": seed,
                "kept": shown(main, spread([run.value(main)])),
            }
            for name, seed, run in runs
        ],
    }
    return page("sweep.html.j2", content)


def _sentence(all_settings: list[Setting], compared: list[tuple[Setting, Setting, Paired]]) -> str:
    """Which setting is best and whether that is sure, for somebody who reads one line."""
    if not all_settings:
        return "No run finished."
    name, what = next(iter(measures_of(all_settings).items()))
    measured = [one for one in all_settings if one.values[name] is not None]
    if len(measured) < 2:
        return "" if not measured else f"{measured[0].name}: {what} {shown(name, measured[0].values[name])} %."
    best_one = max(measured, key=lambda one: one.values[name].mean)  # type: ignore[union-attr]
    others = [result for one, _, result in compared if one is best_one]
    sure = [result for result in others if result.corrected is not None and result.corrected < 0.05]
    beyond = (
        "; that is beyond chance against every other setting"
        if len(sure) == len(measured) - 1
        else (
            f"; beyond chance against {len(sure)} of the {len(measured) - 1} others"
            if sure
            else "; that it is better than the others may be chance"
            if others
            else ""
        )
    )
    return (
        f"Of {len(measured)} settings, {best_one.name} is best: {what} {shown(name, best_one.values[name])} %{beyond}."
    )


def _bars(all_settings: list[Setting]) -> list[dict[str, Any]]:
    """Average accuracy of each setting as the geometry of a bar, in per cent of the width."""
    bars, main = [], next(iter(measures_of(all_settings)))
    for setting in all_settings:
        one = setting.values[main]
        if one is not None:
            half = 100 * (one.half or 0.0)
            low, high = max(0.0, 100 * one.mean - half), min(100.0, 100 * one.mean + half)
            bars.append({"name": setting.name, "mean": 100 * one.mean, "low": low, "width": high - low})
    return bars
