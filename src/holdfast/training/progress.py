"""How far a training has come, told while it goes on: a bar in a terminal, lines anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO


class State(NamedTuple):
    """Where a training stands.

    Attributes:
        done: batches of the experience, or of the source.
        total: of them; None if unknown.
        share: of the whole training, from 0 to 1; None if unknown.
        experience: that is learned, counted from 1.
        experiences: of the stream; None for a source.
        loss: mean over the last steps that were recorded; None before.
        accuracy: the same.
    """

    done: int
    total: int | None = None
    share: float | None = None
    experience: int = 1
    experiences: int | None = None
    loss: float | None = None
    accuracy: float | None = None

    @property
    def words(self) -> str:
        """Experience, loss and accuracy, as far as they are known."""
        of = "" if self.experiences is None else f" of {self.experiences}"
        parts = [f"experience {self.experience}{of}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3g}")
        if self.accuracy is not None:
            parts.append(f"accuracy {100 * self.accuracy:.0f} %")
        return ", ".join(parts)


class NoProgress:
    """Draws nothing."""

    interval = float("inf")
    """Seconds between two news."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, state: State) -> None:
        """Ignore the news."""

    def learned(self, state: State, accuracy: float | None, seconds: float) -> None:
        """Ignore that an experience was learned."""


class Bar(NoProgress):
    """A `rich` progress bar on standard error, over the whole training; none is drawn before the first news.

    Args:
        title: what is being trained.
        terminal: where to draw, whether it is a terminal or not; default: standard error, if that is one.
    """

    interval = 0.5  # seconds; to draw takes two milliseconds

    def __init__(self, title: str = "training", terminal: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[share]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(file=terminal or sys.stderr, force_terminal=True if terminal is not None else None),
            transient=True,
            auto_refresh=False,
        )
        self._title = title
        self._task: Any = None
        self._drawn = False

    def __enter__(self) -> Self:
        self._task = self._bar.add_task(self._title, total=None, text="", share="")  # from here on time is counted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._bar.stop()

    def show(self, state: State) -> None:
        """Draw where the training stands."""
        if state.share is not None:
            news: dict[str, Any] = {"completed": state.share, "total": 1.0, "share": f"{100 * state.share:.0f} %"}
        else:
            of = "" if state.total is None else f" of {state.total}"
            news = {"completed": state.done, "total": state.total, "share": f"{state.done}{of}"}
        self._bar.update(self._task, text=state.words, **news)
        if self._drawn:
            self._bar.refresh()
        else:
            self._drawn = True
            self._bar.start()


class Lines(NoProgress):
    """A line for each experience, and one every half a minute between them: for pipes, logs and CI.

    Args:
        title: what is being trained.
        out: where to write; default: standard error.
    """

    interval = 30.0

    def __init__(self, title: str = "training", out: TextIO | None = None) -> None:
        self._title, self._out = title, out
        self._begun = self._reported = time.perf_counter()
        self._first: float | None = None

    def show(self, state: State) -> None:
        """Write where the training stands."""
        self._first = state.share if self._first is None else self._first
        if time.perf_counter() - self._reported >= self.interval:
            self._say(f"{state.words}{self._left(state.share)}")

    def learned(self, state: State, accuracy: float | None, seconds: float) -> None:
        """Write that an experience was learned, and the mean accuracy on all learned by then."""
        self._first = 0.0 if self._first is None else self._first
        of = "" if state.experiences is None else f" of {state.experiences}"
        kept = "" if accuracy is None else f", {100 * accuracy:.1f} % right on what was learned"
        self._say(f"experience {state.experience}{of} learned in {seconds:.1f} s{kept}{self._left(state.share)}")

    def _left(self, share: float | None) -> str:
        """The share that is done and the time left, by the speed since the first news."""
        if share is None:
            return ""
        gone, here = time.perf_counter() - self._begun, share - (self._first or 0.0)
        left = "" if here <= 0 or share >= 1 else f", {told(gone * (1 - share) / here)} left"
        return f"; {100 * share:.0f} % done{left}"

    def _say(self, text: str) -> None:
        out = sys.stderr if self._out is None else self._out
        out.write(f"{self._title}: {text}\n")
        out.flush()
        self._reported = time.perf_counter()


def told(seconds: float) -> str:
    """A time for reading.

    Example:
        >>> told(8.2), told(200), told(9000)
        ('8 s', '3 min', '2.5 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def make_bar(title: str, progress: bool | TextIO | None) -> NoProgress:
    """Who tells the progress.

    Args:
        title: what is being trained.
        progress: False for nobody; True for a bar where standard error is a terminal, and lines elsewhere; None for a
            bar in a terminal, and nobody elsewhere; or the terminal to draw a bar on.
    """
    if progress is False:
        return NoProgress()
    if progress is None or progress is True:
        if sys.stderr.isatty():
            return Bar(title)
        return Lines(title) if progress else NoProgress()
    return Bar(title, progress)
