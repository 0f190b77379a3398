"""Who trains compositions: one trial after another from the study, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.config import plugins
from holdfast.core.errors import ConfigError, HoldfastError, Interrupted, needs_extra
from holdfast.discovery.finals import run_finals
from holdfast.discovery.plan import Plan
from holdfast.discovery.study import Book, library, quiet, taken
from holdfast.discovery.trial import TRIALS, Asked, Measured, Task, reach_together
from holdfast.runs.stacks import alike
from holdfast.training.launch import of_one_thread

POLL = 0.3
ABOUT = "search"
"""Attribute of a study that says what is searched, so that a worker needs nothing else."""

UNTIL = "until"
"""Attribute of a study that says when a trial that is begun now has to end, by `time.time`; None for no limit."""

CLOSED = "closed"
"""Attribute of a study that tells workers to go home."""


class Ended(Exception):  # noqa: N818
    """A trial that has no objectives: it failed, diverged or was stopped; what happened is written down with it."""


class Worker:
    """Trains what waits in a study.

    Args:
        plan: of the search.
        book: the study.
        folder: of the search, where the trials have their folders.
        name: by which it is told from others on its machine; the number of its process where nothing is said.
    """

    def __init__(self, plan: Plan, book: Book, folder: Path, name: str = "") -> None:
        self.plan, self.book, self.folder = plan, book, folder
        self.name = f"{socket.gethostname()}-{name or os.getpid()}"
        self._turn: int | None = None

    def work(self) -> None:
        """Train what waits first, if anything does."""
        self._turn = taken(self.folder / ".turn")
        try:
            if not any(one.state == "waiting" for one in self.book.entries()):
                return  # another one was faster
            with quiet():
                self.book.study.optimize(self.objective, n_trials=1, catch=(Ended,))
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        if self._turn is not None:
            os.close(self._turn)
        self._turn = None

    def work_together(self) -> None:
        """Train all that waits, those at once whose steps may be of equal shape."""
        study, groups = self.book.study, dict[str, list[Task]]()
        with quiet():
            for _ in [one for one in self.book.entries() if one.state == "waiting"]:
                trial = study.ask()
                try:
                    task = self._task(trial)
                    groups.setdefault(alike(task.asked.config), []).append(task)
                except Ended:
                    study.tell(trial, state=library().trial.TrialState.FAIL)
            for group in groups.values():
                for task, measured in zip(group, reach_together([task.asked for task in group])):
                    try:
                        study.tell(task.trial, self._record(task, measured))
                    except Ended:
                        study.tell(task.trial, state=library().trial.TrialState.FAIL)

    def objective(self, trial: Any) -> tuple[float, ...]:
        """One trial, with its objectives; everything else that is known of it is written into its attributes."""
        self._end_turn()  # it is this worker's now
        task = self._task(trial)
        return self._record(task, reach_together([task.asked])[0])

    def _task(self, trial: Any) -> Task:
        """What a trial is to train.

        Raises:
            Ended: where that cannot be.
        """
        told = trial.user_attrs
        params = self.plan.space.suggest(trial)
        if "key" not in told:  # two workers saw the last that waited, and this one came late: it draws its own
            trial.set_user_attr("key", self.plan.accepted(params, {}))
            trial.set_user_attr("length", self.plan.prefixes[0])
            told = trial.user_attrs
        trial.set_user_attr("worker", self.name)
        seed, part = told.get("seed", 0), min(1.0, told["length"] / self.plan.experiences)
        most = self.plan.settings.at_most.get("train_seconds")
        folder = self.folder / TRIALS / (f"{told['key']}-{seed}" if seed else told["key"])
        try:
            config = self.plan.trial_job(params, seed)
        except HoldfastError as error:
            raise self._failed(trial, error) from error
        until = self.book.study.user_attrs.get(UNTIL)
        return Task(trial, part, Asked(folder, config, told["length"], None if most is None else most * part, until))

    def _record(self, task: Task, measured: Measured | BaseException) -> tuple[float, ...]:
        """Write down what became of a trial; returns its objectives.

        Raises:
            Ended: where it has none.
            KeyboardInterrupt: where it was interrupted.
        """
        trial, settings = task.trial, self.plan.settings
        if isinstance(measured, (Interrupted, KeyboardInterrupt)):
            raise KeyboardInterrupt from None
        if isinstance(measured, BaseException):
            raise self._failed(trial, measured) from measured
        trial.set_user_attr("values", measured.values)
        trial.set_user_attr("seconds", measured.seconds)
        missing = [name for name in settings.objectives if name not in measured.values]
        if measured.state != "done":
            self._end(trial, measured.state, measured.reason)
            raise Ended
        if missing:
            self._end(trial, "failed", f"nothing measures {', '.join(missing)} here")
            raise Ended
        for name, over in settings.over(measured.values, task.part).items():
            trial.set_constraint(name, over)
        trial.set_user_attr("state", "done")
        return tuple(measured.values[name] for name in settings.objectives)

    def _failed(self, trial: Any, error: BaseException) -> Ended:
        if not isinstance(error, HoldfastError):
            traceback.print_exception(error)
        self._end(trial, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
        return Ended()

    def _end(self, trial: Any, state: str, reason: str) -> None:
        trial.set_user_attr("state", state)
        trial.set_user_attr("reason", reason[:500])

    def until_closed(self, poll: Callable[[], bool] = lambda: False) -> None:
        """Work until the search is closed, or `poll` says that it is time to stop."""
        while not poll():
            if any(one.state == "waiting" for one in self.book.entries()):
                self.work()
            elif self.book.study.user_attrs.get(CLOSED):
                return
            else:
                time.sleep(POLL)


class Workers:
    """Processes of one torch thread each, which end when this one does.

    Args:
        log: file that gets what they print.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def alive(self) -> int:
        """How many are at work."""
        return sum(process.poll() is None for process in self._processes)

    def gone(self) -> set[str]:
        """The names of those that ended since this was asked last: their process ids."""
        ended = [process for process in self._processes if process.poll() is not None]
        self._processes = [process for process in self._processes if process not in ended]
        return {str(process.pid) for process in ended}

    def start(self, content: Mapping[str, Any]) -> None:
        """Start one.

        Args:
            content: what it is to do: `url` and `folder` of a search, or `finals` and `until`, as for `run_finals`.
        """
        with open(self.log, "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.discovery.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env=of_one_thread(),
                start_new_session=True,  # Ctrl-C comes to the driver; the worker learns of it when its input ends
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps({**content, "plugins": plugins.described()}) + "\n")
        process.stdin.flush()
        self._processes.append(process)

    def stop(self) -> None:
        """End them all; what they trained goes on from its last checkpoint."""
        for process in self._processes:
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()
        for process in self._processes:
            process.wait()
        self._processes = []

    def close(self) -> None:
        """End them all, for good."""
        self.stop()


