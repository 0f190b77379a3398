"""Several processes for one run: starting them, joining them, and ending them together.

`Trainer(..., devices=2)` in a script needs nothing else: `fit` starts the other processes and stays rank 0 itself, so
what comes back is a trained model and the whole log, and nothing of the script runs twice. The others get the model,
the stream and the trainer by `fork` where that is safe (one torch thread, no GPU in use yet), else by `spawn`, which
imports the main module again: there, and on Windows and macOS, scripts need `if __name__ == "__main__":`.

Where somebody else starts the processes (`torchrun`, SLURM, or by hand with `LOCAL_RANK`, `NODE_RANK`, `MASTER_ADDR`
and `MASTER_PORT`), each of them runs the script, and `fit` only joins them; several machines work that way alone. The
command `holdfast run` may be started so too: see `runs.assemble`.

A process that dies takes the others with it: its neighbours' next exchange fails (at once under gloo; under NCCL after
its timeout of half an hour), and `fit` raises with the rank and the signal. `resume` goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from holdfast.core.errors import ConfigError, HoldfastError, Interrupted
from holdfast.core.method import Method
from holdfast.training.precision import connect, fabric_types, launched
from holdfast.training.ranks import Ranks, check_shared

Work = Callable[..., Any]
"""What each process does, called with `ranks=`: a function that can be sent to another process."""

_joined: list[Ranks] = []

GRACE = 60.0
"""Seconds that the other processes have to end by themselves."""


def check_devices(method: Method, batch_size: int, count: int) -> None:
    """Refuse, before any process starts, what `count` processes cannot do together; see `Ranks.check`."""
    fabric_types()
    check_shared(method, batch_size, count)


def train_together(here: Work, there: Work, kind: str, devices: int, num_nodes: int, strategy: str) -> Any:
    """Work in `devices * num_nodes` processes, of which this is one.

    Args:
        here: what this process does.
        there: what the processes do that are started here; sent to them.
        kind: of device: `cpu`, `cuda` ...
        devices: processes on this machine, one device each.
        num_nodes: machines.
        strategy: how processes are started, see `start_method`.

    Returns:
        What `here` returned.

    Raises:
        HoldfastError: if another process failed, with its rank and its error.
    """
    if _joined:
        return here(ranks=_joined[-1])
    if launched():
        with join(kind, devices, num_nodes, started_here=False) as ranks:
            return here(ranks=ranks)
    if num_nodes > 1:
        raise ConfigError(
            f"num_nodes={num_nodes} machines cannot be reached from here. Start a script that calls Trainer on"
            " each by torchrun or SLURM, which tell every process its rank."
        )
    with Others(there, kind, devices, strategy), join(kind, devices, 1, started_here=True) as ranks:
        return here(ranks=ranks)


@contextlib.contextmanager
def join(kind: str, devices: int, num_nodes: int, started_here: bool) -> Iterator[Ranks]:
    """Inside, this process is connected with the others; afterwards it is on its own again."""
    threads = torch.get_num_threads()
    with _environment(OMP_NUM_THREADS=str(threads)):  # Fabric sets the threads where this is not said
        ranks = connect(kind, devices, num_nodes, started_here)
    torch.set_num_threads(threads)
    try:
        yield ranks
        if dist.get_backend() == "gloo":  # which aborts a process whose peer hangs up while it still listens
            with contextlib.suppress(RuntimeError):
                dist.barrier()
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


@contextlib.contextmanager
def together(kind: str, devices: int, num_nodes: int) -> Iterator[Ranks]:
    """Inside, processes that somebody else started stay connected over all calls of `fit`."""
    with join(kind, devices, num_nodes, started_here=False) as ranks:
        _joined.append(ranks)
        try:
            yield ranks
        finally:
            _joined.pop()


class Others:
    """The processes of ranks 1, 2, ... on this machine: started on entry, ended on exit, one way or another.

    Args:
        work: what every rank does.
        kind: of device.
        count: how many processes there are, with this one.
        strategy: how they are started.
    """

    def __init__(self, work: Work, kind: str, count: int, strategy: str) -> None:
        self.count = count
        self.threads = max(1, torch.get_num_threads() // count)
        self.start = start_method(strategy, self.threads)
        self._job = (work, kind, count)
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Others:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._exit.enter_context(_threads(self.threads))
        self._exit.enter_context(
            _environment(
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                NODE_RANK="0",
                WORLD_SIZE=str(self.count),
                LOCAL_RANK="0",
            )
        )
        try:
            self._launch()
        except BaseException:
            self._end()
            raise
        return self

    def _launch(self) -> None:
        context: Any = multiprocessing.get_context(self.start)
        job = self._job if self.start == "fork" else self._packed()
        for rank in range(1, self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(rank, self.threads, theirs, job), name=f"rank {rank}")
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        for rank, pipe in enumerate(self._pipes, 1):
            if self._answer(rank, pipe) != "ready":
                raise HoldfastError(self._failed(rank))

    def _packed(self) -> bytes:
        """The job as bytes: multiprocessing itself would let all processes share the memory of the weights."""
        try:
            return pickle.dumps(self._job)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ConfigError(
                f"the model, the stream or the trainer cannot be sent to another process ({error}). Define what"
                " they are made of at the top of a module, or start the script by torchrun."
            ) from error

    def _answer(self, rank: int, pipe: Connection) -> str:
        """What a process says next: `ready`, the text of its error, or nothing if it is gone."""
        while True:
            if pipe.poll(0.2):
                try:
                    return str(pipe.recv())
                except (EOFError, OSError):
                    return ""
            if not self._processes[rank - 1].is_alive() and not pipe.poll():
                return ""

    def _failed(self, rank: int) -> str:
        process = self._processes[rank - 1]
        process.join(GRACE)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
        pipe = self._pipes[rank - 1]
        reason = ""
        with contextlib.suppress(EOFError, OSError):
            if pipe.poll():
                reason = f": {pipe.recv()}"
        return f"process {rank} of {self.count} {how}{reason}. Correct that; a run goes on with `holdfast resume`."

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None or isinstance(error, Interrupted):
                for process in self._processes:
                    process.join(GRACE)
            elif not isinstance(error, HoldfastError | KeyboardInterrupt):  # a neighbour may be the reason
                wait([process.sentinel for process in self._processes], 5.0)
                for rank, process in enumerate(self._processes, 1):
                    process.join(0.5)  # it can be waited for a moment after its pipe closed
                    if process.exitcode:
                        raise HoldfastError(self._failed(rank)) from error
        finally:
            self._end()

    def _end(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        self._exit.close()


def start_method(strategy: str, threads: int) -> str:
    """How to start processes: by `fork` where that is safe, else by `spawn`.

    After a fork a GPU cannot be used that was in use before, and OpenMP with several threads may stand still.

    Args:
        strategy: of the trainer.
        threads: that each process will compute with.
    """
    if strategy in ("ddp_fork", "ddp_spawn"):
        return strategy.removeprefix("ddp_")
    forks = "fork" in multiprocessing.get_all_start_methods() and os.uname().sysname == "Linux"
    return "fork" if forks and threads == 1 and not torch.cuda.is_initialized() else "spawn"


def _work(rank: int, threads: int, pipe: Connection, job: Any) -> None:
    """What another process does, from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 is asked, and tells the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(threads)
    pipe.send("ready")
    try:
        work, kind, count = pickle.loads(job) if isinstance(job, bytes) else job
        with join(kind, count, 1, started_here=True) as ranks:
            work(ranks=ranks)
    except Interrupted:
        pass
    except BaseException as error:
        with contextlib.suppress(OSError):
            pipe.send(
                f"{type(error).__name__}: {error}" if isinstance(error, HoldfastError) else traceback.format_exc()
            )
        os._exit(1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def of_one_thread() -> dict[str, str]:
    """The environment of a process that computes with one thread, and finds this package where this process has it."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    roots = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **one, "PYTHONPATH": os.pathsep.join(roots)}
