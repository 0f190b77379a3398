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

from holdfast.metrics import METRICS, compute
from holdfast.metrics.files import replace_file
from holdfast.runs.find import found_runs
from holdfast.runs.folder import write_json
from holdfast.runs.report_data import Run, load_runs, read_json
from holdfast.runs.statistics import Interval, Paired, interval, paired

MEASURES = {
    "average_accuracy": "kept",
    "plasticity": "learned",
    "forgetting_first": "forgot",
    "average_incremental_accuracy": "on average",
    "worst_class": "worst class",
    "train_seconds": "seconds",
}
PER_CENT = tuple(MEASURES)[:-1]
MOST_PAIRED = 6
"""With more settings than this, each is compared with the best only."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone.

    Attributes:
        name: the changes that make it.
        runs: by seed.
        values: measure -> interval.
    """

    name: str
    runs: dict[int, Run]
    values: dict[str, Interval | None]

    def by_seed(self, measure: str) -> dict[int, float]:
        """Seed -> value of one measure."""
        found = {seed: value(run, measure) for seed, run in self.runs.items()}
        return {seed: number for seed, number in found.items() if number is not None}


def value(run: Run, measure: str) -> float | None:
    """A measure in the family that counts for the paradigm."""
    prefix = str(run.metrics.get("headline") or "")
    found = run.metrics.get(prefix + measure)
    return run.metrics.get(measure) if found is None else found


def settings(folder: str | os.PathLike[str]) -> list[Setting]:
    """The finished runs of a sweep, grouped by everything but their seed, in the order of their numbers."""
    path = Path(folder)
    changes = {str(job["number"]): job["changes"] for job in read_json(path / "sweep.json").get("jobs", [])}
    always = set.intersection(*map(set, changes.values())) if len(changes) > 1 else set()
    grouped: dict[str, dict[int, Run]] = {}
    for place in found_runs([path]):
        texts = [text for text in changes.get(place.name, []) if text not in always]
        name = " ".join(text for text in texts if not text.lstrip("+").startswith("seed=")) or "this job"
        for run in load_runs(place):
            if run.metrics.get("finished"):
                grouped.setdefault(name, {})[int(run.metrics.get("seed") or 0)] = run
    return [
        Setting(
            name,
            runs,
            {key: interval([v for run in runs.values() if (v := value(run, key)) is not None]) for key in MEASURES},
        )
        for name, runs in grouped.items()
    ]


def pairs(found: list[Setting], measure: str = "average_accuracy") -> list[tuple[Setting, Setting, Paired]]:
    """The better of two settings, the other, and how they compare over their common seeds."""
    ordered = sorted(found, key=lambda one: -(one.values[measure].mean if one.values[measure] else -1.0))  # type: ignore[union-attr]
    both = list(itertools.combinations(ordered, 2))
    if len(ordered) > MOST_PAIRED:
        both = [(ordered[0], other) for other in ordered[1:]]
    compared = [(one, other, paired(one.by_seed(measure), other.by_seed(measure))) for one, other in both]
    return [(one, other, result) for one, other, result in compared if result is not None]


def write_sweep_report(folder: str | os.PathLike[str]) -> str:
    """Write the three files, and return the table as text.

    Args:
        folder: of the sweep.
    """
    path = Path(folder)
    found = settings(path)
    compared = pairs(found)
    chosen = best(found, read_json(path / "sweep.json").get("search"))
    replace_file(path / "table.csv", _csv(found))
    write_json(path / "comparison.json", _plain(found, compared))
    if chosen is not None:
        write_json(path / "best.json", chosen)
    said = "" if chosen is None else _chosen(chosen)
    replace_file(path / "report.html", _html(path, found, compared, said))
    return _text(found, compared) + said


