"""The commands that look after a model in use: `holdfast check | update | rollback`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.common import Checkpoint, Plugins, Quiet, Run, plugged, reported

if TYPE_CHECKING:
    from holdfast.runs.verdict import Verdict

# Nothing that imports torch may be imported here: `holdfast --help` answers at once.

FAILED = 3
"""Exit code where something lost more than it may."""

MaxDrop = Annotated[
    float, typer.Option("--max-drop", help="Accuracy, 0 to 1, that an experience may lose; 0.03 is three points.")
]
MaxClassDrop = Annotated[
    float | None,
    typer.Option("--max-class-drop", help="The same for each class; anything without it.", show_default=False),
]
Task = Annotated[
    int | None, typer.Option("--task", help="The task of the new data, for a head per task.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def check(
    checkpoint: Checkpoint,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            help="New data with labels to measure on too: a table, an .npz, a folder of images; may be given again.",
            show_default=False,
        ),
    ] = None,
    max_drop: MaxDrop = 0.03,
    max_class_drop: MaxClassDrop = None,
    task: Task = None,
    as_json: AsJson = False,
    plugin: Plugins = None,
) -> None:
    """Say what a run has kept and lost of each experience and class, and exit with 3 if that is too much.

    Each experience is compared with when it was learned, on the same test data, with a 95 % interval. With --data the
    model is measured on new data beside its test data, and it is said whether the inputs have shifted.
    """
    with reported():
        plugged(plugin)
        from holdfast.runs.check import check as check_run

        where = checkpoint if "://" in checkpoint else Path(checkpoint)
        _told(check_run(where, data or [], max_drop, max_class_drop, task), as_json)


def update(
    run: Run,
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="NEWDATA...", help="Tables, .npz files or folders of images, with labels.", show_default=False
        ),
    ],
    max_drop: MaxDrop = 0.03,
    max_class_drop: MaxClassDrop = None,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", help="Of the new rows that are held out to measure on.")
    ] = 0.25,
    task: Task = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    plugin: Plugins = None,
) -> None:
    """Let a finished run learn new data with its own method and memory, and use the result if it passes.

    The old and the new model are asked about the same rows, old and new. Where nothing lost more than --max-drop, the
    new version is used by `predict`, `eval`, `export` and `check` from then on; else the old one stays, and the exit
    code is 3. Versions lie side by side in RUN/versions; the same command again goes on with an update that was
    interrupted; `holdfast rollback RUN` goes back.
    """
    with reported():
        plugged(plugin)
        from holdfast.runs.update import update as update_run

        words: Any = [str(one) for one in data]
        verdict = update_run(
            run,
            words,
            max_drop=max_drop,
            max_class_drop=max_class_drop,
            test_fraction=test_fraction,
            task=task,
            quiet=quiet,
        )
        after = f"version {verdict.version} is in use: {run / 'versions' / str(verdict.version)}"
        if not verdict.passed:
            after = f"the model before it stays in use; version {verdict.version} is kept to be looked at"
        _told(verdict, as_json, after)


def rollback(
    run: Run,
    to: Annotated[
        int | None,
        typer.Option("--to", min=0, help="The version; 0 is the run before any update.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Use the version of a run again that the one in use was made of, or another one; nothing is deleted."""
    with reported():
        from holdfast.runs.versions import history
        from holdfast.runs.versions import rollback as roll_back

        number = roll_back(run, to)
        if as_json:
            typer.echo(json.dumps({"version": number, "versions": history(run)}, indent=2))
            return
        typer.echo(f"version {number} of {run} is in use" + ("" if number else ", which is the run before any update"))


def _told(verdict: Verdict, as_json: bool, after: str = "") -> None:
    """Print a verdict, and set the exit code."""
    if as_json:
        typer.echo(json.dumps(verdict.as_dict(), indent=2))
    else:
        version = f", version {verdict.version}" if verdict.version and not after else ""
        typer.echo("\n".join([verdict.where + version, *verdict.lines(), *([after] if after else [])]))
    if not verdict.passed:
        raise typer.Exit(FAILED)
