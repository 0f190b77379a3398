"""How the figures of a report are drawn: house style, text that fits, and their PNG and inline SVG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, ACCENT = "#1b2330", "#5d6877", "#dfe4ea", "#fdfdfe", "#0f6e84"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", ACCENT: "accent"}
QUALITATIVE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
FONT, SMALL = 10.0, 8.5
MOST_NUMBERS = 40
LAYOUT: Any = "constrained"
BOUNDS: Any = "tight"
"""How figures make room for their text: most of what a figure costs. None leaves it out, where nobody will look."""


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on its light paper, 160 dots per inch."""
    buffer = io.BytesIO()
    with _quietly():
        figure.savefig(buffer, format="png", dpi=160, facecolor=PAPER, bbox_inches=BOUNDS, pad_inches=0.12)
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
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches=BOUNDS, pad_inches=0.06)
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


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one axes in house style, outside any global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=LAYOUT)
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


def name_ticks(axes: Axes, names: Sequence[str], letters: float, at: Sequence[float] | None = None) -> None:
    """Names along the x axis, as many as fit into so many letters; at 0, 1, 2, ... or where `at` says."""
    short = all_fitted(names, min(24, max(10, int(letters / max(1, len(names))) - 2)))
    step = max(1, math.ceil(len(names) * (max(map(len, short), default=0) + 1) / letters))
    axes.set_xticks((range(len(names)) if at is None else at)[::step], short[::step])


def apart(heights: list[float], gap: float) -> list[float]:
    """The heights in ascending order, moved as little as this simple way can so that neighbours are `gap` apart."""
    placed = sorted(heights)
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + gap)
    limit = 1.02
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def cell_text(value: float, count: int) -> str:
    """A share as per cent, with a decimal where there are few cells."""
    return f"{100 * value:.1f}" if count <= 12 else f"{100 * value:.0f}"


def number_size(count: int) -> float:
    """The size of the letters in so many rows or columns of cells."""
    return FONT if count <= 6 else SMALL if count <= 12 else 7.0


def fitted(name: str, limit: int) -> str:
    """A name as matplotlib shows it: shortened, and never taken for mathematics."""
    short = name if len(name) <= limit else name[: limit - 1] + "…"
    return short.replace("$", r"\$")


def all_fitted(names: Sequence[str], limit: int) -> list[str]:
    """Names as matplotlib shows them: where shortening makes two alike, each keeps its end too.

    Example:
        >>> all_fitted(["permutation 1", "permutation 19"], 10)
        ['permuta… 1', 'permuta…19']
    """
    short = [fitted(name, limit) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    ends = [name if len(name) <= limit else f"{name[: limit - 3]}…{name[-2:]}" for name in names]
    return [name.replace("$", r"\$") for name in ends]


def legend_entry(name: str) -> str:
    """A legend entry (matplotlib hides those that begin with an underscore)."""
    return fitted("\u200b" + name if name.startswith("_") else name, 24)


def legend_above(axes: Axes, most: int = 3, letters: int = 56) -> None:
    """A legend over the axes, in as many columns as there is room for: a wide one would leave none to the axes.

    Args:
        axes: whose lines have labels.
        most: columns.
        letters: that fit beside one another.
    """
    labels = axes.get_legend_handles_labels()[1]
    columns = next((n for n in range(most, 1, -1) if _width(labels, n) <= letters), 1)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK,
        borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def _width(labels: Sequence[str], columns: int) -> int:
    """Letters of a legend's longest row: matplotlib fills one column after the other."""
    rows, longer = divmod(len(labels), columns)
    ends = [sum(rows + (column < longer) for column in range(n + 1)) for n in range(columns)]
    parts = [labels[end - rows - (n < longer) : end] for n, end in enumerate(ends)]
    return sum(max(map(len, part)) + 5 for part in parts if part)