def best(found: list[Setting], search: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The setting that a search chooses: the best mean on validation data, of those with the most seeds.

    Test data have no part in the choice; what they say of it is written beside it.

    Args:
        found: the settings with finished runs.
        search: what `sweep.json` says of it; None where the sweep is no search.

    Returns:
        Name, measure, `validation` and `test` intervals, the resolved `config`, and every setting's validation mean.
    """
    if not search:
        return None
    metric = str(search["metric"])
    more = 1 if METRICS[metric].direction == "up" else -1
    measured = {}
    for setting in found:
        values = [compute(run.events, "validation") for run in setting.runs.values()]
        known = [one.get(str(one.get("headline") or "") + metric, one.get(metric)) for one in values]
        result = interval([value for value in known if value is not None])
        if result is not None:
            measured[setting.name] = (setting, result)
    if not measured:
        return None
    most = max(result.runs for _, result in measured.values())
    setting, result = max((one for one in measured.values() if one[1].runs == most), key=lambda one: more * one[1].mean)
    tested = interval([number for run in setting.runs.values() if (number := value(run, metric)) is not None])
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
    validation, test = (None if chosen[key] is None else Interval(**chosen[key]) for key in ("validation", "test"))
    return (
        f"best on validation data: {chosen['name']} ({chosen['metric']} {shown(chosen['metric'], validation)} over "
        f"{len(chosen['seeds'])} seeds; on test data {shown(chosen['metric'], test)})\n"
    )


def _csv(found: list[Setting]) -> str:
    """One row per run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", "setting", "seed", *MEASURES])
    for setting in found:
        for seed, run in setting.runs.items():
            writer.writerow([run.path.name, setting.name, seed, *(value(run, key) for key in MEASURES)])
    return text.getvalue()


def _plain(found: list[Setting], compared: list[tuple[Setting, Setting, Paired]]) -> dict[str, Any]:
    return {
        "level": 0.95,
        "settings": [
            {
                "name": setting.name,
                "seeds": sorted(setting.runs),
                **{key: None if one is None else one._asdict() for key, one in setting.values.items()},
            }
            for setting in found
        ],
        "paired": [{"better": one.name, "other": other.name, **result._asdict()} for one, other, result in compared],
    }


def shown(key: str, one: Interval | None) -> str:
    """An interval for reading, accuracies in per cent."""
    if one is None:
        return "–"
    factor = 100 if key in PER_CENT else 1
    return f"{factor * one.mean:.1f}" + ("" if one.half is None else f" ± {factor * one.half:.1f}")


def _rows(found: list[Setting]) -> list[list[str]]:
    head = ["setting", "seeds", *MEASURES.values()]
    return [
        head,
        *([one.name, str(len(one.runs)), *(shown(key, one.values[key]) for key in MEASURES)] for one in found),
    ]


def _pair(one: Setting, other: Setting, result: Paired) -> str:
    sure = "" if result.p < 0.05 else ", which may be chance"
    return (
        f"{one.name} keeps {100 * result.difference:.1f} ± {100 * result.half:.1f} points more than {other.name} "
        f"over {result.seeds} seeds (p = {result.p:.2g}{sure})"
    )


def _text(found: list[Setting], compared: list[tuple[Setting, Setting, Paired]]) -> str:
    rows = _rows(found)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *(_pair(*one) for one in compared)]) + "\n"


def _html(path: Path, found: list[Setting], compared: list[tuple[Setting, Setting, Paired]], chosen: str = "") -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    said = read_json(path / "sweep.json")
    failed = [job for job in said.get("jobs", []) if job.get("state") not in ("finished", None)]
    runs = [(run.path, setting.name, seed, run) for setting in found for seed, run in setting.runs.items()]
    head, *rows = _rows(found)
    return environment.get_template("sweep.html.j2").render(
        title=path.resolve().name,
        command=said.get("command") or "",
        head=head,
        rows=rows,
        paired=[_pair(*one) for one in compared],
        chosen=chosen,
        bars=_bars(found),
        failed=failed,
        runs=[
            {
                "link": f"{os.path.relpath(place, path)}/report.html",
                "name": place.name,
                "setting": name,
                "seed": seed,
                "kept": shown(
                    "average_accuracy", interval([v for v in [value(run, "average_accuracy")] if v is not None])
                ),
            }
            for place, name, seed, run in runs
        ],
    )


def _bars(found: list[Setting]) -> list[dict[str, Any]]:
    """Average accuracy of each setting as the geometry of a bar, in per cent of the width."""
    bars = []
    for setting in found:
        one = setting.values["average_accuracy"]
        if one is not None:
            half = 100 * (one.half or 0.0)
            low, high = max(0.0, 100 * one.mean - half), min(100.0, 100 * one.mean + half)
            bars.append({"name": setting.name, "mean": 100 * one.mean, "low": low, "width": high - low})
    return bars
