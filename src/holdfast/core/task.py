"""The task of the forward that is running, for heads and for hooks on inner layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

from torch import Tensor

Task = int | Tensor | str | None
"""The task of all rows, `[rows]` tasks where they are mixed, "all" for the outputs of every task, or None."""

_running: ContextVar[Task] = ContextVar("holdfast_task", default=None)


def running_task() -> Task:
    """The task of the forward that is running; None outside of one, and where there are no tasks.

    Example:
        >>> with forward_task(2):
        ...     running_task()
        2
        >>> running_task() is None
        True
    """
    return _running.get()


@contextmanager
def forward_task(task: Task) -> Iterator[None]:
    """Forwards inside are of `task`; the task from before holds again afterwards, also after an error."""
    token = _running.set(task)
    try:
        yield
    finally:
        _running.reset(token)


def enter_task(task: Task) -> Token[Task]:
    """The first half of `forward_task`, for a pair of hooks or a `try` on the step path.

    Returns:
        What `leave_task` takes.
    """
    return _running.set(task)


def leave_task(token: Token[Task]) -> None:
    """The second half of `forward_task`."""
    _running.reset(token)
