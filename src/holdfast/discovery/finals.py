"""The end of a search: what the time that is left has room for, and the final runs on test data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.config.check import validated
from holdfast.core.operation import SHORT
from holdfast.discovery.findings import duration
from holdfast.discovery.plan import Plan
from holdfast.discovery.protocols import FRESH
from holdfast.discovery.space import short
from holdfast.discovery.study import Book
from holdfast.discovery.trial import Entry, finish
from holdfast.runs.folder import read_info
from holdfast.runs.report import write_report
from holdfast.runs.result import ENDED, Result, is_run
from holdfast.runs.stacks import alike, together, wanted
from holdfast.runs.sweep_report import Setting
from holdfast.runs.words import over_runs

FINAL = "final"
"""Folder of the final runs."""

BESIDE = ("average_accuracy", "worst_class", "forgetting_first", "method_bytes_peak", "parameters", "train_seconds")
"""What the table of final runs says besides the objectives."""

LAST = 4
"""How many of the best compositions are compared on all that the protocol allows, before any is chosen."""

SEEDS = 3
"""With how many seeds the leaders are trained before one is chosen: what goes well once may diverge the next time."""

SHARE_OF_FINALS, MOST_SHARE = 0.25, 0.5
"""Part of a budget that is kept for the end until it is known what that costs, and the most that is."""

MARGIN = 1.25
"""By how much more than its trials a composition's final runs are taken to cost: test data are more."""

PAGE = 1.5  # alone on a processor
"""Seconds that the page of a final run is taken to cost."""


