"""What a trained model answers: outputs for inputs, counts of right answers, tables and pictures of predictions."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Stream
from holdfast.metrics.log import replace_file
from holdfast.runs.assemble import Restored, restore
from holdfast.runs.folder import numbered
from holdfast.runs.inputs import batches, outputs, probabilities
from holdfast.runs.pictures import SAMPLES, Samples
from holdfast.runs.predicted_tables import TABLES, Scores, is_table, predict_table
from holdfast.training.evaluation import evaluate


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


SAMPLES_SHOWN, LOOKED_AT = 24, 240
"""Images in a report, and test images that they are chosen from."""

SHOWN = 25
"""Most samples in the picture."""


@dataclass
class Predictions:
    """What `predict` wrote, and how right it is where labels are there.

    Attributes:
        paths: of the files, the table first.
        rows: how many inputs were answered.
        scores: of those with a label.
        notes: sentences about what stands out, for instance words that the model never saw.
    """

    paths: list[Path]
    rows: int = 0
    scores: Scores = field(default_factory=Scores)
    notes: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Of the table."""
        return self.paths[0]

    def __fspath__(self) -> str:
        return str(self.path)


def predict(
    checkpoint: Path | str,
    inputs: Sequence[str],
    out: Path | None = None,
    *,
    task: int | None = None,
    device: str | None = None,
) -> Predictions:
    """Predict new inputs with the newest state of a run; the data that it was trained on are not needed.

    Args:
        checkpoint: run folder, checkpoint file or address.
        inputs: tables, image files, folders of them (named by class, they count as labels), `.npy` or `.npz` arrays
            `[rows, ...]`, or `test` or `validation` for the stream's own data.
        out: the folder for `predictions.csv` and `predictions.png`, or the file to write; None takes `predictions`, or
            `predictions-2` and so on where that is taken.
        task: task label of new inputs, for a model with a head per task.
        device: instead of that of the run.

    Returns:
        Where the predictions are, and the scores. A table comes back with its columns and those of the predictions;
        other inputs give a line each. Labels are the user's, and each class has a column with its probability.

    Raises:
        DataError: for inputs that are not there or do not fit the model.
        ConfigError: for a model with a head per task, without a task; or where the file to write is there already.
    """
    restored = restore(checkpoint, None if device is None else {"device": device})
    if task is None and restored.engine.learner.multi_head and any(one not in ("test", "validation") for one in inputs):
        raise ConfigError("this model has a head for each task, and new inputs do not say theirs. Write --task 0.")
    tables = [one for one in inputs if is_table(one)]
    others = [one for one in inputs if one not in tables]
    made = Predictions([])
    targets = _files(out, tables, others)
    for path in targets.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    for one in tables:
        notes, rows = predict_table(restored, Path(one), targets[one], made.scores, task)
        made.paths.append(targets[one])
        made.rows += rows
        made.notes += notes
    if others:
        path = targets[""]
        samples = _predict_lines(restored, others, path, made, task)
        made.paths.append(path)
        if samples:
            beside = path.with_suffix(".png")
            replace_file(beside, picture(samples))
            made.paths.append(beside)
    return made


