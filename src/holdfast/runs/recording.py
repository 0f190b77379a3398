"""What goes on around a training that leaves a run folder: log, checkpoints, signals, the model layer by layer."""

from __future__ import annotations

import contextlib
import cProfile
import io
import json
import math
import os
import pstats
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from torch import nn

from holdfast.core.errors import HoldfastError
from holdfast.core.experience import Stream
from holdfast.metrics.log import LOG_NAME, replace_file, write_json
from holdfast.metrics.matrix import accuracy_matrix, write_matrix
from holdfast.runs.folder import MODEL, CheckpointFolder, save_tensors
from holdfast.runs.loggers import Loggers
from holdfast.runs.result import METRICS_FILE, Result

MODEL_FILE, PROFILE_FILE = "model.txt", "profile.txt"
ROWS = 60
"""Most rows of a profile."""


def summarise(model: nn.Module) -> list[tuple[str, str, int, int]]:
    """Name, kind, parameters and trainable parameters of each layer that has some of its own.

    Args:
        model: any module.

    Example:
        >>> summarise(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        [('0', 'Linear', 9, 9)]
    """
    rows = []
    for name, module in model.named_modules():
        direct = list(module.parameters(recurse=False))
        if direct:
            trainable = sum(p.numel() for p in direct if p.requires_grad)
            rows.append((name or "model", type(module).__name__, sum(p.numel() for p in direct), trainable))
    return rows


def text(model: nn.Module, stream: Stream) -> str:
    """The summary as a table, with totals."""
    rows = summarise(model)
    width = max([len(name) for name, *_ in rows], default=5)
    kinds = max([len(kind) for _, kind, *_ in rows], default=4)
    lines = [f"{name:<{width}}  {kind:<{kinds}}  {count:>12,}" for name, kind, count, _ in rows]
    total, trainable = (sum(int(row[column]) for row in rows) for column in (2, 3))
    inputs = " x ".join(map(str, stream.input_shape))
    lines.append(f"{total:,} parameters, {trainable:,} trainable; inputs {inputs}, {stream.classes} classes in all")
    if any("Growing" in kind or "Task" in kind or "Cosine" in kind for _, kind, *_ in rows) or not rows:
        lines.append("the head grows with the classes")
    return "\n".join(lines) + "\n"


def write_summary(folder: Path, model: nn.Module, stream: Stream, quiet: bool) -> None:
    """Write `model.txt`, and say in one line what it holds unless quiet."""
    content = text(model, stream)
    replace_file(folder / MODEL_FILE, content)
    if not quiet:
        sys.stderr.write(content.splitlines()[len(summarise(model))] + "\n")


@contextlib.contextmanager
def profiled(kind: str | None, folder: Path) -> Iterator[None]:
    """Measure what happens inside.

    Args:
        kind: `simple` by Python function, `pytorch` by torch operation, None for nothing.
        folder: gets `profile.txt`, also when the run is interrupted.
    """
    if kind is None:
        yield
    elif kind == "simple":
        profile = cProfile.Profile()
        try:
            with profile:
                yield
        finally:
            text = io.StringIO()
            pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(ROWS)
            replace_file(folder / PROFILE_FILE, text.getvalue())
    else:
        import torch

        with torch.profiler.profile() as traced:
            try:
                yield
            finally:
                traced.stop()
                table = traced.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)
                replace_file(folder / PROFILE_FILE, table + "\n")


