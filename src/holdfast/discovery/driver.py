"""The search at work: what is tried next, who trains it, what is said meanwhile, and the final runs on test data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.config.words import shown
from holdfast.core.errors import ConfigError, Interrupted
from holdfast.discovery import knowledge
from holdfast.discovery.finals import LAST, PAGE, SEEDS, Clock, final_jobs, finalists, run_finals, state_of
from holdfast.discovery.findings import said
from holdfast.discovery.plan import Plan
from holdfast.discovery.proposals import Proposals, alone, literature_is_next
from holdfast.discovery.rungs import highest, promotions
from holdfast.discovery.study import Book, check_database, damaged, quiet, storage
from holdfast.discovery.trial import Entry
from holdfast.discovery.worker import ABOUT, CLOSED, POLL, UNTIL, RayWorkers, Worker, Workers
from holdfast.metrics.log import read_json, write_json
from holdfast.runs.compare import differences
from holdfast.runs.folder import locked
from holdfast.runs.result import ENDED

SEARCH, DATABASE, LOG = "search.json", "study.db", "workers.log"


class Driver:
    """A search in its folder.

    Args:
        plan: what is searched.
        folder: where everything is kept; one that is there is continued.
        jobs: compositions trained at once, each in a process of its own with one torch thread.
        url: of a storage that other machines share; None for a file in the folder.
        say: gets every line that is said.
        command: as typed, kept in `search.json`.
        launcher: `processes` of this machine, or tasks of a `ray` cluster.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        jobs: int = 1,
        url: str | None = None,
        say: Callable[[str], None] = lambda text: None,
        command: str = "",
        launcher: str = "processes",
    ) -> None:
        self.plan, self.folder, self.jobs, self.say = plan, folder, jobs, say
        self.shared = url is not None
        database = str(folder.resolve() / DATABASE).replace("{", "{{").replace("}", "}}")  # Optuna fills in templates
        self.url = url or f"sqlite:///{database}"
        self.command = command
        self._told: set[int] = set()
        self._workers: Workers | RayWorkers = Workers(folder / LOG) if launcher == "processes" else RayWorkers()
        self._inside = jobs == 1 and launcher == "processes"
        self._at_once = plan.settings.at_once(plan.base) if self._inside and not self.shared else 1
        self._exhausted = False
        self._leading = ""

    # The whole -----------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Search, run the best on test data, and report; returns the folder.

        Raises:
            ConfigError: where the folder holds something else or another search, or the storage cannot be used.
        """
        if self.shared:
            with quiet():
                storage(self.url)  # refused before there is a folder
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            self._begin()
            try:
                self._search()
                self._finals()
            except (KeyboardInterrupt, Interrupted):
                raise Interrupted(
                    f"the search was stopped, and what was measured is kept in {self.folder}. The same command goes on"
                    " with it."
                ) from None
            finally:
                self._workers.close()
                self._note(state="interrupted")
                self._report()
            if self.plan.settings.warm_start and not self.plan.sweep:
                knowledge.keep(self.plan, self.book)
            self._note(state="finished", finished=time.time())
            self.book.study.set_user_attr(CLOSED, True)
        return self.folder

    def _begin(self) -> None:
        search = read_json(self.folder / SEARCH)
        others = [one for one in self.folder.iterdir() if one.name not in (".lock", ".turn", DATABASE)]
        if not search and others:
            raise ConfigError(f"{self.folder} exists already and holds no search. Choose another --out.")
        seconds = search.get("seconds", 0.0)
        if search and not (isinstance(search.get("plan"), dict) and isinstance(seconds, int | float)):
            raise ConfigError(f"{self.folder / SEARCH} does not say what is searched. Restore it, or change --out.")
        if search and search["plan"] != self.plan.plain():
            there, here = differences([search["plan"], self.plan.plain()])
            key = next(iter({**there, **here}), "")
            told = f" ({key} is {shown(there.get(key))} there, and {shown(here.get(key))} here)" if key else ""
            raise ConfigError(f"{self.folder} holds another search{told}. Type the same again, or change --out.")
        if not self.shared:
            check_database(self.folder / DATABASE)
        self._before = float(seconds)
        self._started = self.plan.started
        if not search:
            about = {"command": self.command, "plan": self.plan.plain(), "started": time.time(), "seconds": 0.0}
            write_json(self.folder / SEARCH, {**about, "storage": self.url if self.shared else DATABASE})
        try:
            self.book = Book(self.url, self.plan.settings, self.plan.space, {ABOUT: self.plan.plain(), UNTIL: None})
            self.book.entries()
        except ValueError as error:  # what is stored is JSON, in tables that are whole
            if self.shared:
                raise
            raise damaged(self.folder / DATABASE, error) from None
        self._proposals = Proposals(self.book)
        self.clock = Clock(self.plan, self.book, self.jobs, lambda: self.spent)
        again = self.book.begin_again(lambda one: not self.shared)
        entries = self.book.entries()
        self._told = {one.number for one in entries if one.state not in ("waiting", "running")}
        done = len({one.key for one in entries if one.state in ("done", "diverged", "failed")})
        if done or again:
            self.say(f"going on with {self.folder}: {self.plan.told(done)} tried, {len(again)} begun again")
        self._points = self._first_points()
        for note in self.plan.notes:
            self.say(note)

    def _first_points(self) -> list[tuple[str, dict[str, Any]]]:
        """What is tried first: what earlier searches found on data like these, then the literature."""
        proposed = []
        if self.plan.settings.warm_start and not self.plan.sweep:
            proposed = [("earlier search", params) for params in knowledge.proposals(self.plan)]
        return [*proposed, *self.plan.literature]

    @property
    def spent(self) -> float:
        """Seconds of this search, those before an interruption included."""
        return self._before + time.perf_counter() - self._started

    # Searching -----------------------------------------------------------------------------------------

    def _search(self) -> None:
        inside = self._inside and not self.shared
        worker = Worker(self.plan, self.book, self.folder)
        while True:
            entries = self.book.entries()
            self._tell(entries)
            more = self._plan_next(entries)
            if not more and not any(one.state in ("waiting", "running") for one in entries):
                break  # by what was seen before planning: what has ended since may be promoted
            if inside and self._at_once > 1:
                worker.work_together()
            elif inside:
                worker.work()
            else:
                self._tend()
                time.sleep(POLL)
            self._note()
        self._tell(self.book.entries())

    def _plan_next(self, entries: Sequence[Entry]) -> bool:
        """Let as much wait as there are workers for: promotions first, then new compositions; returns whether any."""
        busy = [one for one in entries if one.state in ("waiting", "running")]
        running = sum(one.state == "running" for one in busy)
        room = (max(self.jobs, running) + 1 if self.shared else self.jobs * self._at_once) - len(busy)
        enqueued = 0
        while enqueued < room and self._enqueue_one(self.book.entries()):
            enqueued += 1
        return enqueued > 0

    def _enqueue_one(self, entries: Sequence[Entry]) -> bool:
        prefixes, settings = self.plan.prefixes, self.plan.settings
        levels = self.book.levels(entries)
        at_work = [one for one in entries if one.state in ("waiting", "running")]
        busy = {(one.key, one.length) for one in at_work}
        begun = {(one.key, one.length, one.seed) for one in entries if one.state != "lost"}
        hopeless = [one.key for one in entries if one.state in ("diverged", "failed")]
        by_key = {one.key: one for one in entries}
        top = highest(levels, prefixes, self.plan.noise)
        taken = [*(key for key, _ in busy), *hopeless, *self.book.repeated(entries)]
        going = self._going(entries)
        for key, length in promotions(levels, prefixes, top, settings.keep, taken) if going else ():
            if (key, length, 0) not in begun:
                self._promote(by_key[key], length)
                return True
        keys = {one.key for one in entries}
        if going and (settings.trials is None or len(keys) < settings.trials):
            if at_work and self._at_once > 1 and not self.plan.sweep:
                return False  # other operations make other steps, so that nothing is won by a second one at once
            if self._new(keys, entries):
                return True
        whole = prefixes[-1]
        if any(length != whole for _, length in busy):
            return False
        last = [(key, 0) for key in self.book.best(entries, max(LAST, settings.finals))]  # on all they may see
        if all((key, whole, 0) in begun for key, _ in last) and all(one.seed for one in at_work):
            leaders = self.book.best(entries, max(1, settings.finals))
            last = [(key, seed) for key in leaders for seed in range(1, SEEDS)]
        for key, seed in last:
            if (key, whole, seed) not in begun and self._limit(entries, last=True):
                self._promote(by_key[key], whole, seed)
                return True
        return False

    def _going(self, entries: Sequence[Entry]) -> bool:
        """Whether another composition may be tried."""
        if self.plan.settings.budget is None and self.plan.settings.trials is None and self._exhausted:
            return False
        return self.clock.room(entries) and self._limit(entries)

    def _limit(self, entries: Sequence[Entry], last: bool = False) -> bool:
        """Say by when a trial that is enqueued now must end; returns whether that leaves it any time."""
        if self.clock.budget is None:
            return True
        until = self.clock.until(entries, last)
        self.book.study.set_user_attr(UNTIL, until)
        return until is None or until > time.time()

    def _promote(self, one: Entry, length: int, seed: int = 0) -> None:
        self.book.enqueue(one.params, one.key, length, one.origin, one.extra, seed=seed)

    def _new(self, keys: set[str], entries: Sequence[Entry]) -> bool:
        """Enqueue a composition that was not tried yet; returns whether there was one."""
        trials, accepted_before = self.plan.settings.trials, dict.fromkeys(keys)
        published = len({one.key for one in entries if one.origin != "sampler"})
        if self.plan.settings.methods is not None or literature_is_next(len(keys), published, trials):
            while self._points:
                points = [params for _, params in self._points]
                first = published < alone(trials) or self.plan.settings.methods is not None
                origin, params = self._points.pop(0 if first else self._proposals.nearest(points, entries))
                try:
                    key = self.plan.accepted(params, accepted_before)
                except ConfigError:
                    continue
                self.book.enqueue(params, key, self.plan.prefixes[0], origin)
                return True
        proposed = None
        if not self._exhausted:
            progress = self.clock.progress(len(keys))
            proposed = self._proposals.next(
                lambda params: self.plan.accepted(params, accepted_before), entries, progress
            )
        if proposed is None:
            if not self._exhausted:
                self.say("nothing new is left to try")
            self._exhausted = True
            return False
        params, key, extra = proposed
        self.book.enqueue(params, key, self.plan.prefixes[0], "sampler", extra)
        return True

    def _tell(self, entries: Sequence[Entry]) -> None:
        """Say what became of each trial that ended."""
        total = f"/{self.plan.settings.trials}" if self.plan.settings.trials is not None else ""
        count = len({one.key for one in entries if one.state not in ("waiting", "running", "lost", "stopped")})
        for one in entries:
            if one.number in self._told or one.state in ("waiting", "running"):
                continue
            self._told.add(one.number)
            if one.state == "lost":
                self.say(f"a worker was lost with {self.plan.space.named(one.params)}; it is begun again")
                continue
            leading = self.book.best(entries, 1)
            best = next((other for other in reversed(entries) if leading and other.key == leading[0]
                         and other.state == "done"), None)  # fmt: skip
            what = self.shown(one.values) if one.state == "done" else f"{one.state}: {one.reason[:80]}"
            what += " (beyond a limit)" if one.state == "done" and not self.book.within(one) else ""
            record = "" if best is None else f"; best {self.shown(best.values)}"
            if best is not None and best.key != self._leading:
                self._leading = best.key
                record += f" by {self.plan.space.named(best.params)}"
            where = f"after {one.length} of {self.plan.experiences}{f', seed {one.seed}' if one.seed else ''}"
            name = self.plan.space.named(one.params)
            self.say(f"[{count}{total}] {name} {where}: {what}{record}{self.clock.remaining(entries)}")

    def shown(self, values: Mapping[str, float]) -> str:
        """The objectives of a composition, for reading."""
        return ", ".join(said(name, values.get(name)) for name in self.plan.settings.objectives)

    # The end -------------------------------------------------------------------------------------------

    def _finals(self) -> None:
        """Run the finalists on test data, with fresh seeds and fresh class orders, while there is time."""
        settings = self.plan.settings
        chosen = finalists(self.plan, self.book)
        if not chosen:
            return
        self._workers.stop()
        each = f"{settings.final_seeds} final run{'' if settings.final_seeds == 1 else 's'} on test data"
        self.say(f"{self.plan.told(len(chosen))} with {each}{' each' if len(chosen) > 1 else ''}")
        self._note(finalists=[one.key for one in chosen])
        jobs = final_jobs(self.plan, self.folder, chosen, self.command)
        if self._inside:
            run_finals(jobs, self.clock.over, PAGE * self.clock.slow, self._final_told)
        else:
            self._share_out([job for job in jobs if state_of(job) not in ENDED])
        done = sum(state_of(job) in {*ENDED, "failed"} for job in jobs)
        self._note(final_runs={"wanted": len(jobs), "done": done})
        if done < len(jobs):
            self.say(f"the budget had room for {done} of {len(jobs)} final runs")

    def _share_out(self, todo: list[dict[str, Any]]) -> None:
        """Have the final runs done by as many processes as jobs."""
        for first in range(self.jobs):
            self._workers.start({"finals": todo[first :: self.jobs], "until": self.clock.over})
        while todo or self._workers.alive:  # which make the pages last
            running = self._workers.alive
            for job in list(todo):
                ended = state_of(job) in {*ENDED, "failed"}
                if ended or not running:
                    todo.remove(job)
                if ended:
                    self._final_told(job)
            time.sleep(POLL)

    def _final_told(self, job: Mapping[str, Any]) -> None:
        self.say(f"final run of {job['name']}, seed {job['config']['seed']}: {state_of(job)}")

    def _tend(self) -> None:
        """Have as many workers as jobs; what one had that is gone is begun again."""
        if self.shared:  # of machines whose processes cannot be seen from here
            self.book.look_for_lost()
        gone = self._workers.gone()
        if gone:
            self.book.begin_again(lambda one: one.worker.rsplit("-", 1)[-1] in gone)
        while self._workers.alive < self.jobs:
            self._workers.start({"url": self.url, "folder": str(self.folder.resolve())})

    def _note(self, **changes: Any) -> None:
        search = read_json(self.folder / SEARCH)
        if changes.get("state") == "interrupted" and search.get("state") == "finished":
            return
        changes["seconds"] = self.spent
        write_json(self.folder / SEARCH, {**search, **changes})

    def _report(self) -> None:
        from holdfast.discovery.report import write_search_report

        text = write_search_report(self.folder, self.plan, self.book)
        self._note(verdict=text)
        self.say(text)
