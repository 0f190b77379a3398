"""Draws the README's picture from a run folder: the accuracy matrix of fine-tuning beside that of the run's method.

holdfast run --out /tmp/run && python docs/picture.py /tmp/run docs/images/default_run.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from holdfast.metrics import read_matrix


def panel(axes: Axes, folder: Path) -> None:
    """The matrix of one run, in per cent."""
    found = json.loads((folder / "metrics.json").read_text())
    matrix = read_matrix(folder / "accuracy_matrix.csv")
    names = json.loads((folder / "log.jsonl").read_text().splitlines()[0])["stream"]["experience_names"]
    axes.imshow(matrix, cmap=colormaps["cividis"], vmin=0, vmax=1)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            colour = "white" if value < 0.55 else "#101418"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=11)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="tested on the digits", ylabel="after learning the digits")
    axes.set_title(f"{found['method']}: {100 * found['average_accuracy']:.0f} % right at the end", fontsize=12)
    for spine in axes.spines.values():
        spine.set_visible(False)


def main(run: Path, image: Path) -> None:
    """Write `image` from `run`."""
    figure = Figure(figsize=(8.6, 4.1), dpi=110, layout="constrained", facecolor="white")
    for axes, folder in zip(figure.subplots(1, 2), (run / "references" / "finetune", run)):
        panel(axes, folder)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
