"""Several trainings at once: their steps as one program, and everything else as if each ran alone."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import Interrupted, UsageError
from holdfast.core.experience import Stream
from holdfast.training.session import Session
from holdfast.training.stacked_blocks import Answers, Blocks
from holdfast.training.stacked_steps import StackedSteps
from holdfast.training.state import random_state, set_random

RESERVE = 512 * 2**20
"""Bytes of memory that are left to everything else."""

_place: ContextVar[Member | None] = ContextVar("holdfast_member", default=None)


def member() -> Member | None:
    """The place of the training that is running here among those that are stacked; None where it is alone."""
    return _place.get()


class Member:
    """One training among those that are stacked, in a thread of its own; one of them runs at a time.

    Args:
        stack: all of them.
        work: trains, and calls `Trainer.fit`.

    Attributes:
        waits: for what: `block`, `begin`, or `` where it could go on; `ended` afterwards.
        result: of `work`.
        error: that `work` raised.
    """

    def __init__(self, stack: Stack, work: Callable[[], Any]) -> None:
        self.stack = stack
        self.waits = ""
        self.experience = 0
        self.steps: StackedSteps | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self._work = work
        self._turn = threading.Semaphore(0)
        self._random: dict[str, Tensor] | None = None
        self._checks = (False, False)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def take(self, session: Session, how: str) -> StackedSteps:
        """What makes the steps of a session that was bound here."""
        self.steps = StackedSteps(session, how, self)
        return self.steps

    def wait(self, kind: str, experience: int = 0) -> None:
        """In its thread: let the others go on, until what is waited for has happened.

        Raises:
            KeyboardInterrupt: if all of them are to end at once.
        """
        self.waits = kind
        if kind == "begin":
            self.experience = experience
        self.stack.back.release()
        self._turn.acquire()
        self._share_cores()
        if self.stack.broken:
            raise KeyboardInterrupt

    def _share_cores(self) -> None:
        """In its thread: compute with one thread on a CPU while its steps are stacked.

        OpenMP keeps threads for each thread that computes with several. Where these are more than the cores, as with
        a few runs, all of them sleep between two loops instead of waiting awake, and a stacked step takes three times
        as long.
        """
        alone = self.steps is not None and not self.steps.together
        threads = 1 if self.stack.device.type == "cpu" and not alone else self.stack.threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def tell(self, reason: str) -> None:
        """Say why something is not stacked, once for all of them."""
        if threading.current_thread() is self._thread:
            self._share_cores()
        if reason not in self.stack.told:
            self.stack.told.add(reason)
            logging.getLogger("holdfast").warning(f"steps are made run by run, and not stacked: {reason}")

    def go(self) -> None:
        """In the thread of the stack: let it run until it waits or ends, with random numbers and checks of its own."""
        device = self.stack.device
        before, checked = random_state(device), checks()
        if self._random is not None:
            if not alike(before, self._random):  # most threads only hand over steps, and draw nothing
                set_random(self._random, device)
            set_checks(self._checks)
        self.waits = ""
        if self._thread.ident is None:
            self._thread.start()
        self._turn.release()
        self.stack.back.acquire()
        self._random, self._checks = random_state(device), checks()
        if not alike(before, self._random):
            set_random(before, device)
        set_checks(checked)

    def _run(self) -> None:
        self._turn.acquire()
        self._share_cores()
        _place.set(self)
        try:
            self.result = self._work()
        except BaseException as error:  # told to whoever waits for the result
            self.error = error
        self.waits = "ended"
        self.stack.back.release()


class Stack:
    """Trains several runs, each as if alone, with the steps of equal shapes stacked.

    Args:
        works: each trains one run, by `Trainer.fit`.
        device: where they compute.
        most: runs at once; None for as many as there is memory for, by what those that run have taken.

    Attributes:
        stop: set it to let every run save its state and stop.
        answers: of several models at once, in evaluation.
        threads: that a stacked program is computed with.
    """

    def __init__(self, works: Sequence[Callable[[], Any]], device: torch.device, most: int | None = None) -> None:
        self.device = device
        self.most = most
        self.back = threading.Semaphore(0)
        self.broken = False
        self.members = [Member(self, work) for work in works]
        self.most_at_once = 0
        self.threads = torch.get_num_threads()
        self.told: set[str] = set()
        self._stop = False
        self._blocks, self.answers = Blocks(), Answers()
        self._need = 0

    @property
    def stop(self) -> bool:
        """Whether the runs are to stop."""
        return self._stop

    @stop.setter
    def stop(self, stop: bool) -> None:
        self._stop = stop
        for one in self.members:
            if one.steps is not None:
                one.steps.session.stop = stop

    def run(self) -> list[Member]:
        """Train all of them; returns them with their results and errors."""
        waiting = list(self.members)
        try:
            while waiting:
                group: list[Member] = []
                while waiting and self._room(group):
                    group.append(waiting.pop(0))
                    self._start(group[-1], group[0])
                self.most_at_once = max(self.most_at_once, len(group))
                self._work(group)
        except BaseException:
            self.broken = True
            for one in self.members:
                if one.waits in ("block", "begin", "answer"):
                    one.go()
            raise
        finally:
            torch.set_num_threads(self.threads)  # for threads that begin later; each run has set its own
        return self.members

    def _start(self, one: Member, first: Member) -> None:
        if self._stop:
            one.waits, one.error = "ended", Interrupted("training was stopped before it began.")
            return
        before = used(self.device)
        one.go()
        if one is first and one.waits == "begin":
            one.go()  # its first steps, which tell what steps take
        self._need = max(self._need, used(self.device) - before)

    def _room(self, group: list[Member]) -> bool:
        """Whether there is memory for one more run, and for the stacked copy of all."""
        if not group or self._stop:
            return True
        if self.most is not None and len(group) >= self.most:
            return False
        free = available(self.device)
        return free is None or free - RESERVE >= self._need * (len(group) + 2)

    def _work(self, group: list[Member]) -> None:
        while any(one.waits != "ended" for one in group):
            for one in group:
                if not one.waits:
                    one.go()
            offers = [one for one in group if one.waits == "block"]
            asking = [one for one in group if one.waits == "answer"]
            beginning = [one for one in group if one.waits == "begin"]
            first = min((one.experience for one in beginning), default=0)
            behind = all(first <= one.experience for one in offers) and all(first < one.experience for one in asking)
            if beginning and behind:  # who is behind catches up
                if not offers:
                    self._blocks.forget()  # recordings are of one experience
                for one in beginning:
                    one.waits = "" if one.experience == first else one.waits
                continue
            if offers:  # who has come to its evaluation waits for the others there
                self._blocks.make([one.steps for one in offers if one.steps is not None])
            else:
                self.answers.make([one.steps for one in asking if one.steps is not None])
            for one in offers or asking:
                one.waits = ""


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states of random numbers are the same."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def checks() -> tuple[bool, bool]:
    """Whether torch refuses what is not reproducible, and looks for NaN in gradients."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()


