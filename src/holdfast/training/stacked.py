"""Several trainings at once: their steps as one program, and everything else as if each ran alone."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import Interrupted, UsageError
from holdfast.core.experience import Stream
from holdfast.training.decisions import Recording
from holdfast.training.session import Session
from holdfast.training.stacked_calls import CannotStack
from holdfast.training.stacked_steps import Alone, StackedSteps
from holdfast.training.stacking import Stacked, runner_of
from holdfast.training.state import random_state, set_random

RESERVE = 512 * 2**20
"""Bytes of memory that are left to everything else."""

BUFFER = 256 * 2**20
"""Bytes of batches that are brought to the device at once, at most."""

IN_VAIN = 40
"""Blocks in a row without a step, after which an experience's steps are made alone."""

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
        if self.stack.broken:
            raise KeyboardInterrupt

    def go(self) -> None:
        """In the thread of the stack: let it run until it waits or ends; torch's random numbers are its own."""
        device = self.stack.device
        before = random_state(device)
        if self._random is not None:
            set_random(self._random, device)
        self.waits = ""
        if self._thread.ident is None:
            self._thread.start()
        self._turn.release()
        self.stack.back.acquire()
        self._random = random_state(device)
        set_random(before, device)

    def _run(self) -> None:
        self._turn.acquire()
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
    """

    def __init__(self, works: Sequence[Callable[[], Any]], device: torch.device, most: int | None = None) -> None:
        self.device = device
        self.most = most
        self.back = threading.Semaphore(0)
        self.broken = False
        self.members = [Member(self, work) for work in works]
        self.most_at_once = 0
        self._stop = False
        self._stacks: list[tuple[Stacked, dict[Member, Recording]]] = []
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
                if one.waits in ("block", "begin"):
                    one.go()
            raise
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
            beginning = [one for one in group if one.waits == "begin"]
            first = min((one.experience for one in beginning), default=0)
            if beginning and all(first <= one.experience for one in offers):  # who is behind catches up
                if not offers:
                    self._stacks.clear()  # recordings are of one experience
                for one in beginning:
                    one.waits = "" if one.experience == first else one.waits
                continue
            self._blocks(offers)
            for one in offers:
                one.waits = ""

    # Blocks of steps ------------------------------------------------------------------------------------------

    def _blocks(self, offers: list[Member]) -> None:
        """Make a block of steps of each member, those of the same program together."""
        parts: dict[Any, list[tuple[Member, Recording, list[Any]]]] = {}
        for one in offers:
            steps = _steps(one)
            recording, made = steps.decide(0)
            if recording is None:
                self._by_itself(one, made)
                continue
            run = recording.run
            assert isinstance(run, Alone) and steps.block is not None
            key = (run.signature, steps.block.size)
            parts.setdefault(key, []).append((one, recording, made))
        for part in parts.values():
            if len(part) == 1:
                one, _, made = part[0]
                self._by_itself(one, made)
                if _steps(one).refused > IN_VAIN:
                    _steps(one).leave("no other run makes the same step")
                continue
            try:
                self._block(part)
            except CannotStack as error:
                for one, _, made in part:
                    _steps(one).leave(str(error))
                    self._by_itself(one, made)

    def _by_itself(self, one: Member, made: list[Any]) -> None:
        """Let a member make its next step, whose decisions are made already."""
        steps = _steps(one)
        assert steps.block is not None
        steps.recordings.ahead = made
        steps.block.by_itself = True
        steps.refused = 0 if steps.block.made else steps.refused + 1

    def _block(self, part: list[tuple[Member, Recording, list[Any]]]) -> None:
        """Make the steps of a block as long as all decide alike."""
        members = [one for one, _, _ in part]
        chosen = [recording for _, recording, _ in part]
        stacked, rows = self._stacked(members, chosen)
        blocks = [_block_of(one) for one in members]
        start = [block.now(0).index for block in blocks]
        count = min([stacked.steps, *(block.steps for block in blocks)])
        if any(recording.looked & recording.wrote for recording in chosen):
            count = 1  # decisions look at what the steps before have left
        decided = [[made for _, _, made in part]]
        rates = [[_rates(one, recording) for one, recording in zip(members, chosen)]]
        for block in blocks:
            block.passed()
        while len(decided) < count:
            step = len(decided)
            found = [_steps(one).decide(step) for one in members]
            alike = all(recording is before for (recording, _), before in zip(found, chosen))
            if not alike:
                for one, block, (_, made) in zip(members, blocks, found):
                    _steps(one).recordings.ahead = made
                    block.by_itself = any(other is None for other, _ in found)
                break
            decided.append([made for _, made in found])
            rates.append([_rates(one, recording) for one, recording in zip(members, chosen)])
            for block in blocks:
                block.passed()
        self._fill(stacked, rows, members, chosen, decided, rates)
        stacked.load()
        stacked.counter.zero_()
        for _ in decided:
            stacked.run()
        stacked.store(rows)
        for one, recording, index in zip(members, chosen, start):
            _steps(one).passed(recording, index, len(decided), len(members))
            _steps(one).refused = 0

    def _stacked(self, members: list[Member], chosen: list[Recording]) -> tuple[Stacked, list[int]]:
        """The stack of recordings, made where there is none yet, and which of its rows these members are."""
        for stacked, rows in self._stacks:
            if all(rows.get(one) is recording for one, recording in zip(members, chosen)):
                order = list(rows)
                return stacked, [order.index(one) for one in members]
        blocks = [_block_of(one) for one in members]
        size = sum(leaf[0].nbytes for leaf in blocks[0].leaves) * len(members)
        steps = _steps(members[0])
        most = max(1, min(steps.session.settings.log_every, BUFFER // max(1, size)))
        stacked = Stacked(
            [_program(recording) for recording in chosen],
            [_given(recording) for recording in chosen],
            steps.recordings.decisions.dtype,
            most,
        )
        if steps.how == "compile":
            steps.judge(len(members))
        stacked.run = runner_of(stacked, steps.how)
        self._stacks.append((stacked, dict(zip(members, chosen))))
        return stacked, list(range(len(members)))

    @torch.no_grad()
    def _fill(
        self,
        stacked: Stacked,
        rows: list[int],
        members: list[Member],
        chosen: list[Recording],
        decided: list[list[list[Any]]],
        rates: list[list[list[float]]],
    ) -> None:
        """Bring the batches and decisions of a block to the device, all steps of all runs at once."""
        count, leaves = len(decided), len(chosen[0].fed)
        for place, buffer in enumerate(stacked.buffers[:leaves]):
            if buffer is not None:
                for row, one in zip(rows, members):
                    buffer[:count, row].copy_(_block_of(one).leaves[place][:count], non_blocking=True)
        tensors = [place for place, one in enumerate(chosen[0].decisions) if isinstance(one.value, Tensor)]
        values = [[[run[place] for run in step] for step in decided] for place in tensors]
        values += [[[run[place] for run in step] for step in rates] for place in range(len(rates[0][0]))]
        for buffer, steps in zip(stacked.buffers[leaves:], values):
            if buffer is None:
                continue
            flat = [value for step in steps for value in step]
            if isinstance(flat[0], Tensor):
                packed = torch.stack(flat).view(count, len(rows), *flat[0].shape)
            else:
                packed = torch.tensor(flat, dtype=buffer.dtype).view(count, len(rows))
            if len(rows) == stacked.count:
                buffer[:count].copy_(packed, non_blocking=True)
            else:
                buffer[:count, rows] = packed.to(buffer)


def _steps(one: Member) -> StackedSteps:
    assert one.steps is not None
    return one.steps


def _block_of(one: Member) -> Any:
    return _steps(one).block


def _program(recording: Recording) -> Any:
    assert isinstance(recording.run, Alone)
    return recording.run.program


def _given(recording: Recording) -> list[Tensor]:
    """What a recorded step is given anew each time: its batch, its decisions, its learning rates."""
    program = _program(recording)
    decided = [one.value for one in recording.decisions if isinstance(one.value, Tensor)]
    return [*recording.fed, *decided, *(program.external[number] for number in program.rates)]


def _rates(one: Member, recording: Recording) -> list[float]:
    program = _program(recording)
    return [program.numbers[name]() * factor for name, factor in program.rates.values()]


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
