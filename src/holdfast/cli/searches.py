"""The commands that look for settings: `holdfast search | sweep`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.common import Folders, Plugins, plugged, reported, split_words
from holdfast.core.errors import ConfigError

# Nothing that imports torch may be imported here: `holdfast --help` answers at once.

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|KEY=VALUE",
        help="A file, then settings of the search and changes of the job: objectives=accuracy stream.dataset=digits",
        show_default=False,
    ),
]
Trials = Annotated[int | None, typer.Option("--trials", "-n", min=1, help="How many are tried.", show_default=False)]
Budget = Annotated[str | None, typer.Option("--budget", help="Time for everything: 30m, 2h.", show_default=False)]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="How many at once, one torch thread each.")]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Address of a database that machines share: postgresql+psycopg://host/base",
        show_default=False,
    ),
]
Launcher = Annotated[
    str, typer.Option("--launcher", help="Processes of this machine (`processes`), or tasks of a `ray` cluster.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The folder; an unfinished one is continued.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it will cost, from one short run.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the folder's path and nothing else.")]


def search(
    words: Words = None,
    trials: Trials = None,
    budget: Budget = None,
    jobs: Jobs = 1,
    storage: Storage = None,
    launcher: Launcher = "processes",
    out: Out = None,
    dry_run: DryRun = False,
    worker: Annotated[bool, typer.Option("--worker", help="Only work for the search in --storage.")] = False,
    no_warm_start: Annotated[
        bool, typer.Option("--no-warm-start", help="Leave out what earlier searches found, and keep nothing of this.")
    ] = False,
    quiet: Quiet = False,
    config_dir: Folders = None,
    plugin: Plugins = None,
) -> None:
    """Find the composition of operations that suits a stream, without looking at its test data.

    The same command again goes on with a search that was interrupted. The verdict is printed at the end, and the last
    line printed is the path of the folder: report.html, best.json (for `holdfast run best.json`), pareto.json.
    """
    more: dict[str, Any] = {"warm_start": False} if no_warm_start else {}
    with reported():
        plugged(plugin)
        if worker:
            typer.echo(str(_work_for(storage, out)))
            return
        where = (config_dir, out, jobs, storage, launcher)
        typer.echo(_done(words, *where, dry_run, quiet, False, trials=trials, budget=budget, **more))


def sweep(
    words: Words = None,
    trials: Trials = None,
    budget: Budget = None,
    jobs: Jobs = 1,
    storage: Storage = None,
    launcher: Launcher = "processes",
    out: Out = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    config_dir: Folders = None,
    plugin: Plugins = None,
) -> None:
    """Tune the numbers of one method: those with several values, else those whose ranges it declares.

    holdfast sweep method=er optimizer.lr='tag(log,interval(0.01,1))' trainer.batch_size=8,32 --trials 20
    """
    with reported():
        plugged(plugin)
        where = (config_dir, out, jobs, storage, launcher)
        typer.echo(_done(words, *where, dry_run, quiet, True, trials=trials, budget=budget))


def _work_for(storage: str | None, out: Path | None) -> Path:
    """Work for the search in a storage until it ends."""
    if storage is None:
        raise ConfigError("--worker: works for a search on other machines. Give the storage too: --storage URL.")
    from holdfast.discovery.command import SEARCHES
    from holdfast.discovery.worker import joined

    folder = out or Path(SEARCHES) / "worker"
    worker = joined(storage, folder)
    folder.mkdir(parents=True, exist_ok=True)
    worker.until_closed()
    return folder


def _done(
    words: list[str] | None,
    folders: list[Path] | None,
    out: Path | None,
    jobs: int,
    storage: str | None,
    launcher: str,
    dry_run: bool,
    quiet: bool,
    tune: bool,
    **more: Any,
) -> str:
    """What a typed command prints last."""
    from holdfast.compat.dialects import DIALECTS
    from holdfast.discovery.command import estimate, planned, started, tell

    path, rest = split_words(list(words or []))
    plan = planned(path, rest, folders or [], DIALECTS, sweep=tune, **more)
    if dry_run:
        return estimate(plan, jobs)
    typed = shlex.join(["holdfast", *sys.argv[1:]])
    say = (lambda text: None) if quiet else tell
    return str(started(plan, out, jobs, storage, say, typed, launcher).folder)
