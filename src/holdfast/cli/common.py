"""What the commands share: their arguments, the job that is meant, and how results and errors are told."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.core.errors import ConfigError, HoldfastError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from holdfast.config.job import Job as ValidatedJob

# Nothing that imports torch may be imported here: `holdfast --help` answers at once.

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
    for word in words:
        if "\0" in word:
            raise ConfigError(f"{word!r} has a null byte, which no file and no value can have. Leave it out.")
    if words and (is_file(words[0]) or not ("=" in words[0] or words[0].startswith("~"))):
        path, words = words[0], words[1:]
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(
                f"{word!r} is no change to a configuration. Write key=value; the file's path comes first."
            )
    return path, words


def is_file(word: str) -> bool:
    """Whether a word names a file; one that is not a path at all (longer than any may be, for instance) does not."""
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def launched(changes: list[str], launcher: str) -> tuple[str, list[str]]:
    """The launcher, which may be written Hydra's way (`hydra/launcher=ray`), and the other changes."""
    key = "hydra/launcher="
    named = [word.removeprefix(key) for word in changes if word.startswith(key)]
    names = {"basic": "processes", "joblib": "processes"}
    rest = [word for word in changes if not word.startswith(key)]
    return (names.get(named[-1], named[-1]) if named else launcher), rest


def validated_job(
    words: list[str] | None, folders: list[Path] | None = None, single: bool = False, together: bool = False
) -> ValidatedJob:
    """The job of a command's arguments: a file first, if the first argument is no `key=value`.

    Args:
        words: the arguments.
        folders: of config groups.
        single: whether it is to be one run, so that files that describe a sweep are refused.
        together: whether its parts are put together over stand-ins for the data, too.
    """
    path, changes = split_words(list(words or []))
    from holdfast.compat.dialects import DIALECTS
    from holdfast.config.check import validated
    from holdfast.config.compose import compose

    composition = compose(path, changes, folders or [], DIALECTS)
    if single and composition.search is not None:
        keys = ", ".join(composition.search.params)
        raise ConfigError(f"sweep.params: {keys} shall vary, which makes several runs. Write -m: holdfast run -m ...")
    job = validated(composition.config, path or "", together)
    job.notes = composition.notes
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
        from holdfast.runs.console import also_logged
        from holdfast.runs.opened import closing

        summary = closing(folder)
        also_logged(folder, summary)
        typer.echo(summary, err=True)
    typer.echo(str(folder))
    if read_json(folder / "run.json").get("state") == "diverged":
        raise typer.Exit(1)


def warned(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Say a warning as a sentence, without the line of our code that it comes from."""
    typer.echo(f"warning: {message}", err=True)


@contextlib.contextmanager
def reported(folder: Path | None = None, makes_run: bool = False) -> Iterator[None]:
    """Print errors that Holdfast raises on purpose without a traceback, and set the exit code.

    Args:
        folder: the run that Ctrl-C leaves behind, if it is known.
        makes_run: whether the command makes a run, or several, that can be resumed.
    """
    try:
        with _terminable():
            yield
    except KeyboardInterrupt as interrupt:
        left = next((Path(str(value)) for value in interrupt.args if value), None) or folder
        typer.echo(f"\n{interrupted(left, makes_run)}", err=True)
        raise typer.Exit(130) from None
    except HoldfastError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        stopped = type(error).__name__ == "Interrupted"
        if stopped and folder is not None and "resume" not in str(error):
            typer.echo(f"go on with: holdfast resume {shlex.quote(str(folder))}{plugin_flags()}", err=True)
        raise typer.Exit(130 if stopped else 2 if isinstance(error, ConfigError) else 1) from None
    except OSError as error:
        named = f" {str(error.filename)[:200]}" if error.filename else ""
        typer.echo(f"OSError: {error.strerror or error}{f':{named}' if named else ''}", err=True)
        raise typer.Exit(1) from None
    except ImportError as error:
        if "pip install 'holdfast[" not in str(error):
            raise
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM inside is as Ctrl-C: it is told what goes on with."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted(left: Path | None, makes_run: bool = True) -> str:
    """What Ctrl-C left behind, and how to go on with it.

    Args:
        left: the folder of the run or of several; it need not be there.
        makes_run: whether the command makes such a folder.
    """
    if left is None or not left.is_dir():
        return "interrupted; nothing was made yet, so run the same command again." if makes_run else "interrupted."
    if (left / "sweep.json").is_file():
        words = sys.argv[1:]
        there = [] if {"-o", "--out"} & set(words) else ["--out", str(left)]
        return f"interrupted; what is missing is run by: {shlex.join(['holdfast', *words, *there])}"
    if not (left / "config.json").is_file():
        return "interrupted before the run began; nothing of it is kept, so run the same command again."
    saved = any(left.rglob("last.pt"))
    where = "" if saved else " (from the start, since no checkpoint was saved yet)"
    return f"interrupted; go on with: holdfast resume {shlex.quote(str(left))}{plugin_flags()}{where}"


def plugin_flags() -> str:
    """The plug-in files of this command, as options to write again."""
    module = sys.modules.get("holdfast.config.plugins")
    return "" if module is None else str(module.flags())


def console() -> Console:
    """A console as wide as the terminal; what goes into a pipe is not wrapped."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 1000)


def empty_table() -> Table:
    """An empty table without lines."""
    from rich.table import Table

    return Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
