"""The plots of a report as matplotlib figures, made without pyplot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.metrics.continual import accuracy_so_far
from holdfast.runs.drawing import (
    ACCENT,
    DASHES,
    GRID,
    INK,
    MOST_NUMBERS,
    MUTED,
    PAPER,
    QUALITATIVE,
    SMALL,
    all_fitted,
    apart,
    cell_text,
    fitted,
    legend_above,
    legend_entry,
    name_ticks,
    new_axes,
    number_size,
    series,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """The accuracy matrix with its numbers in per cent; the diagonal is right after learning.

    Args:
        matrix: `[T, T]` accuracies, NaN cells stay empty.
        names: of the experiences.

    Returns:
        The figure.
    """
    from matplotlib.patches import Rectangle

    count = len(matrix)
    side = min(max(4.4, 0.44 * count + 1.4), 10.0)
    figure, axes = new_axes(side, side * 0.92 if count > 1 else 2.2)
    cells(axes, matrix, lambda row, column: cell_text(matrix[row, column], count))
    if count <= MOST_NUMBERS:
        for index in np.flatnonzero(np.isfinite(np.diagonal(matrix))):
            corner = (index - 0.46, index - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="#ffffff", linewidth=1.1))
    name_cells(axes, names, names, 12 * side)
    axes.set_xlabel("tested on experience")
    axes.set_ylabel("after learning experience")
    return figure


def so_far(tables: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Mean accuracy on what was learned so far, the method's line beside those of its references.

    Args:
        tables: `[T, T]` accuracies by method, the method itself first.
        names: of the experiences.

    Returns:
        The figure.
    """
    from matplotlib.ticker import PercentFormatter

    figure, axes = new_axes(4.7, 3.75)
    for index, (name, matrix) in enumerate(tables.items()):
        values = accuracy_so_far(matrix)
        moments = np.flatnonzero(np.isfinite(values))
        style: dict[str, Any] = {"color": INK, "linewidth": 2.2}
        if index:
            dashes = DASHES[index % len(DASHES)]
            style = {"color": QUALITATIVE[(index - 1) % len(QUALITATIVE)], "linewidth": 1.5, "linestyle": dashes}
        marker = "o" if len(moments) < 2 else None  # joint training was measured once
        axes.plot(moments, values[moments], label=legend_entry(name), marker=marker, clip_on=False, **style)
    axes.set(xlim=(-0.15, max(len(names) - 1, 1) * 1.02), ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    legend_above(axes)
    name_ticks(axes, names, 42)
    axes.set_xlabel("after learning experience")
    axes.set_ylabel("accuracy on what was learned")
    return figure


def recall_map(recalls: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> Figure:
    """Recall of each class after each experience: which class was forgotten when.

    Args:
        recalls: `[T, classes]`, NaN cells stay empty.
        classes: names of the classes.
        names: of the experiences.

    Returns:
        The figure, a row for each class.
    """
    table = recalls.T
    rows, columns = table.shape
    width = min(max(4.4, 0.44 * columns + 1.8), 10.0)
    figure, axes = new_axes(width, min(max(2.2, 0.34 * rows + 1.0), 12.0))
    cells(axes, table, lambda row, column: cell_text(table[row, column], max(rows, columns, 7)))
    name_cells(axes, classes, names, 12 * width)
    axes.set_xlabel("after learning experience")
    axes.set_ylabel("class")
    return figure


def confusion_map(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """What each class is taken for: each row a true class, each column an answer, coloured by the share of the row.

    Args:
        counts: `[classes, classes]` samples.
        classes: names of the classes.

    Returns:
        The figure.
    """
    count = len(counts)
    side = min(max(4.4, 0.4 * count + 1.6), 10.0)
    figure, axes = new_axes(side, side * 0.92 if count > 1 else 2.2)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    cells(axes, shares, lambda row, column: str(int(counts[row, column])) if counts[row, column] else "")
    name_cells(axes, classes, classes, 12 * side)
    axes.set_xlabel("answered")
    axes.set_ylabel("class of the sample")
    return figure


def cells(axes: Axes, values: np.ndarray, text: Callable[[int, int], str]) -> None:
    """A table of shares from 0 to 1 as coloured cells with their text, or as a picture where it is too large."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    rows, columns = values.shape
    colours = colormaps["cividis"]
    if max(rows, columns) > MOST_NUMBERS:
        axes.imshow(values, cmap=colours, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    else:
        for (row, column), value in np.ndenumerate(values):
            is_number = bool(np.isfinite(value))
            fill = to_hex(colours(float(np.clip(value, 0, 1)))) if is_number else GRID
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(
                Rectangle(
                    corner, 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=1.6, alpha=1.0 if is_number else 0.35
                )
            )
            if is_number:
                ink, size = "#ffffff" if value < 0.55 else "#101418", number_size(max(rows, columns))
                axes.text(column, row, text(row, column), color=ink, ha="center", va="center", fontsize=size)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def name_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str], letters: float) -> None:
    """Names along the rows and the columns of a table, as many as fit into so many letters."""
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    name_ticks(axes, columns, letters)
    step = max(1, -(-len(rows) // 25))
    axes.set_yticks(range(0, len(rows), step), all_fitted(rows[::step], 16 if len(rows) <= 3 else 10))


def over_time(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Accuracy on each experience from the moment it was learned, and the mean of what was learned so far."""
    from matplotlib.ticker import PercentFormatter

    count = len(matrix)
    figure, axes = new_axes(4.7, 3.75)
    colours, ends, short = series(count), [], all_fitted(names, 12)
    for index in range(count):
        values = np.where(np.arange(count) >= index, matrix[:, index], np.nan)
        measured = np.flatnonzero(np.isfinite(values))
        if measured.size:
            axes.plot(
                measured,
                values[measured],
                color=colours[index],
                linewidth=1.8,
                marker="o",
                markersize=3.6,
                clip_on=False,
            )
            ends.append((float(values[measured[-1]]), int(measured[-1]), short[index], colours[index]))
    so_far = accuracy_so_far(matrix)
    measured = np.flatnonzero(np.isfinite(so_far))
    if measured.size and count > 1:
        axes.plot(measured, so_far[measured], color=INK, linewidth=1.4, linestyle=(0, (4, 2)), label="mean so far")
        axes.legend(loc="lower left", frameon=False, fontsize=SMALL, labelcolor=INK)
    axes.set(xlim=(-0.15, max(count - 1, 1) * 1.0), ylim=(0, 1))
    if len(ends) > 12:
        ends = [ends[0], ends[len(ends) // 2], ends[-1]]
    heights = apart([end[0] for end in ends], 0.06)
    for (_, last, name, colour), height in zip(sorted(ends, key=lambda end: end[0]), heights):
        axes.annotate(
            name, (last, height), (7, 0), textcoords="offset points", color=colour, fontsize=SMALL, va="center",
            annotation_clip=False,
        )  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    name_ticks(axes, names, 42)
    axes.set_xlabel("after learning experience")
    axes.set_ylabel("accuracy on that experience")
    return figure


def loss_terms(curves: dict[str, Any]) -> Figure:
    """Each term of the training loss over the steps; faint upright lines part the experiences.

    Args:
        curves: as `metrics.curves` gives them.

    Returns:
        The figure; its scale is logarithmic where terms differ more than fiftyfold.
    """
    figure, axes = new_axes(4.7, 3.75)
    steps = np.array([np.nan if step is None else step for step in curves["step"]], dtype=np.float64)
    sizes = []
    for index, (name, values) in enumerate(curves["terms"].items()):
        heights = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        sizes.append(float(np.median(heights[heights > 0])) if (heights > 0).any() else np.nan)
        axes.plot(
            steps, heights, color=QUALITATIVE[index % len(QUALITATIVE)], linewidth=1.5, label=legend_entry(name),
            linestyle=DASHES[(index // len(QUALITATIVE)) % len(DASHES)],
        )  # fmt: skip
    _part_experiences(axes, steps, curves["experience"])
    finite = [size for size in sizes if np.isfinite(size)]
    if len(finite) > 1 and max(finite) > 50 * min(finite):
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(visible=False, axis="x")
    legend_above(axes)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("optimisation step")
    axes.set_ylabel("loss")
    return figure


def learning_rate(curves: dict[str, Any]) -> Figure:
    """The learning rate over the steps; faint upright lines part the experiences.

    Args:
        curves: as `metrics.curves` gives them.

    Returns:
        The figure; its scale is logarithmic where the rate falls more than fiftyfold.
    """
    figure, axes = new_axes(4.7, 3.75)
    steps, rates = (
        np.array([np.nan if value is None else value for value in curves[key]], dtype=np.float64)
        for key in ("step", "lr")
    )
    axes.plot(steps, rates, color=QUALITATIVE[0], linewidth=1.5)
    _part_experiences(axes, steps, curves["experience"])
    above = rates[rates > 0]
    if above.size and above.max() > 50 * above.min():
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_ylim(bottom=0.0)
    axes.grid(visible=False, axis="x")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("optimisation step")
    axes.set_ylabel("learning rate")
    return figure


def _part_experiences(axes: Axes, steps: np.ndarray, experiences: Sequence[int]) -> None:
    for index in range(1, len(experiences)):
        if experiences[index] != experiences[index - 1]:
            axes.axvline((steps[index] + steps[index - 1]) / 2, color=GRID, linewidth=1.0, zorder=0)


def class_bars(classes: Sequence[tuple[str, float]]) -> Figure:
    """Recall of each class at the end.

    Args:
        classes: name and recall (0..1), at most about a hundred.

    Returns:
        The figure.
    """
    from matplotlib.ticker import PercentFormatter

    count = len(classes)
    figure, axes = new_axes(max(4.7, 0.24 * count), 3.75)
    axes.bar(range(count), [recall for _, recall in classes], color=ACCENT, width=0.72)
    for index, (_, recall) in enumerate(classes):
        if count <= 20:
            axes.text(index, recall + 0.015, f"{100 * recall:.0f}", ha="center", fontsize=SMALL, color=MUTED)
    names = [fitted(name, 16) for name, _ in classes]
    axes.set_xticks(range(count), names, rotation=90 if sum(map(len, names)) > 60 else 0)
    axes.set(ylim=(0, 1.06), xlim=(-0.7, count - 0.3))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("class")
    axes.set_ylabel("recall at the end")
    return figure
