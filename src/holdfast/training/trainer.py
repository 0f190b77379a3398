"""The trainer: a method over a stream of experiences, in a loop as thin as one written by hand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, TextIO

import torch
from torch import nn

from holdfast.core.criteria import mismatch
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, Interrupted
from holdfast.core.experience import Experience, Stream
from holdfast.core.learner import Criterion, Learner
from holdfast.core.method import Method
from holdfast.core.needs import OFFERS
from holdfast.training.compiling import compiled_forward, recompilable
from holdfast.training.divergence import OnDivergence
from holdfast.training.export import copied
from holdfast.training.launch import Strategy, check_processes, train_together
from holdfast.training.loop import Loop
from holdfast.training.optimization import Optimization, OptimizerFactory, SchedulerFactory, optimizer_factory
from holdfast.training.precision import PRECISIONS, Precision, as_precise, check_precision, make_scaler
from holdfast.training.progress import NoProgress, make_bar
from holdfast.training.ranks import ALONE, Ranks
from holdfast.training.records import Records
from holdfast.training.settings import PerExperience, Settings, augmented, by_experience, check_limit
from holdfast.training.state import of_rank, restore, seed_model, set_random, state_of

ADVICE = {"task": "Make the stream with paradigm='task', or choose a method that needs no task labels."}


class Checkpoints(Protocol):
    """Where the trainer puts its state: the run folder's checkpoints, or none."""

    def due(self, seconds: float, steps: int) -> bool:
        """Whether a checkpoint is due, so long and so many steps after the last."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state`."""


