"""What a run's model gave back of its data after each experience: kept in the run folder, shown by its report."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.experience import Stream
from holdfast.core.inspect import eval_mode
from holdfast.metrics.log import replace_file
from holdfast.runs.folder import load_arrays
from holdfast.runs.pictures import loss_map
from holdfast.runs.reconstructions import (
    LatentDrift,
    reconstruction_pairs,
    reconstructions_by_task,
    value_map,
    volume_slices,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECONSTRUCTIONS = "reconstructions.npz"
"""In a run folder: some samples of the experiences, and what the model gave back of them after each."""

MOST_TASKS, SHOWN, MOST_FEATURES = 8, 8, 40
"""Experiences of which samples are kept, samples of each, and numbers of a sample that have a column, at most."""

MOST_VALUES = 2**24
"""Numbers of the samples given back after each experience, at most; nothing is kept of larger ones."""


class GivenBack(NamedTuple):
    """What a run's model gave back of some samples of some experiences after each of these.

    Attributes:
        chosen: `[K]` experiences.
        originals: `[K, samples, ...]`, as the model gets them.
        after: `[K, K, samples, ...]` what was given back after an experience of another; NaN before both were learned.
        codes: `[T, T, latent]` mean code of each experience's data after each; NaN before both, empty without codes.
    """

    chosen: np.ndarray
    originals: np.ndarray
    after: np.ndarray
    codes: np.ndarray


class Keeper:
    """Writes `reconstructions.npz` into a run folder at the end of every experience, where targets are like inputs.

    It draws no random number that the training would miss, and is asked before the event is written.

    Args:
        folder: of the run.
        model: that is trained.
        stream: that it learns.
    """

    def __init__(self, folder: Path, model: nn.Module, stream: Stream) -> None:
        self.folder, self.model, self.stream = folder, model, stream
        self._codes = LatentDrift(model, stream) if hasattr(model, "encode") else None
        count = min(MOST_TASKS, len(stream))
        self._chosen = sorted({round(float(one)) for one in np.linspace(0, len(stream) - 1, count)})
        self._shown = max(1, min(SHOWN, MOST_VALUES // (count**2 * math.prod(stream.input_shape))))

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Look, if an event says that an experience ended."""
        if event.get("event") == "experience":
            with torch.random.fork_rng(devices=[]), torch.no_grad(), eval_mode(self.model):
                self._look(int(event["experience"]))

    def _look(self, experience: int) -> None:
        kept = read_given_back(self.folder)
        place = self._chosen.index(experience) if experience in self._chosen else None
        if kept is None:
            shown = [self._samples(one)[1].numpy() for one in self._chosen]
            count = min(len(one) for one in shown)
            originals = np.stack([one[:count] for one in shown])
            kept = GivenBack(
                np.array(self._chosen), originals, np.full((len(shown), *originals.shape), np.nan, np.float32),
                np.empty(0, np.float32),
            )  # fmt: skip
        after, codes = kept.after, kept.codes
        for column, one in enumerate(self._chosen[: place + 1] if place is not None else ()):
            inputs = self._samples(one)[0][: after.shape[2]]
            answer: Any = self.model(inputs.to(next(self.model.parameters()).device))
            after[place, column] = answer.float().cpu().numpy()
        if self._codes is not None:
            self._codes.look()
            row = torch.stack(self._codes.means.pop()).numpy()
            codes = codes if codes.size else np.full((len(self.stream), *row.shape), np.nan, np.float32)
            codes[experience, : experience + 1] = row[: experience + 1]
        content = io.BytesIO()
        np.savez_compressed(content, **kept._replace(codes=codes)._asdict())  # type: ignore[arg-type]
        replace_file(self.folder / RECONSTRUCTIONS, content.getvalue())

    def _samples(self, number: int) -> tuple[Tensor, Tensor]:
        """Prepared inputs and targets of some samples of an experience."""
        one = self.stream[number]
        data = one.train if one.test is None or not len(one.test) else one.test
        batch = data.gather(torch.linspace(0, len(data) - 1, min(len(data), self._shown)).long())
        inputs: Any = batch.inputs
        prepared = inputs if self.stream.prepare is None else self.stream.prepare(inputs, False, None)
        return prepared, batch.targets.float()