def set_checks(wanted: tuple[bool, bool]) -> None:
    """Set what `checks` returned."""
    if wanted != checks():
        torch.use_deterministic_algorithms(wanted[0])
        torch.autograd.set_detect_anomaly(wanted[1])


# Memory ------------------------------------------------------------------------------------------------------


def used(device: torch.device) -> int:
    """Bytes of memory that this process has taken so far, at most, on a device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def available(device: torch.device) -> int | None:
    """Bytes of memory that this process can still take on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    told = [line for line in lines if line.startswith("MemAvailable:")]
    return int(told[0].split()[1]) * 1024 if told else None


# In Python ---------------------------------------------------------------------------------------------------


def fit_stacked(
    trainers: Sequence[Any], models: Sequence[nn.Module], streams: Sequence[Stream], most: int | None = None
) -> list[list[dict[str, Any]]]:
    """Train several models at once, each by a trainer of its own, as `trainer.fit(model, stream)` would.

    Steps of equal shape are made by one program on stacked tensors: trainers may differ in seeds, learning rates,
    strengths and other numbers. What cannot be stacked runs alone, and the log's `capture` events say why.

    Args:
        trainers: one for each run.
        models: one for each run.
        streams: one for each run; they may be one.
        most: runs at once; None for as many as there is memory for.

    Returns:
        The events of each run.

    Raises:
        UsageError: where there are not as many models and streams as trainers.
    """
    if not len(trainers) == len(models) == len(streams):
        raise UsageError(
            f"{len(trainers)} trainers got {len(models)} models and {len(streams)} streams. Give one of each for each."
        )
    works = [lambda t=t, m=m, s=s: t.fit(m, s) for t, m, s in zip(trainers, models, streams)]
    device = torch.device(trainers[0].device) if trainers else torch.device("cpu")
    members = Stack(works, device, most).run()
    for one in members:
        if one.error is not None:
            raise one.error
    return [one.result for one in members]
