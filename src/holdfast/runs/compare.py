"""Runs side by side: `holdfast show RUN [RUN ...]`, with mean and spread over seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.runs.report_data import Run, Spread, load_runs, mean_matrix, measure, measures

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NOT_THE_EXPERIMENT = ("seed", "seeds", "references", "folder", "output", "out")


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: method and stream, or the folder's name.
        runs: as read from their folders.
        values: mean and standard error of every measure in `metrics.METRICS`.
        state: `finished`, or how far the unfinished ones came.
    """

    name: str
    runs: list[Run]
    values: dict[str, Spread | None]
    state: str

    @property
    def prefix(self) -> str:
        """Which family of measures counts for the paradigm: `""` or `"task_aware_"`."""
        return str(self.runs[0].metrics.get("headline") or "")

    def value(self, name: str) -> Spread | None:
        """A measure in the family that counts for the paradigm."""
        return self.values.get(self.prefix + name)


def summarise(run_dirs: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """Read run folders and group those whose configuration is equal but for the seed.

    A folder of `seed-*` folders counts as its seeds. A killed run counts as far as its log goes, in a row of its own:
    its numbers are not averaged with those of finished runs.

    Args:
        run_dirs: run folders.

    Returns:
        One row per configuration, in order of first appearance.

    Raises:
        DataError: a folder holds no run, or a file in it is damaged.
    """
    groups: dict[str, list[Run]] = {}
    seen = set()
    for folder in run_dirs:
        for run in load_runs(folder):
            if (where := run.path.resolve()) not in seen:
                seen.add(where)
                groups.setdefault(_identity(run), []).append(run)
    names = _distinct_names(list(groups.values()))
    return [Row(name, runs, measures(runs), _state(runs)) for name, runs in zip(names, groups.values())]


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
    runs = f", {len(row.runs)} seeds (mean ± standard error)" if len(row.runs) > 1 else ""
    head = Text.assemble((row.name, "bold"), f"  {row.state}{runs}", overflow="fold")
    parts: list[RenderableType] = [head, _headline(row)]
    table = mean_matrix(row.runs, row.prefix + "accuracy_matrix")
    if np.isfinite(table).any():
        how = "task-aware" if row.prefix else "class-incremental"
        parts.append(_matrix(table, row.runs[0].names(), f"accuracy in per cent, {how}"))
    return Group(*parts)


def show(run_dirs: Iterable[str | os.PathLike[str]]) -> None:
    """Print run folders side by side, as `holdfast show` does.

    Args:
        run_dirs: run folders.

    Raises:
        DataError: a folder holds no run, or a file in it is damaged.
    """
    from rich.console import Console

    Console().print(render(summarise(run_dirs)))


def _headline(row: Row) -> Table:
    """The measures of one configuration, one per line, class-incremental and task-aware side by side."""
    table = _table("")
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
    if row.values.get("average_accuracy") is None and row.values.get("task_aware_average_accuracy") is None:
        table = _table("")
        table.add_column("value", justify="right")
        table.add_row("loss at the end", _number(row.values.get("average_loss")))
        table.add_row("loss gained since learned", _number(row.values.get("loss_increase")))
    for label, name in (
        ("training, seconds", "train_seconds"),
        ("steps", "steps"),
        ("parameters", "parameters"),
        ("memory, bytes", "memory_bytes"),
    ):
        table.add_row(label, _number(row.values.get(name)))
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
    from rich.text import Text

    table = _table("run", "mean ± standard error over seeds" if any(len(row.runs) > 1 for row in rows) else None)
    titles = ("seeds", "kept", "learned", "forgot", "worst class", "loss", "seconds", "state")
    for title in titles:
        table.add_column(title, justify="left" if title == "state" else "right")
    for row in rows:
        table.add_row(
            Text(row.name),
            str(len(row.runs)),
            _percent(row.value("average_accuracy")),
            _percent(row.value("plasticity")),
            _percent(row.value("forgetting_first")),
            _percent(row.values.get("worst_class")),
            _number(row.values.get("average_loss")),
            _number(measure(row.runs, "train_seconds")),
            Text(row.state),
        )
    return table


def _table(first: str, title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="dim", header_style="dim")
    table.add_column(first)
    return table


def _shade(value: float) -> str:
    """A background from dark blue (0) over grey to yellow (1), as in the report, with legible letters."""
    stops = np.array([[0, 34, 78], [87, 93, 109], [165, 156, 116], [253, 231, 55]], dtype=float)
    place = float(np.clip(value, 0, 1)) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    red, green, blue = (stops[low] + (place - low) * (stops[low + 1] - stops[low])).astype(int).tolist()
    return f"{'white' if value < 0.55 else 'black'} on rgb({red},{green},{blue})"


def _identity(run: Run) -> str:
    """The configuration without its seed, and whether it finished; without a configuration a run is like no other."""
    if not run.config:
        return f"folder {run.path.resolve()}"
    kept: dict[str, Any] = {key: value for key, value in run.config.items() if key not in NOT_THE_EXPERIMENT}
    said = [run.metrics.get(key) for key in ("method", "stream", "experiences", "finished")]
    return json.dumps([kept, said], sort_keys=True)


def _distinct_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Method and stream of each group; the folder's name is added where two would be called alike."""
    titles = [runs[0].title for runs in groups]
    return [
        title if titles.count(title) == 1 else f"{title} ({runs[0].path.name})" for title, runs in zip(titles, groups)
    ]


def _state(runs: Sequence[Run]) -> str:
    states = [run.state for run in runs]
    waiting = [state for state in states if state != "finished"]
    if not waiting:
        return "finished"
    return waiting[0] if len(runs) == 1 else f"{len(waiting)} of {len(runs)} unfinished"


def _percent(value: Spread | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value.mean:.1f}" + ("" if value.error is None else f" ± {100 * value.error:.1f}")


def _number(value: Spread | None) -> str:
    if value is None:
        return "–"
    big = abs(value.mean) >= 1000 or float(value.mean).is_integer()
    text = f"{value.mean:,.0f}" if big else f"{value.mean:.4g}"
    return text + ("" if not value.error else f" ± {value.error:.2g}")
