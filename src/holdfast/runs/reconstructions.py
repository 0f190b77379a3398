"""Pictures and measures of what is given back: reconstructions beside originals, slices, tables, drift of codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.inspect import eval_mode
from holdfast.runs.drawing import GRID, INK, SMALL, fitted, new_axes
from holdfast.runs.plots import cells, name_cells

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Codes = Callable[[Tensor], Tensor]


def reconstruction_pairs(
    originals: Tensor, reconstructions: Tensor, columns: int = 8, names: Sequence[str] = ()
) -> Figure:
    """Images above what a model gives back of them, side by side, in one scale.

    Args:
        originals: `[rows, channels, height, width]` or `[rows, height, width]`.
        reconstructions: of the same shape.
        columns: pairs at most; the first ones are drawn.
        names: of the pairs; their numbers without them.

    Raises:
        ConfigError: for tensors of different shapes, or of no images.
    """
    pairs = [_images(originals, reconstructions.shape), _images(reconstructions, originals.shape)]
    count = min(columns, len(pairs[0]))
    return _grid(
        [[values[column] for column in range(count)] for values in pairs],
        list(names[:count]) or [str(column) for column in range(count)],
        ["original", "given back"],
    )


def reconstructions_by_task(
    originals: Tensor, reconstructions: Sequence[Sequence[Tensor | None]], names: Sequence[str] | None = None
) -> Figure:
    """A sample of each task, and what the model gave back of it after each task.

    Args:
        originals: one of each task, `[T, channels, height, width]` or `[T, height, width]`.
        reconstructions: `[after][task]` an image, or None if there is none.
        names: of the tasks.

    Raises:
        ConfigError: for other numbers of tasks.
    """
    tasks = len(originals)
    if any(len(row) != tasks for row in reconstructions):
        raise ConfigError(f"there are {tasks} originals, and other numbers of reconstructions. Give one for each task.")
    shown = _images(originals, originals.shape)
    labels = [f"task {task}" for task in range(tasks)] if names is None else list(names)
    rows = []
    for task in range(tasks):
        after = [row[task] for row in reconstructions]
        made = [None if one is None else _images(one[None], (1, *originals.shape[1:]))[0] for one in after]
        rows.append([shown[task], *made])
    return _grid(rows, ["original", *(f"after {label}" for label in labels[: len(reconstructions)])], labels, bar=True)


def frame_map(frame: pandas.DataFrame, normalise: bool = True, xlabel: str = "", ylabel: str = "") -> Figure:
    """A heat map of a data frame of numbers, each cell with its value.

    Args:
        frame: rows and columns with their names.
        normalise: whether shades run from the smallest to the largest value; False takes them as shares, 0 to 1.
        xlabel: below the columns.
        ylabel: beside the rows.
    """
    values = frame.to_numpy(dtype=float)
    rows, columns = ([str(name) for name in axis] for axis in (frame.index, frame.columns))
    return value_map(values, rows, columns, normalise, xlabel, ylabel)


def value_map(
    values: np.ndarray, rows: list[str], columns: list[str], normalise: bool = True, xlabel: str = "", ylabel: str = ""
) -> Figure:
    """`frame_map` of an array `[rows, columns]` with the names of both."""
    shades = values
    if normalise and np.isfinite(values).any():
        low, high = np.nanmin(values), np.nanmax(values)
        shades = (values - low) / max(float(high - low), 1e-12)
    width = min(max(4.4, 0.5 * values.shape[1] + 1.8), 10.0)
    figure, axes = new_axes(width, min(max(2.2, 0.4 * values.shape[0] + 1.0), 12.0))
    cells(axes, shades, lambda row, column: f"{values[row, column]:.3g}")
    name_cells(axes, rows, columns, 12 * width)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure


def volume_slices(
    volume: Tensor, other: Tensor | None = None, axis: int = 0, slices: int = 6, colours: str = "viridis"
) -> Figure:
    """Slices through a volume, and below them those of another one (what was predicted), in one scale.

    Args:
        volume: `[depth, height, width]`.
        other: of the same shape, or None.
        axis: that is cut.
        slices: how many, evenly spread.
        colours: a colour map of matplotlib: `viridis`, `jet`, `grey`.

    Raises:
        ConfigError: for another number of axes, or volumes of different shapes.
    """
    if volume.dim() != 3 or (other is not None and other.shape != volume.shape) or not 0 <= axis < 3:
        raise ConfigError(
            f"a volume of shape {tuple(volume.shape)} cut along axis {axis}. Give [depth, height, width], of one shape."
        )
    length = volume.shape[axis]
    places = sorted({round(float(position)) for position in np.linspace(0, length - 1, min(slices, length))})
    rows = [
        [one.select(axis, position).detach().cpu().numpy() for position in places]
        for one in (volume, other)
        if one is not None
    ]
    return _grid(rows, [f"slice {position}" for position in places], ["truth", "predicted"][: len(rows)], True, colours)


def _images(values: Tensor, shape: Sequence[int]) -> np.ndarray:
    if tuple(values.shape) != tuple(shape) or values.dim() not in (3, 4):
        raise ConfigError(
            f"pictures of shape {tuple(values.shape)} beside some of {tuple(shape)}. Give images of one shape."
        )
    pictures = values.detach().float().cpu()
    if pictures.dim() == 4:
        pictures = pictures.movedim(1, 3) if pictures.shape[1] == 3 else pictures.mean(1)
    return pictures.numpy()


def _grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str],
    names: Sequence[str],
    bar: bool = False,
    colours: str = "gray",
) -> Figure:
    """Pictures in rows and columns, all in the scale of their smallest and largest value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = np.concatenate([one.ravel() for row in rows for one in row if one is not None])
    low, high = float(every.min()), float(every.max())
    figure = Figure(figsize=(1.2 * len(columns) + 1.2, 1.3 * len(rows) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    drawn: Any = None
    for line, (name, row) in enumerate(zip(names, rows)):
        for column, picture in enumerate(row):
            one = axes[line, column]
            one.set_xticks([])
            one.set_yticks([])
            one.spines[:].set_color(GRID)
            if picture is not None:
                shown = (picture - low) / max(high - low, 1e-12) if picture.ndim == 3 else picture
                drawn = one.imshow(shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            if line == 0:
                one.set_title(fitted(columns[column], 14), fontsize=SMALL, color=INK)
        axes[line, 0].set_ylabel(fitted(name, 16), fontsize=SMALL, color=INK)
    if bar and drawn is not None:
        figure.colorbar(drawn, ax=axes.ravel().tolist(), shrink=0.8)
    return figure


# Codes -------------------------------------------------------------------------------------------------------


class LatentDrift:
    """How far the mean code of each experience's data has moved since that experience was learned.

    Given to a trainer as `record=`, it looks at the end of every experience.

    Args:
        model: with `encode`, such as every autoencoder here; or what `encode` says.
        stream: whose test data (or training data, if there are none) are encoded.
        encode: from prepared inputs `[rows, ...]` to codes `[rows, ...]`; None takes `model.encode`.

    Attributes:
        means: after experience i, the mean code of experience j: `means[i][j]`, `[latent]`.

    Example:
        >>> from holdfast import Trainer, methods, models
        >>> from holdfast.streams import reconstruction
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = reconstruction(synthetic(classes=4, features=6), of={"name": "split", "experiences": 2})
        >>> model = models.autoencoder(input_shape=(6,), classes=6, hidden=[8], latent=2, seed=0)
        >>> drift = LatentDrift(model, stream)
        >>> events = Trainer(methods.finetune(), criterion=nn.functional.mse_loss, record=drift).fit(model, stream)
        >>> drift.matrix().shape, bool(drift.matrix()[1, 0] > 0)
        ((2, 2), True)
    """

    def __init__(self, model: nn.Module, stream: Stream, encode: Codes | None = None) -> None:
        encoder = getattr(model, "encode", None) if encode is None else encode
        if encoder is None:
            raise ConfigError(f"{type(model).__name__} has no `encode`. Give encode=, from inputs to codes.")
        self.model, self.stream, self.encode = model, stream, encoder
        self.means: list[list[Tensor]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Look, if an event says that an experience ended."""
        if event.get("event") == "experience":
            self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Encode the data of every experience with the model as it is."""
        row = []
        first = next(self.model.parameters())
        with eval_mode(self.model):
            for experience in self.stream:
                total, count = torch.zeros(()), 0
                for batch in experience.train if experience.test is None else experience.test:
                    inputs: Any = batch.inputs
                    if self.stream.prepare is not None:
                        inputs = self.stream.prepare(inputs, False, None)
                    codes = self.encode(inputs.to(first.device))
                    codes = (codes[0] if isinstance(codes, tuple) else codes).flatten(1).float().cpu()  # a mean first
                    total, count = total + codes.sum(0), count + len(codes)
                row.append(total / max(1, count))
        self.means.append(row)

    def matrix(self) -> np.ndarray:
        """Mean squared difference of mean codes, `D[i, j]`: after experience i, of j since it was learned.

        NaN where j was not learned yet.
        """
        count = len(self.means)
        drift = np.full((count, count), np.nan)
        for after in range(count):
            for one in range(after + 1):
                drift[after, one] = float((self.means[after][one] - self.means[one][one]).square().mean())
        return drift
