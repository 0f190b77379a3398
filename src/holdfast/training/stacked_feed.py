"""What is brought to the device for coming steps of stacked runs, and what the log reads of those that were made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.training.captured import read_together
from holdfast.training.decisions import Recording
from holdfast.training.programs import Program
from holdfast.training.stacked_steps import Alone, Block, StackedSteps
from holdfast.training.stacking import Stacked

FIRST, CHUNK = 32, 256
"""Steps that are decided while the device makes those before them: few at first, then twice as many each time."""


class Windows:
    """The windows of the log that end within a block: what is logged of them is kept on the device until its end.

    Args:
        members: the runs.
        stacked: the program that makes their steps.
        rows: of the program that these runs are.
        count: steps that the block may have.

    Attributes:
        count: steps that it may have so that the windows of all runs end together; where they do not, or something
            moves with each step, the block ends with the first of them.
        ends: after which of its steps one ends.
    """

    def __init__(self, members: list[StackedSteps], stacked: Stacked, rows: list[int], count: int) -> None:
        self._members = members
        self._tallies = tallies = [one.tally for one in members]
        left = [one.until_window for one in members]
        every = {one.session.settings.log_every for one in members}
        moved = any(block_of(one).passed is not None for one in members)
        self._names = list(tallies[0].sums)
        same = all(list(one.sums) == self._names and (one.hits is None) == (tallies[0].hits is None) for one in tallies)
        alike = len(set(left)) == len(every) == 1 and same and not moved and rows == list(range(stacked.count))
        self._stacks = [stacked.rows_of(tensor) for tensor in tallies[0].every]
        alike = alike and None not in self._stacks
        self.count = count if alike else min(count, *left)
        self.ends = frozenset(range(left[0], self.count + 1, *every)) if alike else frozenset[int]()
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def end(self) -> None:
        """Keep what the window that ends here has summed up, and begin the next at zero."""
        stacks = [stack for stack in self._stacks if stack is not None]
        self._sums.append(torch.stack([stack.double() for stack in stacks]))
        torch._foreach_zero_(stacks)

    def tell(self, made: int) -> None:
        """Give each run the sums of its windows, after so many steps; the device is waited for."""
        if not self.ends:
            read_together([one.tally for one in self._members if one.until_window == made])
        elif self._sums:
            for window in torch.stack(self._sums).tolist():
                for row, tally in enumerate(self._tallies):
                    terms = {name: values[row] for name, values in zip(self._names, window)}
                    tally.told.append((terms, None if tally.hits is None else int(window[-1][row])))


class Coming:
    """What several runs have decided for their next steps, which are of one program.

    Args:
        members: the runs.
        chosen: the recording that each of them runs.

    Attributes:
        steps: for which all have decided, and alike.
    """

    def __init__(self, members: list[StackedSteps], chosen: list[Recording]) -> None:
        self.members = members
        self.chosen = chosen
        self.steps = 0
        self._at_once = all(one.decides_at_once(recording) for one, recording in zip(members, chosen))
        self._made = 0  # steps of the block that are behind those
        self._singly: list[list[list[Any]]] = []  # by step, run and decision
        self._many: list[list[Tensor]] = []  # of the steps after those, by run and decision: `[steps, ...]`
        self._rates: list[list[list[float]]] = []  # by step, run and number

    def add(self, decided: list[list[Any]]) -> None:
        """Add a step, by what each run has decided for it."""
        self._singly.append(decided)
        self._pass(1)

    def decide(self, most: int) -> bool:
        """Decide for further steps, until there are as many. Returns whether all went on alike."""
        if self._at_once and most > self.steps:
            coming, first = most - self.steps, self._made + self.steps
            self._many = [one.decide_many(its, first, coming) for one, its in zip(self.members, self.chosen)]
            self._pass(coming)
        while self.steps < most:
            decisions = [one.decide(self._made + self.steps) for one in self.members]
            if not all(recording is before for (recording, _), before in zip(decisions, self.chosen)):
                for one, (_, made) in zip(self.members, decisions):
                    one.recordings.ahead = made
                    block_of(one).by_itself = any(other is None for other, _ in decisions)
                return False
            self.add([made for _, made in decisions])
        return True

    def _pass(self, steps: int) -> None:
        """The numbers of the host for so many steps; what moves them with each step moves on."""
        self.steps += steps
        programs = [program_of(recording) for recording in self.chosen]
        passed = [block.passed for one in self.members if (block := block_of(one)).passed is not None]
        if programs[0].rates:
            steady = not passed and all(program.steady for program in programs)
            asked = [[_rates(program) for program in programs] for _ in range(1 if steady else steps)]
            self._rates += asked * (steps if steady else 1)
        for move in passed:
            move()  # type: ignore[misc]

    def clear(self) -> None:
        """Those steps were made."""
        self._made += self.steps
        self.steps, self._singly, self._many, self._rates = 0, [], [], []

    @torch.no_grad()
    def bring(self, stacked: Stacked, rows: list[int], start: int) -> None:
        """Bring it all to the device, for the steps of the block from number `start` on."""
        first = self.chosen[0]
        buffers = list(zip(stacked.buffers[len(first.fed) :], stacked.staging))
        tensors = [number for number, one in enumerate(first.decisions) if isinstance(one.value, Tensor)]
        middle = start + len(self._singly)
        for number, (buffer, staging) in zip(tensors, buffers):
            if buffer is None:
                continue
            if self._singly:
                flat = [run[number] for step in self._singly for run in step]
                _put(buffer, staging, rows, start, _packed(flat, len(self._singly), buffer))
            if self._many:
                _put(buffer, staging, rows, middle, torch.stack([run[number] for run in self._many], 1))
        for number, (buffer, staging) in enumerate(buffers[len(tensors) :]):
            if buffer is not None:
                flat = [run[number] for step in self._rates for run in step]
                _put(buffer, staging, rows, start, _packed(flat, len(self._rates), buffer))


def _packed(flat: list[Any], steps: int, buffer: Tensor) -> Tensor:
    """`[steps, runs, ...]` values in this order, of steps and then of runs."""
    if isinstance(flat[0], Tensor):
        return torch.stack(flat).view(steps, -1, *flat[0].shape)
    return torch.tensor(flat, dtype=buffer.dtype).view(steps, -1)


def _put(buffer: Tensor, staging: Tensor | None, rows: list[int], start: int, values: Tensor) -> None:
    """Give a buffer `[steps, runs, ...]` the values of some of its steps and runs, without waiting for the device."""
    end = start + values.shape[0]
    if staging is not None and values.device.type == "cpu":
        values = staging[start:end, : len(rows)].copy_(values)
    if len(rows) == buffer.shape[1]:
        buffer[start:end].copy_(values, non_blocking=True)
    else:
        buffer[start:end, rows] = values.to(buffer.device, non_blocking=True)


def block_of(one: StackedSteps) -> Block:
    """The block that a run offers."""
    assert one.block is not None
    return one.block


def program_of(recording: Recording) -> Program:
    """The calls of a recorded step that is stacked."""
    assert isinstance(recording.run, Alone)
    return recording.run.program


def _rates(program: Program) -> list[float]:
    numbers = program.ask()
    return [numbers[name] * factor for name, factor in program.rates.values()]
