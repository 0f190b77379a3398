"""What a run's model gave back of its data after each experience, or stretch of a source: kept, and drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.experience import Data, Stream
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
from holdfast.training.observations import Observations

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

    Of a source, the stretches of the stream are its experiences, and `chosen` says how many looks were before each.
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
        _write(self.folder, kept._replace(codes=codes))

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


class StretchKeeper:
    """Writes `reconstructions.npz` whenever a stretch of a source has ended, where targets are like inputs.

    What it asks of is the first rows that were held out of each stretch when that ended; where two stretches become
    one, those of the first. See `holdfast.training.observations.Observations`.

    Args:
        folder: of the run.
        model: that is trained.
        record: what gets each event afterwards.
        prepare: turns raw inputs into the model's; None where they are.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        record: Callable[[dict[str, Any]], None],
        prepare: Callable[..., Any] | None = None,
    ) -> None:
        self.folder, self.model, self.record, self.prepare = folder, model, record, prepare
        self.stretches: Callable[[], list[Data]] = list

    def watch(self, observations: object) -> None:
        """Say, before the training, who has the rows held out of each stretch."""
        if isinstance(observations, Observations):
            self.stretches = observations.stretches

    def __call__(self, event: dict[str, Any]) -> None:
        """Look, if an event says that a stretch ended, and pass the event on."""
        if event.get("event") == "stretches":
            with torch.random.fork_rng(devices=[]), torch.no_grad(), eval_mode(self.model):
                self._look(int(event["looks"]), self.stretches())
        self.record(event)

    def _look(self, looks: int, stretches: list[Data]) -> None:
        if not stretches or not len(stretches[-1]):
            return
        batch = stretches[-1].gather(torch.zeros(1, dtype=torch.int64))
        if not isinstance(batch.inputs, Tensor) or not batch.targets.is_floating_point():
            return
        shape, row = tuple(batch.inputs.shape[1:]), len(stretches) - 1
        numbers = math.prod(shape)
        if tuple(batch.targets.shape[1:]) != shape or not 2 <= numbers <= MOST_VALUES // (MOST_TASKS + 1) ** 2:
            return
        kept = read_given_back(self.folder)
        if kept is None:
            shown = max(1, min(SHOWN, MOST_VALUES // ((MOST_TASKS + 1) ** 2 * numbers)))
            nothing = np.empty((0, shown, *shape), np.float32)
            kept = GivenBack(np.empty(0, np.int64), nothing, nothing[None][:0], np.empty((0, 0, 0), np.float32))
        while len(kept.chosen) > 1 and int(kept.chosen[1]) < looks:
            kept = _halved(kept)
        if len(kept.chosen) > 1 and int(kept.chosen[1]) > looks:
            return  # the file is ahead of the checkpoint from which the run goes on
        count = max(row + 1, len(kept.chosen))
        originals, after = kept.originals, kept.after
        originals = _grown(originals, (count, *originals.shape[1:]))
        after = _grown(after, (count, count, *after.shape[2:]))
        if len(stretches[row]):
            data, shown = stretches[row], originals.shape[1]
            inputs: Any = data.gather(torch.arange(shown) % len(data)).inputs
            originals[row] = (inputs if self.prepare is None else self.prepare(inputs, False, None)).numpy()
        device, codes = next(self.model.parameters()).device, []
        encode: Callable[[Tensor], Any] | None = getattr(self.model, "encode", None)
        for column in range(row + 1):
            asked = torch.from_numpy(originals[column]).to(device)
            answer: Any = self.model(asked)
            after[row, column] = answer.float().cpu().numpy()
            if encode is not None:
                code = encode(asked)
                codes.append((code[0] if isinstance(code, tuple) else code).flatten(1).float().mean(0).cpu().numpy())
        means = kept.codes
        if codes:
            means = _grown(means, (count, count, len(codes[0])))
            means[row, : row + 1] = np.stack(codes)
        _write(self.folder, GivenBack(looks * np.arange(count), originals, after, means))


def _halved(kept: GivenBack) -> GivenBack:
    """Every two stretches as one: the samples are those of the first of them, asked of after the second."""
    codes = kept.codes[1::2, ::2][:, : len(kept.codes) // 2] if kept.codes.size else kept.codes
    count = len(kept.chosen) // 2
    return GivenBack(kept.chosen[::2][:count], kept.originals[::2][:count], kept.after[1::2, ::2][:, :count], codes)


def _grown(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array with more rows and columns, NaN in what is new."""
    larger = np.full(shape, np.nan, np.float32)
    larger[tuple(slice(0, length) for length in values.shape)] = values
    return larger


def _write(folder: Path, kept: GivenBack) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **kept._asdict())  # type: ignore[arg-type]
    replace_file(folder / RECONSTRUCTIONS, content.getvalue())


def read_given_back(folder: Path) -> GivenBack | None:
    """What a run folder has of it; None where it has none.

    Raises:
        DataError: a damaged file.
    """
    arrays = load_arrays(folder / RECONSTRUCTIONS, GivenBack._fields)
    return None if arrays is None else GivenBack(*arrays)


def pictures_of(
    kept: GivenBack, names: Sequence[str], word: str = "experience"
) -> Iterator[tuple[str, Figure, str, str]]:
    """Name, figure, title and caption of each picture that a report shows of what was given back.

    Args:
        kept: of a run.
        names: of its experiences.
        word: what they are called.
    """
    chosen = [names[one] for one in kept.chosen.tolist()]
    learned = np.isfinite(kept.after).reshape(*kept.after.shape[:2], -1).all(-1)
    if learned.any():
        last = int(learned.any(1).nonzero()[0].max())
        tasks = learned[last].nonzero()[0].tolist()
        yield from _given_back(kept, last, tasks, learned, chosen, word)
    means = kept.codes
    if means.size and len(means) > 1:
        gap = np.square(means - np.einsum("jjl->jl", means)[None]).mean(-1)
        if np.isfinite(gap).any():
            caption = (
                f"How far the mean code of each {word} (columns) has moved since it was learned, after each (rows)."
            )
            figure = loss_map(gap, names)
            figure.axes[0].set(xlabel=f"codes of {word}", ylabel=f"after {word}")
            yield "latent_drift", figure, "Drift of codes", caption


def _given_back(
    kept: GivenBack, last: int, tasks: list[int], learned: np.ndarray, names: list[str], word: str
) -> Iterator[tuple[str, Figure, str, str]]:
    """Pictures of images, volumes, or rows of numbers."""
    originals, after = torch.from_numpy(kept.originals), torch.from_numpy(kept.after)
    shape = originals.shape[2:]
    moment = f"after {names[last]}"
    volume = len(shape) == 4 and shape[0] == 1
    if len(shape) == 3 and shape[0] in (1, 3):
        each = max(1, 8 // len(tasks))
        above, below = (values[tasks, :each].flatten(0, 1) for values in (originals, after[last]))
        caption = f"Samples not trained on, {each} of each {word}, and what the model gives back of them {moment}."
        figure = reconstruction_pairs(above, below, names=[names[one] for one in tasks for _ in range(each)])
        yield "reconstructions", figure, "Reconstructions", caption
        if len(names) > 1:
            rows = [[after[row, one, 0] if learned[row, one] else None for one in tasks] for row in range(last + 1)]
            caption = f"One sample of each {word} (rows), and what the model gave back of it after each (columns)."
            figure = reconstructions_by_task(originals[tasks, 0], rows, [names[one] for one in tasks])
            yield "reconstructions_over_time", figure, "Reconstructions over time", caption
    elif volume:
        caption = f"Slices of a sample of {names[tasks[0]]}, and of what the model gives back of it {moment}."
        figure = volume_slices(originals[tasks[0], 0, 0], after[last, tasks[0], 0, 0])
        yield "slices", figure, "Slices", caption
    else:
        error = (originals[tasks] - after[last, tasks]).abs().mean(1).reshape(len(tasks), -1, shape[-1]).mean(1)
        if error.shape[1] <= MOST_FEATURES:
            caption = f"Mean error of each number (columns) of the samples of each {word} (rows), {moment}."
            columns = [str(one) for one in range(error.shape[1])]
            yield (
                "errors_by_number",
                value_map(error.numpy(), [names[one] for one in tasks], columns),
                "Errors",
                caption,
            )
