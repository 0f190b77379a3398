"""The report of a run: `plots/*.png` and one self-contained `report.html`, made from the run folder's files alone."""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.config import kinds
from holdfast.config.signatures import docs
from holdfast.metrics.log import replace_file
from holdfast.metrics.references import DESCRIPTIONS, end_of_scale, share_of_gap
from holdfast.metrics.statistics import named, spread
from holdfast.metrics.table import METRICS
from holdfast.runs import source_report
from holdfast.runs.drawing import series, to_png
from holdfast.runs.figures import MOST_BARS, WIDE, Plot, class_recalls, draw, training_plots
from holdfast.runs.result import Result, Results
from holdfast.runs.words import (
    distinct,
    headline,
    mean_matrix,
    measure,
    measure_against,
    measures,
    number,
    percent,
    points,
)


def write_report(run: str | os.PathLike[str] | Results) -> Path:
    """Make `plots/*.png` and `report.html` in a run folder, from its files; it can be made again at any time.

    Everything is computed from the raw log, which is read once, so an unfinished run gets a report of what it did so
    far. A folder of `seed-*` folders gets one of their means and intervals, and `references/*` are shown beside the
    method.

    Args:
        run: the run folder, or its runs as they were opened.

    Returns:
        The path of `report.html`.

    Raises:
        DataError: the folder holds no run, or a file in it is damaged.
    """
    runs = run if isinstance(run, Results) else Results.load(run)
    content = gather(runs)
    (runs.path / "plots").mkdir(exist_ok=True)
    for plot in content["figures"]:
        replace_file(runs.path / "plots" / f"{plot.name}.png", to_png(plot.figure))
    template = "report.html.j2" if "facts" not in content else "source.html.j2"
    return replace_file(runs.path / "report.html", page(template, content))


def page(template: str, content: Mapping[str, Any]) -> str:
    """A page of `templates/`, with values escaped.

    Args:
        template: its file.
        content: what it shows.
    """
    return str(_environment().get_template(template).render(content)) + "\n"


@functools.cache  # compiling a template takes longer than a small run
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, points=points, number=number)
    return environment


def gather(everything: Results) -> dict[str, Any]:
    """Everything the template shows, as plain values, and the figures by file name."""
    runs = distinct(run for run in everything if run.finished) or distinct(everything)
    if source_report.of_source(runs[0]):
        return _gather_of_a_source(everything, runs)
    references = {name: _compared(others) for name, others in everything.references.items()}
    first = max(runs, key=lambda run: int(run.metrics.get("experiences") or 0))
    prefix = first.prefix
    table = mean_matrix(runs, prefix + "accuracy_matrix")
    loss_only = not np.isfinite(table).any()
    if loss_only:
        table = mean_matrix(runs, "loss_matrix")
    names = first.names
    classes = class_recalls(runs)
    figures = draw(runs, names, prefix, None if loss_only else table, classes[:MOST_BARS], references)
    unfinished = [run for run in everything if not run.finished]
    return {
        "title": first.title if len(runs) > 1 or first.metrics.get("method") else everything.path.name,
        "folder": everything.path.resolve().name,
        "unfinished": [run.progress for run in unfinished],
        "left_out": len(unfinished) if runs[0].finished else 0,
        "diverged": _diverged(everything),
        "captured": list(dict.fromkeys(run.captured for run in runs if run.captured)),
        "seeds": [run.seed for run in runs],
        "statistic": named(len(runs)),
        "sentence": _sentence(runs, references, prefix, loss_only),
        "method": _method(first),
        "links": _links(everything),
        "experiences": len(names),
        "paradigm": first.metrics.get("paradigm"),
        "split": first.metrics.get("split", "test"),
        "prefix": prefix,
        "loss_only": loss_only,
        "headline": headline(runs, prefix, loss_only),
        "measures": measures(runs),
        "METRICS": METRICS,
        "scale": _scale(runs, references, prefix),
        "against": [(name, value, DESCRIPTIONS[name]) for name, value in measure_against(everything).items()],
        "columns": _columns({"this method": runs} | references, prefix, loss_only),
        "names": names,
        "stream": _stream(first),
        "classes": classes,
        "many": MOST_BARS,
        "per_seed": [(run.path.name, run.progress, run.metrics) for run in everything] if len(everything) > 1 else [],
        "figures": figures,
        "plots": sorted((plot for plot in figures if plot.caption and plot.size != 1), key=lambda plot: plot.wide),
        "series": list(zip(series(len(names)), series(len(names), dark=True))),
        "config": everything.config,
        "config_json": json.dumps(everything.config, indent=2, ensure_ascii=False),
        **_origin(everything.info),
    }


