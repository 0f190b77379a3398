"""One training among several that are stacked: its loop, its recordings, and the blocks of steps that it offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from holdfast.core.decide import note_on_host, noted_on_host
from holdfast.core.experience import Batch, Data
from holdfast.core.step import Now, Step
from holdfast.core.tape import Tape
from holdfast.core.tree import Tree, tree_map
from holdfast.training.captured import Captured, feed, leaves_of
from holdfast.training.decisions import Recording
from holdfast.training.inductor import CannotRun
from holdfast.training.programs import Program, chosen, compiled, graphed, runner, signature, with_tensors
from holdfast.training.session import Session

BLOCK, BYTES = 1024, 32 * 2**20
"""Steps whose batches are made together, at most, and bytes of these, unless a single step has more."""

PART = 2**19
"""Bytes of batches that are gathered at once on a CPU: more would not stay in its cache, and be new pages each time."""


class Turns(Protocol):
    """The other trainings, between which this one takes turns."""

    def wait(self, kind: str, experience: int = 0) -> None:
        """Let the others go on, until what is waited for has happened."""

    def tell(self, reason: str) -> None:
        """Say why something is not stacked, once for all of them."""


class Alone:
    """A recorded step of one run, made call by call: what is stacked, and what runs where nothing can be.

    Args:
        program: of the step.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.feed = with_tensors(program)
        asked = tuple(program.rates.values())  # runs whose weights moved unlike often take more numbers, or others
        self.signature = hash((signature(program), asked))

    def __call__(self) -> None:
        """Make the step."""
        self.feed(True)
        self.program()


