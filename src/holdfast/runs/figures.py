"""Which plots a report has, and what it says below each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from holdfast.metrics.classes import recall_over_time
from holdfast.metrics.cost import curves
from holdfast.metrics.during import inside
from holdfast.metrics.statistics import Spread, spread
from holdfast.runs.drawing import to_svg
from holdfast.runs.given_back import pictures_of, read_given_back
from holdfast.runs.pictures import (
    capacity_line,
    confusions_over_time,
    gate_map,
    inside_lines,
    loss_map,
    memory_map,
    read_gates,
    read_samples,
    sample_grid,
)
from holdfast.runs.plots import (
    class_bars,
    confusion_map,
    heat_map,
    learning_rate,
    loss_terms,
    over_time,
    recall_map,
    so_far,
)
from holdfast.runs.result import Result
from holdfast.runs.words import mean_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BARS = 100
WIDE = 10


class Plot(NamedTuple):
    """A figure with its words.

    Attributes:
        name: of its file in `plots/`.
        figure: of matplotlib.
        title: above it.
        caption: below it; empty where the page shows the same in another way.
        size: how many experiences it compares (0 where that does not matter).
        coloured: how many of the page's series colours it uses.
    """

    name: str
    figure: Figure
    title: str = ""
    caption: str = ""
    size: int = 0
    coloured: int = 0

    @property
    def svg(self) -> str:
        """The figure as an element of the page."""
        return to_svg(self.figure, self.name.replace("_", "-"), self.coloured)

    @property
    def wide(self) -> bool:
        """Whether it takes the page's whole width."""
        return self.size > WIDE


def draw(
    runs: Sequence[Result],
    names: list[str],
    prefix: str,
    table: np.ndarray | None,
    classes: Sequence[tuple[str, Spread]],
    references: Mapping[str, Sequence[Result]],
) -> list[Plot]:
    """The plots of one configuration.

    Args:
        runs: one per seed.
        names: of the experiences.
        prefix: of the measures that count for the paradigm (`""` or `"task_aware_"`).
        table: the accuracy matrix that counts, `[T, T]`; None for a run without accuracies.
        classes: name and recall, at most `MOST_BARS`.
        references: runs by the name of their method.

    Returns:
        The plots in the order of the page.
    """
    plots = [] if table is None else _accuracy_plots(runs, names, prefix, table)
    tables = {name: mean_matrix(others, prefix + "accuracy_matrix") for name, others in references.items()}
    if table is not None and tables and len(names) > 1:
        caption = "Mean accuracy on what was learned so far, beside the references (joint training only has an end)."
        figure = so_far({"this method": table, **tables}, names)
        plots.insert(1, Plot("references_over_time", figure, "Beside the references", caption))
    plots += training_plots(runs)
    plots += _class_plots(runs, names)
    of = f" of the first seed ({runs[0].seed})" if len(runs) > 1 else ""
    plots += _more_plots(runs[0], names, of)
    if table is None:
        losses = mean_matrix(runs, "loss_matrix")
        if np.isfinite(losses).any():
            caption = "The loss on each experience (columns) after learning each (rows), the lower the lighter."
            plots.insert(0, Plot("loss_matrix", loss_map(losses, names), "Loss matrix", caption, len(names)))
    if classes:
        plots.append(Plot("classes", class_bars([(name, recall.mean) for name, recall in classes])))
    return plots


def training_plots(runs: Sequence[Result]) -> list[Plot]:
    """The terms of the loss, and the learning rate where it moves."""
    plots = []
    lines = curves(runs[0].log)
    of = f" of the first seed ({runs[0].metrics.get('seed')})" if len(runs) > 1 else ""
    if any(np.isfinite(np.asarray(values, dtype=float)).any() for values in lines["terms"].values()):
        caption = f"What each operation added to the training loss{of}; upright lines part the experiences."
        plots.append(Plot("loss_terms", loss_terms(lines), "Loss terms", caption))
    if len({rate for rate in lines["lr"] if rate is not None}) > 1:
        caption = f"The rate of the steps before each point{of}; upright lines part the experiences."
        plots.append(Plot("learning_rate", learning_rate(lines), "Learning rate", caption))
    return plots


