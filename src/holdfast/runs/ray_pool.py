"""The jobs of a sweep as tasks of a Ray cluster; all machines must see the folder that they work in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from holdfast.config import plugins
from holdfast.core.errors import needs_extra
from holdfast.runs.pool import TRIES, Job
from holdfast.runs.worker import answer


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
                for place in self._ray.wait(list(self._running), num_returns=1, timeout=1.0)[0]:
                    self._ended(place)
        except BaseException:
            for place in self._running:
                self._ray.cancel(place)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=60.0)
            raise
        finally:
            if started:
                self._ray.shutdown()

    def _submit(self, task: Any, job: Job) -> None:
        job.state, job.tries = "running", job.tries + 1
        about = {"command": self.command, "plugins": plugins.described()}
        content = {"config": job.config, "folder": str(job.folder.resolve()), **about}
        self._running[task.remote(content)] = job

    def _ended(self, place: Any) -> None:
        """Take down what became of a task; its machine may be gone."""
        job = self._running.pop(place)
        try:
            found = self._ray.get(place)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            found = {"state": "failed", "error": f"{type(error).__name__}: {reason}", "seconds": 0.0}
        job.state, job.error, job.seconds = found["state"], found["error"], found["seconds"]
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
