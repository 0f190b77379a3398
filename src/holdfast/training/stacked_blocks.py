"""Blocks of steps of several trainings, made ahead and run as one program; and their outputs in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from holdfast.core.forward import call
from holdfast.training.captured import leaves_of
from holdfast.training.decisions import Recording
from holdfast.training.recordings import AUDIT
from holdfast.training.stacked_calls import CannotStack
from holdfast.training.stacked_feed import CHUNK, FIRST, Coming, Windows, block_of, program_of
from holdfast.training.stacked_steps import BLOCK, Alone, StackedSteps
from holdfast.training.stacking import Stacked, runner_of

BUFFER = 256 * 2**20
"""Bytes of batches that are brought to the device at once, at most; four times as many to a GPU."""

AUDITED = 4
"""Audits of a run alone in whose time there is one in a stack, of one of its runs after the other."""

IN_VAIN = 40
"""Blocks in a row without a step, after which an experience's steps are made alone."""

MOST = 8
"""Programs of an experience; more would mean that hardly any is run again."""

Part = list[tuple[StackedSteps, Recording, list[Any]]]
"""Trainings whose next step is of one program: the recording of each, and the decisions that were made for it."""


class Blocks:
    """Makes blocks of steps, with a program for all trainings whose steps are alike."""

    def __init__(self) -> None:
        self._stacks: list[tuple[Stacked, dict[StackedSteps, Recording]]] = []

    def forget(self) -> None:
        """Nothing that was recorded is valid any more."""
        self._stacks.clear()

    def make(self, offers: Sequence[StackedSteps]) -> None:
        """Make a block of steps of each training that offers one, those of the same program together."""
        parts: dict[Any, Part] = {}
        for one in offers:
            recording, made = one.decide(0)
            if recording is None:
                self._by_itself(one, made)
                continue
            assert isinstance(recording.run, Alone)
            parts.setdefault((recording.run.signature, block_of(one).size), []).append((one, recording, made))
        most = 1 if any(one.audits for one in offers) else BLOCK  # who is audited makes a single step meanwhile
        for part in parts.values():
            if len(part) == 1:
                one, _, made = part[0]
                if one.refused > IN_VAIN:
                    one.leave("no other run makes the same steps at the same time")
                self._by_itself(one, made)
                continue
            try:
                self._block(part, most)
            except CannotStack as error:
                for one, _, made in part:
                    one.leave(str(error))
                    self._by_itself(one, made)

    def _by_itself(self, one: StackedSteps, made: list[Any]) -> None:
        """Let a training make its next step by itself, with the decisions that were made already."""
        one.recordings.ahead = made
        block_of(one).by_itself = True
        one.refused += 1

    def _block(self, part: Part, most: int) -> None:
        """Make the steps of a block as long as all decide alike; the device makes some while the next are decided.

        Args:
            part: the runs.
            most: steps.
        """
        members = [one for one, _, _ in part]
        chosen = [recording for _, recording, _ in part]
        stacked, rows = self._stacked(members, chosen)
        blocks = [block_of(one) for one in members]
        count = min([most, stacked.steps, *(block.steps for block in blocks)])
        count = min([count, *(recording.audit - 1 - recording.runs for recording in chosen)])
        if any(recording.looked & recording.wrote for recording in chosen):
            count = 1  # decisions look at what the steps before have left
        windows = Windows(members, stacked, rows, count)
        stacked.begin()
        self._bring_batches(stacked, rows, members, count := windows.count)
        coming = Coming(members, chosen)
        coming.add([made for _, _, made in part])
        done, chunk, going_on = 0, FIRST, True
        while going_on:
            going_on = coming.decide(min(chunk, count - done))
            chunk = min(CHUNK, 2 * chunk)
            if coming.steps:
                coming.bring(stacked, rows, done)
            for _ in range(coming.steps):
                stacked.run()
                done += 1
                if done in windows.ends:
                    windows.end()
            going_on = going_on and done < count
            coming.clear()
        stacked.end(rows)
        windows.tell(done)
        for one, recording in zip(members, chosen):
            one.passed(recording, done, len(members))
            one.refused = 0

    def _stacked(self, members: list[StackedSteps], chosen: list[Recording]) -> tuple[Stacked, list[int]]:
        """The stack of recordings, made if there is none yet, and which of its rows these members are."""
        for stacked, rows in self._stacks:
            if all(rows.get(one) is recording for one, recording in zip(members, chosen)):
                order = list(rows)
                return stacked, [order.index(one) for one in members]
        if len(self._stacks) >= MOST:
            raise CannotStack("the runs decide otherwise than one another at most steps")
        steps = members[0]
        size = sum(leaf.nbytes for leaf in leaves_of(block_of(steps).one(0))) * len(members)
        buffer = BUFFER * (4 if steps.session.device.type == "cuda" else 1)
        most = max(1, min(BLOCK, buffer // max(1, size)))
        stacked = Stacked(
            [program_of(recording) for recording in chosen],
            [_given(recording) for recording in chosen],
            steps.recordings.decisions.dtype,
            most,
            len(chosen[0].fed),
        )
        if steps.how == "compile":
            steps.judge(len(members))
        stacked.run = runner_of(stacked, steps.how)
        for place, recording in enumerate(chosen):  # what they record is one program, so that one of them is enough
            recording.between = AUDITED * AUDIT * len(chosen)
            recording.audit = recording.runs + AUDITED * AUDIT * (1 + place)
        self._stacks.append((stacked, dict(zip(members, chosen))))
        return stacked, list(range(len(members)))

    @torch.no_grad()
    def _bring_batches(self, stacked: Stacked, rows: list[int], members: list[StackedSteps], count: int) -> None:
        """Bring the batches of a block to the device, all steps of all runs at once."""
        for row, one in zip(rows, members):
            for start, leaves in block_of(one).pieces(count):
                for buffer, leaf in zip(stacked.buffers, leaves):
                    if buffer is not None:
                        buffer[start : start + len(leaf), row].copy_(leaf, non_blocking=True)


class Answers:
    """Computes the outputs of several models at once, in evaluation.

    Attributes:
        count: of batches for which it did so.
    """

    def __init__(self) -> None:
        self.count = 0

    def make(self, asking: Sequence[StackedSteps]) -> None:
        """Answer trainings that ask for outputs, where models and inputs are alike; others answer themselves."""
        groups: dict[Hashable, list[StackedSteps]] = {}
        for one in asking:
            assert one.asked is not None
            leaves, form = tree_flatten(one.asked[0])
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
            state = tuple((name, value.shape, value.dtype) for name, value in one.session.model.state_dict().items())
            groups.setdefault((str(form), shapes, one.asked[1], state), []).append(one)
        for group in groups.values():
            if len(group) > 1:
                with suppress(RuntimeError, ValueError, TypeError, NotImplementedError):  # each then answers itself
                    outputs = self._together(group)
                    for one, answer in zip(group, outputs):
                        one.answer = answer
                    self.count += 1

    @torch.inference_mode()
    def _together(self, group: Sequence[StackedSteps]) -> list[Tensor]:
        models = [one.session.model for one in group]
        state = [model.state_dict() for model in models]
        weights = {name: torch.stack([one[name] for one in state]) for name in state[0]}
        forwards = [one.session.engine.services.forward for one in group]
        inputs, task = zip(*(one.asked for one in group if one.asked is not None))
        prepared = [forward.prepared(one, False) for forward, one in zip(forwards, inputs)]
        stacked = tree_map_many(torch.stack, prepared)

        def one_run(weights: dict[str, Tensor], inputs: Any) -> Any:
            return call(lambda *args, **kwargs: functional_call(models[0], weights, args, kwargs), inputs)

        def whole(*_: Any, **__: Any) -> Any:
            return torch.func.vmap(one_run, randomness="error")(weights, stacked)

        return list(forwards[0](inputs[0], task[0], whole).unbind())


def tree_map_many(join: Callable[[list[Tensor]], Tensor], trees: Sequence[Any]) -> Any:
    """Trees of one form as one, whose leaves are made of theirs."""
    flats = [tree_flatten(tree) for tree in trees]
    return tree_unflatten([join(list(leaves)) for leaves in zip(*(flat for flat, _ in flats))], flats[0][1])


def _given(recording: Recording) -> list[Tensor]:
    """What a recorded step is given anew each time: its batch, its decisions, its learning rates."""
    program = program_of(recording)
    decided = [one.value for one in recording.decisions if isinstance(one.value, Tensor)]
    return [*recording.fed, *decided, *(program.external[number] for number in program.rates)]
