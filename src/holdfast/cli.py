"""The command line: `holdfast run | resume | eval | predict | show | config | convert | list | cache | validate`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from holdfast.config.job import Job as ValidatedJob

# Nothing that imports torch may be imported here: `holdfast --help` answers at once.
from holdfast import __version__
from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.discovery.command import register

app = typer.Typer(
    name="holdfast",
    help="Continual learning with PyTorch: learn the new without losing the old.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Job = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG|KEY=VALUE",
        help="A JSON or YAML file, then changes: trainer.epochs=2 method=ewc method.operations.0.size=64 ~scheduler",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the run folder's path and nothing else.")]
Folders = Annotated[
    list[Path] | None,
    typer.Option("--config-dir", help="Your own folder of config groups; may be given again.", show_default=False),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        help="A Python file whose operations, methods, streams and so on can be named; may be given again.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="RUN|CHECKPOINT", help="A run folder, a checkpoint file, or its address.", show_default=False
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]


def main() -> None:
    """Entry point of the `holdfast` command."""
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
    numbers that matter are said at the end, and the last line printed is the path of the run folder. With -m it is the
    folder of all runs; the same command again runs only what is missing in it.
    """
    command = shlex.join(["holdfast", *sys.argv[1:]])
    words = list(job or [])
    if references is not None:
        words.append(f"references=[{references}]")
    with reported(None if multirun else out):
        plugged(plugin)
        if multirun:
            from holdfast.compat.dialects import DIALECTS
            from holdfast.runs.sweep import sweep

            path, changes = split_words(words)
            chosen, changes = launched(changes, launcher)
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
        for option, given in (("--jobs", jobs is not None), ("--launcher", launcher != "processes")):
            if given:
                raise ConfigError(f"{option} is for several runs. Write -m, and give a key several values: seed=0,1,2.")
        todo = validated_job(words, config_dir, single=True)
        from holdfast.runs.run import run as run_job

        told(run_job(todo, out, quiet=quiet, command=command), quiet)


@app.command()
def resume(folder: Run, quiet: Quiet = False, plugin: Plugins = None) -> None:
    """Go on with a run that was interrupted, to the same weights as if it had not been."""
    with reported(folder):
        plugged(plugin)
        from holdfast.runs.run import resume as resume_run

        told(resume_run(folder, quiet=quiet), quiet)


@app.command("eval")
def evaluate(
    checkpoint: Checkpoint,
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    plugin: Plugins = None,
) -> None:
    """Evaluate the last checkpoint of a run on every experience."""
    with reported():
        plugged(plugin)
        if split not in ("test", "validation"):
            raise ConfigError(f"there is no split {split!r} to evaluate on. Write --split test or --split validation.")
        from holdfast.runs.run import evaluate as evaluate_run

        where = checkpoint if "://" in checkpoint else Path(checkpoint)
        typer.echo(json.dumps(evaluate_run(where, split), indent=2))


@app.command()
def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="Images, folders of images, .npy or .npz files, or `test`: the stream's own test data.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for predictions.csv and predictions.png.")] = Path(
        "predictions"
    ),
    task: Annotated[
        int | None, typer.Option("--task", help="The task, for a model with a head per task.", show_default=False)
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Predict the class of new inputs with the last checkpoint of a run: a CSV file, and a picture of some of them."""
    with reported():
        plugged(plugin)
        from holdfast.runs.predict import predict as predict_run

        typer.echo(str(predict_run(checkpoint, inputs, out, task=task)))


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
) -> None:
    """Show one run, or several side by side over seeds, with what differs between them and the best marked.

    A folder that cannot be read is named at the end, and does not hide the others.
    """
    with reported():
        from holdfast.runs import compare
        from holdfast.runs.result import found_runs
        from holdfast.runs.show import show as show_runs

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


@app.command("config")
def show_config(
    job: Job = None,
    config_dir: Folders = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole job as JSON, to be kept in a file.")] = False,
    groups: Annotated[bool, typer.Option("--groups", help="List the config groups and what can be chosen.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what a configuration composes to, as a tree with where each value came from; nothing is run."""
    with reported():
        plugged(plugin)
        from holdfast.compat.dialects import DIALECTS
        from holdfast.config.build import resolve
        from holdfast.config.compose import compose
        from holdfast.config.overrides import Library
        from holdfast.config.show import tree

        if groups:
            library = Library(config_dir or [])
            table = _table()
            for group in library.groups():
                table.add_row(group, ", ".join(library.choices(group)))
            _console().print(table)
            return
        path, changes = split_words(list(job or []))
        composition = compose(path, changes, config_dir or [], DIALECTS)
        resolved = resolve(composition.config, path or "")
        if as_json:
            typer.echo(json.dumps(resolved, indent=2))
            return
        _console().print(tree(composition, resolved, path or "the default job" if not changes else path or "job"))
        for note in composition.notes:
            typer.echo(note, err=True)


@app.command()
def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A CLMixer JSON file.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes, by CLMixer's keys or ours: data.data_path=images", show_default=False
        ),
    ] = None,
) -> None:
    """Print the job that a CLMixer file stands for; what is done differently is told on standard error."""
    with reported():
        from holdfast.compat import clmixer
        from holdfast.compat.dialects import DIALECTS
        from holdfast.config.build import resolve
        from holdfast.config.compose import compose
        from holdfast.config.read import read

        if not clmixer.recognised(read(file)):
            raise ConfigError(f"{file} is no CLMixer file: it has none of {', '.join(clmixer.OURS)}. Run it as it is.")
        composition = compose(file, changes or [], dialects=DIALECTS)
        typer.echo(json.dumps(resolve(composition.config, file), indent=2))
        for note in composition.notes:
            typer.echo(note, err=True)


