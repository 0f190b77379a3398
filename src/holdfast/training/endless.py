"""The way to train on an unbounded stream without task labels: batches come in, and are trained on once, in order."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TextIO

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.errors import UsageError
from holdfast.core.experience import Batch, Tree
from holdfast.core.learner import Criterion
from holdfast.core.method import Method
from holdfast.core.needs import ENDLESS, ENDLESS_WITH_BOUNDARY
from holdfast.core.source import Iterated, Source, as_source
from holdfast.core.step import Step
from holdfast.training.captured import Captured
from holdfast.training.checks import check_head, check_targets, check_values
from holdfast.training.divergence import OnDivergence
from holdfast.training.export import exported, hooks_of
from holdfast.training.loop import Loop, arriving
from holdfast.training.observations import Observations, go_back, note_boundary
from holdfast.training.optimization import OptimizerFactory, SchedulerFactory
from holdfast.training.phases import Phases
from holdfast.training.precision import Precision
from holdfast.training.programs import CaptureMode, chosen
from holdfast.training.progress import NoProgress, make_bar
from holdfast.training.session import Checkpoints, Session
from holdfast.training.settings import Settings
from holdfast.training.state import Saver, around, from_continual, random_state, restore, set_random, state_of
from holdfast.training.trainer import Bound

CLOSELY = 3
"""Batches whose values are looked at in the beginning; that waits for the device."""

Batches = Source | Iterable[Batch | tuple[Tree, Tensor]]


class StreamTrainer(Bound):
    """Trains a model on batches as they arrive, each once, without being told where anything begins or ends.

    The arithmetic is that of `Continual` in a plain loop, bit for bit. Accuracy is prequential: every batch is
    predicted by the forward it is then trained with, so no sample was seen before it counts.

    Args:
        model: moved to the device and trained in place.
        method: what is done around each step; it may need boundaries if `boundary` finds some.
        optimizer: a torch name, a mapping with `name` and arguments, or a function from parameters to an optimiser.
        scheduler: a function from an optimiser to a scheduler, which moves at every step.
        criterion: `criterion(outputs, targets)` -> mean loss; default: cross-entropy.
        boundary: `Every(steps=...)`, `OnNewClass()` or any `Boundary` that watches the steps; None for no boundaries.
        prepare: turns raw inputs into the model's, as `Stream.prepare` does.
        clip_norm: largest norm of the whole gradient; larger ones are scaled down to it.
        clip_by: what `clip_norm` bounds: the `norm` of the whole gradient, or each `value` of it.
        accumulate: batches whose gradients are averaged before the optimiser moves.
        precision: `32-true`; `bf16-mixed` or `16-mixed` (GPUs only) for autocast; `64-true` for doubles.
        max_seconds: training time after which no further step is made.
        deterministic: let torch refuse operations whose result is not reproducible.
        detect_anomaly: let torch say where a gradient became NaN; slow.
        capture: record a step once and run the recording, as `Trainer` does; not with a boundary, nor by `step`.
        compile: the old name of `capture="compile"`.
        log_every: batches between two records.
        on_divergence: `stop` where a loss or a weight is not finite, or a loss a thousand times that at the start, or
            `go_on`; looked at with each record.
        record: called with each event, a mapping of plain values: `train`, `boundary`, `gap` in a source, ...
        progress: whether to draw a progress bar, or the terminal to draw it on.
        checkpoints: where to keep states to resume from.
        observe_every: batches between two looks at rows that a source holds out (`holdfast.sources.HoldOut`), at what
            the memory holds, and at what the source counts, each an event; None for none.
        observe_rows: rows held out that are kept for it, at most, each with equal probability.
        seed: of every random choice, those of dropout and the like too.
        device: where to train; default: where the model is.

    Attributes:
        session: everything the training works on.

    Raises:
        NeedError: if the method needs boundaries or anything else that such a stream does not have.

    Example:
        >>> from holdfast.methods import er
        >>> generator = torch.Generator().manual_seed(0)
        >>> def endless():
        ...     while True:
        ...         x = torch.randn(16, 4, generator=generator)
        ...         yield x, (x[:, 0] > 0).long()
        >>> trainer = StreamTrainer(nn.Linear(4, 2), er(capacity=50, size=16), optimizer={"name": "SGD", "lr": 0.5})
        >>> trainer.train(endless(), steps=100)
        100
        >>> trainer.accuracy > 0.8
        True
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        optimizer: str | Mapping[str, Any] | OptimizerFactory = "SGD",
        scheduler: SchedulerFactory | None = None,
        criterion: Criterion | None = None,
        boundary: Boundary | None = None,
        prepare: Callable[..., Any] | None = None,
        clip_norm: float | None = None,
        clip_by: Literal["norm", "value"] = "norm",
        accumulate: int = 1,
        precision: Precision = "32-true",
        max_seconds: float | None = None,
        deterministic: bool = False,
        detect_anomaly: bool = False,
        capture: CaptureMode = "auto",
        compile: bool = False,
        log_every: int = 50,
        on_divergence: OnDivergence = "stop",
        record: Callable[[dict[str, Any]], None] | None = None,
        progress: bool | TextIO = False,
        checkpoints: Checkpoints | None = None,
        observe_every: int | None = None,
        observe_rows: int = 1000,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        first = next(model.parameters(), None)
        settings = Settings(
            optimizer=optimizer,
            scheduler=scheduler,
            scheduler_every="step",
            criterion=criterion,
            clip_norm=clip_norm,
            clip_by=clip_by,
            accumulate=accumulate,
            precision=precision,
            max_seconds=max_seconds,
            deterministic=deterministic,
            detect_anomaly=detect_anomaly,
            capture=capture,
            compile=compile,
            log_every=log_every,
            on_divergence=on_divergence,
            seed=seed,
            device=device if device is not None else "cpu" if first is None else first.device,
        )
        self._own_hooks = hooks_of(model)
        self.session = Session.bind(
            method,
            model,
            settings,
            ENDLESS if boundary is None else ENDLESS_WITH_BOUNDARY,
            boundary=boundary,
            prepare=prepare,
            record=record,
            checkpoints=checkpoints,
        )
        check_head(self.learner.head, boundary)
        self.session.position.phase = "training"
        if observe_every is not None:
            self.session.observations = Observations(self.session, observe_every, observe_rows)
        if checkpoints is not None and boundary is not None:
            boundary.state()  # what cannot be saved is refused now, and not at the first checkpoint
        if scheduler is not None:
            self.session.optimization.open_experience()
        self.progress = progress
        self._loop = Loop(self.session, Saver(self.session))
        self._random: Mapping[str, Tensor] | None = None
        self._closely = CLOSELY
        if (how := chosen(settings.capture, self.session.device)) != "none":
            self.session.captured = Captured(self.session, how)
            self._forget()

    # Training --------------------------------------------------------------------------------------------

    def train(self, batches: Batches, steps: int | None = None, resume: Mapping[str, Any] | None = None) -> int:
        """Train on `batches` in order; call again to go on.

        The training ends when the source does, after `steps`, or when `max_seconds` are over. What the source raises
        passes through.

        Args:
            batches: a `Source`, or any iterable of `(inputs, targets)` or `Batch`es, finite or not.
            steps: stop after so many batches; None takes all there are.
            resume: a state that `checkpoints` was given. A source that can seek goes on exactly where it was; of
                another, what arrives now is taken, and a `gap` is recorded.

        Returns:
            The number of batches trained on.

        Raises:
            Interrupted: if `stop` was set, after saving a checkpoint.
        """
        session = self.session
        source = session.source = as_source(batches, session.source)
        if resume is not None:
            self.load_state_dict(resume)
            self._loop = Loop(session, Saver(session))  # counts from here to the next checkpoint
            go_back(session, source)
        position, begun = session.position, session.position.step
        session.started, session.late = time.perf_counter() - position.clock, False
        with make_bar(session.method.name, self.progress) as session.bar:
            self._follow(source, None if steps is None else begun + steps)
            if session.observations is not None and position.step > begun:
                session.write_window()
                session.observations.look(last=True)
        if session.captured is not None and position.step > begun:
            session.captured.end(position.experience, position.step - begun)
        position.clock, session.bar = session.seconds, NoProgress()
        return position.step - begun

    def step(self, batch: Batch | tuple[Tree, Tensor]) -> Tensor:
        """Train on one batch; with `accumulate`, on a part of a step of the optimiser.

        Returns:
            The model's outputs on it, from before the step.
        """
        self._forget()
        step = self._follow(Iterated([batch]), None, close=False)
        assert step is not None and step.outputs is not None
        return step.outputs.detach()

    def _follow(self, source: Source, goal: int | None, close: bool = True) -> Step | None:
        """Train on what `source` gives until `goal` batches (None: all) were trained on, the first ones looked at.

        Where it is to `close`, the weights move by a last group with fewer batches than `accumulate`.
        """
        (session := self.session).model.train()
        loop = self._loop
        with self._around():
            batches = arriving(session, source, goal)
            step = loop.steps(itertools.islice(batches, self._closely), None, self._learn)
            if not session.late:
                # Where nothing is asked for between loss and update, that costs nothing; one step gives its outputs.
                plain = self.boundary is None and not self._phases.watches_classes
                how = self._learn if not plain else None if close else session.update
                step = loop.steps(batches, None, how) or step
            if close and session.update.parts:
                session.update.finish()
            if session.stop:  # told so while it waited for a batch
                loop.saver.save()
        return step

    def _learn(self, step: Step, weight: float, last: bool) -> None:
        """What happens between the loss of a batch and its update: it is looked at, and may open an experience."""
        session, phases = self.session, self._phases
        if self._closely:
            self._closely -= 1
            criterion = session.settings.criterion
            check_values(step.loss, step.targets, step.inputs, criterion is not None, self.learner.memory is not None)
            ignored = None if criterion is None else getattr(criterion, "ignore_index", -100)
            check_targets(step.targets, step.outputs, self.learner.criterion, ignored)
        if phases.boundary is not None and phases.cross(step, between=not session.update.parts):
            session.position.experience = self.learner.experience
            if session.position.experience > 0:
                note_boundary(session, phases.boundary)
        if phases.watches_classes:
            phases.see(step)
        session.update(step, weight, last)

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        """The session's own random numbers inside, from where they were left."""
        with around(session := self.session):
            if self._random is not None:
                set_random(self._random, session.device)
            try:
                yield
            finally:
                self._random = random_state(session.device)

    # What came of it -------------------------------------------------------------------------------------

    @property
    def accuracy(self) -> float | None:
        """Share of all samples that were predicted right before they were trained on; None without classes."""
        right = self.session.records.window.right_so_far()
        return None if right is None else right / max(1, self.samples)

    @property
    def steps(self) -> int:
        """Batches trained on."""
        return self.session.position.step

    @property
    def samples(self) -> int:
        """Rows trained on."""
        return self.session.position.samples

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in eval mode without gradients, as the method wants them."""
        with self.engine.evaluating(), torch.no_grad():
            return self.engine.predict(inputs, task)

    def export(self) -> nn.Module:
        """The model for deployment; see `Continual.export`."""
        return exported(self.engine, self._own_hooks)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser."""
        return self.session.optimization.optimizer

    @property
    def boundary(self) -> Boundary | None:
        """Who finds where experiences begin."""
        return self._phases.boundary

    @property
    def stop(self) -> bool:
        """Set this to end the training after the coming step, with a checkpoint."""
        return self.session.stop

    @stop.setter
    def stop(self, stop: bool) -> None:
        self.session.stop = stop
        if stop and self.session.source is not None:
            self.session.source.halt()  # it may be waiting for a batch

    @property
    def _phases(self) -> Phases:
        assert self.session.phases is not None
        return self.session.phases

    @property
    def cl(self) -> StreamTrainer:
        """The name under which `learner`, `engine` and `predict` were reached before; they are the trainer's own."""
        warnings.warn("write trainer.predict and trainer.learner for trainer.cl", DeprecationWarning, stacklevel=2)
        return self

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain values: what `checkpoints` are given."""
        if waiting := len(self.session.update.parts):
            of = f"{waiting} of {self.session.settings.accumulate}"
            raise UsageError(f"the state was asked for after {of} accumulated batches. Save between steps.")
        state = state_of(self.session)
        return state if self._random is None else {**state, "random": dict(self._random)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if "continual" in state:  # as it was until 0.1
            state = from_continual(state, self.learner)
        restore(self.session, state)
        self._random = state["random"]
        self._forget()
