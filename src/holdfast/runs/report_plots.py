"""The plots of a report as matplotlib figures, made without pyplot, and their PNG and inline SVG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.metrics.continual import accuracy_so_far

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, ACCENT = "#1b2330", "#5d6877", "#dfe4ea", "#fdfdfe", "#0f6e84"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", ACCENT: "accent"}
QUALITATIVE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
FONT, SMALL = 10.0, 8.5
MOST_NUMBERS = 40


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """The accuracy matrix with its numbers in per cent; the diagonal is right after learning.

    Args:
        matrix: `[T, T]` accuracies, NaN cells stay empty.
        names: of the experiences.

    Returns:
        The figure.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    count = len(matrix)
    side = min(max(4.4, 0.44 * count + 1.4), 10.0)
    figure, axes = _axes(side, side * 0.92 if count > 1 else 2.2)
    colours = colormaps["cividis"]
    if count > MOST_NUMBERS:
        axes.imshow(matrix, cmap=colours, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    else:
        for (row, column), value in np.ndenumerate(matrix):
            known = bool(np.isfinite(value))
            fill = to_hex(colours(float(np.clip(value, 0, 1)))) if known else GRID
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(
                Rectangle(corner, 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=1.6, alpha=1.0 if known else 0.35)
            )
            if not known:
                continue
            ink = "#ffffff" if value < 0.55 else "#101418"
            axes.text(column, row, _cell(value, count), color=ink, ha="center", va="center", fontsize=_number(count))
            if row == column:
                corner = (column - 0.46, row - 0.46)
                axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="#ffffff", linewidth=1.1))
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _name_ticks(axes, names, 12 * side)
    step = max(1, -(-count // 25))
    axes.set_yticks(range(0, count, step), [_text(name, 10) for name in names[::step]])
    axes.set_xlabel("tested on experience")
    axes.set_ylabel("after learning experience")
    return figure


def over_time(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Accuracy on each experience from the moment it was learned, and the mean of what was learned so far."""
    from matplotlib.ticker import PercentFormatter

    count = len(matrix)
    figure, axes = _axes(4.7, 3.75)
    colours, ends = series(count), []
    for index in range(count):
        values = np.where(np.arange(count) >= index, matrix[:, index], np.nan)
        known = np.flatnonzero(np.isfinite(values))
        if known.size:
            axes.plot(
                known, values[known], color=colours[index], linewidth=1.8, marker="o", markersize=3.6, clip_on=False
            )
            ends.append((float(values[known[-1]]), int(known[-1]), _text(names[index], 12), colours[index]))
    so_far = accuracy_so_far(matrix)
    known = np.flatnonzero(np.isfinite(so_far))
    if known.size and count > 1:
        axes.plot(known, so_far[known], color=INK, linewidth=1.4, linestyle=(0, (4, 2)), label="mean so far")
        axes.legend(loc="lower left", frameon=False, fontsize=SMALL, labelcolor=INK)
    axes.set(xlim=(-0.15, max(count - 1, 1) * 1.0), ylim=(0, 1))
    if len(ends) > 12:
        ends = [ends[0], ends[len(ends) // 2], ends[-1]]
    heights = _apart([end[0] for end in ends], 0.06)
    for (_, last, name, colour), height in zip(sorted(ends, key=lambda end: end[0]), heights):
        axes.annotate(
            name, (last, height), (7, 0), textcoords="offset points", color=colour, fontsize=SMALL, va="center",
            annotation_clip=False,
        )  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _name_ticks(axes, names, 42)
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
    figure, axes = _axes(4.7, 3.75)
    steps = np.array([np.nan if step is None else step for step in curves["step"]], dtype=np.float64)
    sizes = []
    for index, (name, values) in enumerate(curves["terms"].items()):
        heights = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        sizes.append(float(np.median(heights[heights > 0])) if (heights > 0).any() else np.nan)
        axes.plot(
            steps, heights, color=QUALITATIVE[index % len(QUALITATIVE)], linewidth=1.5, label=_label(name),
            linestyle=DASHES[(index // len(QUALITATIVE)) % len(DASHES)],
        )  # fmt: skip
    _part_experiences(axes, steps, curves["experience"])
    known = [size for size in sizes if np.isfinite(size)]
    if len(known) > 1 and max(known) > 50 * min(known):
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(visible=False, axis="x")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=SMALL, labelcolor=INK,
        borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip
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
    figure, axes = _axes(4.7, 3.75)
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
    figure, axes = _axes(max(4.7, 0.24 * count), 3.75)
    axes.bar(range(count), [recall for _, recall in classes], color=ACCENT, width=0.72)
    for index, (_, recall) in enumerate(classes):
        if count <= 20:
            axes.text(index, recall + 0.015, f"{100 * recall:.0f}", ha="center", fontsize=SMALL, color=MUTED)
    names = [_text(name, 16) for name, _ in classes]
    axes.set_xticks(range(count), names, rotation=90 if sum(map(len, names)) > 60 else 0)
    axes.set(ylim=(0, 1.06), xlim=(-0.7, count - 0.3))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("class")
    axes.set_ylabel("recall at the end")
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on its light paper, 160 dots per inch."""
    buffer = io.BytesIO()
    with _quietly():
        figure.savefig(buffer, format="png", dpi=160, facecolor=PAPER, bbox_inches="tight", pad_inches=0.12)
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, count: int = 0) -> str:
    """The figure as an `<svg>` element for the page, in the page's colours and free of outside references.

    Args:
        figure: made by one of the functions above.
        name: keeps the ids inside apart from those of other figures on the page.
        count: how many series colours to hand over to the page's `--s0`, `--s1`, ...

    Returns:
        The element, without XML prologue, metadata or namespaces.
    """
    buffer = io.StringIO()
    with _quietly({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.06)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text, count=2).replace("xlink:href", "href")
    text = re.sub(
        r'^<svg width="([\d.]+)pt" height="[\d.]+pt"', r'<svg style="--width: \1px" role="img"', text, count=1
    )
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"(font: [^;\"']*)'[^;\"]*", r"\1sans-serif", text)
    text = re.sub(r">\s+<", "><", text).replace("\n", " ")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    for index, colour in enumerate(series(count)):
        text = text.replace(colour, f"var(--s{index})")
    return text


def series(count: int, dark: bool = False) -> list[str]:
    """Ordered colours for `count` experiences, dark to light, legible on light (or dark) paper."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    low, high = (0.32, 1.0) if dark else (0.0, 0.78)
    return [to_hex(colormaps["viridis"](low + (high - low) * index / max(count - 1, 1))) for index in range(count)]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one axes in house style, outside any global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=SMALL, length=0, pad=5)
    axes.xaxis.label.set(color=INK, fontsize=FONT)
    axes.yaxis.label.set(color=INK, fontsize=FONT)
    axes.xaxis.labelpad = axes.yaxis.labelpad = 7
    return figure, axes


@contextmanager
def _quietly(settings: Any = None) -> Iterator[None]:
    """Matplotlib's settings for one save, without complaints about letters its font lacks."""
    from matplotlib import rc_context

    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _name_ticks(axes: Axes, names: Sequence[str], letters: float) -> None:
    """Names along the x axis, as many as fit into so many letters."""
    short = [_text(name, 10) for name in names]
    step = max(1, math.ceil(len(names) * (max(map(len, short), default=0) + 1) / letters))
    axes.set_xticks(range(0, len(names), step), short[::step])


def _apart(heights: list[float], gap: float) -> list[float]:
    """The heights in ascending order, moved as little as this simple way can so that neighbours are `gap` apart."""
    placed = sorted(heights)
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + gap)
    limit = 1.02
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _cell(value: float, count: int) -> str:
    return f"{100 * value:.1f}" if count <= 12 else f"{100 * value:.0f}"


def _number(count: int) -> float:
    return FONT if count <= 6 else SMALL if count <= 12 else 7.0


def _text(name: str, limit: int) -> str:
    """A name as matplotlib shows it: shortened, and never taken for mathematics."""
    short = name if len(name) <= limit else name[: limit - 1] + "…"
    return short.replace("$", r"\$")


def _label(name: str) -> str:
    """A legend entry (matplotlib hides those that begin with an underscore)."""
    return _text("\u200b" + name if name.startswith("_") else name, 24)