class Rows(NamedTuple):
    """The samples of a pass over an experience's data, in order, and how many make a batch."""

    data: Data
    order: Tensor
    size: int
    join: int

    @property
    def sizes(self) -> list[int]:
        """Of each batch."""
        rest = len(self.order)
        sizes = [self.size] * (rest // self.size) + ([rest % self.size] if rest % self.size else [])
        if self.join and len(sizes) > 1:
            sizes[-2:] = [sizes[-2] + sizes[-1]]
        return sizes


class Block:
    """Steps that a training offers to make.

    Args:
        data: where their samples are.
        rows: which, in order.
        size: rows of a batch.
        steps: how many.
        part: for how many of them samples are gathered at once.
        now: where training is at each of them.
        passed: to be called with each step that is made, if anything is to be.

    Attributes:
        made: how many of them were made.
        by_itself: whether the next one is one that the training has to make by itself.
    """

    def __init__(
        self,
        data: Data,
        rows: Tensor,
        size: int,
        steps: int,
        part: int,
        now: Callable[[int], Now],
        passed: Callable[[], None] | None,
    ) -> None:
        self.size, self.steps, self.now, self.passed = size, steps, now, passed
        self._data, self._rows, self._part = data, rows, min(part, steps)
        self._gathered = (-1, Batch(rows, rows))
        self.made = 0
        self.by_itself = False

    def one(self, step: int) -> Batch:
        """The batch of one step."""
        batch, place = self._piece(step // self._part), step % self._part
        start, end, task = place * self.size, (place + 1) * self.size, batch.task
        targets, known = batch.targets[start:end], noted_on_host(batch.targets)
        if known is not None:
            note_on_host(targets, known[start:end])
        return Batch(
            tree_map(lambda leaf: leaf[start:end], batch.inputs),
            targets,
            task[start:end] if isinstance(task, Tensor) else task,
        )

    def pieces(self, steps: int) -> Iterator[tuple[int, list[Tensor]]]:
        """The batches of the first steps: the number of a step, and leaves `[steps, size, ...]` from it on."""
        for start in range(0, steps, self._part):
            leaves = leaves_of(self._piece(start // self._part))
            yield start, [leaf.view(-1, self.size, *leaf.shape[1:])[: steps - start] for leaf in leaves]

    def _piece(self, number: int) -> Batch:
        if self._gathered[0] != number:
            rows = self._part * self.size
            self._gathered = number, self._data.gather(self._rows[number * rows : (number + 1) * rows])
        return self._gathered[1]


class StackedSteps(Captured):
    """Makes the steps of a session together with those of others.

    Args:
        session: whose steps these are.
        how: the stacked program runs: `graph`, `compile` or `tape`.
        turns: the others.

    Attributes:
        block: that is offered.
        stacked: steps of the experience that were made together with others, ...
        beside: ... and how many these were, at most, itself included.
        audits: whether its next step is recorded again, to see whether it is still the same.
        asked: inputs and task that outputs are wanted for, in evaluation; `answer` are those computed with others'.
    """

    def __init__(self, session: Session, how: str, turns: Turns) -> None:
        super().__init__(session, how)
        self.turns = turns
        self.block: Block | None = None
        self.stacked = self.beside = 0
        self.together = True
        self.refused = 0
        self.asked: tuple[Tree, int | None] | None = None
        self.answer: Tensor | None = None
        self._kept: list[Recording] = []
        self._seen = False
        self.audits = False

    def begin(self, steps: int | None) -> None:
        """Wait until every other training is at an experience as late as this one."""
        super().begin(steps)
        self.stacked = self.beside = self.refused = 0
        self.together = not self.reasons
        if self.together:
            self.turns.wait("begin", self.session.position.experience)
        else:
            self.turns.tell(self.reasons[0])
            self._go_alone()

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in evaluation, computed together with those of the other runs where nothing but the model answers."""
        engine = self.session.engine
        forward = engine.services.forward
        plain = forward.output is None and not forward.others and not hasattr(self.session.model, "answer")
        if not plain or not self.together or isinstance(task, Tensor) or engine.acts_at("predict"):
            return engine.predict(inputs, task)
        self.asked, self.answer = (inputs, task), None
        self.turns.wait("answer")
        self.asked = None
        return engine.predict(inputs, task) if self.answer is None else self.answer

    def more(self) -> dict[str, Any]:
        """What the log says besides."""
        return {"stacked": self.stacked, "runs": self.beside}

    def leave(self, reason: str) -> None:
        """Make the rest of the experience's steps alone, in the way that `capture` says."""
        if self.together:
            self.together = False
            self.turns.tell(reason)
            self.recordings.problems = list(dict.fromkeys([*self.recordings.problems, f"not stacked: {reason}"]))
            self._go_alone()

    def step(self, batch: Batch, now: Now, weight: float, last: bool) -> Step | None:
        """Train on one batch alone; decisions that were made for it already are taken as they are."""
        if not self.reasons or not self.recordings.ahead:
            return super().step(batch, now, weight, last)
        reasons, self.reasons = self.reasons, []
        try:
            return super().step(batch, now, weight, last)
        finally:
            self.reasons = reasons

    def _go_alone(self) -> None:
        how = self.alone
        if how == "none":
            self.reasons = self.reasons or list(self.recordings.problems)
            self.recordings.forget()
            return
        for recording in (one for kept in self.recordings.kept.values() for one in kept):
            make = {"graph": graphed, "compile": compiled}.get(how)
            if make is not None and isinstance(recording.run, Alone):
                with suppress(CannotRun):  # it goes on call by call
                    recording.run = make(recording.run.program, recording.run.feed)

    @property
    def alone(self) -> str:
        """How steps are made where none are stacked."""
        return chosen(self.session.settings.capture, self.session.device)

    def _ready(self, tape: Tape) -> Callable[[], None]:
        if not self.together:
            return runner(self.alone, tape, self.rates.numbers)
        if tape.random:
            self.leave("a step draws random numbers on the device (dropout), and stacked ones would draw others")
        return Alone(Program(tape, self.rates.numbers))

    # What is stacked ------------------------------------------------------------------------------------------

    def key(self, batch: Batch) -> Any:
        """What batches must have in common to be stacked."""
        task = self.session.engine.services.forward.task if batch.task is None else batch.task
        tensors = leaves_of(batch)
        return (tuple((t.shape, t.dtype) for t in tensors), None if isinstance(task, Tensor) else task)

    def offers(self, batch: Batch) -> bool:
        """Whether there is a recording of such batches, which may be stacked."""
        rare = batch.targets.shape[0] != self.session.current.batch_size  # one an epoch is not worth compiling
        return (
            self.together and not (rare and self.how == "compile") and bool(self.recordings.kept.get(self.key(batch)))
        )

    def decide(self, step: int) -> tuple[Recording | None, list[Any]]:
        """Make the decisions of a step of the block; the recording that they fit, if it is to be run."""
        block, engine = self.block, self.session.engine
        assert block is not None
        engine.services.now = now = block.now(step)
        engine.index = now.index
        if step == 0:
            self._kept = self.recordings.kept.get(self.key(block.one(0)), [])
            fed = {tensor.untyped_storage()._cdata for one in self._kept for tensor in one.fed}
            self._seen = any(fed & one.looked for one in self._kept)
        if self._seen:  # decisions look at the batch
            for tensor, leaf in zip(self._kept[0].fed, leaves_of(block.one(step))):
                feed(tensor, leaf)
        recording, made = self.recordings.fitting(self._kept)
        self.audits = recording is not None and recording.runs + step + 1 >= recording.audit
        return (None if self.audits or recording is None or not isinstance(recording.run, Alone) else recording), made

    def decides_at_once(self, recording: Recording) -> bool:
        """Whether all that a step decides can be decided for many steps at once, and never leads to another step."""
        steady = not self._seen and self.block is not None and self.block.passed is None
        return steady and all(one.many is not None and one.many(0) is not None for one in recording.decisions)

    @property
    def until_window(self) -> int:
        """Steps after which the log is written."""
        return self.session.settings.log_every - self.session.records.window.steps

    def decide_many(self, recording: Recording, step: int, steps: int) -> list[Tensor]:
        """Each decision, `[steps, ...]` on the CPU, of so many steps of the block from number `step` on."""
        engine = self.session.engine
        assert self.block is not None
        engine.services.now = now = self.block.now(step + steps - 1)
        engine.index = now.index
        made = (one.many(steps) for one in recording.decisions if one.many is not None)
        return [one for one in made if one is not None]

    def passed(self, recording: Recording, steps: int, beside: int) -> None:
        """So many steps of the block were made by a stack."""
        assert self.block is not None
        recording.runs += steps
        for _, put, tensor in recording.after:
            put(tensor)
        self.recordings.counts["run"] += steps
        self.session.engine.index = self.block.now(0).index
        self.stacked += steps
        self.beside = max(self.beside, beside)
        self._left -= steps
        self.block.made = steps

    def count(self, steps: int, size: int) -> None:
        """Count so many of these steps, of `size` rows each, until a window of the log ends or the block does."""
        self.session.engine.index += steps
        self.tally.steps += steps
        self.tally.rows += steps * size
        self.session.records.window.steps += steps
