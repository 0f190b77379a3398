"""What `holdfast show RUN [RUN ...]` prints: one run with its matrix, several as a table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.metrics.statistics import Spread, named
from holdfast.metrics.table import METRICS
from holdfast.runs.compare import COLUMNS, Row, gathered
from holdfast.runs.seeds import mean_matrix
from holdfast.runs.source_report import MEASURES, facts, of_source
from holdfast.runs.source_report import SHARES as PER_CENT
from holdfast.runs.words import number, spread_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHARES = tuple(COLUMNS)[:4]
BEST = "*"
"""Behind the best value of a column; bold alone is lost in a pipe."""


def render(rows: Sequence[Row]) -> RenderableType:
    """What `holdfast show` prints: one row with its matrix, several as a table.

    Args:
        rows: of `summarise`.

    Returns:
        Something for `rich.print`.
    """
    from rich.console import Group
    from rich.text import Text

    if len(rows) != 1:
        return _side_by_side(rows)
    row = rows[0]
    runs = f", {named(len(row.runs))}" if len(row.runs) > 1 else ""
    diverged = any(run.diverged for run in row.runs)
    head = Text.assemble((row.name, "bold"), (f"  {row.state}", "bold red" if diverged else ""), runs, overflow="fold")
    parts: list[RenderableType] = [head, _headline(row)]
    table = mean_matrix(row.runs, row.prefix + "accuracy_matrix")
    if np.isfinite(table).any():
        how = "task-aware" if row.prefix else "class-incremental"
        parts.append(_matrix(table, row.runs[0].names, f"accuracy in per cent, {how}"))
    return Group(*parts)


def show(run_dirs: Iterable[str | os.PathLike[str]], by: str | None = None, references: bool = False) -> list[str]:
    """Print run folders side by side, as `holdfast show` does.

    Args:
        run_dirs: run folders.
        by: the measure to sort by.
        references: whether to show the references of each run too.

    Returns:
        A sentence for each folder that could not be read.

    Raises:
        DataError: no folder could be read.
    """
    from rich.console import Console

    rows, problems = gathered(run_dirs, by, references)
    Console(width=None if sys.stdout.isatty() else 10_000).print(render(rows))
    return problems


def _headline(row: Row) -> Table:
    """The measures of one configuration, one per line, class-incremental and task-aware side by side."""
    table = _table("")
    if of_source(row.runs[0]):
        return _of_a_source(row, table)
    for title in ("class-incremental", "task-aware"):
        table.add_column(title, justify="right")
    for label, name in (
        ("kept (average accuracy)", "average_accuracy"),
        ("learned (plasticity)", "plasticity"),
        ("forgot since learned", "forgetting_first"),
        ("forgot since best", "forgetting_max"),
        ("average incremental", "average_incremental_accuracy"),
        ("forward transfer", "forward_transfer"),
    ):
        table.add_row(label, _percent(row.values.get(name)), _percent(row.values.get("task_aware_" + name)))
    table.add_row("worst class", _percent(row.values.get("worst_class")), "")
    if row.values.get("prequential_accuracy") is not None:
        table.add_row("before training on it", _percent(row.values.get("prequential_accuracy")), "")
    if row.values.get("average_accuracy") is None and row.values.get("task_aware_average_accuracy") is None:
        table = _table("")
        table.add_column("value", justify="right")
        table.add_row("loss at the end", number(row.values.get("average_loss")))
        table.add_row("loss gained since learned", number(row.values.get("loss_increase")))
    for label, name in (
        ("training, seconds", "train_seconds"),
        ("steps", "steps"),
        ("parameters", "parameters"),
        ("memory, bytes", "memory_bytes"),
    ):
        table.add_row(label, number(row.values.get(name)))
    return table


def _of_a_source(row: Row, table: Table) -> Table:
    """The measures of a run that learned from a source, and what arrived."""
    table.add_column("value", justify="right")
    for name in MEASURES:
        value = row.values.get(name)
        if value is not None:
            table.add_row(name.replace("_", " "), _percent(value) if name in PER_CENT else number(value))
    for label, text in facts(row.runs[0]):
        table.add_row(label, text)
    return table


def _matrix(matrix: np.ndarray, names: Sequence[str], title: str) -> Table:
    """The accuracy matrix as a table, green where high and red where low, written out too."""
    from rich.text import Text

    table = _table("after \\ on", title)
    for name in names:
        table.add_column(Text(name), justify="right")
    for index, values in enumerate(matrix):
        if np.isfinite(values).any():
            cells = [Text(f"{100 * value:.1f}", _shade(value)) if np.isfinite(value) else Text("") for value in values]
            table.add_row(Text(names[index]), *cells)
    return table


def _side_by_side(rows: Sequence[Row]) -> Table:
    """A table with a row for each configuration, and in each column the best of comparable rows marked."""
    from rich.text import Text

    counts = {len(row.runs) for row in rows}
    several = max(counts, default=1) > 1
    title = named(counts.pop()) if several and len(counts) == 1 else "mean ± 95 % t interval over seeds (of two, both)"
    table = _table("run", f"{title}; {BEST} best of the column" if several else f"{BEST} best of the column")
    for head in ("seeds", *COLUMNS.values()):
        table.add_column(head, justify="right")
    differ = any(row.settings for row in rows)
    for head in ["state", "settings"] if differ else ["state"]:
        table.add_column(head, overflow="fold")
    best = {name: _best(rows, name) for name in COLUMNS}
    for row in rows:
        cells = []
        for name in COLUMNS:
            told = _percent(row.value(name)) if name in SHARES else number(row.value(name))
            cells.append(Text(f"{told} {BEST}", "bold") if best[name] is row else Text(told))
        state = Text(row.state, "bold red" if any(run.diverged for run in row.runs) else "")
        settings = " ".join(f"{key}={_shown(value)}" for key, value in row.settings.items())
        table.add_row(Text(row.name), str(len(row.runs)), *cells, state, *([Text(settings)] if differ else []))
    return table


def _best(rows: Sequence[Row], name: str) -> Row | None:
    """The best of the finished rows, where they were measured on the same stream and there are two to compare."""
    known = [(row, one.mean) for row in rows if row.state == "finished" and (one := row.value(name)) is not None]
    same = {(row.runs[0].metrics.get("stream"), row.prefix) for row, _ in known}
    if len(known) < 2 or len(same) > 1:
        return None
    return (max if METRICS[name].direction == "up" else min)(known, key=lambda one: one[1])[0]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(first: str, title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="dim", header_style="dim")
    table.add_column(first)
    return table


def _shade(value: float) -> str:
    """A background from dark blue (0) over grey to yellow (1), as in the report, with legible letters."""
    stops = np.array([[0, 34, 78], [87, 93, 109], [165, 156, 116], [253, 231, 55]], dtype=float)
    position = float(np.clip(value, 0, 1)) * (len(stops) - 1)
    low = min(int(position), len(stops) - 2)
    red, green, blue = (stops[low] + (position - low) * (stops[low + 1] - stops[low])).astype(int).tolist()
    return f"{'white' if value < 0.55 else 'black'} on rgb({red},{green},{blue})"


def _percent(value: Spread | None) -> str:
    return "–" if value is None else f"{100 * value.mean:.1f}{spread_of(value, 100)}"
