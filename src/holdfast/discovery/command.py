"""`holdfast search` and `holdfast sweep`, on the command line and in Python."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ConfigError, unknown

if TYPE_CHECKING:
    from holdfast.config.read import Dialect
    from holdfast.discovery.plan import Plan


SEARCHES = "searches"
USUAL_TRIALS = 40

ASKED = 3
"""How often a composition is bound, or another refused, before one is proposed: for estimates."""


@dataclass(frozen=True)
class Outcome:
    """What a search left.

    Attributes:
        folder: with `report.html`, `best.json`, `pareto.json`, `trials/` and `final/`.
        best: the job of the best composition; empty where nothing was measured.
        verdict: what came out, in words.
    """

    folder: Path
    best: dict[str, Any]
    verdict: str


def search(
    space: str | Path | Mapping[str, Any] | None = None,
    *words: str,
    out: str | Path | None = None,
    jobs: int = 1,
    storage: str | None = None,
    launcher: str = "processes",
    quiet: bool = True,
    **settings: Any,
) -> Outcome:
    """Look for the composition of operations that suits a stream; needs the extra `search`.

    Args:
        space: a space file, or what one holds; None for everything that exists.
        *words: as on the command line: `"stream.dataset=digits"`, `"trainer.epochs=1"`, `"objectives=accuracy,memory"`.
        out: the folder; default: a new one under `searches/`, or the unfinished one of the same search.
        jobs: compositions at once, each in a process of its own.
        storage: the address of a database that other machines share; None for a file in the folder.
        launcher: `processes` of this machine, or tasks of a `ray` cluster, which the extra `cluster` brings.
        quiet: say nothing on standard error.
        **settings: of `holdfast.discovery.settings.Settings`: `trials=20`, `budget="30m"`, `protocol="validation"`.

    Returns:
        The folder, the best job, and the verdict in words.

    Raises:
        ConfigError: for whatever is wrong, before anything starts.
        ImportError: where Optuna is not installed, with what to install.
    """
    return _done(space, words, out, jobs, storage, launcher, quiet, settings, False)


def sweep(
    job: str | Path | Mapping[str, Any] | None = None,
    *words: str,
    out: str | Path | None = None,
    jobs: int = 1,
    storage: str | None = None,
    launcher: str = "processes",
    quiet: bool = True,
    **settings: Any,
) -> Outcome:
    """Tune the numbers of one method: those given several values, else those whose ranges it declares.

    Args:
        job: a file, or what one holds; None for the default job.
        *words: changes of the job, of which some stand for several values (`"optimizer.lr=interval(0.01,1)"`), and
            settings of the search.
        out: as in `search`.
        jobs: as in `search`.
        storage: as in `search`.
        launcher: as in `search`.
        quiet: as in `search`.
        **settings: as in `search`.

    Raises:
        ConfigError: for whatever is wrong, before anything starts.
        ImportError: where Optuna is not installed, with what to install.
    """
    return _done(job, words, out, jobs, storage, launcher, quiet, settings, True)


def _done(
    file: Any,
    words: Sequence[str],
    out: Any,
    jobs: int,
    storage: str | None,
    launcher: str,
    quiet: bool,
    settings: Any,
    tune: bool,
) -> Outcome:
    from holdfast.discovery.plan import written

    path = None if file is None else written(file) if isinstance(file, Mapping) else str(file)
    from holdfast.compat.dialects import DIALECTS

    say: Callable[[str], None] = (lambda text: None) if quiet else tell
    plan = planned(path, words, (), DIALECTS, sweep=tune, **settings)
    return started(plan, None if out is None else Path(out), jobs, storage, say, launcher=launcher)


def planned(
    path: str | None,
    words: Sequence[str],
    folders: Sequence[Path] = (),
    dialects: Sequence[Dialect] = (),
    *,
    sweep: bool = False,
    **more: Any,
) -> Plan:
    """The plan of a command, with trials where neither trials nor a budget was given."""
    begun = time.perf_counter()
    from holdfast.discovery.plan import Plan
    from holdfast.discovery.study import library

    library()
    notes: list[str] = []
    if path is not None and not sweep:
        path, words, notes = understood(path, words, dialects)
    plan = Plan.of(path, words, folders, dialects, sweep=sweep, **more)
    if plan.settings.trials is None and plan.settings.budget is None:
        plan.settings = dataclasses.replace(plan.settings, trials=USUAL_TRIALS)
    plan.started = begun  # a budget counts from here
    plan.notes[:0] = notes
    return plan


def understood(path: str, words: Sequence[str], dialects: Sequence[Dialect]) -> tuple[str, list[str], list[str]]:
    """A file of another project as a space file, with the other words, and what is done differently, in sentences.

    Args:
        path: of a file, ours or another project's.
        words: as typed; those that are keys of that project's files are changes of the file.
        dialects: other projects' ways to write a job.
    """
    from holdfast.config.overrides import parse
    from holdfast.config.read import read
    from holdfast.config.search import fixed_and_varying
    from holdfast.discovery.axes import written as axis
    from holdfast.discovery.plan import written

    content = read(path)
    dialect = next((one for one in dialects if one.recognised(content)), None)
    if dialect is None:
        return path, list(words), []
    changes: dict[tuple[str, ...], Any] = {}
    rest = []
    for word in words:
        key = word.partition("=")[0]
        if not dialect.owns(tuple(key.split("."))):
            rest.append(word)
        elif varying := fixed_and_varying([word])[1]:
            changes[tuple(key.split("."))] = list(axis(key, varying[key], "words").choices)
        else:
            changes |= {one.path: one.value for one in parse([word])}
    space, notes = dialect.space(content, changes, path)
    return written(space), rest, notes


def started(
    plan: Plan,
    out: Path | None,
    jobs: int,
    storage: str | None,
    say: Callable[[str], None],
    command: str = "",
    launcher: str = "processes",
) -> Outcome:
    """Do a search, or go on with it."""
    from holdfast.discovery.driver import Driver
    from holdfast.metrics.log import read_json
    from holdfast.runs.sweep import LAUNCHERS

    if jobs < 1:
        raise ConfigError(f"jobs: got {jobs}. Give a number of processes, 1 or more.")
    if launcher not in LAUNCHERS:
        raise ConfigError(unknown("launcher", launcher, LAUNCHERS))
    folder = out if out is not None else folder_of(plan)
    if folder.is_file():
        raise ConfigError(f"{folder} is a file. Choose another --out.")
    say(f"searching in {folder}" if not plan.sweep else f"tuning in {folder}")
    Driver(plan, folder, jobs, storage, say, command, launcher).run()
    record = read_json(folder / "search.json")
    return Outcome(folder, read_json(folder / "best.json"), str(record.get("verdict", "")))


def folder_of(plan: Plan) -> Path:
    """The unfinished folder of the very same search, else a new one."""
    from holdfast.metrics.log import read_json

    mine = plan.plain()
    root = Path(SEARCHES)
    for file in sorted(root.glob("*/search.json"), reverse=True):
        told = read_json(file)
        if told.get("state") != "finished" and told.get("plan") == mine:
            return file.parent
    stem = root / time.strftime("%Y-%m-%d-%H%M%S")
    folder, number = stem, 1
    while folder.exists():
        number += 1
        folder = Path(f"{stem}-{number}")
    return folder


def estimate(plan: Plan, jobs: int) -> str:
    """What a search will cost, from one short run: nothing is kept."""
    from holdfast.discovery.finals import seconds_of_last
    from holdfast.discovery.findings import duration

    params = plan.literature[0][1] if plan.literature else plan.space.usual()
    planning = time.perf_counter() - plan.started
    name, experience = plan.measured_cost()
    asked = time.perf_counter()
    if plan.literature:
        plan.accepted(params, {})
    proposing = ASKED * (time.perf_counter() - asked)
    composition = plan.seconds_per_composition(experience) + proposing
    finals = (plan.seconds_of_finals(experience) + seconds_of_last(plan, experience)) / jobs
    settings = plan.settings
    prefixes = ", ".join(map(str, plan.prefixes))
    lines = [
        f"One experience ({name}) took {duration(experience)}, and planning {duration(planning)}; {plan.told(1)} takes "
        f"about {duration(composition)} ({duration(proposing)} to propose it; prefixes of {prefixes} of "
        f"{plan.experiences} experiences), comparing the best and the final runs together {duration(finals)}.",
    ]
    if settings.budget is not None:
        room = settings.budget - min(planning, settings.budget) - min(finals, settings.budget / 2)
        fits = max(1, math.floor(room / composition * jobs))
        lines.append(f"In {duration(settings.budget)} about {plan.told(fits)} fit, {jobs} at once.")
    if settings.trials is not None:
        total = planning + settings.trials * composition / jobs + finals
        lines.append(f"{plan.told(settings.trials)}: about {duration(total)}.")
    if not plan.sweep:
        names = {name for names in plan.space.slots.values() for name in names}
        lines.append(
            f"The space has {len(names)} operations in {len(plan.space.slots)} slots, {len(plan.space.axes())} "
            f"parameters, and {len(plan.literature)} published methods as points; {len(plan.space.left_out)} operations"
            " do not fit this job."
        )
    else:
        lines += [f"{axis.name}: {axis}" for axis in plan.space.common]
    return "\n".join(lines)


def tell(text: str) -> None:
    """Say a line on standard error."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()
