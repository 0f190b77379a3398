"""Sweeps: many runs from one command, each in a folder of its own, of which only those missing are run again."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.config import plugins
from holdfast.config.check import validated
from holdfast.config.compose import DEFAULT, compose
from holdfast.config.read import Dialect
from holdfast.config.search import Search, expand
from holdfast.config.words import filled
from holdfast.core.errors import ConfigError, Interrupted, unknown
from holdfast.metrics.log import read_json, write_json
from holdfast.runs.assemble import job_key, shared
from holdfast.runs.folder import locked, numbered, read_info
from holdfast.runs.loggers import specified
from holdfast.runs.pool import Job, Pool, RayPool
from holdfast.runs.recording import naming
from holdfast.runs.result import ENDED
from holdfast.runs.stacks import alike, together, wanted
from holdfast.runs.sweep_report import SWEEP, write_sweep_report
from holdfast.runs.worker import work
from holdfast.training.progress import told

LOG = "workers.log"
LAUNCHERS = ("processes", "ray")
EVERY = 30.0
"""Seconds between two lines that say how far the runs are."""


def sweep(
    path: str | None,
    changes: Sequence[str],
    folders: Sequence[Path] = (),
    out: Path | None = None,
    *,
    jobs: int | None = None,
    quiet: bool = False,
    command: str = "",
    launcher: str = "processes",
    dialects: Sequence[Dialect] = (),
) -> tuple[Path, list[Job]]:
    """Run every combination of `changes`, and report on all of them together.

    Where the files name keys to vary (`sweep: {params: ...}`), those settings too, and the best of them by what was
    measured on validation data is written to `best.json`. Every configuration is checked before anything starts. A
    folder that is there already is continued: what finished is kept, by the key of its configuration; what was
    interrupted is resumed from its checkpoint.

    Args:
        path: a configuration file; None for the default job (without its references).
        changes: as typed, those with several values included.
        folders: the user's own config groups.
        out: the folder; default: the unfinished one of the same jobs under `multiruns/`, else a new one by date.
        jobs: runs at once; None for one, on Ray for as many as the cluster has room for.
        quiet: print nothing.
        command: what the user typed, kept with each run.
        launcher: `processes` of this machine, or tasks of a `ray` cluster.
        dialects: other projects' ways to write a job that are understood too.

    Returns:
        The folder, and the jobs that failed twice or diverged.

    Raises:
        ConfigError: for a wrong configuration, or a folder of something else.
        ImportError: where a logger's library is not installed; before the folder is made.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(unknown("launcher", launcher, LAUNCHERS))
    notes: dict[str, list[str]] = {}
    todo = planned(path, changes, folders, dialects, notes)
    if any(shared(config) for _, config in todo):
        raise ConfigError(
            "-m starts processes of its own, and this one was started as one of several (LOCAL_RANK or SLURM_NTASKS is"
            " set). Start it alone, or one run at a time."
        )
    for _, config in todo:
        specified(config["loggers"])
    search = compose(path, expand(changes)[0], folders, dialects).search
    folder = out if out is not None else _folder(todo)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / SWEEP).is_file()):
        raise ConfigError(f"{folder} exists already and is not a multirun. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        runs = _enlisted(folder, todo, command, search)
        for job in runs:
            job.notes = notes.get(job.key, [])
        waiting = [job for job in runs if job.state not in ENDED]
        if not quiet:
            for note in dict.fromkeys(note for job in runs for note in job.notes):
                _say(note)
            kept = len(runs) - len(waiting)
            _say(f"{len(runs)} runs in {folder}" + (f", {kept} finished already" if kept else ""))
        done = [len(runs) - len(waiting)]

        def ended(job: Job) -> None:
            done[0] += 1
            if not quiet:
                what = f"{job.seconds:.0f} s" if job.state == "finished" else f"{job.state}: {job.error}"
                _say(f"[{done[0]}/{len(runs)}] {job.folder.name}: {' '.join(job.changes)}: {what}")

        pool: Pool | RayPool
        if launcher == "ray":
            pool = RayPool(waiting, jobs, command, ended)
        else:
            pool = Pool(waiting, jobs or 1, folder / LOG, command, ended)
        try:
            with naming(folder), _news(pool, runs, quiet):
                pool.waiting = _at_once(pool.waiting, command, ended)
                pool.run()
        finally:
            _write_report(folder, runs, quiet)
    return folder, [job for job in runs if job.state != "finished"]


def _at_once(waiting: Sequence[Job], command: str, ended: Callable[[Job], None]) -> list[Job]:
    """Train the jobs that ask for it (`trainer.stack`) and differ in numbers alone, those of each kind at once.

    They are trained in this process, by one program; each is then as if it had been trained alone.

    Returns:
        The jobs that are left to be run one by one, those that failed here among them.

    Raises:
        KeyboardInterrupt: where they were told to stop, and have saved their state.
    """
    groups: dict[str, list[Job]] = {}
    for job in waiting:
        if wanted(job.config):
            groups.setdefault(alike(job.config), []).append(job)
    left = [job for job in waiting if not wanted(job.config)]
    for group in groups.values():
        if len(group) < 2:
            left += group
            continue
        begun = time.perf_counter()
        for job in group:
            job.state, job.tries = "running", job.tries + 1
        works = [functools.partial(work, job.config, job.folder, command) for job in group]
        for job, member in zip(group, together(works, group[0].config)):
            job.seconds = time.perf_counter() - begun
            if member.error is None:
                job.state, job.error = member.result
                ended(job)
            elif isinstance(member.error, Interrupted | KeyboardInterrupt):
                job.state = "interrupted"
            else:
                job.state, job.error = "failed", f"{type(member.error).__name__}: {member.error}"
                left.append(job)
        if any(job.state == "interrupted" for job in group):
            raise KeyboardInterrupt
    return sorted(left, key=lambda job: job.number)


def planned(
    path: str | None,
    changes: Sequence[str],
    folders: Sequence[Path] = (),
    dialects: Sequence[Dialect] = (),
    notes: dict[str, list[str]] | None = None,
) -> list[tuple[list[str], dict[str, Any]]]:
    """The jobs of a sweep: the changes and the resolved configuration of each, each configuration once.

    Args:
        path: as in `sweep`, like `changes`, `folders` and `dialects`.
        changes: with several values.
        folders: of config groups.
        dialects: other projects' ways to write a job.
        notes: gets what a file of another project means differently here, by the key of each job.
    """
    jobs: dict[str, tuple[list[str], dict[str, Any]]] = {}
    tried: set[str] = set()  # which parts were put together, whatever their optimiser and seed
    keys = [text.split("=", 1)[0].lstrip("+~") for text in changes]
    for typed in expand(changes, folders):
        search = compose(path, typed, folders, dialects).search
        for more in [[]] if search is None else search.settings(keys):
            texts = [*typed, *more]
            composition = compose(path, texts, folders, dialects)
            config = dict(composition.config)
            sources = [source for dotted, source in composition.origins.items() if dotted[0] == "references"]
            if all(source == DEFAULT for source in sources):
                config["references"] = []
            if search is not None:
                config = _measured(config)
            parts = json.dumps([config.get(key) for key in ("method", "model", "stream", "criterion")], default=str)
            config = validated(config, " ".join(texts), together=parts not in tried).config
            tried.add(parts)
            jobs.setdefault(job_key(config), (texts, config))
            if notes is not None and composition.notes:
                notes.setdefault(job_key(config), composition.notes)
    return list(jobs.values())


def _measured(config: dict[str, Any]) -> dict[str, Any]:
    """A job that is measured on validation data as well, so that settings can be chosen by it.

    Raises:
        ConfigError: where the stream holds none out.
    """
    stream = config["stream"]
    validation = (
        stream.get("validation") or (stream.get("of") or {}).get("validation") if isinstance(stream, dict) else None
    )
    if not validation:
        raise ConfigError(
            "a sweep chooses its settings by validation data, and the stream holds none out. Write "
            "stream.validation=0.1."
        )
    return {**config, "trainer": {**config["trainer"], "evaluate": "both"}}


def _folder(todo: Sequence[tuple[list[str], dict[str, Any]]]) -> Path:
    """The unfinished folder of the very same jobs, else a new one."""
    first = todo[0][1]
    experiment, method = first["experiment_name"], first["method"].get("name", "custom")
    usual = "logs/{experiment}/multiruns/{date}-{clock}" if experiment else "multiruns/{date}-{clock}"
    stem = filled(first["folders"]["multirun"] or usual, method, experiment)
    wanted = sorted(job_key(config) for _, config in todo)
    for file in sorted(stem.parent.glob(f"*/{SWEEP}"), reverse=True):
        listing = read_json(file)
        if sorted(job["key"] for job in listing["jobs"]) == wanted and not listing.get("finished"):
            return file.parent
    for folder in numbered(stem):
        if not folder.exists():
            return folder
    raise ConfigError(f"{stem} and all its numbers are taken. Give --out.")


def _enlisted(
    folder: Path, todo: Sequence[tuple[list[str], dict[str, Any]]], command: str, search: Search | None
) -> list[Job]:
    """The jobs with their folders, new ones numbered after those known; written down before anything runs."""
    record = read_json(folder / SWEEP)
    numbers = {job["key"]: job["number"] for job in record.get("jobs", [])}
    listing = {job["key"]: job for job in record.get("jobs", [])}
    runs = []
    for texts, config in todo:
        key = job_key(config)
        number = numbers.setdefault(key, max(numbers.values(), default=-1) + 1)
        job_folder = folder / str(number)
        config = {**config, "tags": config["tags"] or [folder.name]}
        state = str(read_info(job_folder).get("state") or "waiting")
        told = listing.get(key, {}).get("error", "") if state == "diverged" else ""
        runs.append(Job(number, key, texts, config, job_folder, state if state in ENDED else "waiting", told))
        listing[key] = {"number": number, "key": key, "changes": texts}
    content = {"command": record.get("command") or command, "started": record.get("started", time.time())}
    if plugins.used():
        content["plugins"] = plugins.described()
    content["search"] = None if search is None else search.plain()
    write_json(folder / SWEEP, {**content, "finished": None, "jobs": list(listing.values())})
    return runs


@contextlib.contextmanager
def _news(pool: Pool | RayPool, runs: Sequence[Job], quiet: bool) -> Iterator[None]:
    """Say every half a minute how far the runs are, while nothing else is said."""
    over, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(EVERY):
            done = sum(job.state in ENDED for job in runs)
            here = sum(job.seconds > 0 for job in runs)
            gone = time.monotonic() - started
            left = f", about {told(gone * (len(runs) - done) / here)} left" if here else ""
            _say(f"{done} of {len(runs)} runs ended, {sum(job.state == 'running' for job in runs)} at work{left}")

    thread = threading.Thread(target=tell, daemon=True)
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        over.set()


def _write_report(folder: Path, runs: Sequence[Job], quiet: bool) -> None:
    record = read_json(folder / SWEEP)
    states = {job.key: (job.state, job.error) for job in runs}
    for one in record["jobs"]:
        one["state"], one["error"] = states.get(one["key"], (one.get("state", "waiting"), ""))
    if all(job.state in ENDED for job in runs):
        record["finished"] = time.time()
    write_json(folder / SWEEP, record)
    if any(job.state in ENDED for job in runs):
        text = write_sweep_report(folder)
        if not quiet:
            _say(text)


def _say(text: str) -> None:
    sys.stderr.write(text.rstrip("\n") + "\n")