@app.command("list")
def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, operations, streams, datasets, models, optimizers, schedulers, criteria, metrics, ...",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="One of them, for its parameters.", show_default=False)] = None,
    plugin: Plugins = None,
) -> None:
    """List what a configuration can name, or the parameters of one of them."""
    with reported():
        plugged(plugin)
        from holdfast.config import kinds
        from holdfast.config.show import describe

        if name is not None:
            _details(kind, name)
            return
        rows = [describe(kind, key) for key in kinds.names(kind)]
        table = _table()
        for row in rows:
            needs = f"needs {', '.join(row.needs)}" if row.needs else ""
            table.add_row(row.name, row.summary, needs, row.role)
        _console().print(table)
        for problem, reason in kinds.problems(kind).items():
            typer.echo(f"{problem}: not for configurations, since {reason}", err=True)


@app.command()
def cache(
    action: Annotated[str, typer.Argument(help="list or clear.", show_default=False)],
    folder: Annotated[
        Path | None,
        typer.Option(help="Of the cache; $HOLDFAST_CACHE, or `holdfast` among your caches.", show_default=False),
    ] = None,
) -> None:
    """Show what features of frozen backbones are kept on disk, or remove them all."""
    with reported():
        from holdfast.core.errors import unknown
        from holdfast.streams.feature_files import clear, default_folder, entries

        if action not in ("list", "clear"):
            raise ConfigError(unknown("action", action, ["list", "clear"]))
        place = folder or default_folder()
        held = entries(place)
        if action == "list":
            table = _table()
            for entry in held:
                of, size = entry["of"], f"{entry['bytes'] / 1e6:.1f} MB"
                shape = f"{entry['rows']} x {entry['width']} {entry['precision']}"
                table.add_row(entry["key"][:12], of.get("backbone", ""), of.get("stream", ""), shape, size)
            _console().print(table)
            typer.echo(f"{len(held)} in {place}, {sum(entry['bytes'] for entry in held) / 1e6:.1f} MB")
        else:
            typer.echo(f"{clear(place) / 1e6:.1f} MB freed in {place}")


@app.command()
def validate(job: Job = None, config_dir: Folders = None, plugin: Plugins = None) -> None:
    """Check a configuration without loading anything, and show what it stands for."""
    with reported():
        plugged(plugin)
        from holdfast.config.show import summary

        todo = validated_job(job, config_dir)
        table = _table()
        for key, text in summary(todo.config).items():
            table.add_row(key, text)
        _console().print(table)
        typer.echo("valid")


@app.command()
def schema(plugin: Plugins = None) -> None:
    """Print the JSON Schema of configurations, for completion in editors."""
    with reported():
        plugged(plugin)
        from holdfast.config.show import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))


