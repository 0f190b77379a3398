"""The trainer: a method over a stream of experiences, in a loop as thin as one written by hand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, TextIO

import torch
from torch import Tensor, nn

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, Interrupted
from holdfast.core.experience import Batch, Data, Experience, Stream
from holdfast.core.learner import Criterion, Learner, derive_seed
from holdfast.core.method import Method
from holdfast.core.needs import OFFERS
from holdfast.core.step import Step
from holdfast.training.capture import join_steps
from holdfast.training.evaluation import evaluate
from holdfast.training.optimization import Optimization, OptimizerFactory, SchedulerFactory, optimizer_factory
from holdfast.training.progress import Bar, NoProgress
from holdfast.training.window import Window

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


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
        criterion: `criterion(outputs, targets)` -> mean loss; default: cross-entropy.
        epochs: passes over each experience's data.
        iterations: steps per experience instead of epochs (the data is shuffled again whenever it runs out).
        batch_size: current samples per step.
        eval_batch_size: samples per forward in evaluation.
        drop_last: leave out an epoch's last batch if it is smaller than the others.
        reset_optimizer: start each experience with a new optimiser, without the momentum of the last.
        scheduler_every: move the scheduler every `step` or every `epoch`.
        clip_norm: largest norm of the whole gradient; larger ones are scaled down to it.
        clip_by: what `clip_norm` bounds: the `norm` of the whole gradient, or each `value` of it.
        accumulate: batches whose gradients are averaged before the optimiser moves.
        precision: `float32`, or `bfloat16` for autocast.
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
        seed: of every random choice.
        device: where to train, for instance `cpu` or `cuda`.
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
        precision: Literal["float32", "bfloat16"] = "float32",
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
        seed: int = 0,
        device: str | torch.device = "cpu",
        record: Callable[[dict[str, Any]], None] | None = None,
        progress: bool | TextIO = False,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        sizes = {"epochs": epochs, "batch_size": batch_size, "eval_batch_size": eval_batch_size, "log_every": log_every}
        sizes["accumulate"] = accumulate
        if patience is not None:
            sizes["patience"] = patience
        for name, value in {**sizes, **({} if iterations is None else {"iterations": iterations})}.items():
            if value < 1:
                raise ConfigError(f"the trainer got {name}={value}. Give a number of at least 1.")
        if precision not in PRECISIONS:
            raise ConfigError(f"the trainer got precision={precision!r}. Choose one of {', '.join(PRECISIONS)}.")
        if clip_by not in ("norm", "value"):
            raise ConfigError(f"the trainer got clip_by={clip_by!r}. Choose norm or value.")
        if max_seconds is not None and max_seconds <= 0:
            raise ConfigError(f"the trainer got max_seconds={max_seconds}. Give a positive number, or None.")
        limits = {"train": limit_train_batches, "validation": limit_val_batches, "test": limit_test_batches}
        for part, limit in limits.items():
            if limit is not None and (limit <= 0 or (isinstance(limit, float) and limit > 1)):
                name = f"limit_{'val' if part == 'validation' else part}_batches"
                raise ConfigError(f"the trainer got {name}={limit}. Give a number of batches, or a fraction up to 1.0.")
        self.limits = limits
        self.clip_by = clip_by
        self.accumulate = accumulate
        self.patience = patience
        self.restore_best = restore_best
        self.max_seconds = max_seconds
        self.deterministic = deterministic
        self.detect_anomaly = detect_anomaly
        self.compile = compile
        self.method = method
        self.criterion = criterion
        self.optimization = Optimization(optimizer_factory(optimizer), scheduler, scheduler_every)
        self.epochs = epochs
        self.iterations = iterations
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.drop_last = drop_last
        self.reset_optimizer = reset_optimizer
        self.scheduler_every = scheduler_every
        self.clip_norm = clip_norm
        self.precision = precision
        self.evaluate = evaluate
        self.evaluate_before = evaluate_before
        self.log_every = log_every
        self.seed = seed
        self.device = torch.device(device)
        self.record = record
        self.progress = progress
        self.checkpoints = checkpoints
        self.stop = False
        self._late = False

    # The whole stream ----------------------------------------------------------------------------------

    def fit(self, model: nn.Module, stream: Stream, resume: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Train `model` over `stream`.

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
        self.bind(model, stream)
        self._position: dict[str, Any] = {"experience": 0, "phase": "before", "clock": 0.0}
        if resume is not None:
            self._restore(resume)
        self._saved_at, self._saved_step = time.perf_counter(), self.engine.index
        self._started = time.perf_counter() - self._position["clock"]
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        checks = torch_checks(self.deterministic, self.detect_anomaly)
        with checks, torch.random.fork_rng(devices=cuda), _bar(self.method.name, self.progress) as self._bar:
            self._seed_model()
            if resume is not None:
                self._set_random(resume["random"])
            self._run(resume)
        return self.events

    def bind(self, model: nn.Module, stream: Stream) -> Engine:
        """Bind method, model and stream to one another without training; `fit` calls it."""
        offers = set(OFFERS["trainer"])
        if all(experience.task is None for experience in stream):
            offers.discard("task")
        if stream.classes == 0:
            offers.discard("classes")
        self.stream = stream
        self.model = model.to(self.device)
        self.learner = Learner(
            model, criterion=self.criterion, prepare=stream.prepare, seed=self.seed, device=self.device
        )
        kind = PRECISIONS[self.precision]
        self.learner.autocast = None if kind is None else (self.device.type, kind)
        advice = {"task": "Make the stream with paradigm='task', or choose a method that needs no task labels."}
        self.engine = Engine(self.method, self.learner, offers, advice)
        if self.accumulate > 1 and self.engine.acts_at("take_step"):
            raise ConfigError(
                f"`{self.method.name}` makes the whole step itself, so gradients cannot be accumulated over "
                f"{self.accumulate} batches. Leave accumulate out and give a larger batch_size."
            )
        if self.compile:
            self.model.compile()
        self.learner.on_growth.append(self.optimization.follow)
        self.learner.optimizer = lambda: self.optimization.optimizer
        self.optimization.start(self.learner.optimized())
        self.events: list[dict[str, Any]] = []
        return self.engine

    @property
    def seconds(self) -> float:
        """Seconds since `fit` began, those before an interruption included."""
        return time.perf_counter() - self._started

    def _run(self, resume: Mapping[str, Any] | None) -> None:
        position = self._position
        if position["phase"] == "before" and resume is None:
            self._evaluate_all(after=-1) if self.evaluate_before else None
        for index in range(position["experience"], len(self.stream)):
            resuming = position["phase"] == "training"
            if resuming:
                experience, loaded = self._experience, position
            else:
                experience, loaded = self._open(index), None
            seconds, start = self._train(experience, loaded), time.perf_counter()
            self.engine.end(experience)
            seconds += time.perf_counter() - start
            start = time.perf_counter()
            self._evaluate_all(after=index)
            self._record(
                event="experience",
                experience=index,
                steps=position["step"],
                seconds=seconds,
                evaluation_seconds=time.perf_counter() - start,
                parameters=sum(p.numel() for p in self.model.parameters()),
                memory_items=0 if self.learner.memory is None else len(self.learner.memory),
                memory_bytes=0 if self.learner.memory is None else self.learner.memory.nbytes,
            )
            position.update(experience=index + 1, phase="before")
            position.pop("begin", None)
            position.pop("best", None)
            self._checkpoint(force=True)
            if self._late:
                break

    def _open(self, index: int) -> Experience:
        before = _copied(self.engine.state()) if self.engine.acts_at("begin") else None
        experience, replaced = self.engine.begin(self.stream[index])
        self._position.update(experience=index, phase="training", step=0, epoch=0, epoch_step=0, seconds=0.0)
        self._position.pop("best", None)
        if replaced and before is not None:
            self._position["begin"] = before
        if self.reset_optimizer or index == 0:
            self.optimization.start(self.learner.optimized())
        self.optimization.open_experience()
        return experience

    # One experience ------------------------------------------------------------------------------------

    def _train(self, experience: Experience, loaded: Mapping[str, Any] | None) -> float:
        """Train on one experience, from the position loaded if there is one; returns seconds of training so far."""
        position = self._position
        data = self._limited(experience.train, "train", self.batch_size).to(self.device)
        per_epoch = len(data) // self.batch_size if self.drop_last else -(-len(data) // self.batch_size)
        total = per_epoch * self.epochs if self.iterations is None else self.iterations * bool(per_epoch)
        order_rng = self.learner.rng("order")
        self._window = Window(self.learner)
        self._parts: list[Step] = []
        self._clock = time.perf_counter()
        self._since = self._clock - position["seconds"]
        self._shown = 0.0
        self._learning = self.learner.optimized()
        self.model.train()
        while position["step"] < total:
            if loaded is not None:
                order_rng.set_state(loaded["order"])
            position["order"] = order_rng.get_state()
            order = torch.randperm(len(data), generator=order_rng)
            skip = position["epoch_step"]
            left = min(per_epoch - skip, total - position["step"])
            self._last_step = max(1, skip + left - 1)
            self._epoch(data, order[skip * self.batch_size : (skip + left) * self.batch_size], total)
            position.update(epoch=position["epoch"] + 1, epoch_step=0)
            loaded = None
            if self.optimization.scheduler is not None and self.scheduler_every == "epoch":
                self.optimization.scheduler.step()
            if self._late or ((self.patience or self.restore_best) and self._validated(experience) == "stop"):
                break
        if self._window.steps:
            self._record_window()
        if self.restore_best and "best" in position:
            self.model.load_state_dict(position["best"]["model"])
        return time.perf_counter() - self._since

    def _epoch(self, data: Data, order: Tensor, total: int) -> None:
        position, window, now = self._position, self._window, time.perf_counter
        checking = self.checkpoints is not None
        limit = None if self.max_seconds is None else self._started + self.max_seconds
        for batch in data.batches(order, self.batch_size):
            moves = (
                self.accumulate == 1 or (position["step"] + 1) % self.accumulate == 0 or position["step"] + 1 == total
            )
            outputs = self._step(batch, position["step"] / total, position["step"] % self.accumulate == 0, moves)
            window.add(outputs, batch.targets)
            position["step"] += 1
            position["epoch_step"] += 1
            if window.steps == self.log_every:
                self._record_window()
            moment = now()
            if moment - self._shown > self._bar.interval:
                self._shown = moment
                title = f"experience {position['experience'] + 1} of {len(self.stream)}"
                self._bar.show(position["step"], total, title)
            if limit is not None and moment > limit:
                self._late = True
                return
            if not moves:
                continue
            if self.stop or (
                checking and self.checkpoints.due(moment - self._saved_at, self.engine.index - self._saved_step)  # type: ignore[union-attr]
            ):
                self._checkpoint()

    def _step(self, batch: Batch, progress: float, first: bool = True, moves: bool = True) -> Tensor:
        engine, learner, optimization = self.engine, self.learner, self.optimization
        learner.progress, learner.epoch_progress = progress, self._position["epoch_step"] / self._last_step
        if batch.task is None:
            batch.task = learner.task
        batch = engine.batch(batch)
        if learner.autocast is None:
            outputs, extras = engine.forward(batch)
            loss = engine.criterion(outputs, batch.targets, batch.inputs)
        else:
            with torch.autocast(learner.autocast[0], dtype=learner.autocast[1]):
                outputs, extras = engine.forward(batch)
                loss = engine.criterion(outputs, batch.targets, batch.inputs)
        step = Step(batch.inputs, batch.targets, loss, outputs, batch.task, engine.index, progress, extras)
        if first:
            for parameter in self._learning:
                parameter.grad = None
        assert optimization.optimizer is not None
        if not engine.take_step(step, optimization.optimizer):
            if self.accumulate == 1:
                engine.backward(step)
            else:  # edits of the gradient and what is remembered belong to the optimiser's step, not to each batch
                engine.accumulate(step, 1 / self.accumulate)
                step.loss, step.outputs = loss.detach(), outputs.detach()
                self._parts.append(step)
                if not moves:
                    return outputs
                step = join_steps(self._parts, [name for name in learner.fields if name not in ("logits", "task")])
                self._parts = []
                engine.finish(step)
            if self.clip_norm is not None:
                clip = torch.nn.utils.clip_grad_norm_ if self.clip_by == "norm" else torch.nn.utils.clip_grad_value_
                clip(self._learning, self.clip_norm)
            optimization.move()
        engine.update(step)
        if optimization.scheduler is not None and self.scheduler_every == "step":
            optimization.scheduler.step()
        return outputs

    def _limited(self, data: Data, part: str, batch_size: int) -> Data:
        """The part of `data` that the limit leaves: the same random rows every time."""
        limit = self.limits[part]
        if limit is None:
            return data
        batches = -(-len(data) // batch_size)
        rows = (max(1, int(limit * batches)) if isinstance(limit, float) else limit) * batch_size
        if rows >= len(data):
            return data
        generator = torch.Generator().manual_seed(derive_seed(self.seed, f"limit/{part}"))
        return data.subset(torch.randperm(len(data), generator=generator)[:rows].sort().values)

    def _validated(self, experience: Experience) -> str:
        """Measure the epoch on validation data, keep the best one's weights; `stop` when patience is at its end."""
        data = experience.validation
        if data is None or len(data) == 0:
            raise ConfigError(
                "patience and restore_best look at validation data, and this stream has none. "
                "Make the stream with validation=0.1, or leave both out."
            )
        data = self._limited(data, "validation", self.eval_batch_size)
        found = evaluate(self.engine, data, experience.classes, experience.task, self.eval_batch_size)
        right = found["correct"] if experience.task is None else found["correct_task"]
        value = -float(found["loss"] or 0.0) if right is None else right / found["samples"]
        best = self._position.get("best")
        if best is None or value > best["value"]:
            weights = (
                {key: tensor.clone() for key, tensor in self.model.state_dict().items()} if self.restore_best else {}
            )
            self._position["best"] = {"value": value, "epoch": self._position["epoch"], "model": weights}
        elif self.patience is not None and self._position["epoch"] - best["epoch"] >= self.patience:
            return "stop"
        return "go on"

    # Records -------------------------------------------------------------------------------------------

    def _evaluate_all(self, after: int) -> None:
        splits = {"both": ("test", "validation"), "none": ()}.get(self.evaluate, (self.evaluate,))
        for split in splits:
            for experience in self.stream:
                data = getattr(experience, split)
                if data is None or len(data) == 0:
                    continue
                data = self._limited(data, split, self.eval_batch_size)
                self._record(
                    event="evaluate",
                    after=after,
                    experience=experience.index,
                    split=split,
                    **evaluate(self.engine, data, experience.classes, experience.task, self.eval_batch_size),
                )

    def _record_window(self) -> None:
        self._record(
            event="train",
            experience=self._position["experience"],
            epoch=self._position["epoch"],
            step=self.engine.index,
            samples=self._position["step"] * self.batch_size,
            lr=self.optimization.lr,
            **self._window.read(),
        )

    def _record(self, **event: Any) -> None:
        self.events.append(event)
        if self.record is not None:
            self.record(event)

    # State ---------------------------------------------------------------------------------------------

    def _checkpoint(self, force: bool = False) -> None:
        if self.checkpoints is not None:
            if not force and self._window.steps:
                self._record_window()
            if not force:
                self._position["seconds"] = time.perf_counter() - self._since
            self._position["clock"] = self.seconds
            self.checkpoints.save(self.state())
            self._saved_at, self._saved_step = time.perf_counter(), self.engine.index
        if self.stop:
            raise Interrupted(
                "training was stopped" + (", and its state saved." if self.checkpoints is not None else ".")
            )

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: tensors and plain values only."""
        names = {id(p): name for name, p in self.learner.every_parameter().items()}
        return {
            "position": dict(self._position),
            "engine": self.engine.state(),
            "optimization": self.optimization.state(names),
            "random": self._random(),
        }

    def _seed_model(self) -> None:
        """Seed what dropout and the like draw from, and no other device's generator."""
        seed = derive_seed(self.seed, "model")
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def _random(self) -> dict[str, Tensor]:
        cuda = self.device.type == "cuda"
        return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state(self.device)} if cuda else {})}

    def _set_random(self, state: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def _restore(self, state: Mapping[str, Any]) -> None:
        position = dict(state["position"])
        mid = position["phase"] == "training"
        if mid:
            index = position["experience"]
            if "begin" in position:
                self.engine.load(position["begin"])
                self._experience, _ = self.engine.begin(self.stream[index])
            else:
                self._experience = self.stream[index]
        self.engine.load(state["engine"])
        self.optimization.load(state["optimization"], self.learner.every_parameter())
        self._position = position


def _bar(title: str, progress: bool | TextIO) -> NoProgress:
    if progress is False:
        return NoProgress()
    return Bar(title) if progress is True else Bar(title, progress)


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


def _copied(state: Any) -> Any:
    """`state` with every tensor copied, so that training on does not change it."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state