class RayWorkers:
    """Tasks of Ray: on the cluster that `RAY_ADDRESS` names, or that this process is in, else on this machine.

    Raises:
        ImportError: where Ray is not installed, with what to install.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise needs_extra("--launcher ray", "ray", "cluster") from error
        self._ray: Any = ray
        self._started = False
        self._tasks: dict[str, Any] = {}

    @property
    def alive(self) -> int:
        """How many are at work."""
        return len(self._tasks) - len(self._ended())

    def _ended(self) -> set[str]:
        if not self._tasks:
            return set()
        ready = set(self._ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=0)[0])
        return {name for name, task in self._tasks.items() if task in ready}

    def gone(self) -> set[str]:
        """The names of those that ended since this was asked last."""
        ended = self._ended()
        self._tasks = {name: task for name, task in self._tasks.items() if name not in ended}
        return ended

    def start(self, content: Mapping[str, Any]) -> None:
        """Start one; `content` as for `Workers`."""
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False, include_dashboard=False)
            self._started = True
        name = f"ray{secrets.token_hex(4)}"
        task = self._ray.remote(num_cpus=1, max_retries=0)(attend)
        self._tasks[name] = task.remote({**content, "plugins": plugins.described(), "name": name})

    def stop(self) -> None:
        """End them all; what they trained goes on from its last checkpoint."""
        for task in self._tasks.values():
            self._ray.cancel(task, force=True)
        if self._tasks:
            self._ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=60.0)
        self._tasks = {}

    def close(self) -> None:
        """End them all, and the Ray of this machine where it was started here, which takes long to start again."""
        self.stop()
        if self._started:
            self._ray.shutdown()
            self._started = False


def joined(url: str, folder: Path, name: str = "") -> Worker:
    """A worker for the search in a storage, from what the study says of it.

    Args:
        url: of the storage.
        folder: where this machine keeps the trials it trains; shared, so that it can go on with those of others.
        name: of the worker, as for `Worker`.

    Raises:
        ConfigError: where the storage holds no search.
    """
    optuna = library()
    from holdfast.discovery.study import NAME, storage

    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"--worker: there is no file {url.removeprefix('sqlite:///')!r}. Check --storage.")
    try:
        with quiet():
            about = optuna.load_study(study_name=NAME, storage=storage(url)).user_attrs.get(ABOUT)
    except KeyError:
        about = None
    if not about:
        raise ConfigError(
            f"--worker: {url.split('@')[-1]} holds no search yet. Start it with `holdfast search ... --storage` first."
        )
    plan = Plan.loaded(about)
    return Worker(plan, Book(url, plan.settings, plan.space), folder, name)


def main() -> None:
    """Read what to work on from the first line of standard input; when the input ends, end at once."""
    content: Mapping[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, daemon=True).start()
    attend(content)


def attend(content: Mapping[str, Any]) -> None:
    """Do what a worker is to do, on one thread: final runs, or what waits in a study until that is closed.

    Args:
        content: as for `Workers.start`, with the `plugins` in use, and perhaps a `name`.
    """
    import torch

    torch.set_num_threads(1)
    if content.get("plugins"):
        plugins.use_all(content["plugins"])
    if "finals" in content:
        run_finals(content["finals"], content["until"])
    if "url" in content:
        joined(content["url"], Path(content["folder"]), content.get("name", "")).until_closed()


def _watch() -> None:
    """End this process when the one that started it is gone: what it trained goes on from its last checkpoint."""
    while os.read(0, 1024):  # not `sys.stdin`, whose lock a thread may not hold when Python ends
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