def plugged(files: list[Path] | None) -> None:
    """Import the plug-in files of a command."""
    if not files:
        return
    from holdfast.config.plugins import use

    names = [file.name for file in files]
    twice = next((name for name in names if names.count(name) > 1 and len({*files}) == len(files)), None)
    if twice is not None:
        raise ConfigError(f"--plugin: two files are called {twice}. Rename one of them.")
    for file in files:
        use(file)


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """A command's arguments as a file, if the first is no change, and changes."""
    path = None
    if words and (Path(words[0]).is_file() or not ("=" in words[0] or words[0].startswith("~"))):
        path, words = words[0], words[1:]
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(
                f"{word!r} is no change to a configuration. Write key=value; the file's path comes first."
            )
    return path, words


def launched(changes: list[str], launcher: str) -> tuple[str, list[str]]:
    """The launcher, which may be written Hydra's way (`hydra/launcher=ray`), and the other changes."""
    key = "hydra/launcher="
    named = [word.removeprefix(key) for word in changes if word.startswith(key)]
    names = {"basic": "processes", "joblib": "processes"}
    rest = [word for word in changes if not word.startswith(key)]
    return (names.get(named[-1], named[-1]) if named else launcher), rest


def validated_job(words: list[str] | None, folders: list[Path] | None = None, single: bool = False) -> ValidatedJob:
    """The job of a command's arguments: a file first, if the first argument is no `key=value`.

    Args:
        words: the arguments.
        folders: of config groups.
        single: whether it is to be one run, so that files that describe a sweep are refused.
    """
    path, changes = split_words(list(words or []))
    from holdfast.compat.dialects import DIALECTS
    from holdfast.config.check import validated
    from holdfast.config.compose import compose

    composition = compose(path, changes, folders or [], DIALECTS)
    if single and composition.search is not None:
        keys = ", ".join(composition.search.params)
        raise ConfigError(f"sweep.params: {keys} shall vary, which makes several runs. Write -m: holdfast run -m ...")
    job = validated(composition.config, path or "")
    for note in composition.notes:
        typer.echo(note, err=True)
    return job


def told(folder: Path, quiet: bool) -> None:
    """Say on standard error what came out, and print the folder; once, where several processes made it."""
    from holdfast.training.precision import first

    if not first():
        return
    from holdfast.metrics.log import read_json

    if not quiet:
        from holdfast.runs.words import closing

        typer.echo(closing(folder), err=True)
    typer.echo(str(folder))
    if read_json(folder / "run.json").get("state") == "diverged":
        raise typer.Exit(1)


@contextlib.contextmanager
def reported(folder: Path | None = None) -> Iterator[None]:
    """Print errors that Holdfast raises on purpose without a traceback, and set the exit code.

    Args:
        folder: the run that Ctrl-C leaves behind, if it is known.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        left = next((str(value) for value in interrupt.args if value), None) or folder
        place = shlex.quote(str(left)) if left else "RUN"
        typer.echo(f"\ninterrupted; go on with: holdfast resume {place}{_plugin_flags()}", err=True)
        raise typer.Exit(130) from None
    except HoldfastError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        interrupted = type(error).__name__ == "Interrupted"
        if interrupted and folder is not None and "resume" not in str(error):
            typer.echo(f"go on with: holdfast resume {shlex.quote(str(folder))}{_plugin_flags()}", err=True)
        raise typer.Exit(130 if interrupted else 2 if isinstance(error, ConfigError) else 1) from None
    except ImportError as error:
        if "pip install 'holdfast[" not in str(error):
            raise
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _plugin_flags() -> str:
    """The plug-in files of this command, as options to write again."""
    module = sys.modules.get("holdfast.config.plugins")
    return "" if module is None else str(module.flags())


def _details(kind: str, name: str) -> None:
    """Everything about one name, and its parameters one to a line."""
    from holdfast.config.show import describe
    from holdfast.config.signatures import type_name
    from holdfast.config.words import shown

    about = describe(kind, name)
    typer.echo(f"{about.name}: {about.summary}")
    facts = {"paper": about.paper, "role": about.role, "needs": ", ".join(about.needs)}
    for key, text in facts.items():
        if text:
            typer.echo(f"{key}: {text}")
    table = _table()
    for parameter in about.parameters:
        default = "required" if parameter.required else f"= {shown(parameter.default)}"
        table.add_row(f"  {parameter.name}", default, type_name(parameter.type), parameter.doc.split(". ")[0])
    _console().print(table)


def _console() -> Console:
    """A console as wide as the terminal; what goes into a pipe is not wrapped."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 1000)


def _table() -> Any:
    from rich.table import Table

    return Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))


register(app, reported, plugged, split_words)
