"""What a run says when it has ended: the numbers that come first in its report, and where that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.runs.report_data import Run, load_references, load_runs
from holdfast.runs.report_words import headline


def closing(folder: Path) -> str:
    """A line for the method and for each of its references, and one with the path of the report.

    Args:
        folder: of a finished run.
    """
    runs = load_runs(folder)
    shown = {str(runs[0].metrics.get("method") or "this method"): runs, **load_references(folder)}
    width = max(map(len, shown))
    lines = [f"{name:{width}s}  {_said(held)}" for name, held in shown.items()]
    return "\n".join([*lines, f"report: {folder / 'report.html'}"])


def _said(runs: Sequence[Run]) -> str:
    prefix = str(runs[0].metrics.get("headline") or "")
    loss_only = runs[0].metrics.get(prefix + "average_accuracy") is None
    items = [item for item in headline(runs, prefix, loss_only) if item["value"] != "–"]
    seeds = f"  ({len(runs)} seeds)" if len(runs) > 1 else ""
    return "   ".join(f"{item['word'].lower()} {item['value']}" for item in items) + seeds