def measured(checkpoint: Path | str, inputs: Sequence[str], *, task: int | None = None) -> dict[str, Any]:
    """How right the newest state of a run is on data with labels, by `predict`; nothing is kept.

    Args:
        checkpoint: run folder, checkpoint file or address.
        inputs: as `predict` takes them.
        task: task label of the inputs, for a model with a head per task.

    Returns:
        `samples`, `accuracy` and `confusion` (label -> answer -> how often); for regression `absolute_error`,
        `root_squared_error` and `r2`.

    Raises:
        DataError: where no input has a label.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = predict(checkpoint, inputs, Path(folder), task=task)
    if not made.scores.samples:
        raise DataError(
            f"{', '.join(inputs)}: no input has a label to measure by. Give a table with the target's column, an .npz"
            " with `y`, or a folder with a folder for each class."
        )
    return made.scores.measures()


def write_samples(folder: Path, engine: Engine, stream: Stream) -> None:
    """Keep some test images of a run with their answers for its report, wrong ones first; nothing for other data.

    Args:
        folder: of the run.
        engine: of the trained model.
        stream: with its data.
    """
    if len(stream.input_shape) != 3 or stream.input_shape[0] not in (1, 3) or not stream.classes:
        return
    tests = [one for one in stream if one.test is not None and len(one.test)]
    rows: list[tuple[Tensor, int, int, float]] = []
    for one in tests:
        assert one.test is not None
        count = min(len(one.test), -(-LOOKED_AT // len(tests)))
        with torch.random.fork_rng(devices=[]):
            batch = one.test.gather(torch.linspace(0, len(one.test) - 1, count).long())
        if not isinstance(batch.inputs, Tensor) or tuple(batch.inputs.shape[1:]) != tuple(stream.input_shape):
            return
        shares = outputs(engine, batch.inputs, one.task).softmax(1).max(1)
        rows += zip(batch.inputs.cpu(), batch.targets.tolist(), shares.indices.tolist(), shares.values.tolist())
    if not rows:
        return
    wrong = [row for row in rows if row[1] != row[2]][: SAMPLES_SHOWN // 2]
    right = [row for row in rows if row[1] == row[2]]
    room = SAMPLES_SHOWN - len(wrong)
    chosen = wrong + (right if len(right) <= room else [right[number * len(right) // room] for number in range(room)])
    values = torch.stack([row[0].float() for row in chosen])
    low, high = (edge.view(-1, 1, 1, 1) for edge in values.flatten(1).aminmax(dim=1))
    grey = (255 * (values - low) / (high - low).clamp(min=1e-9)).byte().numpy()
    columns = [np.array([row[number] for row in chosen]) for number in (1, 2, 3)]
    samples = Samples(grey, *columns)
    np.savez_compressed(folder / SAMPLES, **samples._asdict())  # type: ignore[arg-type]


def _files(out: Path | None, tables: Sequence[str], others: Sequence[str]) -> dict[str, Path]:
    """The file for each table, and under "" that for all other inputs; none of them is there yet.

    Raises:
        ConfigError: where one is.
    """
    several = len(tables) + bool(others) > 1
    if out is not None and out.suffix.lower() in TABLES and not out.is_dir():
        if several:
            raise ConfigError(f"--out {out} is one file, and there are several kinds of inputs. Name a folder.")
        chosen = {tables[0] if tables else "": out}
    else:
        folder = out if out is not None else next(one for one in numbered(Path("predictions")) if not one.exists())
        chosen = {one: folder / _name(one, several) for one in tables}
        chosen |= {"": folder / "predictions.csv"} if others else {}
    for path in chosen.values():
        if path.exists():
            raise ConfigError(f"{path} exists already, and nothing is overwritten. Choose another --out.")
    return chosen


def _name(table: str, several: bool) -> str:
    path = Path(table)
    suffix = ".parquet" if path.suffix.lower() == ".parquet" else ".csv"
    stem = path.name.split(".")[0]
    return f"predictions_{stem}{suffix}" if several else f"predictions{suffix}"


def _predict_lines(
    restored: Restored, inputs: Sequence[str], path: Path, made: Predictions, task: int | None
) -> list[tuple[Tensor, str, bool | None]]:
    """Write a line for each input that is not a row of a table; returns samples for the picture, wrong ones first."""
    names = restored.stream.class_names
    rows: list[list[Any]] = []
    samples: list[tuple[Tensor, str, bool | None]] = []
    width = restored.stream.outputs
    for batch in batches(restored, inputs, task):
        answers = outputs(restored.engine, batch.inputs, batch.task)
        if not restored.stream.classes:
            flat = answers.flatten(1)
            width = flat.shape[1]
            ordered = not getattr(restored.engine.learner.criterion, "unordered", False)
            made.scores.add_numbers(flat, batch.targets if ordered else None)
            wanted = [[]] * len(flat) if batch.targets is None else batch.targets.flatten(1).tolist()
            rows += [[name, *values, *told] for name, values, told in zip(batch.names, flat.tolist(), wanted)]
            continue
        shares = probabilities(answers, len(names))
        best = answers.argmax(1).tolist()
        made.scores.add_classes(best, batch.targets, batch.labels, names)
        for row, (name, label) in enumerate(zip(batch.names, best)):
            word = names[label] if label < len(names) else str(label)
            right = None if batch.targets is None else int(batch.targets[row]) == label
            label_cell = "" if batch.labels is None else batch.labels[row]
            told = [round(value, 6) for value in shares[row].tolist()]
            rows.append(
                [
                    name,
                    word,
                    told[label] if label < len(told) else "",
                    label_cell,
                    "" if right is None else right,
                    *told,
                ]
            )
            if len(restored.stream.input_shape) == 3:
                pixels = batch.inputs[row].reshape(restored.stream.input_shape)
                words = f"{word} {100 * float(shares[row].max()):.0f}%"
                samples.append((pixels, words if right is not False else f"{words}, is {label_cell}", right))
    made.rows += len(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if restored.stream.classes:
        writer.writerow(["input", "label", "probability", "target", "right", *(f"p({name})" for name in names)])
    else:
        labelled = len(rows[0]) > 1 + width if rows else False
        columns = [f"output_{column}" for column in range(width)]
        writer.writerow(["input", *columns, *(f"target_{column}" for column in range(width) if labelled)])
    writer.writerows(rows)
    replace_file(path, text.getvalue())
    return _chosen(samples)


def _chosen(samples: list[tuple[Tensor, str, bool | None]]) -> list[tuple[Tensor, str, bool | None]]:
    """The samples of the picture: wrong ones first, then some of the others, spread evenly."""
    wrong = [one for one in samples if one[2] is False][:SHOWN]
    rest = [one for one in samples if one[2] is not False]
    room = SHOWN - len(wrong)
    return wrong + (rest if len(rest) <= room else [rest[number * len(rest) // room] for number in range(room)])


def picture(samples: Sequence[tuple[Tensor, str, bool | None]]) -> bytes:
    """A PNG of samples with what was predicted: wrong ones in italics with a cross, so colour is not needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(5, len(samples))
    lines = -(-len(samples) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.95 * lines), layout="constrained")
    for number, (pixels, words, right) in enumerate(samples):
        axes = figure.add_subplot(lines, columns, number + 1)
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