class Trainer:
    """Trains a model over a stream of experiences with one method.

    Args:
        method: what is done around each step; bound to the model by `fit`, once.
        optimizer: a torch name, a mapping with `name` and arguments, or a function from parameters to an optimiser.
        scheduler: a function from an optimiser to a scheduler; a new one for each experience.
        per_experience: what is different in some experiences, by number: `{0: {"epochs": 5}, "1-": {"batch_size": 8}}`,
            or a list with one entry for each experience; every setting of `training.settings.Settings` may differ.
        criterion: `criterion(outputs, targets)` -> mean loss; default: cross-entropy.
        epochs: passes over each experience's data.
        iterations: steps per experience instead of epochs (the data is shuffled again whenever it runs out).
        batch_size: current samples per step, of all processes together.
        eval_batch_size: samples per forward in evaluation.
        drop_last: leave out an epoch's last batch if it is smaller than the others.
        reset_optimizer: start each experience with a new optimiser, without the momentum of the last.
        scheduler_every: move the scheduler every `step` or every `epoch`.
        clip_norm: largest norm of the whole gradient; larger ones are scaled down to it.
        clip_by: what `clip_norm` bounds: the `norm` of the whole gradient, or each `value` of it.
        accumulate: batches whose gradients are averaged before the optimiser moves.
        precision: `32-true`; `bf16-mixed` or `16-mixed` (GPUs only) for autocast; `64-true` for doubles.
        evaluate: which data the accuracy matrix is measured on: `test`, `validation`, `both` or `none`.
        evaluate_before: also evaluate before any training (forward transfer needs it).
        limit_train_batches: batches of each experience's training data that are used, a number or a fraction; the same
            every epoch.
        limit_val_batches: the same for validation data.
        limit_test_batches: the same for test data.
        patience: end an experience after so many epochs without a better validation accuracy.
        restore_best: end an experience with the weights of the epoch that had the best validation accuracy.
        max_seconds: training time after which no further step is made; what was learned is evaluated.
        deterministic: let torch refuse operations whose result is not reproducible.
        detect_anomaly: let torch say where a gradient became NaN; slow.
        compile: compile the model's forward with `torch.compile`.
        log_every: steps between two records of loss and accuracy.
        on_divergence: `stop` where a loss or a weight is not finite, or a loss a thousand times that at the start, or
            `go_on`; looked at with each record.
        seed: of every random choice.
        device: where to train, for instance `cpu` or `cuda`.
        devices: processes on this machine, one device each, that train one model together; see `training.launch`.
        num_nodes: machines that do so.
        strategy: how the processes start: `ddp` (by whichever of the others is safe), `ddp_fork` or `ddp_spawn`;
            `auto` is one process for one device.
        record: called with each event of the log, a mapping of plain values.
        progress: whether to draw a progress bar with time left, or the terminal to draw it on (default: standard
            error).
        checkpoints: where to keep states to resume from.

    Example:
        >>> from holdfast.methods import er
        >>> from holdfast.models import mlp
        >>> from holdfast.streams import split
        >>> from holdfast.streams.datasets import digits
        >>> stream = split(digits(), experiences=5)
        >>> model = mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[32], seed=0)
        >>> trainer = Trainer(er(capacity=100, size=16), optimizer={"name": "SGD", "lr": 0.1}, batch_size=16)
        >>> events = trainer.fit(model, stream)
        >>> [event["event"] for event in events].count("evaluate")
        30
    """

    def __init__(
        self,
        method: Method,
        *,
        optimizer: str | Mapping[str, Any] | OptimizerFactory = "SGD",
        scheduler: SchedulerFactory | None = None,
        per_experience: PerExperience | None = None,
        criterion: Criterion | None = None,
        epochs: int = 1,
        iterations: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 512,
        drop_last: bool = False,
        reset_optimizer: bool = False,
        scheduler_every: Literal["step", "epoch"] = "epoch",
        clip_norm: float | None = None,
        clip_by: Literal["norm", "value"] = "norm",
        accumulate: int = 1,
        precision: Precision = "32-true",
        evaluate: Literal["test", "validation", "both", "none"] = "test",
        evaluate_before: bool = True,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        patience: int | None = None,
        restore_best: bool = False,
        max_seconds: float | None = None,
        deterministic: bool = False,
        detect_anomaly: bool = False,
        compile: bool = False,
        log_every: int = 50,
        on_divergence: OnDivergence = "stop",
        seed: int = 0,
        device: str | torch.device = "cpu",
        devices: int = 1,
        num_nodes: int = 1,
        strategy: Strategy = "auto",
        record: Callable[[dict[str, Any]], None] | None = None,
        progress: bool | TextIO = False,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.settings = Settings(
            optimizer_factory(optimizer),
            scheduler,
            scheduler_every,
            epochs,
            iterations,
            batch_size,
            drop_last,
            reset_optimizer,
            clip_norm,
            clip_by,
            accumulate,
            limit_train_batches,
            patience,
            restore_best,
        )
        for name, value in {"eval_batch_size": eval_batch_size, "log_every": log_every}.items():
            if value < 1:
                raise ConfigError(f"the trainer got {name}={value}. Give a number of at least 1.")
        self.device = torch.device(device)
        check_precision(precision, self.device)
        if max_seconds is not None and max_seconds <= 0:
            raise ConfigError(f"the trainer got max_seconds={max_seconds}. Give a positive number, or None.")
        self.limits = {"validation": limit_val_batches, "test": limit_test_batches}
        check_limit("limit_val_batches", limit_val_batches)
        check_limit("limit_test_batches", limit_test_batches)
        check_processes(devices, num_nodes, strategy)
        self.method = method
        self.per_experience = per_experience
        self.criterion = criterion
        self.eval_batch_size = eval_batch_size
        self.precision = precision
        self.evaluate = evaluate
        self.evaluate_before = evaluate_before
        self.max_seconds = max_seconds
        self.deterministic = deterministic
        self.detect_anomaly = detect_anomaly
        self.compile = compile
        self.log_every = log_every
        self.on_divergence = on_divergence
        self.seed = seed
        self.devices = devices
        self.num_nodes = num_nodes
        self.strategy = strategy
        self.record = record
        self.progress = progress
        self.checkpoints = checkpoints
        self.stop = self.late = False
        self.started = time.perf_counter()
        self.experience: Experience
        self.bar = NoProgress()

    # The whole stream ----------------------------------------------------------------------------------

    def fit(self, model: nn.Module, stream: Stream, resume: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Train `model` over `stream`.

        With `devices` or `num_nodes` above 1 this process is joined by others; see `training.launch`.

        Args:
            model: moved to the device and trained in place.
            stream: the experiences, in order.
            resume: a state that `checkpoints` was given, of the same method, model and stream.

        Returns:
            The events that were recorded, the raw log from which every metric is computed.

        Raises:
            NeedError: if the stream lacks what the method needs.
            Interrupted: if `stop` was set, after saving a checkpoint.
        """
        if self.devices * self.num_nodes == 1:
            return self.fit_here(model, stream, resume)
        return train_together(self, model, stream, resume)

    def fit_here(
        self, model: nn.Module, stream: Stream, resume: Mapping[str, Any] | None = None, ranks: Ranks = ALONE
    ) -> list[dict[str, Any]]:
        """`fit` in this process, as one of `ranks`; rank 0 alone records, draws and saves."""
        if ranks.rank > 0:
            self.record, self.progress, self.checkpoints = None, False, None
        self.bind(model, stream, ranks)
        ranks.same(model.state_dict().values())
        self._saves = ranks.gather(self.checkpoints is not None)[0]
        self.position: dict[str, Any] = {"experience": 0, "phase": "before", "clock": 0.0}
        state = None if resume is None else of_rank(resume, ranks)
        if state is not None:
            restore(self, state)
        self._saved_at, self._saved_step = time.perf_counter(), self.engine.index
        self.started = time.perf_counter() - self.position["clock"]
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        with (
            torch_checks(self.deterministic, self.detect_anomaly),
            recompilable(self.compile, len(stream)),
            torch.random.fork_rng(devices=cuda),
            make_bar(self.method.name, self.progress) as self.bar,
        ):
            seed_model(self.seed, ranks.rank, self.device)
            if state is not None:
                set_random(state["random"], self.device)
            self._run(fresh=state is None)
        return self.events

    def bind(self, model: nn.Module, stream: Stream, ranks: Ranks = ALONE) -> Engine:
        """Bind method, model and stream to one another without training; `fit` calls it."""
        self._changes = by_experience(self.per_experience, len(stream))
        self._settings = [self.settings.changed(self._changes.get(index, {})) for index in range(len(stream))]
        for settings in self._settings or [self.settings]:
            ranks.check(self.method, settings.batch_size)
        offers = set(OFFERS["trainer"])
        if all(experience.task is None for experience in stream):
            offers.discard("task")
        if stream.classes == 0:
            offers.discard("classes")
        self.stream, self.ranks = stream, ranks
        self.device = self.device if ranks.device is None else ranks.device
        self.model = model.to(self.device)
        self.learner = Learner(
            model,
            criterion=self.criterion,
            prepare=as_precise(model, stream.prepare, self.precision),
            seed=self.seed,
            device=self.device,
            rank=ranks.rank,
            ranks=ranks.count,
        )
        kind = PRECISIONS[self.precision]
        self.learner.autocast = None if kind is None else (self.device.type, kind)
        self.scaler = make_scaler(self.precision, self.device)
        self.engine = Engine(self.method, self.learner, offers, ADVICE)
        wrong = mismatch(self.learner.criterion, stream[0].train.targets) if len(stream) else ""
        if wrong and not self.engine.acts_at("criterion"):
            raise ConfigError(f"criterion: {wrong}")
        if self.engine.acts_at("take_step"):
            self._check_own_step()
        if self.compile:
            compiled_forward(self.model)
        first = self.settings_of(0)
        self.optimization = Optimization(first.optimizer, first.scheduler, first.scheduler_every)
        self.learner.on_growth.append(self.optimization.follow)
        self.learner.optimizer = lambda: self.optimization.optimizer
        self.optimization.start(self.learner.optimized())
        self.records = Records(self)
        self.events = self.records.events
        self.position = {"experience": 0, "phase": "before", "clock": 0.0, "epoch_step": 0}
        self.loop = Loop(self)
        return self.engine

    def _check_own_step(self) -> None:
        most = max(settings.accumulate for settings in [self.settings, *self._settings])
        if most > 1:
            raise ConfigError(
                f"`{self.method.name}` makes the whole step itself, so gradients cannot be accumulated over "
                f"{most} batches. Leave accumulate out and give a larger batch_size."
            )

    def settings_of(self, index: int) -> Settings:
        """The settings of experience `index`."""
        return self._settings[index] if self._settings else self.settings

    def take_settings(self, index: int) -> bool:
        """Go over to the settings of experience `index`. Returns whether they ask for another optimiser."""
        settings = self.settings_of(index)
        self.learner.prepare = as_precise(self.model, augmented(self.stream.prepare, settings.augment), self.precision)
        self.loop.ready(index)
        return self.optimization.choose(settings.optimizer, settings.scheduler, settings.scheduler_every)

    @property
    def seconds(self) -> float:
        """Seconds since `fit` began, those before an interruption included."""
        return time.perf_counter() - self.started

    def _run(self, fresh: bool) -> None:
        position = self.position
        if fresh and self.evaluate_before:
            self._evaluate_all(after=-1)
        for index in range(position["experience"], len(self.stream)):
            loaded = position if position["phase"] == "training" else None
            experience = self.open(index) if loaded is None else self.experience
            seconds, start = self.loop.train(experience, loaded), time.perf_counter()
            self.engine.end(experience)
            self.ranks.same(self.model.state_dict().values())
            seconds += time.perf_counter() - start
            start = time.perf_counter()
            self._evaluate_all(after=index)
            self.records.write_experience(index, seconds, time.perf_counter() - start)
            position.update(experience=index + 1, phase="before")
            position.pop("begin", None)
            position.pop("best", None)
            self.checkpoint(force=True)
            if self.late:
                break

    def open(self, index: int) -> Experience:
        """Begin experience `index`: its settings, the method's `begin`, an optimiser and a scheduler."""
        before = copied(self.engine.state(check=False)) if self.engine.acts_at("begin") else None
        anew = self.take_settings(index)
        experience, replaced = self.engine.begin(self.stream[index])
        self.ranks.same(self.model.state_dict().values())
        self.position.update(experience=index, phase="training", step=0, epoch=0, epoch_step=0, seconds=0.0)
        self.position.pop("best", None)
        if replaced and before is not None:
            self.position["begin"] = before
        if anew or self.loop.settings.reset_optimizer or index == 0:
            self.optimization.start(self.learner.optimized())
        self.optimization.open_experience()
        return experience

    def _evaluate_all(self, after: int) -> None:
        self.records.evaluate_all(after)

    # State ---------------------------------------------------------------------------------------------

    def checkpoint_due(self, moment: float, coming: int = 0) -> bool:
        """Whether it is time to save the state at `moment` of the process's clock, `coming` steps from here."""
        assert self.checkpoints is not None
        return self.checkpoints.due(moment - self._saved_at, self.engine.index + coming - self._saved_step)

    def checkpoint(self, force: bool = False) -> None:
        """Save the state, if there is where to; then stop, if that was asked for.

        Args:
            force: at the end of an experience, where no step is half recorded.
        """
        self.stop = self.ranks.gather(self.stop)[0]
        if self._saves:
            if not force:
                if self.records.window.steps:
                    self.records.write_window()
                self.position["seconds"] = self.loop.seconds
            self.position["clock"] = self.seconds
            state = self.state()
            if self.checkpoints is not None:
                self.checkpoints.save(state)
            self._saved_at, self._saved_step = time.perf_counter(), self.engine.index
        if self.stop:
            raise Interrupted("training was stopped" + (", and its state saved." if self._saves else "."))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: tensors and plain values only."""
        return state_of(self)


@contextlib.contextmanager
def torch_checks(deterministic: bool, detect_anomaly: bool) -> Iterator[None]:
    """Torch's own checks inside, what was set before afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(True) if detect_anomaly else contextlib.nullcontext():
            yield
    finally:
        torch.use_deterministic_algorithms(before)