class Clock:
    """What a budget of time has room for; without a budget, everything.

    Time is that of the wall, from when the search was planned; what earlier calls of an interrupted search took counts.

    Args:
        plan: of the search.
        book: its study.
        jobs: compositions at once.
        spent: seconds so far.
    """

    def __init__(self, plan: Plan, book: Book, jobs: int, spent: Callable[[], float]) -> None:
        self.plan, self.book, self.jobs, self.spent = plan, book, jobs, spent

    @property
    def slow(self) -> float:
        """How much longer than alone this process takes, where other programs share the processor."""
        return min(10.0, max(1.0, self.spent() / max(1.0, time.process_time()))) if self.jobs == 1 else 1.0

    @property
    def budget(self) -> float | None:
        """Seconds for everything."""
        return self.plan.settings.budget

    def progress(self, tried: int) -> float:
        """How much of what a search may try is used up, from 0 to 1, by trials or by time."""
        trials, used = self.plan.settings.trials, [0.0]
        used += [tried / trials] if trials is not None else []
        used += [self.spent() / ((1 - SHARE_OF_FINALS) * self.budget)] if self.budget is not None else []
        return min(1.0, max(used))

    def each(self, entries: Sequence[Entry]) -> float | None:
        """Seconds that an experience takes the dearest of the best compositions; None where nothing was measured."""
        total: dict[str, float] = {}
        longest: dict[str, int] = {}
        for one in entries:  # a promoted trial goes on from where the one before it ended
            if one.state == "done" and one.seed == 0:
                total[one.key] = total.get(one.key, 0.0) + one.seconds
                longest[one.key] = max(longest.get(one.key, 0), one.length)
        best = self.book.best(entries, max(LAST, self.plan.settings.finals))
        return max((total[key] / longest[key] for key in best), default=None)

    def finals(self, entries: Sequence[Entry]) -> float:
        """Seconds that are kept for the final runs."""
        each = self.each(entries)
        if each is None:
            return SHARE_OF_FINALS * (self.budget or 0.0)
        pages = PAGE * self.slow * (1 + self.plan.settings.finals * self.plan.settings.final_seeds)
        wanted = (MARGIN * self.plan.seconds_of_finals(each) + pages) / self.jobs
        return wanted if self.budget is None else min(wanted, MOST_SHARE * self.budget)

    def last(self, entries: Sequence[Entry]) -> float:
        """Seconds that it takes to compare the best on all that the protocol allows, the leaders with several seeds."""
        each, whole = self.each(entries), self.plan.prefixes[-1]
        if each is None:
            return 0.0
        longest: dict[str, int] = {}
        for one in entries:
            if one.state == "done":
                longest[one.key] = max(longest.get(one.key, 0), one.length)
        best = self.book.best(entries, max(LAST, self.plan.settings.finals))
        again = whole * (SEEDS - 1) * max(1, self.plan.settings.finals)
        return each * (sum(whole - longest[key] for key in best) + again) / self.jobs

    def room(self, entries: Sequence[Entry]) -> bool:
        """Whether another composition fits beside what the end will take."""
        if self.budget is None or not entries:
            return True  # a budget that starting up has eaten still buys one
        costs = sorted(one.seconds / one.length for one in entries if one.state == "done" and one.seconds)
        typical = costs[len(costs) // 2] * self.plan.prefixes[0] if costs else 0.0
        return self.spent() + typical < self.budget - self.finals(entries) - self.last(entries)

    def until(self, entries: Sequence[Entry], last: bool = False) -> float | None:
        """When a trial that is begun now has to end, by `time.time`.

        Args:
            entries: every trial; while there are none, there is no end.
            last: whether it is one of the last comparisons, for which time was kept.
        """
        if self.budget is None or not any(one.state == "done" for one in entries):
            return None
        kept = self.finals(entries) + (0.0 if last else self.last(entries))
        return time.time() + self.budget - kept - self.spent()

    @property
    def over(self) -> float | None:
        """When everything has to end, by `time.time`."""
        return None if self.budget is None else time.time() + self.budget - self.spent()

    def remaining(self, entries: Sequence[Entry]) -> str:
        """How long it will take, the end counted in, in words."""
        settings = self.plan.settings
        ended = [one for one in entries if one.state not in ("waiting", "running")]
        keys = {one.key for one in ended}
        guesses = []
        if self.budget is not None:
            guesses.append(self.budget - self.spent())
        if settings.trials is not None and keys:
            rest = sum(one.seconds for one in ended) / len(keys) * (settings.trials - len(keys)) / self.jobs
            guesses.append(max(0.0, rest) + self.last(entries) + self.finals(entries))
        return f", about {duration(max(0.0, min(guesses)))} left" if guesses else ""


def seconds_of_last(plan: Plan, experience: float) -> float:
    """What it costs to compare the best on everything, the leaders with several seeds; from that of one experience."""
    shortest, whole = plan.prefixes[0], plan.prefixes[-1]
    leaders = max(1, plan.settings.finals)
    return experience * (max(LAST, leaders) * (whole - shortest) + leaders * (SEEDS - 1) * whole)


def finalists(plan: Plan, book: Book) -> list[Entry]:
    """The compositions that are run on test data: the best by validation data, and the best published method."""
    entries = book.entries()
    latest = {one.key: one for one in sorted(entries, key=lambda one: one.length) if one.state == "done"}
    keys = book.best(entries, len(latest))
    settings = plan.settings
    chosen = keys[: settings.finals]
    published = [key for key in keys if latest[key].origin not in ("sampler", "earlier search")]
    if settings.finals > 1 and published and not set(published) & set(chosen):
        chosen = [*chosen[:-1], published[0]]
    return [latest[key] for key in chosen]


def final_jobs(plan: Plan, folder: Path, chosen: Sequence[Entry], command: str) -> list[dict[str, Any]]:
    """What is to be run on test data, as plain values: every finalist on one seed, then on the next.

    Args:
        plan: of the search.
        folder: of the search.
        chosen: the finalists, the best first.
        command: as typed.
    """
    jobs = []
    for seed in range(FRESH, FRESH + plan.settings.final_seeds):
        for one in chosen:
            config = validated(plan.protocol.final(plan.space.job(one.params), seed)).config
            run_folder = folder / FINAL / f"{one.key}-{seed}"
            jobs.append({"name": plan.space.named(one.params), "folder": str(run_folder.resolve()), "config": config,
                          "command": command})  # fmt: skip
    return jobs


def run_finals(
    jobs: Sequence[Mapping[str, Any]],
    until: float | None,
    page: float = PAGE,
    tell: Callable[[Mapping[str, Any]], None] = lambda job: None,
) -> None:
    """Do final runs one after the other, and then their pages, while there is time; the first is always done.

    Without a limit on time, those that `trainer.stack` allows are trained at once.

    Args:
        jobs: of `final_jobs`.
        until: when they have to end, by `time.time`.
        page: seconds that each page will take.
        tell: gets each that has ended.
    """
    took: list[float] = []
    for group in () if until is not None else _stacks(jobs):
        works = [partial(finish, Path(job["folder"]), job["config"], job["command"]) for job in group]
        for member in together(works, group[0]["config"]):
            if member.error is not None:  # it was interrupted: what else can go wrong is in the run's folder
                raise member.error
        for job in group:
            tell(job)
    for job in jobs:
        if state_of(job) in ENDED:
            continue
        if until is not None and took and time.time() + max(took) + page * (len(took) + 1) > until:
            break
        started = time.perf_counter()
        finish(Path(job["folder"]), job["config"], job["command"])
        took.append(time.perf_counter() - started)
        tell(job)
    made = 0
    for job in jobs:
        run_folder = Path(job["folder"])
        if state_of(job) in ENDED and not (run_folder / "report.html").is_file():
            if until is not None and made and time.time() + page > until:
                break
            started = time.time()
            write_report(run_folder)
            made, page = made + 1, time.time() - started


def _stacks(jobs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Final runs that are trained at once, where `trainer.stack` asks for it: those of equal shape, not begun yet."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for job in jobs:
        if not state_of(job) and wanted(job["config"]):
            groups.setdefault(alike(job["config"]), []).append(job)
    return [group for group in groups.values() if len(group) > 1]


def state_of(job: Mapping[str, Any]) -> str:
    """What has become of a final run; empty where it was not begun."""
    return str(read_info(Path(job["folder"])).get("state") or "")


# What came of them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Final(Setting):
    """The final runs of one composition, with its key."""

    key: str = ""


def final_runs(folder: Path, plan: Plan, entries: Sequence[Entry], keys: Sequence[str]) -> list[Final]:
    """The finished final runs, grouped by composition, in the order of validation data."""
    finals = []
    latest = {one.key: one for one in entries if one.state == "done"}
    names = [plan.space.named(latest[key].params) for key in keys if key in latest]
    for key in keys:
        if key not in latest:
            continue
        places = sorted((folder / FINAL).glob(f"{key}-*"))
        runs = [run for run_folder in places if is_run(run_folder) and (run := Result(run_folder)).finished]
        name = titled(plan, latest[key])
        name += f" ({key[:4]})" if names.count(plan.space.named(latest[key].params)) > 1 else ""
        by_seed = {int(run.seed or 0): run for run in runs}
        measures = dict.fromkeys((*plan.settings.objectives, *BESIDE))
        values = {one: over_runs(runs, lambda run, one=one: run.value(one)) for one in measures}  # type: ignore[misc]
        if by_seed:
            finals.append(Final(name, by_seed, values, key))
    return finals


def lost(folder: Path, plan: Plan, entries: Sequence[Entry], keys: Sequence[str]) -> dict[str, str]:
    """Key of a finalist -> what became of its final runs that diverged, failed or cannot be read, as a sentence."""
    reasons = {}
    latest = {one.key: one for one in entries if one.state == "done"}
    for key in (key for key in keys if key in latest):
        places = sorted((folder / FINAL).glob(f"{key}-*"))
        states = [str(read_info(run_folder).get("state")) for run_folder in places]
        unread = [state == "finished" and not Result(folder).finished for state, folder in zip(states, places)]
        told = [f"{states.count(state)} {state}" for state in ("diverged", "failed") if state in states]
        told += [f"{sum(unread)} cannot be read"] if any(unread) else []
        if told:
            reasons[key] = f"Of the {len(places)} final runs of {titled(plan, latest[key])} {' and '.join(told)}."
    return reasons


def titled(plan: Plan, one: Entry) -> str:
    """A composition by its operations; a published method by its name."""
    name = plan.space.named(one.params)
    unnamed = one.origin in ("sampler", "earlier search", "as configured", name)
    return name if unnamed else f"{one.origin} ({name})"


def pages(final: Final, folder: Path) -> list[tuple[int, str]]:
    """The seeds of the final runs that have a page, with where it is from `folder`."""
    paths = {seed: run.path / "report.html" for seed, run in final.runs.items()}
    return [(seed, os.path.relpath(path, folder)) for seed, path in paths.items() if path.is_file()]


def settings_of(plan: Plan, entries: Sequence[Entry], final: Final) -> str:
    """The numbers and choices of a finalist, in words; nothing where its name says them."""
    params = next((one.params for one in reversed(entries) if one.key == final.key), {})
    axes = plan.space.axes() if not plan.sweep else {}
    chosen = {name for name in axes if name == "memory" or name.split(".")[0] in SHORT.values()}
    return ", ".join(f"{name}={short(axes[name].value(value))}" for name, value in params.items()
                     if name in axes and name not in chosen)  # fmt: skip


def kept(final: Final) -> str:
    """What a composition keeps beside the model, by who keeps it, in words: of its first run, at its largest."""
    log = next(iter(final.runs.values())).log
    events = [event for event in log.of("experience") if event.get("method_kept") is not None]
    most: Mapping[str, int] = max(events, key=lambda one: one["method_bytes"], default={}).get("method_kept", {})
    return ", ".join(f"{name} {size / 1e3:,.1f} kB" for name, size in most.items()) or "nothing"
