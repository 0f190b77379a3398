"""Several processes for one run: starting them, joining them, and ending them together.

`Trainer(..., devices=2)` in a script needs nothing else: `fit` starts the other processes and stays rank 0 itself, so
what comes back is a trained model and the whole log, and nothing of the script runs twice. The others get the model,
the stream and the trainer by `fork` where that is safe (one torch thread, no GPU in use yet), else by `spawn`, which
imports the main module again: there, and on Windows and macOS, scripts need `if __name__ == "__main__":`.

Where somebody else starts the processes (`torchrun`, SLURM, or by hand with `LOCAL_RANK`, `NODE_RANK`, `MASTER_ADDR`
and `MASTER_PORT`), each of them runs the script, and `fit` only joins them; several machines work that way alone. The
command `holdfast run` may be started so too: see `experiments.several`.

A process that dies takes the others with it: its neighbours' next exchange fails (at once under gloo; under NCCL after
its timeout of half an hour), and `fit` raises with the rank and the signal. `resume` goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import nn

from holdfast.core.errors import ConfigError, HoldfastError, Interrupted
from holdfast.core.experience import Stream
from holdfast.training.fabric import connect, fabric_types, launched
from holdfast.training.ranks import Ranks, check_shared

if TYPE_CHECKING:
    from holdfast.training.trainer import Trainer

Strategy = Literal["auto", "ddp", "ddp_fork", "ddp_spawn"]

_joined: list[Ranks] = []

GRACE = 60.0
"""Seconds that the other processes have to end by themselves."""


def check_processes(devices: int, num_nodes: int, strategy: str) -> None:
    """Refuse numbers below 1 and strategies that there are not.

    Raises:
        ConfigError: with what to write instead.
    """
    for name, value in {"devices": devices, "num_nodes": num_nodes}.items():
        if value < 1:
            raise ConfigError(f"the trainer got {name}={value}. Give a number of at least 1.")
    if strategy not in get_args(Strategy):
        raise ConfigError(f"the trainer got strategy={strategy!r}. Choose one of {', '.join(get_args(Strategy))}.")


def train_together(
    trainer: Trainer, model: nn.Module, stream: Stream, resume: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Train in `trainer.devices * trainer.num_nodes` processes, of which this is one.

    Args:
        trainer: what to do.
        model: trained in place.
        stream: what to learn.
        resume: a state of as many processes.

    Returns:
        The events, in every process.

    Raises:
        HoldfastError: if another process failed, with its rank and its error.
    """
    fabric_types()
    check_shared(trainer.method, trainer.settings.batch_size, trainer.devices * trainer.num_nodes)
    if _joined:
        return trainer.fit_here(model, stream, resume, _joined[-1])
    kind = trainer.device.type
    if launched():
        with join(kind, trainer.devices, trainer.num_nodes, own=False) as ranks:
            return trainer.fit_here(model, stream, resume, ranks)
    if trainer.num_nodes > 1:
        raise ConfigError(
            f"num_nodes={trainer.num_nodes} machines cannot be reached from here. Start a script that calls Trainer on"
            " each by torchrun or SLURM, which tell every process its rank."
        )
    others = Others(trainer, model, stream, resume)
    with others, join(kind, trainer.devices, 1, own=True) as ranks:
        return trainer.fit_here(model, stream, resume, ranks)


@contextlib.contextmanager
def join(kind: str, devices: int, num_nodes: int, own: bool) -> Iterator[Ranks]:
    """Inside, this process is connected with the others; afterwards it is on its own again."""
    threads = torch.get_num_threads()
    with _environment(OMP_NUM_THREADS=str(threads)):  # Fabric sets the threads where this is not said
        ranks = connect(kind, devices, num_nodes, own)
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
    with join(kind, devices, num_nodes, own=False) as ranks:
        _joined.append(ranks)
        try:
            yield ranks
        finally:
            _joined.pop()


class Others:
    """The processes of ranks 1, 2, ... on this machine: started on entry, ended on exit, one way or another.

    Args:
        trainer: what every rank does.
        model: as every rank begins with it.
        stream: what to learn.
        resume: a state of as many processes.
    """

    def __init__(self, trainer: Trainer, model: nn.Module, stream: Stream, resume: Mapping[str, Any] | None) -> None:
        self.count = trainer.devices
        self.threads = max(1, torch.get_num_threads() // self.count)
        self.start = start_method(trainer.strategy, self.threads)
        worker = copy.copy(trainer)
        worker.record, worker.progress, worker.checkpoints = None, False, None
        self._job = (worker, model, stream, resume)
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
        said = ""
        with contextlib.suppress(EOFError, OSError):
            if pipe.poll():
                said = f": {pipe.recv()}"
        return f"process {rank} of {self.count} {how}{said}. Correct that; a run goes on with `holdfast resume`."

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
        trainer, model, stream, resume = pickle.loads(job) if isinstance(job, bytes) else job
        with join(trainer.device.type, trainer.devices, trainer.num_nodes, own=True) as ranks:
            trainer.fit_here(model, stream, resume, ranks)
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
