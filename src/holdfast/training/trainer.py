"""The trainer: a model, a method and a stream, from the first experience to the last."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import torch
from torch import nn

from holdfast.core.criteria import mismatch
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience, Stream
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import TRAINER
from holdfast.training.captured import Captured
from holdfast.training.evaluation import evaluate_all
from holdfast.training.export import copied
from holdfast.training.launch import check_devices, train_together
from holdfast.training.loop import Loop
from holdfast.training.optimization import Optimization
from holdfast.training.programs import chosen, stacked_by
from holdfast.training.progress import make_bar
from holdfast.training.ranks import ALONE, Ranks
from holdfast.training.session import Checkpoints, Session
from holdfast.training.settings import ExperienceSettings, Settings, described
from holdfast.training.stacked import member
from holdfast.training.stacked_loop import StackedLoop
from holdfast.training.state import Saver, around, of_rank, restore, set_random

__all__ = ["Bound", "Checkpoints", "Trainer"]


class Bound:
    """The parts of a session that a trainer's user asks for.

    Attributes:
        session: everything the training works on.
    """

    session: Session

    @property
    def engine(self) -> Engine:
        """The method bound to the model."""
        return self.session.engine

    @property
    def learner(self) -> Learner:
        """The model with its services."""
        return self.session.learner

    @property
    def model(self) -> nn.Module:
        """The model, on its device."""
        return self.session.model

    @property
    def optimization(self) -> Optimization:
        """Optimiser and scheduler."""
        return self.session.optimization

    @property
    def seconds(self) -> float:
        """Seconds since the training began, those before an interruption included."""
        return self.session.seconds

    def _forget(self) -> None:
        """No step that was recorded is valid any more."""
        if self.session.captured is not None:
            self.session.captured.begin(None)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Trainer(Settings, Bound):
    """Trains a model over a stream of experiences with one method.

    Every setting is an argument, and an attribute of the same name.

    Args:
        method: what is done around each step; bound to the model by `fit`, once.
        {settings}
        record: called with each event of the log, a mapping of plain values.
        progress: whether to tell the progress, with loss, accuracy and time left, on standard error: by a bar in a
            terminal, by lines elsewhere; None tells it in a terminal only; or the terminal to draw on.
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

    method: Method = dataclasses.field(kw_only=False)
    record: Callable[[dict[str, Any]], None] | None = None
    progress: bool | TextIO | None = None
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            told = f"methods.{self.method}()" if isinstance(self.method, str) else "methods.er(capacity=200)"
            raise ConfigError(f"the trainer got {self.method!r:.60} as its method. Give one: Trainer({told}, ...).")
        super().__post_init__()
        self._stop = False
        self._session: Session | None = None

    @property
    def settings(self) -> Settings:
        """The settings alone."""
        return Settings(**{one.name: getattr(self, one.name) for one in dataclasses.fields(Settings) if one.init})

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
        check_devices(self.method, self.batch_size, self.devices * self.num_nodes)
        silent = dataclasses.replace(self, record=None, progress=False, checkpoints=None)
        return train_together(
            functools.partial(self.fit_here, model, stream, resume),
            functools.partial(silent.fit_here, model, stream, resume),
            torch.device(self.device).type,
            self.devices,
            self.num_nodes,
            self.strategy,
        )

    def fit_here(
        self, model: nn.Module, stream: Stream, resume: Mapping[str, Any] | None = None, ranks: Ranks = ALONE
    ) -> list[dict[str, Any]]:
        """`fit` in this process, as one of `ranks`; rank 0 alone records, draws and saves."""
        self.bind(model, stream, ranks)
        session = self.session
        assert session.stream is not None
        stream = session.stream
        ranks.same(model.state_dict().values())
        state = None if resume is None else of_rank(resume, ranks)
        if state is not None:
            restore(session, state)
        saver = Saver(session)
        session.started = time.perf_counter() - session.position.clock
        with (
            around(session),
            make_bar(self.method.name, self.progress if ranks.rank == 0 else False) as session.bar,
        ):
            if state is not None:
                set_random(state["random"], session.device)
            loop = Loop(session, saver) if member() is None else StackedLoop(session, saver)
            over_stream(session, loop, saver, fresh=state is None)
        return session.records.events

    def bind(self, model: nn.Module, stream: Stream, ranks: Ranks = ALONE) -> Engine:
        """Bind method, model and stream to one another without training; `fit` calls it."""
        stream = stream.first(self.limit_experiences)
        lacking = {"task"} if all(experience.task is None for experience in stream) else set()
        if stream.classes == 0:
            lacking.add("classes")
        first = ranks.rank == 0
        session = self._session = Session.bind(
            self.method,
            model,
            self.settings,
            TRAINER,
            stream=stream,
            prepare=stream.prepare,
            without=frozenset(lacking),
            ranks=ranks,
            record=self.record if first else None,
            checkpoints=self.checkpoints if first else None,
        )
        session.stop = self._stop
        how, among = chosen(self.capture, session.device), member()
        if among is not None:
            session.captured = among.take(session, stacked_by(self.capture, session.device))
        elif how != "none":
            session.captured = Captured(session, how)
        wrong = mismatch(session.learner.criterion, stream[0].train.targets) if len(stream) else ""
        if wrong and not session.engine.acts_at("criterion"):
            raise ConfigError(f"criterion: {wrong}")
        return session.engine

    # What is bound -------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:  # type: ignore[override]
        """The training in progress, or the last one.

        Raises:
            UsageError: before the first `fit` or `bind`.
        """
        if self._session is None:
            raise UsageError("the trainer is bound to no model yet. Call fit(model, stream), or bind(model, stream).")
        return self._session

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events recorded so far, those of the last training."""
        return self.session.records.events

    @property
    def stop(self) -> bool:
        """Set this to end the training after the coming step, with a checkpoint."""
        return self._stop if self._session is None else self._session.stop

    @stop.setter
    def stop(self, stop: bool) -> None:
        self._stop = stop
        if self._session is not None:
            self._session.stop = stop
            if stop and self._session.source is not None:
                self._session.source.halt()  # the training may be waiting for a batch


Trainer.__doc__ = inspect.cleandoc(Trainer.__doc__ or "").replace("{settings}", described(ExperienceSettings, Settings))


def over_stream(session: Session, loop: Loop, saver: Saver, fresh: bool) -> None:
    """Train on every experience from the session's position on, and evaluate after each.

    Args:
        session: of a stream.
        loop: over the data of one.
        saver: of its state.
        fresh: whether nothing was learned yet.
    """
    stream, position = session.stream, session.position
    assert stream is not None
    if fresh and session.settings.evaluate_before:
        evaluate_all(session, after=-1)
    for index in range(position.experience, len(stream)):
        resumed = position.phase == "training"
        experience = open_experience(session, index) if not resumed else session.opened
        assert experience is not None
        seconds, start = loop.train(experience, resumed), time.perf_counter()
        session.engine.end(experience)
        session.ranks.same(session.model.state_dict().values())
        seconds += time.perf_counter() - start
        start = time.perf_counter()
        evaluate_all(session, after=index)
        session.write_experience(index, seconds, time.perf_counter() - start)
        tell_experience(session, seconds)
        position.leave()
        saver.save()
        if session.late:
            break


def tell_experience(session: Session, seconds: float) -> None:
    """Tell that the current experience was learned, and how right the model is on all learned so far."""
    if session.bar.interval < float("inf"):
        labelled = session.opened is not None and session.opened.task is not None
        task_aware = labelled and not session.method.infers_task
        accuracy = session.records.accuracy(session.position.experience, task_aware)
        state = session.records.state(session.position, session.stream, session.position.step, 1.0)
        session.bar.learned(state, accuracy, seconds)


def open_experience(session: Session, index: int) -> Experience:
    """Begin experience `index`: its settings, the method's `begin`, an optimiser and a scheduler."""
    assert session.stream is not None
    # Only where the data is replaced a resumed training has to begin the experience again.
    before = copied(session.engine.state(check=False)) if "replacement" in session.method.needs else None
    anew = session.take_settings(index)
    experience, replaced = session.engine.begin(session.stream[index])
    services = session.engine.services
    services.counts_all = services.memory is not None and not services.ignores
    session.ranks.same(session.model.state_dict().values())
    session.position.enter(index)
    if replaced:
        session.position.begin = before
    if anew or session.current.reset_optimizer or index == 0:
        session.optimization.start(session.learner.optimized())
    session.optimization.open_experience()
    session.opened = experience
    return experience
