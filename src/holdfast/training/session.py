"""A training in progress: everything its loop, its records and its checkpoints work on, and where it stands."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Batch, Experience, Stream
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import Way
from holdfast.core.source import Source
from holdfast.core.tree import bytes_in
from holdfast.training.optimization import Optimization
from holdfast.training.phases import Phases
from holdfast.training.precision import PRECISIONS, as_precise, make_scaler
from holdfast.training.progress import NoProgress
from holdfast.training.ranks import ALONE, Ranks
from holdfast.training.records import Records, classes_in, mean_window, remembered
from holdfast.training.settings import Settings, augmented
from holdfast.training.update import Steps, Update


class Checkpoints(Protocol):
    """Where a training puts its state: the run folder's checkpoints, or none."""

    def due(self, seconds: float, steps: int) -> bool:
        """Whether a checkpoint is due, so long and so many steps after the last."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state`."""


class Observer(Protocol):
    """What looks at a training on a source now and then; see `training.observations`."""

    def take(self, batch: Batch) -> None:
        """Keep what is held out of a batch that arrived."""

    def due(self, step: int) -> bool:
        """Whether it is time to look, after so many batches."""

    def look(self, last: bool = False) -> None:
        """Record what is seen, maybe after the last step."""

    def state(self) -> dict[str, Any]:
        """What `load` restores."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        experience: index of the experience that is trained on, or comes next.
        phase: whether its training has begun.
        clock: seconds of the whole training.
        step: batches taken of the experience; of a source, all batches so far.
        epoch: passes over the experience's data that are finished.
        epoch_step: batches taken in the pass that is not.
        seconds: of training on this experience.
        order: state of the order's generator at the beginning of the pass.
        begin: the engine's state before a `begin` that chose other data, which a resumed training does again.
        best: `value`, `epoch` and weights (`model`) of the epoch with the best validation so far.
        samples: rows taken of a source.
        right: those of them whose class was predicted before they were trained on; None without classes.
        source: the source's own position.
        idle: seconds of waiting for a source's batches.
    """

    experience: int = 0
    phase: Literal["before", "training"] = "before"
    clock: float = 0.0
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    seconds: float = 0.0
    order: Tensor | None = None
    begin: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    samples: int = 0
    right: int | None = None
    source: dict[str, Any] | None = None
    idle: float = 0.0

    def state(self) -> dict[str, Any]:
        """The fields that have a value, as tensors and plain values."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Position:
        """The position that `state` returned."""
        names = {one.name for one in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in state.items() if name in names})

    def enter(self, experience: int) -> None:
        """Stand before the first step of an experience."""
        self.experience, self.phase = experience, "training"
        self.step = self.epoch = self.epoch_step = 0
        self.seconds, self.begin, self.best = 0.0, None, None

    def leave(self) -> None:
        """Stand before the next experience."""
        self.experience, self.phase = self.experience + 1, "before"
        self.begin = self.best = None


@dataclass
class Session:
    """A method bound to a model, what it learns from, and how its training goes; made by `Session.bind`.

    Attributes:
        method: what is done around each step.
        model: on its device, trained in place.
        settings: of the whole training.
        learner: the model with its services.
        engine: the method bound to the learner.
        optimization: optimiser and scheduler.
        records: events and the window of the steps that are to become one.
        ranks: this process among those that train together.
        device: where this process computes.
        prepare: turns raw inputs into the model's.
        stream: the experiences that are learned, or
        source: the batches that are learned.
        phases: where experiences begin and end in a source.
        settings_by_experience: the settings of each experience of the stream.
        scaler: of float16 gradients.
        checkpoints: where states go that a training can be resumed from.
        position: where the training stands.
        current: the settings of the experience that is trained on.
        update: makes the optimiser's steps under them.
        opened: the experience that is trained on, with the data that the method chose.
        observations: what is looked at now and then while a source is learned.
        captured: makes the steps, where they are not made as written.
        bar: the progress bar.
        stop: set it to end the training after the coming step, with a checkpoint.
        late: whether `max_seconds` are over.
        started: when the training began, by `time.perf_counter`; earlier by what an interrupted one took.
    """

    method: Method
    model: nn.Module
    settings: Settings
    learner: Learner
    engine: Engine
    optimization: Optimization
    records: Records
    ranks: Ranks
    device: torch.device
    prepare: Callable[..., Any] | None = None
    stream: Stream | None = None
    source: Source | None = None
    phases: Phases | None = None
    settings_by_experience: list[Settings] = field(default_factory=list)
    scaler: torch.amp.GradScaler | None = None
    checkpoints: Checkpoints | None = None
    position: Position = field(default_factory=Position)
    bar: NoProgress = field(default_factory=NoProgress)
    stop: bool = False
    late: bool = False
    started: float = field(default_factory=time.perf_counter)
    current: Settings = field(init=False)
    update: Update = field(init=False)
    opened: Experience | None = None
    captured: Steps | None = None
    observations: Observer | None = None

    @classmethod
    def bind(
        cls,
        method: Method,
        model: nn.Module,
        settings: Settings,
        way: Way,
        *,
        stream: Stream | None = None,
        boundary: Boundary | None = None,
        prepare: Callable[..., Any] | None = None,
        without: frozenset[str] = frozenset(),
        ranks: Ranks = ALONE,
        record: Callable[[dict[str, Any]], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Session:
        """Bind a method to a model.

        Args:
            method: what is done around each step.
            model: moved to the device.
            settings: of the training.
            way: what the loop offers to the method.
            stream: of experiences; None where batches come from a source.
            boundary: who finds experiences in a source.
            prepare: turns raw inputs into the model's.
            without: what the loop offers in general, and the data here lacks.
            ranks: this process among those that train together.
            record: called with each event.
            checkpoints: where states go.

        Raises:
            NeedError: if the data lacks what the method needs.
            ConfigError: for settings that do not go with the method.
        """
        device = torch.device(settings.device) if ranks.device is None else ranks.device
        model = model.to(device)
        several = [] if stream is None else settings.by_experience(len(stream))
        for one in several or [settings]:
            ranks.check(method, one.batch_size)
        learner = Learner(
            model,
            criterion=settings.criterion,
            prepare=as_precise(model, prepare, settings.precision),
            seed=settings.seed,
            device=device,
            rank=ranks.rank,
            ranks=ranks.count,
        )
        kind = PRECISIONS[settings.precision]
        learner.autocast = None if kind is None else (device.type, kind)
        learner.services.pads = settings.pad
        if settings.memory_device is not None:
            learner.services.memory_device = torch.device(settings.memory_device)
        engine = Engine(method, learner, way.offers - without, way.advice)
        model = learner.model  # a method may have put another in its place
        if engine.acts_at("take_step"):
            _check_own_step(method, [settings, *several])
        first = several[0] if several else settings
        optimization = Optimization(first.make_optimizer, first.scheduler, first.scheduler_every)
        learner.on_growth.append(optimization.follow)
        learner.optimizer = lambda: optimization.optimizer
        optimization.start(learner.optimized())
        session = cls(
            method,
            model,
            settings,
            learner,
            engine,
            optimization,
            Records(record, learner, settings.on_divergence, stream is not None, engine.acts_at("predict")),
            ranks,
            device,
            prepare=prepare,
            stream=stream,
            phases=Phases(engine, boundary) if stream is None else None,
            settings_by_experience=several,
            scaler=make_scaler(settings.precision, device),
            checkpoints=checkpoints,
        )
        session.take_settings(0)
        return session

    # Settings ------------------------------------------------------------------------------------------

    def settings_of(self, index: int) -> Settings:
        """The settings of experience `index`."""
        return self.settings_by_experience[index] if self.settings_by_experience else self.settings

    def take_settings(self, index: int) -> bool:
        """Go over to the settings of experience `index`. Returns whether they ask for another optimiser."""
        settings = self.current = self.settings_of(index)
        prepare = augmented(self.prepare, settings.augment)
        self.learner.prepare = as_precise(self.model, prepare, settings.precision)
        self.update = Update(
            self.engine,
            self.optimization,
            accumulate=settings.accumulate,
            scaler=self.scaler,
            average=self.ranks.average_gradients if self.ranks.count > 1 else None,
            clip_norm=settings.clip_norm,
            clip_by=settings.clip_by,
            finished=None if self.phases is None else self.phases.keeper,
        )
        return self.optimization.choose(settings.make_optimizer, settings.scheduler, settings.scheduler_every)

    # Time ----------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds since the training began, those before an interruption included."""
        return time.perf_counter() - self.started

    def show(self, total: int | None) -> None:
        """Draw how far the training has come, of `total` batches if their number is known."""
        total = self.source.length if total is None and self.source is not None else total
        share = self.position.step / total if total else 0.0
        self.bar.show(self.records.state(self.position, self.stream, total, share))

    # Records -------------------------------------------------------------------------------------------

    def write_window(self) -> None:
        """Record means over the steps since the last window, and their learning rate; nothing without a step."""
        if not self.records.window.steps:
            return
        position, window = self.position, self.records.window
        means = mean_window(self.ranks.gather(window.read()))
        if self.ranks.count > 1:  # all must find that training diverged, or none
            window.first = max((loss for loss in self.ranks.gather(window.first) if loss is not None), default=None)
        self.records.write(
            event="train",
            experience=position.experience,
            epoch=position.epoch,
            step=self.engine.index,
            samples=position.samples if self.stream is None else position.step * self.current.batch_size,
            lr=self.optimization.lr,
            **means,
        )

    def write_experience(self, index: int, seconds: float, evaluation_seconds: float) -> None:
        """Record what learning an experience took; a memory counts with all its parts."""
        memory = self.learner.memory
        sizes = self.ranks.gather((0, 0) if memory is None else (len(memory), memory.nbytes))
        seen: set[tuple[int, int]] = set()
        kept = {operation.name: bytes_in(operation.save(), seen) for operation in self.engine.method}
        kept["memory"] = kept.get("memory", 0) + sum(size for _, size in sizes)
        self.records.write(
            event="experience",
            experience=index,
            steps=self.position.step,
            seconds=seconds,
            evaluation_seconds=evaluation_seconds,
            parameters=sum(p.numel() for p in self.model.parameters()),
            memory_items=sum(items for items, _ in sizes),
            memory_bytes=sum(size for _, size in sizes),
            method_bytes=sum(kept.values()),
            method_kept={name: size for name, size in kept.items() if size},
            **remembered(self.ranks.gather({} if memory is None else classes_in(memory))),
        )


def _check_own_step(method: Method, settings: list[Settings]) -> None:
    most = max(one.accumulate for one in settings)
    if most > 1:
        raise ConfigError(
            f"`{method.name}` makes the whole step itself, so gradients cannot be accumulated over "
            f"{most} batches. Leave accumulate out and give a larger batch_size."
        )