def _gather_of_a_source(everything: Results, runs: Sequence[Result]) -> dict[str, Any]:
    """The same for runs that learned from a source."""
    first = runs[0]
    drawn = [Plot(*one) for one in source_report.figures(first)] + training_plots(runs)
    drawn += [Plot(*one, WIDE + 1) for one in source_report.pictures(first)]
    references = {name: _compared(others) for name, others in everything.references.items()}
    measured = measures(runs)
    shown = [name for name in source_report.MEASURES if measured.get(name) is not None]
    beside = {name: {key: measure(them, key) for key in shown} for name, them in references.items()}
    return {
        "title": first.title,
        "folder": everything.path.resolve().name,
        "unfinished": [run.progress for run in everything if not run.finished],
        "diverged": _diverged(everything),
        "seeds": [run.seed for run in runs],
        "statistic": named(len(runs)),
        "sentence": source_report.sentence(runs),
        "links": _links(everything),
        "headline": source_report.headline(runs),
        "measures": measured,
        "shown": shown,
        "shares": source_report.SHARES,
        "beside": beside,
        "METRICS": METRICS,
        "facts": source_report.facts(first),
        "per_seed": [(run.path.name, run.progress, run.metrics) for run in everything] if len(everything) > 1 else [],
        "figures": drawn,
        "plots": drawn,
        "series": list(zip(series(1), series(1, dark=True))),
        "config": everything.config,
        "config_json": json.dumps(everything.config, indent=2, ensure_ascii=False),
        **_origin(everything.info),
    }


def _sentence(runs: Sequence[Result], references: Mapping[str, Sequence[Result]], prefix: str, loss_only: bool) -> str:
    """What was done, and what came of it, for somebody who trains no models."""
    first = runs[0]
    name = str(first.metrics.get("method") or "This method")
    count = int(first.metrics.get("experiences") or 0)
    key, tell = ("average_loss", number) if loss_only else (prefix + "average_accuracy", percent)
    units = loss_only and measure(runs, "average_absolute_error") is not None
    key = "average_absolute_error" if units else key
    kept = measure(runs, key)
    part = f"{count}" if first.finished else f"{first.learned} of {count}"
    done = f"{name} learned {part} experience{'' if count == 1 else 's'} of {first.metrics.get('stream') or 'a stream'}"
    if kept is None:
        return f"{done}; {'then training diverged' if first.diverged else 'nothing was measured yet'}."
    moment = "at the end" if first.finished else "so far"
    aware = ", told which experience each comes from" if prefix else ""
    samples = f"{first.metrics.get('split') or 'test'} samples right{aware}"
    what = "its predictions are off on average by" if units else "its mean loss is" if loss_only else "it answers"
    what = f"{moment} {what}"
    others = [
        f"{other} {tell(value)}" for other, them in references.items() if (value := measure(them, key)) is not None
    ]
    beside = f" (beside it: {', '.join(others)})" if others else ""
    one_by_one = " one after another" if count > 1 else ""
    return f"{done}{one_by_one}; {what} {tell(kept)}{'' if loss_only else f' of the {samples}'}{beside}."


def _method(run: Result) -> str:
    """The method in words, with its parameters; empty where the configuration does not say."""
    method = run.config.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    if isinstance(method, Mapping) and isinstance(method.get("operations"), list):
        return f"Made of the operations {', '.join(str(one.get('name')) for one in method['operations'])}."
    if not isinstance(method, Mapping) or name != run.metrics.get("method"):
        return ""
    made = kinds.names("methods").get(str(name))
    summary = "" if made is None else docs(made.__doc__)[0].rstrip(".")
    values = ", ".join(f"{key}={_said(key, value)}" for key, value in method.items() if key != "name")
    return f"{name}: {summary}{' (' if summary and values else ''}{values}{')' if summary and values else ''}."


def _links(runs: Results) -> list[tuple[str, str]]:
    """The reports of seeds and references, as they lie in the folder."""
    parts = [run.path for run in runs if run.path != runs.path]
    parts += [run.path for others in runs.references.values() for run in others]
    paths = [os.path.relpath(path, runs.path) for path in parts]
    return [(path, f"{path}/report.html") for path in paths if not path.startswith("..")]


def _compared(runs: Results) -> list[Result]:
    """The runs of a reference that the method is compared with: those that finished, where any did."""
    return distinct(run for run in runs if run.finished) or distinct(runs)