def keeping(
    record: Callable[[dict[str, Any]], None], folder: Path, model: nn.Module, stream: Stream
) -> Callable[[dict[str, Any]], None]:
    """`record`, with a `Keeper` asked before it where targets are like inputs; else `record` itself."""
    shape = tuple(stream.input_shape)
    with torch.random.fork_rng(devices=[]):
        batch = stream[0].train.gather(torch.zeros(1, dtype=torch.int64)) if len(stream) else None
    alike = batch is not None and batch.targets.is_floating_point() and tuple(batch.targets.shape[1:]) == shape
    large = math.prod(shape) * min(MOST_TASKS, len(stream)) ** 2 > MOST_VALUES
    if not alike or large or math.prod(shape) < 2 or any(not len(one.train) for one in stream):
        return record
    keep = Keeper(folder, model, stream)

    def both(event: dict[str, Any]) -> None:
        keep(event)
        record(event)

    return both


def read_given_back(folder: Path) -> GivenBack | None:
    """What a run folder has of it; None where it has none.

    Raises:
        DataError: a damaged file.
    """
    arrays = load_arrays(folder / RECONSTRUCTIONS, GivenBack._fields)
    return None if arrays is None else GivenBack(*arrays)


def pictures_of(kept: GivenBack, names: Sequence[str]) -> Iterator[tuple[str, Figure, str, str]]:
    """Name, figure, title and caption of each picture that a report shows of what was given back.

    Args:
        kept: of a run.
        names: of its experiences.
    """
    chosen = [names[one] for one in kept.chosen.tolist()]
    learned = np.isfinite(kept.after).reshape(*kept.after.shape[:2], -1).all(-1)
    if learned.any():
        last = int(learned.any(1).nonzero()[0].max())
        tasks = learned[last].nonzero()[0].tolist()
        yield from _given_back(kept, last, tasks, learned, chosen)
    means = kept.codes
    if means.size and len(means) > 1:
        gap = np.square(means - np.einsum("jjl->jl", means)[None]).mean(-1)
        if np.isfinite(gap).any():
            caption = (
                "How far the mean code of each experience (columns) has moved since it was learned, after each (rows)."
            )
            figure = loss_map(gap, names)
            figure.axes[0].set_xlabel("codes of experience")
            yield "latent_drift", figure, "Drift of codes", caption


def _given_back(
    kept: GivenBack, last: int, tasks: list[int], learned: np.ndarray, names: list[str]
) -> Iterator[tuple[str, Figure, str, str]]:
    """Pictures of images, volumes, or rows of numbers."""
    originals, after = torch.from_numpy(kept.originals), torch.from_numpy(kept.after)
    shape = originals.shape[2:]
    moment = f"after {names[last]}"
    volume = len(shape) == 4 and shape[0] == 1
    if len(shape) == 3 and shape[0] in (1, 3):
        each = max(1, 8 // len(tasks))
        above, below = (values[tasks, :each].flatten(0, 1) for values in (originals, after[last]))
        caption = f"Test samples of the experiences, {each} of each, and what the model gives back of them {moment}."
        figure = reconstruction_pairs(above, below, names=[names[one] for one in tasks for _ in range(each)])
        yield "reconstructions", figure, "Reconstructions", caption
        if len(names) > 1:
            rows = [[after[row, one, 0] if learned[row, one] else None for one in tasks] for row in range(last + 1)]
            caption = "One sample of each experience (rows), and what the model gave back of it after each (columns)."
            figure = reconstructions_by_task(originals[tasks, 0], rows, [names[one] for one in tasks])
            yield "reconstructions_over_time", figure, "Reconstructions over time", caption
    elif volume:
        caption = f"Slices of a sample of {names[tasks[0]]}, and of what the model gives back of it {moment}."
        figure = volume_slices(originals[tasks[0], 0, 0], after[last, tasks[0], 0, 0])
        yield "slices", figure, "Slices", caption
    else:
        error = (originals[tasks] - after[last, tasks]).abs().mean(1).reshape(len(tasks), -1, shape[-1]).mean(1)
        if error.shape[1] <= MOST_FEATURES:
            caption = f"Mean error of each number (columns) of the samples of each experience (rows), {moment}."
            columns = [str(one) for one in range(error.shape[1])]
            yield (
                "errors_by_number",
                value_map(error.numpy(), [names[one] for one in tasks], columns),
                "Errors",
                caption,
            )
