"""What a trained model answers: outputs for inputs, counts of right answers, `predictions.csv` and `.png`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Stream, tree_map
from holdfast.metrics.log import replace_file
from holdfast.runs.assemble import Restored, restore
from holdfast.streams.datasets.folders import read_image
from holdfast.training.evaluation import evaluate


def outputs(engine: Engine, inputs: Any, task: int | None = None) -> Tensor:
    """The outputs for raw inputs as the method wants them, `[rows, ...]` on the CPU, in eval mode.

    Args:
        engine: of the trained model and its method.
        inputs: a tensor, a tuple or a mapping of tensors, `[rows, ...]`, as the stream's data are.
        task: the task label, for a model with a head for each task.
    """
    inputs = tree_map(lambda leaf: torch.as_tensor(leaf).to(engine.learner.device), inputs)
    with engine.evaluating(), torch.inference_mode():
        return engine.predict(inputs, task).float().cpu()


def evaluated(engine: Engine, stream: Stream, split: str, batch_size: int) -> dict[str, Any]:
    """Evaluate a model on every experience of a stream.

    Args:
        engine: of the trained model and its method.
        stream: what to evaluate on.
        split: `test` or `validation`.
        batch_size: samples per forward.

    Returns:
        `{"experiences": [what an evaluate event holds], "average_accuracy": ..}`.

    Raises:
        ConfigError: for another split.
        DataError: if the stream has no such data.
    """
    if split not in ("test", "validation"):
        raise ConfigError(f"there is no split {split!r} to evaluate on. Write test or validation.")
    measured = []
    for experience in stream:
        data = getattr(experience, split)
        if data is not None and len(data):
            counts = evaluate(engine, data, experience.classes, experience.task, batch_size)
            measured.append({"experience": experience.index, "name": experience.name, "split": split, **counts})
    if not measured:
        raise DataError(f"the stream has no {split} data. Evaluate on test, or make the stream with validation=0.1.")
    accuracies = [one["correct"] / one["samples"] for one in measured if one["correct"] is not None]
    return {"experiences": measured, "average_accuracy": sum(accuracies) / len(accuracies) if accuracies else None}


IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SHOWN = 25
"""Most samples in the picture."""


class Batch(NamedTuple):
    """Some inputs with a name for each, and what is known of them."""

    names: list[str]
    inputs: Any
    targets: Tensor | None = None
    task: int | None = None


def predict(
    checkpoint: Path | str, inputs: Sequence[str], out: Path, *, task: int | None = None, device: str | None = None
) -> Path:
    """Predict the class of inputs with the newest state of a run.

    Args:
        checkpoint: run folder, checkpoint file or address.
        inputs: image files, folders of them, `.npy` or `.npz` arrays `[rows, ...]`, or `test` or `validation` for the
            stream's own data.
        out: folder for the two files; made if it does not exist.
        task: task label of new inputs, for a model with a head per task.
        device: instead of that of the run.

    Returns:
        The path of `predictions.csv`.

    Raises:
        DataError: for inputs that are not there or do not fit the model.
        ConfigError: for a model with a head per task, without a task.
    """
    restored = restore(checkpoint, None if device is None else {"device": device})
    if task is None and restored.engine.learner.multi_head and any(one not in ("test", "validation") for one in inputs):
        raise ConfigError("this model has a head for each task, and new inputs do not say theirs. Write --task 0.")
    rows: list[list[Any]] = []
    samples: list[tuple[Tensor, str, bool | None]] = []
    for batch in batches(restored, inputs, task):
        _one_batch(restored, batch, rows, samples)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "predictions.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if restored.stream.classes:
        writer.writerow(["input", "label", "name", "probability", "target", "right"])
    else:
        writer.writerow(["input", *(f"output_{place}" for place in range(len(rows[0]) - 1))])
    writer.writerows(rows)
    replace_file(path, text.getvalue())
    if samples:
        spread = [samples[place * len(samples) // SHOWN] for place in range(SHOWN)] if len(samples) > SHOWN else samples
        replace_file(out / "predictions.png", picture(spread))
    return path


def _one_batch(
    restored: Restored, batch: Batch, rows: list[list[Any]], samples: list[tuple[Tensor, str, bool | None]]
) -> None:
    engine, stream = restored.engine, restored.stream
    answers = outputs(engine, batch.inputs, batch.task)
    if not stream.classes:
        rows += [[name, *values] for name, values in zip(batch.names, answers.flatten(1).tolist())]
        return
    found = answers.softmax(1).max(1)
    for place, name in enumerate(batch.names):
        label = int(found.indices[place])
        word = stream.class_names[label] if label < len(stream.class_names) else str(label)
        target = None if batch.targets is None else int(batch.targets[place])
        right = None if target is None else target == label
        probability = round(float(found.values[place]), 6)
        rows.append([name, label, word, probability, "" if target is None else target, "" if right is None else right])
        if place < SHOWN and len(stream.input_shape) == 3:
            samples.append((batch.inputs[place].reshape(stream.input_shape), f"{word} {100 * probability:.0f}%", right))


def batches(restored: Restored, inputs: Sequence[str], task: int | None) -> Iterator[Batch]:
    """Everything that is asked about, in batches."""
    stream, size = restored.stream, restored.eval_batch_size
    for one in inputs:
        if one in ("test", "validation") and not Path(one).exists():
            yield from _own(stream, one, size)
            continue
        names, values = _read(Path(one), stream)
        for start in range(0, len(values), size):
            yield Batch(names[start : start + size], values[start : start + size], None, task)


def _own(stream: Stream, split: str, size: int) -> Iterator[Batch]:
    found = False
    for experience in stream:
        data = getattr(experience, split)
        if data is None or not len(data):
            continue
        found, start = True, 0
        for batch in data.batches(torch.arange(len(data)), size):
            rows = len(batch.targets)
            names = [f"{split}/{experience.index}/{start + row}" for row in range(rows)]
            start += rows
            yield Batch(names, batch.inputs, batch.targets, experience.task)
    if not found:
        raise DataError(f"the stream of this run has no {split} data. Give files instead.")


def _read(path: Path, stream: Stream) -> tuple[list[str], Tensor]:
    """The inputs of one file or folder, raw as in the stream, with their names."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
        if not files:
            raise DataError(f"{path} holds no images. Give a folder with some of {', '.join(IMAGES)}.")
        return [str(file) for file in files], torch.stack([_image(file, stream) for file in files])
    if not path.is_file():
        raise DataError(f"there are no inputs at {path}. Give images, a folder, .npy, .npz, or `test`.")
    if path.suffix.lower() in IMAGES:
        return [str(path)], _image(path, stream)[None]
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path} cannot be read as inputs. Give images, a folder, .npy, .npz, or `test`.")
    try:
        content = np.load(path, allow_pickle=False)
        array = content if isinstance(content, np.ndarray) else content[_key(content.files, path)]
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}. Save it with numpy.save.") from error
    values = torch.from_numpy(np.ascontiguousarray(array))
    values = values if values.dtype == torch.uint8 else values.float()
    shape = tuple(stream.input_shape)
    if values.shape == shape or tuple(values.shape) == shape[1:]:
        values = values[None]
    if values[0].numel() != math.prod(shape):
        raise DataError(f"{path} holds inputs of shape {tuple(values.shape[1:])}, the model takes {shape}. Give those.")
    return [f"{path}[{row}]" for row in range(len(values))], values.reshape(len(values), *shape)