def _diverged(runs: Results) -> list[str]:
    """A sentence for each run that was found to diverge, references included."""
    several = len(runs) > 1
    told = [f"{run.path.name}: {run.diverged}" if several else run.diverged for run in runs if run.diverged]
    for name, others in runs.references.items():
        told += [f"the reference {name}: {run.diverged}" for run in others if run.diverged]
    return told


def _stream(run: Result) -> list[tuple[str, int | None, int | None, str]]:
    """A row for each experience: its name, samples to train on and to test on, and its classes."""
    about, names = run.log.stream, run.log.class_names
    trained, tested, classes = (about.get(key) or [] for key in ("train_samples", "test_samples", "experience_classes"))
    rows = []
    for index, name in enumerate(run.names):
        labels = classes[index] if index < len(classes) else []
        words = ", ".join(names[label] if label < len(names) else str(label) for label in labels)
        rows.append(
            (
                name,
                trained[index] if index < len(trained) else None,
                tested[index] if index < len(tested) else None,
                words,
            )
        )
    return rows


LEAST_GAP = 0.01
"""Of accuracy, between fine-tuning and joint training: a share of less than this means nothing."""


def _scale(runs: Sequence[Result], references: Mapping[str, list[Result]], prefix: str) -> dict[str, Any] | None:
    """The bar from fine-tuning to joint training with the method's position on it, where both were run."""
    low, high = (next((name for name in references if end_of_scale(name) == end), None) for end in (0, 1))
    if low is None or high is None:
        return None
    name = prefix + "average_accuracy"
    value, bottom, top = measure(runs, name), measure(references[low], name), measure(references[high], name)
    if value is None or bottom is None or top is None:
        return None
    share = share_of_gap(value.mean, bottom.mean, top.mean)
    return {
        "none": not np.isfinite(share) or top.mean - bottom.mean < LEAST_GAP,
        "low": low,
        "high": high,
        "bottom": bottom,
        "top": top,
        "value": value,
        "share": share,
        "left": f"{100 * float(np.clip(np.nan_to_num(share), 0.0, 1.0)):.2f}",
    }


def _columns(sets: Mapping[str, Sequence[Result]], prefix: str, loss_only: bool) -> list[dict[str, Any]]:
    """For each method side by side: learned, kept and the difference on every experience."""
    key = "loss_matrix" if loss_only else prefix + "accuracy_matrix"
    columns = []
    for name, runs in sets.items():
        rows = [_learned_and_kept(run.table(key)) for run in runs]
        size = max((len(row) for row in rows), default=0)
        cells = [
            {
                part: spread(row[index][part] for row in rows if index < len(row))
                for part in ("learned", "kept", "change")
            }
            for index in range(size)
        ]
        total = "average_loss" if loss_only else prefix + "average_accuracy"
        change = "loss_increase" if loss_only else prefix + "backward_transfer"
        columns.append(
            {
                "name": name,
                "cells": cells,
                "learned": None if loss_only else measure(runs, prefix + "plasticity"),
                "kept": measure(runs, total),
                "change": measure(runs, change),
                "seconds": measure(runs, "train_seconds"),
                "runs": len(runs),
            }
        )
    return columns


def _learned_and_kept(matrix: np.ndarray) -> list[dict[str, float]]:
    rows = np.flatnonzero(np.isfinite(matrix).any(axis=1)) if matrix.size else np.array([], dtype=int)
    if not rows.size:
        return []
    last = int(rows[-1])
    pairs = []
    for index in range(len(matrix)):
        learned = float(matrix[index, index]) if len(rows) > 1 or len(matrix) == 1 else float("nan")
        kept = float(matrix[last, index]) if index <= last else float("nan")
        pairs.append({"learned": learned, "kept": kept, "change": kept - learned if index < last else float("nan")})
    return pairs


def _origin(info: dict[str, Any]) -> dict[str, Any]:
    """The command, the versions and whatever else `run.json` says."""
    command = info.get("command")
    if isinstance(command, (list, tuple)):
        command = shlex.join(map(str, command))
    versions = info.get("versions")
    rest = {key: value for key, value in info.items() if key not in ("command", "versions", "state", "translated")}
    return {
        "command": command,
        "versions": versions if isinstance(versions, dict) else {},
        "translated": info.get("translated") or [],
        "rest": {key: _said(key, value) for key, value in rest.items()},
    }


def _said(key: str, value: Any) -> str:
    """A value of `run.json` for reading; seconds since 1970 become a date."""
    if key in ("started", "finished") and isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return value if isinstance(value, str) else json.dumps(value)
