"""The report of a run: `plots/*.png` and one self-contained `report.html`, made from the run folder's files alone."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.metrics.files import replace_file
from holdfast.metrics.summary import METRICS
from holdfast.runs.reference_measures import DESCRIPTIONS, measure_against
from holdfast.runs.report_data import (
    Run,
    ends_of_scale,
    load_references,
    load_runs,
    mean_matrix,
    measure,
    measures,
    place_between,
    read_json,
    spread,
)
from holdfast.runs.report_figures import MOST_BARS, class_recalls, draw
from holdfast.runs.report_plots import series, to_png
from holdfast.runs.report_words import headline, number, percent, points


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Make `plots/*.png` and `report.html` in a run folder, from its files; it can be made again at any time.

    Everything is computed from the raw log, so an unfinished run gets a report of what it did so far. A folder of
    `seed-*` folders gets one of their means and standard errors, and `references/*` are shown beside the method.

    Args:
        run_dir: the run folder.

    Returns:
        The path of `report.html`.

    Raises:
        DataError: the folder holds no run, or a file in it is damaged.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(run_dir)
    content = gather(folder)
    (folder / "plots").mkdir(exist_ok=True)
    for plot in content["figures"]:
        replace_file(folder / "plots" / f"{plot.name}.png", to_png(plot.figure))
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, points=points, number=number)
    return replace_file(folder / "report.html", environment.get_template("report.html.j2").render(content) + "\n")


def gather(folder: Path) -> dict[str, Any]:
    """Everything the template shows, as plain values, and the figures by file name."""
    everything, references = load_runs(folder), load_references(folder)
    runs = [run for run in everything if run.metrics.get("finished")] or everything
    first = max(runs, key=lambda run: int(run.metrics.get("experiences") or 0))
    prefix = str(first.metrics.get("headline") or "")
    table = mean_matrix(runs, prefix + "accuracy_matrix")
    loss_only = not np.isfinite(table).any()
    if loss_only:
        table = mean_matrix(runs, "loss_matrix")
    names = first.names()
    classes = class_recalls(runs)
    figures = draw(runs, names, prefix, None if loss_only else table, classes[:MOST_BARS])
    low, high = ends_of_scale(references)
    return {
        "title": first.title if len(runs) > 1 or first.metrics.get("method") else folder.name,
        "folder": folder.resolve().name,
        "unfinished": [run.state for run in everything if not run.metrics.get("finished")],
        "left_out": len(everything) - len(runs),
        "seeds": [run.metrics.get("seed") for run in runs],
        "experiences": len(names),
        "paradigm": first.metrics.get("paradigm"),
        "split": first.metrics.get("split", "test"),
        "prefix": prefix,
        "loss_only": loss_only,
        "headline": headline(runs, prefix, loss_only),
        "measures": measures(runs),
        "METRICS": METRICS,
        "scale": _scale(runs, references, low, high, prefix),
        "against": [(name, value, DESCRIPTIONS[name]) for name, value in measure_against(folder, write=False).items()],
        "columns": _columns({"this method": runs} | references, prefix, loss_only),
        "names": names,
        "classes": classes,
        "many": MOST_BARS,
        "per_seed": [(run.path.name, run.state, run.metrics) for run in everything] if len(everything) > 1 else [],
        "figures": figures,
        "plots": sorted((plot for plot in figures if plot.caption and plot.size != 1), key=lambda plot: plot.wide),
        "series": list(zip(series(len(names)), series(len(names), dark=True))),
        "config": (config := read_json(folder / "config.json") or first.config),
        "config_json": json.dumps(config, indent=2, ensure_ascii=False),
        **_origin(read_json(folder / "run.json") or first.info),
    }


def _scale(
    runs: Sequence[Run], references: dict[str, list[Run]], low: str | None, high: str | None, prefix: str
) -> dict[str, Any] | None:
    """The bar from fine-tuning to joint training with the method's place on it, where both were run."""
    if low is None or high is None:
        return None
    name = prefix + "average_accuracy"
    value, bottom, top = measure(runs, name), measure(references[low], name), measure(references[high], name)
    share = place_between(value, bottom, top)
    if share is None:
        return None
    return {
        "low": low,
        "high": high,
        "bottom": bottom,
        "top": top,
        "value": value,
        "share": share,
        "left": f"{100 * min(max(share, 0.0), 1.0):.2f}",
    }


def _columns(sets: dict[str, list[Run]], prefix: str, loss_only: bool) -> list[dict[str, Any]]:
    """For each method side by side: learned, kept and the difference on every experience."""
    key = "loss_matrix" if loss_only else prefix + "accuracy_matrix"
    found = []
    for name, runs in sets.items():
        rows = [_learned_and_kept(run.matrix(key)) for run in runs]
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
        found.append(
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
    return found


def _learned_and_kept(matrix: np.ndarray) -> list[dict[str, float]]:
    rows = np.flatnonzero(np.isfinite(matrix).any(axis=1)) if matrix.size else np.array([], dtype=int)
    if not rows.size:
        return []
    last = int(rows[-1])
    found = []
    for index in range(len(matrix)):
        learned = float(matrix[index, index]) if len(rows) > 1 or len(matrix) == 1 else float("nan")
        kept = float(matrix[last, index]) if index <= last else float("nan")
        found.append({"learned": learned, "kept": kept, "change": kept - learned if index < last else float("nan")})
    return found


def _origin(info: dict[str, Any]) -> dict[str, Any]:
    """The command, the versions and whatever else `run.json` says."""
    command = info.get("command")
    if isinstance(command, (list, tuple)):
        command = shlex.join(map(str, command))
    versions = info.get("versions")
    rest = {key: value for key, value in info.items() if key not in ("command", "versions", "state")}
    return {
        "command": command,
        "versions": versions if isinstance(versions, dict) else {},
        "rest": {key: _said(key, value) for key, value in rest.items()},
    }


def _said(key: str, value: Any) -> str:
    """A value of `run.json` for reading; seconds since 1970 become a date."""
    if key in ("started", "finished") and isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return value if isinstance(value, str) else json.dumps(value)