def _more_plots(run: Result, names: list[str], of: str) -> list[Plot]:
    """Of one run: samples, the memory, confusions over time, and old knowledge inside later experiences."""
    plots: list[Plot] = []
    samples = read_samples(run.path)
    if samples is not None:
        wrong = int((samples.answers != samples.targets).sum())
        counted = f"{wrong} of the {len(samples.answers)} shown"
        caption = f"Test images with the answers at the end{of}, wrong ones first ({counted})."
        plots.append(Plot("samples", sample_grid(samples, run.log.class_names), "Samples", caption, WIDE + 1))
    parts = {index: inside(run.log, index, "task" if run.prefix else "") for index in range(1, len(names))}
    parts = {index: part for index, part in parts.items() if part[1].size}
    ended = {int(event["experience"]): event for event in run.log.of("experience")}
    if parts:
        steps = [int(ended[index]["steps"]) if index in ended else 0 for index in range(len(names))]
        steps = [
            count or int(max([0.0, *parts[index][0]]) if index in parts else 0) for index, count in enumerate(steps)
        ]
        caption = f"Accuracy on a sample of the old experiences' test data at moments inside later ones{of}."
        figure = inside_lines(parts, steps, names)
        plots.append(Plot("inside", figure, "Inside the experiences", caption, WIDE + 1, len(names)))
    plots += _gate_plots(run, names, of)
    given_back = read_given_back(run.path)
    if given_back is not None:
        plots += [Plot(*one, WIDE + 1) for one in pictures_of(given_back, names)]
    by_experience = {index: event["memory_classes"] for index, event in ended.items() if event.get("memory_classes")}
    labels = sorted({int(label) for counts in by_experience.values() for label in counts})
    if labels:
        table = np.array(
            [[by_experience.get(index, {}).get(str(label), 0) for label in labels] for index in range(len(names))]
        )
        caption = f"How many samples of each class the memory held after each experience{of}."
        figure = memory_map(table, [_class_name(run, label) for label in labels], names)
        plots.append(Plot("memory", figure, "Memory by class", caption, len(names)))
    moments = sorted({int(event["after"]) for event in run.log.of("evaluate") if int(event["after"]) >= 0})
    tables = [(index, *run.confusion(after=index)) for index in moments]
    classes = sorted({label for _, labels_then, _ in tables for label in labels_then})
    if len(tables) > 1 and len(classes) > 1:
        caption = (
            f"What each class (rows) is answered with (columns), after each experience{of}; the lighter, the oftener."
        )
        whole = [(names[index], _spread_out(labels_then, counts, classes)) for index, labels_then, counts in tables]
        plots.append(
            Plot("confusion_over_time", confusions_over_time(whole), "Confusions over time", caption, WIDE + 1)
        )
    return plots


def _gate_plots(run: Result, names: list[str], of: str) -> list[Plot]:
    """Which units each task uses, how freely their weights still moved, and the capacity that is left."""
    gates = read_gates(run.path, run.config.get("method"))
    if gates is None:
        return []
    rows = [names[task] if task < len(names) else str(task) for task in gates.tasks]
    caption = f"Which units each task (rows) uses: dark where its gate is open{of}."
    plots = [Plot("masks", gate_map(gates, gates.used, rows), "Masks", caption, WIDE + 1)]
    if np.isfinite(gates.rates).all() and len(rows) > 1:
        caption = (
            f"The mean rate at which weights into each unit moved, at the end of each task (rows){of}; dark: freely."
        )
        figure = gate_map(gates, gates.rates, rows, logarithms=True)
        plots.append(Plot("adjustment_rates", figure, "Adjustment rates", caption, WIDE + 1))
    if np.isfinite(gates.capacity).all() and len(rows) > 1:
        caption = (
            f"The mean rate of all weights at the end of each task{of}: 1 where all move freely, 0 where none does."
        )
        plots.append(Plot("capacity", capacity_line(gates.capacity, rows), "Capacity", caption, len(rows)))
    return plots


