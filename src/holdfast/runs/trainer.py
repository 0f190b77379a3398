"""The public `Trainer`: the loop of `holdfast.training`, and what it leaves in a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from holdfast.core.boundary import Boundary
from holdfast.core.copying import deep_copy
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, Diverged, Interrupted, UsageError
from holdfast.core.experience import Stream, Tree
from holdfast.core.method import Method
from holdfast.core.source import Source
from holdfast.metrics.log import Log, write_json
from holdfast.runs.card import card_of, check_same, config_of
from holdfast.runs.console import console_log
from holdfast.runs.folder import (
    CONFIG,
    LAST,
    drop_leftovers,
    load_tensors,
    locked,
    new_folder,
    read_config,
    read_info,
    versions,
    write_info,
)
from holdfast.runs.inputs import outputs
from holdfast.runs.loggers import specified
from holdfast.runs.on_source import Arriving
from holdfast.runs.predict import evaluated, write_samples
from holdfast.runs.recording import Recording, derive, start_event, stop_on_signals, write_summary
from holdfast.runs.references import APART, named_methods, train_apart
from holdfast.runs.report import write_report
from holdfast.runs.result import ENDED, Result, Results
from holdfast.runs.words import write_against
from holdfast.streams.data import Pairs, stream_of
from holdfast.training import trainer as training
from holdfast.training.endless import StreamTrainer
from holdfast.training.precision import first
from holdfast.training.ranks import ALONE, Ranks

SERVICES = ("record", "progress", "checkpoints", "loggers")
"""Arguments that say nothing about what is learned."""

NOT_WRITTEN = ("method", "seed", "device", "optimizer", "scheduler", "criterion")
"""Arguments that are not keys of `trainer` in a configuration."""


class Evaluate(str):
    """The setting `evaluate` of a trainer, and a call: `trainer.evaluate == "test"`, `trainer.evaluate()`."""

    trainer: Trainer

    def __call__(self, stream: Stream | Sequence[Pairs] | None = None, split: str = "test") -> dict[str, Any]:
        """Evaluate the model as it is now on every experience.

        Args:
            stream: on its data; a list of test data, each a data set, a loader or a list of batches; None for the
                stream that was trained on.
            split: `test` or `validation`.

        Returns:
            `{"experiences": [what an evaluate event holds], "average_accuracy": ..}`.

        Raises:
            DataError: if the stream has no such data.
            UsageError: before the first `fit`.
        """
        if stream is not None and not isinstance(stream, Stream):
            stream = stream_of(stream, stream)
        engine, chosen = self.trainer.engine, self.trainer.session.stream if stream is None else stream
        if chosen is None:
            raise UsageError("the trainer learned from a source, which has no test data. Write evaluate(stream).")
        return evaluated(engine, chosen, split, self.trainer.eval_batch_size)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Sent to another process it is the word alone."""
        return str, (str(self),)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Trainer(training.Trainer):
    """What the documentation of `holdfast.training.Trainer` says, and a run folder."""

    loggers: Sequence[Any] = ()
    _apart: bool = dataclasses.field(default=False, init=False)
    """Whether it trains a copy of the model on each experience alone: the reference `independent`."""
    _endless: StreamTrainer = dataclasses.field(init=False)
    """What trains on a source, if that is what `fit` was given."""

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self) if field.init and field.name not in SERVICES]
        self._written = {name: getattr(self, name) for name in names}
        super().__post_init__()
        self.loggers = specified(self.loggers)
        word = Evaluate(self.evaluate)
        word.trainer = self
        self.evaluate = word  # type: ignore[assignment]

    def fit(
        self,
        model: nn.Module,
        stream: Stream | Source | Sequence[Pairs],
        resume: Mapping[str, Any] | bool | None = None,
        out: str | os.PathLike[str] | None = None,
        tests: Sequence[Pairs] | None = None,
        references: Sequence[str | Method] = (),
        boundary: Boundary | None = None,
        observe_every: int = 200,
    ) -> list[dict[str, Any]]:
        """Train `model` over `stream`, or on a source as it comes, and leave a run folder where `out` names one.

        The folder is that of `holdfast run`: configuration as far as it can be written, log, what was printed, accuracy
        matrix, metrics, plots, report and checkpoints; `holdfast show` and `holdfast.open` read it like any other. It
        is never written over.

        Args:
            model: moved to the device and trained in place.
            stream: the experiences, in order: a stream, or a list with the data of each: data sets, loaders, or lists
                of batches `(inputs, targets)`. A source is learned to its end, or for `iterations` batches.
            resume: a state that `checkpoints` was given, of the same method, model and stream; or, with `out`, True to
                go on with what is there from its newest checkpoint, and to begin where there is nothing.
            out: the run folder to make.
            tests: the test data of each experience, where the stream is a list.
            references: what the run is compared with, by the name of a method (`finetune`, `joint`) or as a method:
                each trains a copy of the model as it was given, into `out/references`, and stands in the report;
                `independent` trains one for each experience, from which forward transfer is told.
            boundary: finds where experiences begin in a source: `Every(steps=...)`, `OnDrift(...)`, ...
            observe_every: batches of a source between two looks at rows held out (`sources.HoldOut`) and at the memory.

        Returns:
            The events that were recorded, the raw log from which every metric is computed; with `out` those of the
            whole log.

        Raises:
            ConfigError: if `out` exists (and `resume` is not True), or holds the run of another stream or model.
            NeedError: if the stream lacks what the method needs.
            Diverged: if a loss or weight is not finite, or a loss a thousand times its start; see `on_divergence`.
            Interrupted: if it was stopped (by `stop`, Ctrl-C or SIGTERM), after saving a checkpoint.

        Example:
            >>> import tempfile
            >>> from holdfast import datasets, methods, models, streams
            >>> stream = streams.split(datasets.synthetic(classes=4), experiences=2)
            >>> model = models.mlp(input_shape=stream.input_shape, classes=4, hidden=[8], seed=0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     events = Trainer(methods.finetune()).fit(model, stream, out=f"{folder}/x")
            ...     sorted(path.name for path in Path(folder, "x").iterdir() if path.suffix == ".json")
            ['config.json', 'metrics.json', 'run.json']
        """
        if isinstance(stream, Source):
            stream = Arriving.of(stream, self, boundary, observe_every, tests=tests, references=references)
        elif boundary is not None:
            raise ConfigError("boundary is for a source, and a stream says where its experiences begin. Leave it out.")
        elif not isinstance(stream, Stream):
            stream = stream_of(stream, tests)
        elif tests is not None:
            raise ConfigError("tests are for a list of data, and a stream has its own. Leave them out.")
        beside = named_methods(references)
        if out is None:
            if isinstance(resume, bool):
                raise ConfigError("resume is True, and out is not given. Name the run folder to go on with: out=...")
            if self.loggers or beside:
                raise ConfigError(f"{'references' if beside else 'loggers'} need a run folder. Give fit(..., out=...).")
            return super().fit(model, stream, resume)
        if resume is not None and not isinstance(resume, bool):
            raise ConfigError("resume is a state, and out is given. With out write resume=True.")
        for name in ("record", "checkpoints"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} and out are both given, and the run folder has its own. Leave one out.")
        folder, again = Path(out), bool(resume) and (Path(out) / CONFIG).is_file()
        if not first():  # of several processes that somebody else started the first one has the folder
            return super().fit(model, stream, _newest(folder) if again else None)
        start = deep_copy(model) if beside else model
        config = self._config(model, stream)
        if again:
            check_same(read_config(folder), config, folder)
        else:
            _make(folder, self.method.name, config)
        with locked(folder), console_log(folder):
            drop_leftovers(folder)
            if read_info(folder).get("state") in ENDED:
                self._ended(model, stream, folder)
            else:
                self._whole(model, stream, folder, config)
        for name, method in beside.items():
            other = type(self)(**{**self._written, "method": method}, progress=self.progress)
            other._apart = name == APART
            with contextlib.suppress(Diverged):  # which its folder and the report say
                other.fit(deep_copy(start), stream, out=folder / "references" / name, resume=True)
        if beside:
            write_against(Results(folder, [Result(folder)]))
            write_report(folder)
        return [dict(event) for event in Log.read(folder)]

    def bind(self, model: nn.Module, stream: Stream, ranks: Ranks = ALONE) -> Engine:
        """Bind method, model and stream to one another without training; `fit` calls it."""
        if not isinstance(stream, Arriving):
            return super().bind(model, stream, ranks)
        self._endless = stream.bound(self, model)
        self._session = self._endless.session
        self._session.stop = self._stop
        return self._endless.engine

    def fit_here(
        self, model: nn.Module, stream: Stream, resume: Mapping[str, Any] | None = None, ranks: Ranks = ALONE
    ) -> list[dict[str, Any]]:
        """`fit` in this process, as one of `ranks`; rank 0 alone records, draws and saves."""
        if not isinstance(stream, Arriving):
            return super().fit_here(model, stream, resume, ranks)
        self.bind(model, stream)
        stream.learn(self._endless, self.iterations, resume)
        return self.session.records.events

    def predict(self, inputs: Tree | DataLoader[Any], task: int | None = None) -> Tensor:
        """The outputs for raw inputs as the method wants them, `[rows, ...]` on the CPU, in eval mode.

        Args:
            inputs: a tensor, a tuple or a mapping of tensors, `[rows, ...]`, as the stream's data are; or a loader of
                batches, whose first entries are the inputs.
            task: the task label, for a model with a head for each task.

        Raises:
            UsageError: before the first `fit`.
        """
        if isinstance(inputs, DataLoader):
            batches = (batch[0] if isinstance(batch, tuple | list) else batch for batch in inputs)
            return torch.cat([outputs(self.engine, batch, task) for batch in batches])
        return outputs(self.engine, inputs, task)

    # The run folder ------------------------------------------------------------------------------------

    def _whole(self, model: nn.Module, stream: Stream, folder: Path, config: dict[str, Any]) -> None:
        """Train, and say in the folder how it ended."""
        write_info(folder, state="running")
        try:
            self._train(model, stream, folder, config)
        except Diverged:
            write_info(folder, state=_close(folder), finished=time.time())
            raise
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            write_info(folder, state="interrupted" if stopped else "failed")
            if isinstance(error, Interrupted):
                raise Interrupted(
                    f'training was stopped, and its state saved. Go on with fit(..., out="{folder}", resume=True).'
                ) from None
            raise
        write_info(folder, state=_close(folder), finished=time.time())

    def _train(self, model: nn.Module, stream: Stream, folder: Path, config: dict[str, Any]) -> None:
        with Recording(folder, config, self.loggers, None, card_of(stream), write_report) as recording:
            write_summary(folder, model, stream, quiet=not self.progress)
            about = (self.seed, self.method.name)
            source = stream if isinstance(stream, Arriving) else None
            start = lambda: start_event(*about, stream, model) if source is None else source.start(*about, model)  # noqa: E731
            if self._apart:
                self._each_alone(model, stream, recording, start)
                return
            state = recording.open(start)
            keep = recording.record if source is None else source.keeper(folder, model, recording.record)
            self.record, self.checkpoints = keep, recording.checkpoints
            try:
                with stop_on_signals(self):
                    super().fit(model, stream, state)
            finally:
                self.record = self.checkpoints = None
            recording.keep(model)
            if source is None:
                write_samples(folder, self.engine, stream)
            recording.end(self.seconds)

    def _each_alone(
        self, model: nn.Module, stream: Stream, recording: Recording, start: Callable[[], dict[str, Any]]
    ) -> None:
        """Train a copy of the model on each experience, and write one log of all."""
        if not recording.journal.lines:
            recording.journal.write(start())
        begun = time.perf_counter()

        def trainer(**services: Any) -> training.Trainer:
            return training.Trainer(**{**self._written, "method": self.method.clone()}, **services)

        train_apart(lambda: deep_copy(model), stream, recording.journal, trainer)
        recording.end(time.perf_counter() - begun)

    def _ended(self, model: nn.Module, stream: Stream, folder: Path) -> None:
        """Give `model` the weights of a run that has ended."""
        state = _newest(folder)
        if state is not None:
            self.bind(model, stream)
            self.engine.load(state["engine"])

    def _config(self, model: nn.Module, stream: Stream) -> dict[str, Any]:
        """The configuration as far as JSON can say it; what was an object is told under `python`."""
        written = {**self._written, "seed": self.seed, "device": self.device}
        return config_of(written, NOT_WRITTEN, self.method, self.loggers, model, stream)


_LOGGERS = """
    loggers: where numbers go besides the run folder that `fit(..., out=...)` makes: names (tensorboard, wandb, mlflow,
        comet), mappings with a name and settings, or objects with `write(values, step)` and `close()`.

Example:"""
Trainer.__doc__ = inspect.cleandoc(training.Trainer.__doc__ or "").replace("\n\nExample:", _LOGGERS, 1)


def _make(folder: Path, method: str, config: dict[str, Any]) -> None:
    """Make a new folder with its configuration."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists already, and runs are never overwritten. Choose another out, or go on with resume=True."
        )
    new_folder(folder, method)
    write_json(folder / CONFIG, config)
    write_info(folder, state="running", command=_command(), versions=versions(), started=time.time(), tags=[])


def _newest(folder: Path) -> Any:
    """The state of the newest checkpoint, None if there is none."""
    path = folder / "checkpoints" / LAST
    return load_tensors(path)["state"] if path.is_file() else None


def _command() -> str:
    """The script that is running, as far as Python says it."""
    return " ".join(["python", *sys.argv]) if sys.argv and sys.argv[0] else "python"


def _close(folder: Path) -> str:
    """Write what follows from the log, and the report; returns the state."""
    state = derive(folder)
    write_report(folder)
    return state
