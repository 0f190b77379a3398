"""More plots of a report: samples, memory by class, confusions over time, losses as a matrix, moments inside, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from holdfast.runs.drawing import (
    DASHES,
    GRID,
    INK,
    PAPER,
    SMALL,
    all_fitted,
    fitted,
    legend_entry,
    name_ticks,
    new_axes,
    series,
)
from holdfast.runs.folder import LAST, load_arrays, load_tensors
from holdfast.runs.plots import cells, name_cells
from holdfast.runs.words import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = "samples.npz"
"""In a run folder: some test images with what was answered."""

COLUMNS, PANELS = 8, 12
"""Images in a row; confusion matrices at most."""


class Samples(NamedTuple):
    """Test images with what was answered, wrong ones first.

    Attributes:
        images: `[rows, channels, height, width]`, bytes.
        targets: `[rows]` class indices.
        answers: `[rows]` class indices.
        probabilities: `[rows]`, of the answers.
    """

    images: np.ndarray
    targets: np.ndarray
    answers: np.ndarray
    probabilities: np.ndarray


def read_samples(folder: Path) -> Samples | None:
    """The samples of a run folder; None where it has none.

    Raises:
        DataError: a damaged file.
    """
    arrays = load_arrays(folder / SAMPLES, Samples._fields)
    return None if arrays is None else Samples(*arrays)


def sample_grid(samples: Samples, classes: Sequence[str]) -> Figure:
    """The images with the answer below each; wrong ones first, with a cross and what they are.

    Args:
        samples: of a run.
        classes: names of the classes.

    Returns:
        The figure.
    """
    count, channels, height, width = samples.images.shape
    rows = -(-count // COLUMNS)
    gap, text = max(1, width // 10), max(3, round(0.42 * height))
    line, step = height + text, width + gap
    canvas = np.full((rows * line, COLUMNS * step - gap, 4), 0, dtype=np.uint8)
    figure, axes = new_axes(9.4, max(1.6, 9.4 * rows * line / (COLUMNS * step)))
    for index in range(count):
        top, left = index // COLUMNS * line, index % COLUMNS * step
        pixels = samples.images[index].transpose(1, 2, 0)
        colours = pixels if channels == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
        canvas[top : top + height, left : left + width, :3] = colours
        canvas[top : top + height, left : left + width, 3] = 255
        answer, target = (_name(classes, int(values[index])) for values in (samples.answers, samples.targets))
        wrong = samples.answers[index] != samples.targets[index]
        caption = f"✗ {fitted(answer, 10)}\nis {fitted(target, 10)}" if wrong else fitted(answer, 12)
        axes.text(
            left + width / 2 - 0.5, top + height + 0.06 * text, caption, ha="center", va="top", fontsize=SMALL,
            color=INK, style="italic" if wrong else "normal", linespacing=1.0,
        )  # fmt: skip
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    return figure


def _name(classes: Sequence[str], label: int) -> str:
    return "none" if label < 0 else classes[label] if label < len(classes) else str(label)


def memory_map(counts: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> Figure:
    """How many samples of each class the memory held after each experience.

    Args:
        counts: `[T, classes]`.
        classes: names of the classes.
        names: of the experiences.

    Returns:
        The figure, a row for each class.
    """
    table = counts.T.astype(float)
    width = min(max(4.4, 0.44 * table.shape[1] + 1.8), 10.0)
    figure, axes = new_axes(width, min(max(2.2, 0.34 * table.shape[0] + 1.0), 12.0))
    most = max(1.0, float(np.nanmax(table, initial=0.0)))
    cells(axes, table / most, lambda row, column: f"{table[row, column]:.0f}")
    name_cells(axes, classes, names, 12 * width)
    axes.set_xlabel("after learning experience")
    axes.set_ylabel("class")
    return figure


def confusions_over_time(tables: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """A confusion matrix for each moment, all with the same classes in the same order.

    Args:
        tables: name of the moment, and `[classes, classes]` samples; some of them, where there are many.

    Returns:
        The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(tables) > PANELS:
        tables = [tables[round(position)] for position in np.linspace(0, len(tables) - 1, PANELS)]
    columns = min(4, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(9.4, 2.5 * lines + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (name, counts) in enumerate(tables):
        axes = figure.add_subplot(lines, columns, position + 1)
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
        axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"after {fitted(name, 22)}", fontsize=SMALL, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(GRID)
        axes.set_facecolor("none")
    return figure


def loss_map(losses: np.ndarray, names: Sequence[str]) -> Figure:
    """The loss on each experience after each, the lower the lighter.

    Args:
        losses: `[T, T]`, NaN cells stay empty.
        names: of the experiences.

    Returns:
        The figure.
    """
    count = len(losses)
    side = min(max(4.4, 0.44 * count + 1.4), 10.0)
    figure, axes = new_axes(side, side * 0.92 if count > 1 else 2.2)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.log10(np.maximum(losses, np.nanmin(np.where(losses > 0, losses, np.nan), initial=1e12)))
    low, high = np.nanmin(scale), np.nanmax(scale)
    shades = 1 - (scale - low) / max(float(high - low), 1e-9)
    cells(axes, shades, lambda row, column: number(losses[row, column], 2))
    name_cells(axes, names, names, 12 * side)
    axes.set_xlabel("tested on experience")
    axes.set_ylabel("after learning experience")
    return figure


def inside_lines(
    parts: Mapping[int, tuple[np.ndarray, np.ndarray]], steps: Sequence[int], names: Sequence[str]
) -> Figure:
    """Accuracy on each old experience at moments inside later ones; faint upright lines part the experiences.

    Args:
        parts: experience -> steps in it `[moments]`, and accuracies on the older ones `[moments, experience]`.
        steps: of each experience.
        names: of the experiences.

    Returns:
        The figure.
    """
    from matplotlib.ticker import PercentFormatter

    figure, axes = new_axes(9.4, 3.6)
    starts = np.concatenate([[0], np.cumsum(steps)])
    colours = series(len(names))
    labelled: set[int] = set()
    for index, (moments, table) in parts.items():
        for old in range(table.shape[1]):
            style: dict[str, Any] = {"color": colours[old], "linewidth": 1.5, "linestyle": DASHES[old % len(DASHES)]}
            label = None if old in labelled else legend_entry(names[old])
            labelled.add(old)
            axes.plot(starts[index] + moments, table[:, old], marker="o", markersize=2.5, label=label, **style)
        axes.axvline(starts[index], color=GRID, linewidth=1.0, zorder=0)
    axes.set(ylim=(0, 1.02), xlim=(starts[min(parts)] - 1, starts[-1]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    middles = [(starts[index] + starts[index + 1]) / 2 for index in parts]
    if len(parts) <= 10:
        axes.set_xticks(middles, all_fitted([names[index] for index in parts], 14))
    else:
        name_ticks(axes, [names[index] for index in parts], 80, middles)
        axes.set_xticks([])
    if len(labelled) <= 8:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, frameon=False, fontsize=SMALL, labelcolor=INK,
            borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
        )  # fmt: skip
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("while learning experience")
    axes.set_ylabel("accuracy on old experiences")
    return figure


# Gates of units, for the methods that learn them -------------------------------------------------------------

GATED = ("unit_attention", "unit_importance")
"""Operations whose state has gates, mean rates and the capacity of each task."""


class Gates(NamedTuple):
    """What a method with a gate for each task and unit kept.

    Attributes:
        layers: names, in order.
        widths: units of each.
        tasks: in order.
        used: `[tasks, units of all layers]`, 1 where a task uses a unit.
        rates: the same, the mean rate at which the weights into a unit moved at the task's end; NaN where not kept.
        capacity: `[tasks]` mean rate of all weights; NaN where not kept.
    """

    layers: list[str]
    widths: list[int]
    tasks: list[int]
    used: np.ndarray
    rates: np.ndarray
    capacity: np.ndarray


def read_gates(folder: Path, method: object) -> Gates | None:
    """The gates in a run's newest checkpoint; None for a method without, and before the first task ended.

    Args:
        folder: of the run.
        method: as its configuration says it, so that no other checkpoint is opened.

    Raises:
        DataError: a damaged checkpoint.
    """
    path = folder / "checkpoints" / LAST
    if not any(name in str(method) for name in (*GATED, "hat")) or not path.is_file():
        return None
    operations = load_tensors(path)["state"]["engine"]["operations"]
    state = next((operations[name] for name in GATED if name in operations), None)
    if state is None or not any(state["masks"].values()):
        return None
    masks, rates, capacity = state["masks"], state.get("mean_rates") or {}, state.get("capacity") or {}
    layers, tasks = list(masks), list(next(iter(masks.values())))
    empty = {layer: np.full(len(masks[layer][tasks[0]]), np.nan) for layer in layers}

    def rows(values: Mapping[str, Mapping[int, Any]]) -> np.ndarray:
        return np.array(
            [
                np.concatenate([np.asarray(values.get(one, {}).get(task, empty[one])) for one in layers])
                for task in tasks
            ]
        )

    means = np.array([float(capacity.get(task, np.nan)) for task in tasks])
    return Gates(layers, [len(empty[layer]) for layer in layers], tasks, rows(masks), rows(rates), means)


def gate_map(gates: Gates, values: np.ndarray, names: Sequence[str], logarithms: bool = False) -> Figure:
    """A row for each task, a column for each unit, layer after layer: dark where the value is great.

    Args:
        gates: whose layers and tasks are named.
        values: `[tasks, units]`, 0 to 1.
        names: of the experiences.
        logarithms: whether shades go by factors of ten.

    Returns:
        The figure.
    """
    figure, axes = new_axes(9.4, min(max(1.6, 0.3 * len(values) + 0.9), 9.0))
    if logarithms:
        least = np.nanmin(np.where(values > 0, values, np.nan), initial=1.0)
        values = 1 - np.log10(np.maximum(values, least)) / min(float(np.log10(least)), -1e-9)
    axes.imshow(values, aspect="auto", cmap="cividis_r", vmin=0, vmax=1, interpolation="nearest")
    edges = np.cumsum([0, *gates.widths])
    for edge in edges[1:-1]:
        axes.axvline(edge - 0.5, color=PAPER, linewidth=1.6)
    axes.grid(visible=False)
    letters = max(4, 110 // len(gates.layers))
    axes.set_xticks((edges[1:] + edges[:-1] - 1) / 2, [fitted(layer, letters) for layer in gates.layers])
    axes.set_yticks(range(len(names)), [fitted(name, 16) for name in names])
    axes.set_xlabel("units of each layer")
    return figure


def capacity_line(capacity: np.ndarray, names: Sequence[str]) -> Figure:
    """The mean rate of all weights at the end of each task, by factors of ten where it falls below a hundredth."""
    figure, axes = new_axes(4.7, 3.2)
    axes.plot(range(len(capacity)), capacity, color=INK, linewidth=1.8, marker="o", markersize=3.6, clip_on=False)
    if np.nanmin(capacity, initial=1.0) < 0.01 and np.nanmin(capacity) > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1)
    name_ticks(axes, names, 42)
    axes.set_xlabel("after learning experience")
    axes.set_ylabel("mean rate of all weights")
    return figure