class Journal:
    """Appends events to a log; a line is written whole or, if the machine dies, cut off and dropped at the next start.

    Args:
        path: the log file; made if it does not exist.

    Attributes:
        lines: how many whole lines the log has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.lines, self._end = self._drop_half_line()

    def _drop_half_line(self) -> tuple[int, int]:
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.ftruncate(self._file, end)
        return content.count(b"\n"), end

    def write(self, event: dict[str, Any]) -> None:
        """Append one event.

        Raises:
            HoldfastError: if the disk is full; what was written of the line is taken back.
        """
        line = (json.dumps(_plain(event), allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "No space left on device"
        if written < len(line):
            os.ftruncate(self._file, self._end)
            raise HoldfastError(f"could not write to {self.path}: {reason}. Make room; `holdfast resume` then goes on.")
        self._end += len(line)
        self.lines += 1

    def settle(self) -> int:
        """See that the lines are on the disk, as a checkpoint that counts them must not outlive them; how many."""
        os.fsync(self._file)
        return self.lines

    def resume(self, keep: int) -> None:
        """Say that the run goes on from a checkpoint taken when the log had `keep` lines."""
        self.write({"event": "resume", "keep": keep})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: both become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


SOONEST = 10.0
"""Seconds between two reports of a training in progress, at least."""


class Stoppable(Protocol):
    """A trainer that ends after the coming step once `stop` is set."""

    stop: bool


class Recording:
    """Log, loggers and checkpoints of one training; closed at the end of a `with` block.

    Args:
        folder: of the run.
        config: of the run; kept with each checkpoint and given to loggers.
        loggers: the entries of `loggers`, or objects with `write(values, step)` and `close()`.
        checkpoint: arguments of `CheckpointFolder`.
        card: of the stream; kept with each checkpoint, so that the model can be asked without the data.
        report: makes the report of a folder; called after experiences, so that the training can be watched.

    Attributes:
        journal: the log.
        checkpoints: where the state is kept.
    """

    _rests_until: ClassVar[float] = 0.0  # no run of this process makes a report before: they may share one thread

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        loggers: Sequence[Any] = (),
        checkpoint: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        report: Callable[[Path], object] | None = None,
    ) -> None:
        self.folder = folder
        self.report = report
        self._reported = time.perf_counter()
        self.journal = Journal(folder / LOG_NAME)
        try:
            self._loggers = Loggers(loggers, folder, config)
        except BaseException:
            self.journal.close()
            raise
        self._about = (config, dict(checkpoint or {}), card)

    def record(self, event: dict[str, Any]) -> None:
        """Write an event to the log, and its numbers to the loggers; the report follows each experience."""
        self.journal.write(event)
        self._loggers.event(event)
        if event["event"] == "experience" and self.report is not None:
            self._watched()

    def _watched(self) -> None:
        """Make the report again, unless that would take more than a twentieth of the time, of all runs at once."""
        begun = time.perf_counter()
        if self.report is None or begun - self._reported < SOONEST or begun < Recording._rests_until:
            return
        try:
            derive(self.folder)
            self.report(self.folder)
        except Exception as error:  # a picture of the training is no reason to stop it
            warnings.warn(f"the report could not be made so far: {type(error).__name__}: {error}.", stacklevel=2)
        self._reported = time.perf_counter()
        Recording._rests_until = self._reported + 20 * (self._reported - begun)

    def open(self, start: Callable[[], dict[str, Any]]) -> Any:
        """Make the log ready: say where it goes on, or write its first event.

        Args:
            start: makes the `start` event.

        Returns:
            The state of the newest checkpoint, None if there is none.
        """
        config, settings, card = self._about
        self.checkpoints = CheckpointFolder(
            self.folder / "checkpoints", **settings, lines=self.journal.settle, config=config, card=card
        )
        loaded = self.checkpoints.load()
        if self.journal.lines:
            self.journal.resume(loaded["lines"] if loaded else 0)
        if loaded is None:
            self.journal.write(start())
        return None if loaded is None else loaded["state"]

    def end(self, seconds: float) -> None:
        """Write the last event."""
        self.journal.write({"event": "end", "seconds": seconds})

    def keep(self, model: nn.Module) -> None:
        """Write the weights of the trained model, for `torch.load(path, weights_only=True)`."""
        save_tensors(self.folder / "checkpoints" / MODEL, dict(model.state_dict()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._loggers.close()
        finally:
            self.journal.close()


def start_event(seed: int, method: str, stream: Stream, model: nn.Module) -> dict[str, Any]:
    """The first event of a log: what is trained, on what.

    Args:
        seed: of the run.
        method: its name, or that of the protocol.
        stream: what is learned.
        model: untrained.
    """
    return {
        "event": "start",
        "time": time.time(),
        "seed": seed,
        "method": method,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stream": {
            "name": stream.name,
            "experiences": len(stream),
            "classes": stream.classes,
            "paradigm": stream.paradigm,
            "experience_classes": [list(experience.classes) for experience in stream],
            "experience_names": [experience.name for experience in stream],
            "train_samples": [len(experience.train) for experience in stream],
            "test_samples": [0 if experience.test is None else len(experience.test) for experience in stream],
            "class_names": list(stream.class_names),
            "description": stream.description,
        },
    }


def derive(folder: Path) -> str:
    """Write what follows from the log, accuracy matrix and metrics; returns the state of the run."""
    run = Result(folder)
    write_matrix(folder / "accuracy_matrix.csv", accuracy_matrix(run.log))
    write_json(folder / METRICS_FILE, run.metrics)
    return run.state


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Ctrl-C inside names the folder that is left behind, so that whoever hears of it can say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(str(folder)) from None


@contextmanager
def stop_on_signals(trainer: Stoppable) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the step, saves a checkpoint and stops; the second stops at once."""

    def stop(number: int, frame: object) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
