"""A progress bar with time left, drawn by the wall clock so that it costs the step nothing."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self, TextIO


class NoProgress:
    """Draws nothing."""

    interval = float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, done: int, total: int | None, text: str) -> None:
        """Ignore the news."""


class Bar(NoProgress):
    """A `rich` progress bar on standard error.

    Args:
        title: what is being trained.
        terminal: where to draw, whether it is a terminal or not; default: standard error, if that is one.
    """

    interval = 0.2

    def __init__(self, title: str = "training", terminal: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
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

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=None, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, done: int, total: int | None, text: str) -> None:
        """Draw `done` of `total` steps; None where nobody knows how many there are."""
        self._bar.update(self._task, completed=done, total=total, text=text)
        self._bar.refresh()


def make_bar(title: str, progress: bool | TextIO) -> NoProgress:
    """A bar on standard error (True) or on the terminal given, or none (False)."""
    if progress is False:
        return NoProgress()
    return Bar(title) if progress is True else Bar(title, progress)
