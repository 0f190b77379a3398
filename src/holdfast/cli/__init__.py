"""The command line: `holdfast run`, `search`, `sweep`, `resume`, `eval`, `predict`, `show`, `list` and the like."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

# Nothing that imports torch may be imported here: `holdfast --help` answers at once.
from holdfast import __version__
from holdfast.cli import beginnings, configurations, models, searches, services
from holdfast.cli.common import (
    Checkpoint,
    Folders,
    Job,
    Plugins,
    Quiet,
    launched,
    plugged,
    reported,
    split_words,
    told,
    validated_job,
    warned,
)
from holdfast.core.errors import ConfigError

app = typer.Typer(
    name="holdfast",
    help="Continual learning with PyTorch: learn the new without losing the old.",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `holdfast` command."""
    warnings.showwarning = warned
    app()


def print_version(wanted: bool) -> None:
    """Print the version and stop, where it is wanted."""
    if wanted:
        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=print_version),
]


@app.callback()
def options(version: Version = False) -> None:
    """Continual learning with PyTorch: learn the new without losing the old."""


@app.command()
def run(
    job: Job = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run folder to make; it must not exist.")] = None,
    quiet: Quiet = False,
    config_dir: Folders = None,
    multirun: Annotated[
        bool,
        typer.Option(
            "--multirun", "-m", help="A run for each combination: method=er,ewc seed=range(0,3) experiment=glob(*)"
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="With -m: runs at once, one torch thread each.", show_default=False),
    ] = None,
    launcher: Annotated[
        str, typer.Option("--launcher", help="With -m: processes of this machine, or tasks of a ray cluster.")
    ] = "processes",
    references: Annotated[
        str | None,
        typer.Option(
            "--references", help="Runs to compare with: joint,independent,random,finetune", show_default=False
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Train, evaluate and report: the default job, or the one in CONFIG.

    The default job is experience replay on class-incremental digits, beside fine-tuning and joint training. The
    numbers that matter are printed at the end; the last line is the path of the run folder. With -m it is the folder of
    all runs; the same command again runs only what is missing in it.
    """
    command = shlex.join(["holdfast", *sys.argv[1:]])
    words = list(job or [])
    if references is not None:
        words.append(f"references=[{references}]")
    with reported(None if multirun else out, makes_run=True):
        plugged(plugin)
        if multirun:
            from holdfast.compat.arena_keys import enforced
            from holdfast.compat.dialects import DIALECTS
            from holdfast.runs.sweep import sweep

            path, changes = split_words(words)
            chosen, changes = launched(enforced(changes), launcher)
            folder, failed = sweep(
                path,
                changes,
                config_dir or [],
                out,
                jobs=jobs,
                quiet=quiet,
                command=command,
                launcher=chosen,
                dialects=DIALECTS,
            )
            typer.echo(str(folder))
            if failed:
                raise typer.Exit(1)
            return
        for option, is_used in (("--jobs", jobs is not None), ("--launcher", launcher != "processes")):
            if is_used:
                raise ConfigError(f"{option} is for several runs. Write -m, and give a key several values: seed=0,1,2.")
        todo = validated_job(words, config_dir, single=True)
        from holdfast.runs.run import run as run_job

        told(run_job(todo, out, quiet=quiet, command=command), quiet)


@app.command()
def resume(folder: Checkpoint, quiet: Quiet = False, plugin: Plugins = None) -> None:
    """Go on with a run that was interrupted, to the same weights as if it had not been.

    From a checkpoint that lies outside of its run folder it goes on in a new one.
    """
    with reported(Path(folder) if Path(folder).is_dir() else None, makes_run=True):
        plugged(plugin)
        from holdfast.runs.run import resume as resume_run

        told(resume_run(folder, quiet=quiet), quiet)


app.command("eval")(models.evaluate)
app.command()(models.predict)
app.command()(models.export)
app.command()(services.check)
app.command()(services.update)
app.command()(services.rollback)


@app.command()
def show(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders, folders of a multirun, or folders of them.", show_default=False
        ),
    ],
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only runs with this tag; may be given again.", show_default=False)
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", help="The best first by this column or measure: kept.", show_default=False),
    ] = None,
    references: Annotated[bool, typer.Option("--references", help="Show the references of each run too.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a line for each run with every measure.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show one run, or several side by side over seeds, with what differs between them and the best marked.

    A folder that cannot be read is named at the end, and does not hide the others.
    """
    with reported():
        plugged(plugin)
        from holdfast.runs import compare
        from holdfast.runs.opened import show as show_runs
        from holdfast.runs.result import found_runs

        runs = found_runs(folders, tag or [])
        if as_csv or as_json:
            rows, problems = compare.gathered(runs, sort, references)
            typer.echo((compare.as_csv if as_csv else compare.as_json)(rows).rstrip("\n"))
        else:
            problems = show_runs(runs, sort, references)
        for problem in problems:
            typer.echo(f"left out: {problem}", err=True)
        if problems:
            raise typer.Exit(1)


app.command()(searches.search)
app.command()(searches.sweep)
app.command()(beginnings.init)
app.command("config")(configurations.show_config)
app.command()(configurations.convert)
app.command("list")(configurations.list_names)
app.command()(configurations.cache)
app.command()(configurations.data)
app.command()(configurations.validate)
app.command()(configurations.schema)
