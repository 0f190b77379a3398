"""More plots of a report: samples, memory by class, confusions over time, losses as a matrix, moments inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from holdfast.core.errors import DataError
from holdfast.runs.drawing import (
    DASHES,
    GRID,
    INK,
    SMALL,
    all_fitted,
    fitted,
    legend_entry,
    name_ticks,
    new_axes,
    series,
)
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
    path = folder / SAMPLES
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Samples(*(file[name] for name in ("images", "targets", "answers", "probabilities")))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}. Remove it, and make the report again.") from error


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
    for place in range(count):
        top, left = place // COLUMNS * line, place % COLUMNS * step
        pixels = samples.images[place].transpose(1, 2, 0)
        colours = pixels if channels == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
        canvas[top : top + height, left : left + width, :3] = colours
        canvas[top : top + height, left : left + width, 3] = 255
        answer, target = (_name(classes, int(values[place])) for values in (samples.answers, samples.targets))
        wrong = samples.answers[place] != samples.targets[place]
        said = f"✗ {fitted(answer, 10)}\nis {fitted(target, 10)}" if wrong else fitted(answer, 12)
        axes.text(
            left + width / 2 - 0.5, top + height + 0.06 * text, said, ha="center", va="top", fontsize=SMALL,
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
        tables = [tables[round(place)] for place in np.linspace(0, len(tables) - 1, PANELS)]
    columns = min(4, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(9.4, 2.5 * lines + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, counts) in enumerate(tables):
        axes = figure.add_subplot(lines, columns, place + 1)
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
    known: set[int] = set()
    for index, (moments, table) in parts.items():
        for old in range(table.shape[1]):
            style: dict[str, Any] = {"color": colours[old], "linewidth": 1.5, "linestyle": DASHES[old % len(DASHES)]}
            label = None if old in known else legend_entry(names[old])
            known.add(old)
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
    if len(known) <= 8:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, frameon=False, fontsize=SMALL, labelcolor=INK,
            borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
        )  # fmt: skip
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("while learning experience")
    axes.set_ylabel("accuracy on old experiences")
    return figure
