"""`holdfast.open` and `holdfast show`: a run with its matrix, or several as a table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.core.errors import needs_extra
from holdfast.metrics.log import LOG_NAME
from holdfast.metrics.statistics import Spread, named
from holdfast.metrics.table import METRICS
from holdfast.runs import source_report
from holdfast.runs.compare import COLUMNS, SOURCE_COLUMNS, Row, gathered, row_of
from holdfast.runs.report import write_report
from holdfast.runs.result import METRICS_FILE, Result, Results, found_runs
from holdfast.runs.service import Service
from holdfast.runs.source_report import MEASURES, facts, of_source
from holdfast.runs.source_report import SHARES as PER_CENT
from holdfast.runs.sweep_report import SWEEP, write_sweep_report
from holdfast.runs.words import distinct, headline, kept_against, mean_matrix, number, spread_of

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType
    from rich.table import Table
    from torch import Tensor, nn


SHARES, BEST = tuple(COLUMNS)[:4], "*"
"""The measures that are shares; and what stands behind the best value of a column: bold alone is lost in a pipe."""


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
    parts += [Text(line, "dim") for line in dict.fromkeys(run.captured for run in row.runs if run.captured)]
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
    for name, value in kept_against(row.runs).items():
        told = ["", number(value) if name == "forgetting_ratio" else _percent(value)]  # the ratio is no share
        table.add_row(name.replace("_", " "), *(told if row.prefix else reversed(told)))
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

    columns = SOURCE_COLUMNS if all(of_source(row.runs[0]) for row in rows) else COLUMNS
    counts = {len(row.runs) for row in rows}
    several = max(counts, default=1) > 1
    title = named(counts.pop()) if several and len(counts) == 1 else "mean ± 95 % t interval over seeds (of two, both)"
    table = _table("run", f"{title}; {BEST} best of the column" if several else f"{BEST} best of the column")
    for head in ("seeds", *columns.values()):
        table.add_column(head, justify="right")
    differ = any(row.settings for row in rows)
    for head in ["state", "settings"] if differ else ["state"]:
        table.add_column(head, overflow="fold")
    best = {name: _best(rows, name) for name in columns}
    for row in rows:
        cells = []
        for name in columns:
            told = _percent(row.value(name)) if name in (*SHARES, *PER_CENT) else number(row.value(name))
            cells.append(Text(f"{told} {BEST}", "bold") if best[name] is row else Text(told))
        state = Text(row.state, "bold red" if any(run.diverged for run in row.runs) else "")
        settings = " ".join(f"{key}={_shown(value)}" for key, value in row.settings.items())
        table.add_row(Text(row.name), str(len(row.runs)), *cells, state, *([Text(settings)] if differ else []))
    return table


def _best(rows: Sequence[Row], name: str) -> Row | None:
    """The best of the finished rows, where they were measured on the same stream and there are two to compare."""
    measured = [(row, one.mean) for row in rows if row.state == "finished" and (one := row.value(name)) is not None]
    same = {(row.runs[0].metrics.get("stream"), row.prefix) for row, _ in measured}
    if len(measured) < 2 or len(same) > 1:
        return None
    return (max if METRICS[name].direction == "up" else min)(measured, key=lambda one: one[1])[0]


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


class Run(Service, Result):
    """One run of a folder, each of its files read once, when it is first asked for. What is public here stays.

    Beside what is computed of its files (`config`, `log`, `metrics`, `matrix`, `table(key)`, `confusion()`, `state`,
    `seed`, `references`) it can make its report again, and ask the model of its newest checkpoint.

    Args:
        path: its folder.

    Raises:
        DataError: the folder holds no run. A damaged file is told when it is read.
    """

    def report(self) -> Path:
        """Make `plots/*.png` and `report.html` again; returns the path of the page."""
        return write_report(self.path)

    def model(self) -> nn.Module:
        """The trained model at the newest checkpoint, in eval mode, on the device of the run's configuration.

        Raises:
            DataError: without a checkpoint, or for a run whose model was an object of Python's.
        """
        from holdfast.runs.assemble import restore

        return restore(self.path).engine.learner.model.eval()

    def predict(self, inputs: Any, task: int | None = None) -> Tensor:
        """Outputs of the newest checkpoint for raw inputs, as its method wants them, `[rows, ...]` on the CPU.

        Args:
            inputs: a tensor `[rows, ...]` as the stream's data are, or a data frame with the columns of the table that
                was learned.
            task: the task label, for a model with a head for each task.

        Raises:
            ConfigError: for columns that are not there.
            DataError: without a checkpoint, or for a run whose model was an object of Python's.
        """
        from holdfast.runs.assemble import restore
        from holdfast.runs.inputs import outputs
        from holdfast.runs.predicted_tables import encoding_of, features_of
        from holdfast.streams.datasets.tables import read_frame

        restored = restore(self.path)
        if hasattr(inputs, "columns"):
            inputs = features_of(read_frame(inputs, "the table"), encoding_of(restored))
        return outputs(restored.engine, inputs, task)


class Runs(Results):
    """The seeds of a run, or the jobs of a multirun, as a sequence of `Run`.

    Args:
        path: the folder they lie in.
        runs: in order.
    """

    one = Run

    def frame(self) -> pandas.DataFrame:
        """A table of pandas with a row for each run: folder, state, seed and every measure.

        Raises:
            ImportError: where pandas is not installed, with what to install.
        """
        try:
            import pandas
        except ImportError as error:
            raise needs_extra("a table of runs", "pandas", "tables") from error
        return pandas.DataFrame([row_of(run) for run in self])

    def report(self) -> Path:
        """Make the report of the seeds, or of the multirun, again; returns the path of the page."""
        if (self.path / SWEEP).is_file():
            write_sweep_report(self.path)
            return self.path / "report.html"
        return write_report(self.path)


Run.together = Runs


def open(
    folder: str | os.PathLike[str],
) -> Run | Runs:
    """Open what `holdfast run` or `Trainer.fit(out=...)` left: a run, or a sequence of them.

    Args:
        folder: of a run; of one of several seeds or of a multirun, which gives a sequence.

    Returns:
        A `Run` (`config`, `log`, `metrics`, `matrix`, `state`, `report()`, `model()`, ...) or `Runs`, several of them.

    Raises:
        DataError: the folder holds no run.

    Example:
        >>> import holdfast
        >>> run = holdfast.open("runs/x")                               # doctest: +SKIP
        >>> run.state, run.metrics["average_accuracy"], run.log.arrays("train")["loss"]   # doctest: +SKIP
    """
    path = Path(folder)
    if (path / LOG_NAME).is_file() or (path / METRICS_FILE).is_file():
        return Run(path)
    return Runs(path, [run for run_folder in found_runs([path]) for run in Runs.load(run_folder)])


def closing(folder: Path) -> str:
    """A line for the method and for each of its references, and one with the path of the report.

    Args:
        folder: of a run that came to its end.
    """
    runs = Results.load(folder)
    shown = {str(runs[0].metrics.get("method") or "this method"): runs, **runs.references}
    width = max(map(len, shown))
    lines = [f"{name:{width}s}  {_said(distinct(together))}" for name, together in shown.items()]
    for name, together in shown.items():
        apart = ((f"{name}, seed {run.seed}," if len(together) > 1 else name, run.diverged) for run in together)
        lines += [f"{which} diverged: {reason}" for which, reason in apart if reason]
    return "\n".join([*lines, f"report: {folder / 'report.html'}"])


def _said(runs: Sequence[Result]) -> str:
    every, apart = len(runs), sum(run.state == "diverged" for run in runs)
    if apart == every:
        return "diverged" if every == 1 else f"all {every} seeds diverged"
    runs = [run for run in runs if run.finished] or runs
    source = runs[0].log.start.get("source")
    items = source_report.headline(runs) if source else _headline_of_experiences(runs)
    seeds = f"  ({len(runs)} of {every} seeds; {apart} diverged)" if apart else f"  ({every} seeds)"
    told = [f"{item['word'].lower()} {item['value']}" for item in items if item["value"] != "–"]
    return "   ".join(told) + (seeds if every > 1 else "")


def _headline_of_experiences(runs: Sequence[Result]) -> list[dict[str, str]]:
    prefix = runs[0].prefix
    loss_only = runs[0].metrics.get(prefix + "average_accuracy") is None
    return headline(runs, prefix, loss_only)