def _spread_out(labels: Sequence[int], counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """A confusion matrix with rows and columns for more classes."""
    positions = [classes.index(label) for label in labels]
    whole = np.zeros((len(classes), len(classes)), dtype=counts.dtype)
    whole[np.ix_(positions, positions)] = counts
    return whole


def class_recalls(runs: Sequence[Result]) -> list[tuple[str, Spread]]:
    """Name and recall at the end of each class, in order, over runs."""
    recalls: dict[int, list[float]] = {}
    names: dict[int, str] = {}
    for run in runs:
        for row in run.metrics.get("classes") or []:
            recalls.setdefault(row["class"], []).append(row["recall"])
            names.setdefault(row["class"], row["name"])
    return [(names[index], recall) for index in sorted(recalls) if (recall := spread(recalls[index]))]


def _class_plots(runs: Sequence[Result], names: list[str]) -> list[Plot]:
    """What each class is taken for at the end, over all runs, and how well it was recognised after each experience."""
    plots = []
    counts: dict[tuple[int, int], int] = {}
    for run in runs:
        classes, table = run.confusion()
        for (row, column), count in np.ndenumerate(table):
            pair = classes[row], classes[column]
            counts[pair] = counts.get(pair, 0) + int(count)
    labels = sorted({label for pair in counts for label in pair})
    of = f", of all {len(runs)} seeds together" if len(runs) > 1 else ""
    if len(labels) > 1:
        table = np.array([[counts.get((row, column), 0) for column in labels] for row in labels])
        moment = "At the end" if all(run.finished for run in runs) else "So far"
        caption = f"{moment}, how many samples of each class (rows) were answered with each class (columns){of}."
        figure = confusion_map(table, [_class_name(runs[0], label) for label in labels])
        plots.append(Plot("confusion", figure, "Confusions", caption, len(labels)))
    classes, recalls = recall_over_time(runs[0].log, str(runs[0].metrics["split"]))
    if len(classes) > 1 and len(names) > 1:
        first = f" of the first seed ({runs[0].seed})" if len(runs) > 1 else ""
        caption = f"Per cent of each class's samples that are answered right, after each experience{first}."
        figure = recall_map(recalls, [_class_name(runs[0], label) for label in classes], names)
        plots.append(Plot("classes_over_time", figure, "Classes over time", caption, len(names)))
    return plots


def _class_name(run: Result, label: int) -> str:
    names = run.log.class_names
    return "none" if label < 0 else names[label] if label < len(names) else str(label)


def _accuracy_plots(runs: Sequence[Result], names: list[str], prefix: str, table: np.ndarray) -> list[Plot]:
    told = "told" if prefix else "not told"
    plots = [
        Plot(
            "accuracy_matrix",
            heat_map(table, names),
            "Accuracy matrix",
            f"Per cent right, {told} which experience a sample comes from. Rows are moments, columns are experiences. "
            "The outlined diagonal is right after learning: reading a column downwards from there shows what is lost.",
            len(names),
        ),
        Plot(
            "accuracy_over_time",
            over_time(table, names),
            "Accuracy over time",
            "One line per experience, from the moment it was learned; dashed, the mean of all learned by then.",
            1 if len(names) == 1 else 0,
            len(names),
        ),
    ]
    other = "" if prefix else "task_aware_"
    twin = mean_matrix(runs, other + "accuracy_matrix")
    if np.isfinite(twin).any() and not np.array_equal(twin, table, equal_nan=True):
        name = "task_aware" if other else "class_incremental"
        choice = "the classes of the sample's own experience only" if other else "all classes"
        title = f"Accuracy matrix, {name.replace('_', '-')}"
        caption = f"The same model, choosing among {choice}."
        plots.append(Plot(f"accuracy_matrix_{name}", heat_map(twin, names), title, caption, len(names)))
    return plots
