"""Captured steps of a training: which can be captured, what the host gives them anew, and what is said of the rest."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from holdfast.core.decide import note_on_host, noted_on_host
from holdfast.core.engine import Engine
from holdfast.core.experience import Batch
from holdfast.core.forward import check_unchanged, versions
from holdfast.core.step import Now, Step
from holdfast.core.tape import Tape
from holdfast.core.tree import Tree, tree_map
from holdfast.training.decisions import Decisions
from holdfast.training.programs import runner
from holdfast.training.rates import Rates
from holdfast.training.recordings import Recordings
from holdfast.training.session import Session

COLD, LATER = 18.0, 5.0
"""Seconds that compiling took at first, and after a head grew, on one core, where nothing was kept of earlier ones."""

SAVED, STACKED = 0.4, 0.8
"""The part of a step's time that compiling saved in one run, and in each of eight at once."""


class Tally:
    """What captured steps log, summed on the device until the window is read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.hits: Tensor | None = None
        self.rows = self.steps = 0
        self.told: deque[tuple[dict[str, float], int | None]] = deque()  # what was read, and nobody has asked for yet

    def take(self, outputs: Tensor | None, targets: Tensor, logged: Mapping[str, list[tuple[Tensor, float]]]) -> None:
        """Add one step; it is recorded with the step."""
        with torch.no_grad():
            for name, values in logged.items():
                for value, factor in values:  # added to doubles, it becomes one itself
                    self._sum(name).add_(value if factor == 1.0 else value.double() * factor)
            if outputs is not None and outputs.dim() == 2 and not targets.is_floating_point():
                if self.hits is None:
                    self.hits = self._zero(torch.int64)
                self.hits.add_((outputs.detach().argmax(1) == targets).sum())

    def _sum(self, name: str) -> Tensor:
        if name not in self.sums:
            self.sums[name] = self._zero(torch.float64)
        return self.sums[name]

    def _zero(self, dtype: torch.dtype) -> Tensor:
        with _disable_current_modes():  # it is there before the step that is recorded
            return torch.zeros((), dtype=dtype, device=self.device)

    @property
    def every(self) -> list[Tensor]:
        """The sums of the terms in order, and of the samples predicted right, if there are classes."""
        return [*self.sums.values(), *([] if self.hits is None else [self.hits])]

    @property
    def right(self) -> int | None:
        """Samples predicted right since the last reading; None without classes. Waits for the device."""
        if self.told:
            return self.told[0][1] if self.steps else None
        return int(self.hits) if self.hits is not None and self.steps else None

    def read(self) -> tuple[dict[str, float], int | None, int, int]:
        """Sums of the terms, samples predicted right (None without classes), samples and steps; starts anew."""
        if not self.told:
            read_together([self])
        terms, right = self.told.popleft() if self.told else ({}, None)
        told = (terms, right, self.rows, self.steps) if self.steps else ({}, None, self.rows, 0)
        self.rows = self.steps = 0
        return told


@torch.no_grad()
def read_together(tallies: Sequence[Tally]) -> None:
    """Read the sums of several, which begin at zero again; the device is waited for once."""
    every = [value for one in tallies for value in one.every]
    if not every:
        return
    values = iter(torch.stack([value.double() for value in every]).tolist())
    torch._foreach_zero_(every)
    for one in tallies:
        terms = {name: next(values) for name in one.sums}
        one.told.append((terms, None if one.hits is None else int(next(values))))


def feed(kept: Tensor, new: Tensor) -> None:
    """Give a tensor that recordings read the values of another one, and what is noted of these."""
    kept.copy_(new, non_blocking=True)
    note_on_host(kept, noted_on_host(new))


def leaves_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    leaves: list[Tensor] = []
    tree_map(lambda leaf: leaves.append(leaf) or leaf, batch.inputs)  # type: ignore[func-returns-value]
    return [*leaves, batch.targets, *([batch.task] if isinstance(batch.task, Tensor) else [])]


def roots_of(engine: Engine, optimizer: torch.optim.Optimizer | None) -> dict[str, object]:
    """Everything that a step may change, by name."""
    return {  # what operations share comes first: it is told by the same path at any moment of a step
        "learner": engine.services,
        "optimizer": {} if optimizer is None else optimizer.state,
        **{operation.name: operation for operation in engine.method},
    }


def reasons_against(session: Session) -> list[str]:
    """Why no step of a training can be captured, as far as that is known beforehand."""
    settings, engine = session.settings, session.engine
    reasons = [f"`{operation.name}`: {operation.captured}" for operation in engine.method if operation.captured]
    if engine.acts_at("take_step") and not reasons:
        reasons.append(f"`{engine.method.name}` makes the whole step itself")
    if (phases := session.phases) is not None and (phases.boundary is not None or phases.watches_classes):
        who = f"`{engine.method.name}`" if phases.boundary is None else f"the boundary {type(phases.boundary).__name__}"
        reasons.append(f"{who} looks at every batch of a source before the weights move")
    if session.current.accumulate > 1:
        reasons.append("several batches add up to one step of the optimiser (accumulate)")
    if session.scaler is not None:
        reasons.append("precision 16-mixed looks at every gradient before the weights may move; bf16-mixed does not")
    if session.ranks.count > 1:
        reasons.append("several processes train together (devices)")
    if settings.detect_anomaly:
        reasons.append("detect_anomaly looks at every gradient")
    return reasons


class Captured:
    """Makes the steps of a session, as recordings where it can, and says why where it cannot.

    Args:
        session: whose steps these are.
        how: `graph`, `compile` or `tape`.

    Attributes:
        recordings: of its steps.
    """

    def __init__(self, session: Session, how: str) -> None:
        self.session = session
        self.how = how
        first = next(session.model.parameters(), None)
        dtype = torch.float32 if first is None or first.dtype != torch.float64 else torch.float64
        self.rates = Rates(lambda: session.optimization.optimizer)
        self.recordings = Recordings(
            lambda: roots_of(session.engine, session.optimization.optimizer),
            Decisions(session.device, dtype),
            self._ready,
            self._mark,
            self.rates.baked,
            (session, session.engine, session.learner, session.optimization, session.records, session.ranks, self),
        )
        self.tally = session.records.window.tally = Tally(session.device)
        self.reasons: list[str] = []
        self._static: dict[Hashable, Batch] = {}
        self._seconds = float("inf")
        self._left = 0
        self._compiled = self._judged = False
        self._before = dict(self.recordings.counts)

    def begin(self, steps: int | None) -> None:
        """Before the steps of an experience, or what is left of it.

        Args:
            steps: how many there will be, at most; None where nobody knows, and nobody says whether compiling pays.
        """
        self.recordings.forget()
        self.rates.begin()
        self._static.clear()
        self.reasons = reasons_against(self.session)
        self._left, self._judged = steps or 0, steps is None
        self._seconds = float("inf")

    def end(self, experience: int, steps: int | None = None) -> None:
        """Record how the steps of an experience were made.

        Args:
            experience: its number.
            steps: how many there were, where the loop made some by itself.
        """
        counts, before = self.recordings.counts, self._before
        if steps is not None:
            counts["plain"] += steps - sum(counts.values()) + sum(before.values())
        self._before = dict(counts)
        self.session.records.write(
            event="capture",
            experience=experience,
            how=self.how,
            captured=counts["run"] - before["run"],
            recorded=counts["recorded"] - before["recorded"],
            as_written=counts["plain"] - before["plain"],
            reasons=self.reasons or self.recordings.problems,
            **self.more(),
        )

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in evaluation."""
        return self.session.engine.predict(inputs, task)

    def more(self) -> dict[str, Any]:
        """What else the log says of the steps of an experience."""
        return {}

    # One step --------------------------------------------------------------------------------------------

    def step(self, batch: Batch, now: Now, weight: float, last: bool) -> Step | None:
        """Train on one batch, and add it to the window.

        Returns:
            What was seen and computed where the step was made as written; None where a recording was run.
        """
        session, engine = self.session, self.session.engine
        self._left -= 1
        start = time.perf_counter()
        if self.reasons:
            self.recordings.counts["plain"] += 1
            return self._as_written(batch, now, weight, last)
        if batch.fresh is not None:
            self.reasons = ["the source gives rows again, and each batch says which of its rows are new"]
            return self.step(batch, now, weight, last)
        if batch.task is None:
            batch.task = engine.services.forward.task
        tensors = leaves_of(batch)
        key = (tuple((t.shape, t.dtype) for t in tensors), None if isinstance(batch.task, Tensor) else batch.task)
        static = self._static.get(key)
        if static is None:
            static = self._static[key] = _clone(batch)
        fed = leaves_of(static)
        for kept, new in zip(fed, tensors):
            feed(kept, new)
        engine.services.now = now
        index = engine.index
        done: list[Step | None] = [None]

        def as_written() -> None:
            twin = _clone(batch)  # what operations keep of it, later recordings may write to
            entered = versions(twin.inputs)
            done[0] = self._as_written(twin, now, weight, last)
            check_unchanged(entered)
            self._seconds = min(self._seconds, time.perf_counter() - start)

        self.recordings.step(key, lambda: self._body(static, now, last), as_written, fed)
        if done[0] is None:
            engine.index = index + 1
            self.tally.steps += 1
            self.tally.rows += batch.targets.shape[0]
            session.records.window.steps += 1
        return done[0]

    def _as_written(self, batch: Batch, now: Now, weight: float, last: bool) -> Step:
        step = self.session.engine.step(batch, now, self.session.update, weight, last)
        self.rates.moved_otherwise()
        self.session.records.window.add(step.outputs, step.targets, batch.fresh)
        return step

    def _body(self, static: Batch, now: Now, last: bool) -> None:
        """The step that is recorded: that of the engine, and what its window wants to know."""
        session, services = self.session, self.session.engine.services
        batch = Batch(static.inputs, static.targets, static.task)
        decisions, optimization, logged = self.recordings.decisions, session.optimization, services.logged
        move, trainable = optimization.move, services.trainable
        optimizer = trainable.optimizer
        trainable.optimizer = self.rates.watched(optimizer, decisions.recording)
        optimization.move = self.rates.moving(move, lambda: None if decisions.watch is None else decisions.watch.tape)
        services.logged = {}
        try:
            step = session.engine.step(batch, now.watched(decisions.peek), session.update, 1.0, last)
            self.tally.take(step.outputs, step.targets, services.logged)
        finally:
            optimization.move, services.logged, trainable.optimizer = move, logged, optimizer

    def _mark(self, tape: Tape) -> None:
        self.rates.mark(tape)
        moved = self.session.optimization
        if self.rates.constant and self.session.current.scheduler_every == "step" and moved.scheduler is not None:
            who = f"the step of {type(moved.optimizer).__name__} has it as a constant"
            more = "; fused optimisers (optimizer.fused=true) and SGD do not"
            who, more = ("an operation reads it", "") if self.rates.read else (who, more)
            tape.problems.append(f"the scheduler changes the learning rate at every step, and {who}{more}")

    def _ready(self, tape: Tape) -> Callable[[], None]:
        if self.how == "compile":
            self.judge()
        return runner(self.how, tape, self.rates.numbers)

    def judge(self, runs: int = 1) -> None:
        """Say beforehand whether compiling will pay for itself in what is left of the experience, for so many runs."""
        if self._judged:
            return
        cost, time_left = (LATER if self._compiled else COLD), self._left * runs * self._seconds
        gain, log = time_left * (SAVED if runs == 1 else STACKED), logging.getLogger("holdfast")
        self._judged = self._compiled = True
        told = (
            f"compiling a step takes about {cost:.0f} s; the {self._left} steps left of this experience take"
            f" {time_left:.1f} s as written and about {gain:.1f} s less compiled: it will"
        )
        if gain >= cost:
            log.info(f"{told} pay for itself")
        else:
            setting = "capture=compile" if runs == 1 else "stack"
            log.warning(f"{told} not pay for itself. Leave trainer.{setting} out here")


def _clone(batch: Batch) -> Batch:
    task = batch.task.clone() if isinstance(batch.task, Tensor) else batch.task
    targets = batch.targets.clone()
    note_on_host(targets, noted_on_host(batch.targets))
    return Batch(tree_map(torch.clone, batch.inputs), targets, task)