def _key(names: Sequence[str], path: Path) -> str:
    known = [name for name in ("inputs", "images", "x", "data", "arr_0") if name in names]
    if not known and len(names) != 1:
        raise DataError(f"{path} holds {', '.join(names)}. Call the inputs `inputs`.")
    return known[0] if known else names[0]


def _image(path: Path, stream: Stream) -> Tensor:
    """One image file in the colours and the size that the model takes."""
    shape = tuple(stream.input_shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"the model takes inputs of shape {shape}, which are no images. Give .npy instead of {path}.")
    pixels = read_image(path, (shape[1], shape[2]), shape[0] == 1)  # as the images it was trained on were read
    known = stream[0].train.gather(torch.tensor([0])).inputs
    if isinstance(known, Tensor) and known.dtype == pixels.dtype:
        return pixels
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    top = max(1.0, float(stream[0].train.gather(torch.arange(min(64, len(stream[0].train)))).inputs.max()))
    return pixels * top  # the stream's own numbers run from 0 to `top`


def picture(samples: Sequence[tuple[Tensor, str, bool | None]]) -> bytes:
    """A PNG of samples with what was predicted: wrong ones in italics with a cross, so colour is not needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(5, len(samples))
    lines = -(-len(samples) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.95 * lines), layout="constrained")
    for place, (pixels, words, right) in enumerate(samples):
        axes = figure.add_subplot(lines, columns, place + 1)
        values = pixels.float()
        values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-9)
        if values.shape[0] == 3:
            axes.imshow(values.permute(1, 2, 0).numpy())
        else:
            axes.imshow(values[0].numpy(), cmap="gray")
        wrong = right is False
        style = "italic" if wrong else "normal"
        axes.set_title(f"✗ {words}" if wrong else words, fontsize=8, style=style, color="#b3261e" if wrong else "black")
        axes.set_axis_off()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
