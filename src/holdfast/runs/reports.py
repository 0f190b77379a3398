"""The reports of many runs, drawn by several processes where that saves time."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from holdfast.config import plugins
from holdfast.core.errors import HoldfastError
from holdfast.runs.report import write_report
from holdfast.training.launch import of_one_thread

LATEST = 60.0
"""Seconds after which the report of several runs is made again when one of them ends."""

WORTH = 10.0
"""Seconds of drawing that are left, from which on processes are started, each of which takes two to begin."""

DRAWS = """
import sys
from holdfast.runs.report import write_report
for line in sys.stdin:
    try:
        write_report(line.rstrip("\\n"))
        print("drawn", flush=True)
    except Exception:
        print("failed", flush=True)
"""
"""What such a process does; it ends when its input does, which is when this one is gone."""


class Helpers:
    """Processes that draw, kept for the next runs of this one."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def some(self, most: int, start: bool) -> list[subprocess.Popen[str]]:
        """Those that are there, and if `start` new ones, up to so many."""
        self._processes = [one for one in self._processes if one.poll() is None]
        while start and len(self._processes) < most:
            self._processes.append(self._started())
        return self._processes[:most]

    def _started(self) -> subprocess.Popen[str]:
        if not self._processes:
            atexit.register(self.end)
        return subprocess.Popen(
            [sys.executable, "-c", DRAWS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**of_one_thread(), "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # Ctrl-C comes to us; a process learns of it when its input ends
        )

    def end(self) -> None:
        """Let them go."""
        for process in self._processes:
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        self._processes = []


helpers = Helpers()


def kept_up(folder: Path, since: float) -> float:
    """Make the report of several runs again where it has become old, so that what is there can be looked at.

    Args:
        folder: of the runs.
        since: when it was made, by `time.monotonic`.

    Returns:
        When it was made now.
    """
    if time.monotonic() - since <= LATEST:
        return since
    with suppress(HoldfastError):
        write_report(folder)
    return time.monotonic()


def write_reports(folders: Sequence[Path]) -> None:
    """Make the report of each run folder, as `write_report` does; what another process cannot do is done here.

    The first is made here. If the others would take long, processes are started that make some of them; they stay for
    the next call. With plug-ins, which they do not know, all are made here.

    Args:
        folders: of the runs; a folder of `seed-*` folders gets one report of all of them.

    Raises:
        DataError: a folder holds no run, or a file in it is damaged.
    """
    left = deque(folders)
    if not left:
        return
    begun = time.perf_counter()
    write_report(left.popleft())
    seconds = (time.perf_counter() - begun) * len(left)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = [] if plugins.used() else helpers.some(min(cores - 1, len(left)), seconds >= WORTH)
    failed: list[Path] = []
    threads = [threading.Thread(target=_serve, args=(one, left, failed), daemon=True) for one in others]
    for thread in threads:
        thread.start()
    while (folder := _next(left)) is not None:
        write_report(folder)
    for thread in threads:
        thread.join()
    for folder in failed:
        write_report(folder)


def _next(left: deque[Path]) -> Path | None:
    with suppress(IndexError):
        return left.popleft()
    return None


def _serve(process: subprocess.Popen[str], left: deque[Path], failed: list[Path]) -> None:
    """Give a process one folder after the other."""
    assert process.stdin is not None
    assert process.stdout is not None
    while (folder := _next(left)) is not None:
        try:
            process.stdin.write(f"{folder.resolve()}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if answer.strip() != "drawn":
            failed.append(folder)
        if not answer:
            return
