"""New inputs for a trained model: images, arrays and the stream's own data, raw as in training, with labels if any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.core.engine import Engine
from holdfast.core.errors import DAMAGED_ARRAYS, DataError
from holdfast.core.experience import Stream, tree_map
from holdfast.runs.assemble import Restored
from holdfast.runs.card import number_of
from holdfast.streams.datasets.build import images
from holdfast.streams.datasets.images import middle_of, read_image
from holdfast.streams.datasets.npz import GUESSES

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
KINDS = "a table (.csv, .tsv, .parquet), images, a folder of images, .npy, .npz, or `test`"


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


class Batch(NamedTuple):
    """Some inputs with a name for each, and what is known of them.

    Attributes:
        names: of the inputs.
        inputs: raw, `[rows, ...]`.
        targets: class numbers, -1 for a class that the model does not have; floats for regression; None without labels.
        labels: the labels as they were given; None without.
        task: of all rows.
    """

    names: list[str]
    inputs: Any
    targets: Tensor | None = None
    labels: list[str] | None = None
    task: int | None = None


def probabilities(answers: Tensor, classes: int) -> Tensor:
    """The softmax over all outputs, `[rows, classes]`; classes without an output yet have probability 0."""
    shares = answers.softmax(1).nan_to_num(0.0)
    lacking = max(0, classes - shares.shape[1])
    return torch.cat([shares, shares.new_zeros(len(shares), lacking)], dim=1)[:, :classes] if lacking else shares


def batches(restored: Restored, inputs: Sequence[str], task: int | None) -> Iterator[Batch]:
    """Everything that is asked about, in batches."""
    size = restored.eval_batch_size
    for one in inputs:
        if one in ("test", "validation") and not Path(one).exists():
            yield from _own(restored.with_data(), one, size)
            continue
        names, values, labels = read_inputs(Path(one), restored)
        targets = None if labels is None else _targets(labels, restored.stream)
        words = None if labels is None else [_word(label) for label in labels]
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            yield Batch(
                names[part],
                values[part],
                None if targets is None else targets[part],
                None if words is None else words[part],
                task,
            )


def _word(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _targets(labels: Sequence[Any], stream: Stream) -> Tensor:
    if stream.classes:
        return torch.tensor([number_of(label, stream.class_names) for label in labels], dtype=torch.int64)
    return torch.as_tensor(np.asarray(labels, dtype=np.float64)).reshape(len(labels), -1).float()


def _own(stream: Stream, split: str, size: int) -> Iterator[Batch]:
    several = False
    for experience in stream:
        data = getattr(experience, split)
        if data is None or not len(data):
            continue
        several, start = True, 0
        for batch in data.batches(torch.arange(len(data)), size):
            rows = len(batch.targets)
            names = [f"{split}/{experience.index}/{start + row}" for row in range(rows)]
            start += rows
            labels = [stream.class_names[label] for label in batch.targets.tolist()] if stream.classes else None
            yield Batch(names, batch.inputs, batch.targets, labels, experience.task)
    if not several:
        raise DataError(f"the stream of this run has no {split} data. Give files instead.")


def read_inputs(
    path: Path, restored: Restored, new_classes: bool = False
) -> tuple[list[str], Tensor, list[Any] | None]:
    """The inputs of one file or folder, raw as in the stream, with their names, and their labels where there are some.

    Args:
        path: of the file or folder.
        restored: the model that they are for.
        new_classes: whether folders in a folder are labels even where the model has no such class.

    Raises:
        DataError: for what cannot be read, or does not fit the model.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
        if not files:
            raise DataError(f"{path} holds no images. Give a folder with some of {', '.join(IMAGES)}.")
        parents = [file.parent.name for file in files]
        named_by_folder = all(number_of(parent, restored.stream.class_names) >= 0 for parent in parents)
        named_by_folder = named_by_folder or (new_classes and all(file.parent != path for file in files))
        pixels = torch.stack([_image(file, restored) for file in files])
        return [str(file) for file in files], pixels, parents if named_by_folder else None
    if not path.is_file():
        raise DataError(f"there are no inputs at {path}. Give {KINDS}.")
    if path.suffix.lower() in IMAGES:
        return [str(path)], _image(path, restored)[None], None
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path} cannot be read as inputs. Give {KINDS}.")
    try:
        content = np.load(path, allow_pickle=False)
        labels = None
        if not isinstance(content, np.ndarray):
            labelled = next((name for name in GUESSES["targets"] if name in content.files), None)
            labels = None if labelled is None else content[labelled].tolist()
            content = content[_key(content.files, path)]
    except DAMAGED_ARRAYS as error:
        raise DataError(f"{path} cannot be read: {error}. Save it with numpy.save or numpy.savez.") from error
    values = _fitting(content, path, restored)
    if labels is not None and len(labels) != len(values):
        labels = None
    return [f"{path}[{row}]" for row in range(len(values))], values, labels


