"""The commands that ask a trained model: `holdfast eval | predict | export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.common import Checkpoint, Plugins, plugged, reported
from holdfast.core.errors import ConfigError

# Nothing that imports torch may be imported here: `holdfast --help` answers at once.


def evaluate(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUTS...]",
            help="Data with labels: a table, an .npz, a folder with a folder for each class.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    task: Annotated[
        int | None, typer.Option("--task", help="The task of INPUTS, for a head per task.", show_default=False)
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Evaluate the last checkpoint of a run on every experience, or on other data with labels."""
    with reported():
        plugged(plugin)
        if split not in ("test", "validation"):
            raise ConfigError(f"there is no split {split!r} to evaluate on. Write --split test or --split validation.")
        from holdfast.runs.run import evaluate as evaluate_run

        where = checkpoint if "://" in checkpoint else Path(checkpoint)
        if inputs:
            from holdfast.runs.predict import measured

            typer.echo(json.dumps(measured(where, inputs, task=task), indent=2))
            return
        typer.echo(json.dumps(evaluate_run(where, split), indent=2))


def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="Tables, images, folders of images, .npy or .npz files, or `test`: the stream's own test data.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the predictions, or the file; new.", show_default=False),
    ] = None,
    task: Annotated[
        int | None, typer.Option("--task", help="The task, for a model with a head per task.", show_default=False)
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Predict new inputs with the last checkpoint of a run; the data that it was trained on are not needed.

    A table comes back with the predicted label and the probability of each class as columns; images and arrays give a
    CSV file with a line each, and a picture of some of them. Where labels are there, it is said how many are right.
    """
    with reported():
        plugged(plugin)
        from holdfast.runs.predict import predict as predict_run

        made = predict_run(checkpoint, inputs, out, task=task)
        for line in (*made.notes, made.scores.sentence(made.rows)):
            if line:
                typer.echo(line, err=True)
        typer.echo(str(made.paths[0]))


def export(
    checkpoint: Checkpoint,
    to: Annotated[
        str, typer.Option("--format", "-f", help="torch (a program that torch.export.load reads), onnx or safetensors.")
    ] = "torch",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; new.", show_default=False)] = None,
    task: Annotated[
        int | None, typer.Option("--task", help="The task to answer for, with a head per task.", show_default=False)
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write the model of a run to one file, to be used without Holdfast, and what its user must know beside it."""
    with reported():
        plugged(plugin)
        from holdfast.runs.export import export as export_run

        for path in export_run(checkpoint, to, out, task=task):
            typer.echo(str(path))
