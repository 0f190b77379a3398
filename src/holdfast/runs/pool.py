"""The jobs of a sweep at work, on this machine or on a Ray cluster: a failed one is tried once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.config import plugins
from holdfast.core.errors import needs_extra
from holdfast.runs.worker import answer
from holdfast.training.launch import of_one_thread

RESERVE = 512 * 2**20
"""Bytes of memory that are left to everything else."""

FIRST_GUESS = 768 * 2**20
"""Bytes that a job is taken to need before any has finished."""

TRIES = 2


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        number: its folder's name.
        key: of its configuration.
        changes: that make it, as typed.
        config: resolved.
        folder: of the run.
        state: `waiting`, `running`, `finished`, `failed` or `interrupted`.
        error: why it failed, in a sentence.
        tries: how often it was begun in this process.
        seconds: of the last try.
        notes: what a file of another project means differently here, for its `run.json`.
    """

    number: int
    key: str
    changes: list[str]
    config: dict[str, Any]
    folder: Path
    state: str = "waiting"
    error: str = ""
    tries: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Pool:
    """Runs jobs in processes of one torch thread each.

    Args:
        jobs: to run, in order; a failed one goes to the end, once.
        workers: most processes at once.
        log: file that gets what the processes print.
        command: kept with each run.
        told: called with each job that ended.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: int,
        log: Path,
        command: str = "",
        told: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.waiting = list(jobs)
        self.workers = workers
        self.log = log
        self.command = command
        self.told = told
        self.most_at_once = 0
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._running: set[int] = set()
        self._need = FIRST_GUESS
        self._stopping = False
        self._change = threading.Condition()

    def run(self) -> None:
        """Work until no job waits; on Ctrl-C the runs at work save their state first."""
        count = min(self.workers, len(self.waiting))
        threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except BaseException:
            self._stop()
            for thread in threads:
                thread.join(60)
            raise
        finally:
            self._stop()

    def _serve(self, worker: int) -> None:
        """Give one worker process its jobs, one after the other."""
        while (job := self._next(worker)) is not None:
            answer = self._ask(worker, job)
            with self._change:
                self._running.discard(worker)
                job.state, job.error, job.seconds = answer["state"], answer["error"], answer["seconds"]
                self._need = max(self._need if self._need != FIRST_GUESS else 0, answer["peak"]) or FIRST_GUESS
                again = job.state == "failed" and job.tries < TRIES and not self._stopping
                if again:
                    self.waiting.append(job)
                self._change.notify_all()
            if not again:
                self.told(job)
        self._end(worker)

    def _next(self, worker: int) -> Job | None:
        """The next job, once there is memory for one more."""
        with self._change:
            while True:
                if self._stopping or (not self.waiting and not self._running):
                    return None
                if self.waiting and self._room(worker):
                    job = self.waiting.pop(0)
                    job.state, job.tries = "running", job.tries + 1
                    self._running.add(worker)
                    self.most_at_once = max(self.most_at_once, len(self._running))
                    return job
                self._change.wait(1.0)

    def _room(self, worker: int) -> bool:
        """Whether one more job fits beside those at work, which may still grow to what the largest needed."""
        if not self._running:
            return True
        available = available_memory()
        if available is None:
            return True
        growing = sum(max(0, self._need - resident(self._processes.get(other))) for other in self._running)
        return available - RESERVE - growing >= self._need - resident(self._processes.get(worker))

    def _ask(self, worker: int, job: Job) -> dict[str, Any]:
        process = self._processes.get(worker)
        if process is None or process.poll() is not None:
            process = self._processes[worker] = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        about = {"command": self.command, "plugins": plugins.described()}
        text = json.dumps({"config": job.config, "folder": str(job.folder), "notes": job.notes, **about})
        try:
            process.stdin.write(text + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = process.wait()
        reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        state = "interrupted" if self._stopping else "failed"
        return {
            "state": state,
            "error": f"its process ended {reason}; {self.log} may say why.",
            "seconds": 0.0,
            "peak": 0,
        }

    def _start(self) -> subprocess.Popen[str]:
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "holdfast.runs.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=of_one_thread(),
                start_new_session=True,  # Ctrl-C comes to us; the worker learns of it when its input ends
            )

    def _end(self, worker: int) -> None:
        process = self._processes.get(worker)
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait()

    def _stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()
        for process in self._processes.values():
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()


class RayPool:
    """Runs jobs on Ray: on the cluster that `RAY_ADDRESS` names, or that this process is in, else on this machine.

    Args:
        jobs: to run, in order; a failed one goes to the end, once.
        most: tasks at once; None for as many as the cluster has room for.
        command: kept with each run.
        told: called with each job that ended.
        cpus: of the cluster that each task takes.

    Raises:
        ImportError: where Ray is not installed, with what to install.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        most: int | None = None,
        command: str = "",
        told: Callable[[Job], None] = lambda job: None,
        cpus: float = 1.0,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise needs_extra("--launcher ray", "ray", "cluster") from error
        self._ray: Any = ray
        self.waiting = list(jobs)
        self.most = most
        self.command = command
        self.told = told
        self.cpus = cpus
        self._running: dict[Any, Job] = {}

    def run(self) -> None:
        """Work until no job waits; on Ctrl-C the runs at work are asked to save their state and stop."""
        started = not self._ray.is_initialized()
        if started:
            self._ray.init(log_to_driver=False)
        try:
            task = self._ray.remote(num_cpus=self.cpus, max_retries=0)(work_on)
            while self.waiting or self._running:
                while self.waiting and (self.most is None or len(self._running) < self.most):
                    self._submit(task, self.waiting.pop(0))
                for ended in self._ray.wait(list(self._running), num_returns=1, timeout=1.0)[0]:
                    self._ended(ended)
        except BaseException:
            for ended in self._running:
                self._ray.cancel(ended)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=60.0)
            raise
        finally:
            if started:
                self._ray.shutdown()

    def _submit(self, task: Any, job: Job) -> None:
        job.state, job.tries = "running", job.tries + 1
        about = {"command": self.command, "plugins": plugins.described()}
        content = {"config": job.config, "folder": str(job.folder.resolve()), "notes": job.notes, **about}
        self._running[task.remote(content)] = job

    def _ended(self, task: Any) -> None:
        """Take down what became of a task; its machine may be gone."""
        job = self._running.pop(task)
        try:
            answer = self._ray.get(task)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            answer = {"state": "failed", "error": f"{type(error).__name__}: {reason}", "seconds": 0.0}
        job.state, job.error, job.seconds = answer["state"], answer["error"], answer["seconds"]
        if job.state == "failed" and job.tries < TRIES:
            self.waiting.append(job)
        else:
            self.told(job)


def work_on(content: dict[str, Any]) -> dict[str, Any]:
    """One task: a job on one thread, its state, error and seconds.

    Args:
        content: its resolved `config`, its `folder`, the `command` and the `plugins` in use.
    """
    import torch

    torch.set_num_threads(1)
    return answer(content)


def available_memory() -> int | None:
    """Bytes of memory that a new process can have, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = [line for line in lines if line.startswith("MemAvailable:")]
    return int(available[0].split()[1]) * 1024 if available else None


def resident(process: subprocess.Popen[str] | None) -> int:
    """Bytes of memory that a process holds now, 0 where it is gone."""
    if process is None:
        return 0
    try:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