def _key(names: Sequence[str], path: Path) -> str:
    named = [name for name in (*GUESSES["inputs"], "arr_0") if name in names]
    if not named and len(names) != 1:
        raise DataError(f"{path} holds {', '.join(names)}. Call the inputs `inputs`.")
    return named[0] if named else names[0]


def _fitting(array: np.ndarray, path: Path, restored: Restored) -> Tensor:
    """An array as raw inputs of the model, `[rows, ...]`, of the type that the training data had."""
    shape = tuple(restored.stream.input_shape)
    try:
        values = torch.as_tensor(np.ascontiguousarray(array))
    except TypeError as error:
        raise DataError(f"{path} holds no numbers ({array.dtype}). Give numbers.") from error
    if tuple(values.shape) in (shape, shape[1:] if shape[:1] == (1,) else shape):
        values = values[None]
    if tuple(values.shape[1:]) != shape:
        if len(shape) == 3 and tuple(values.shape[1:]) in (shape[1:], (*shape[1:], shape[0])):
            values = images(values, "hw" if values.dim() == 3 else "hwc")
        elif values.dim() == 2 and values.shape[1] == math.prod(shape):
            values = values.reshape(len(values), *shape)  # rows that were flattened
        else:
            raise DataError(
                f"{path} holds inputs of shape {tuple(values.shape[1:])}, the model takes {shape}. Give those."
            )
    return as_trained(images(values, "auto" if len(shape) != 3 else "chw"), restored.card)


def as_trained(values: Tensor, card: Mapping[str, Any]) -> Tensor:
    """Numbers in the type of the training data, so that they are scaled as those were.

    Args:
        values: raw, of any type.
        card: of the stream.
    """
    kind = getattr(torch, card.get("dtype") or "float32")
    if kind.is_floating_point:
        return values.to(torch.float32)
    if values.is_floating_point():
        whole = bool((values == values.round()).all()) and float(values.max()) > 1
        return values.to(kind) if whole else values  # fractions were divided by the scale already
    return values.to(kind)


def _image(path: Path, restored: Restored) -> Tensor:
    """One image file in the colours and the size that the model takes."""
    shape = tuple(restored.stream.input_shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"the model takes inputs of shape {shape}, which are not images. Give .npy instead of {path}.")
    dataset = restored.config["stream"].get("dataset") or {}
    crop, size = dataset.get("shorter_side"), (shape[1], shape[2])
    how = size if crop is None else middle_of(dataset["size"], crop, dataset["filter"])
    pixels = read_image(path, how, shape[0] == 1)  # as the images it was trained on were read
    card, shares = restored.card, pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    if card.get("dtype") != "uint8":
        return shares * max(1.0, float(card.get("top") or 1.0))  # the stream's own numbers run from 0 to there
    scale = float((card.get("prepare") or {}).get("scale", 255.0))
    return pixels if scale == 255.0 and pixels.dtype == torch.uint8 else (shares * scale).round().to(torch.uint8)
