"""A process that runs one job after another for a sweep: a JSON line in, one out; it stops when its parent is gone."""

from __future__ import annotations

import json
import os
import queue
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Read jobs from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log, not between the answers
    busy = threading.Event()
    jobs: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, jobs, busy), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    while (line := jobs.get()) is not None:
        busy.set()
        result = answer(json.loads(line))
        busy.clear()
        answers.write(json.dumps(result) + "\n")
        answers.flush()


def _listen(source: TextIO, jobs: queue.Queue[str | None], busy: threading.Event) -> None:
    """Pass lines on; when the parent is gone, a job at work saves its state and stops."""
    for line in source:
        jobs.put(line)
    jobs.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job, and say what became of it: `state`, `error`, `seconds` and the process's `peak` of memory.

    Args:
        job: its resolved `config`, its `folder`, the `command` that made it, and the `plugins` in use there.
    """
    from holdfast.core.errors import HoldfastError, Interrupted

    started = time.perf_counter()
    state, error = "finished", ""
    try:
        if job.get("plugins"):
            from holdfast.config.plugins import use_all

            use_all(job["plugins"])
        state, error = work(job["config"], Path(job["folder"]), job.get("command", ""), job.get("notes", ()))
    except (Interrupted, KeyboardInterrupt) as stopped:
        state, error = "interrupted", str(stopped)
    except HoldfastError as wrong:
        state, error = "failed", f"{type(wrong).__name__}: {wrong}"
    except Exception as wrong:
        traceback.print_exc()
        state, error = "failed", f"{type(wrong).__name__}: {wrong}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"state": state, "error": error, "seconds": time.perf_counter() - started, "peak": peak}


def work(config: dict[str, Any], folder: Path, command: str = "", notes: Sequence[str] = ()) -> tuple[str, str]:
    """Run a job in its folder, or go on with what is there; a folder that holds no configuration yet is begun anew.

    Args:
        config: resolved.
        folder: of the run.
        command: kept in its `run.json`.
        notes: kept there too, what the file of another project means differently here.

    Returns:
        Its state, `finished` or `diverged`, and why it diverged.
    """
    from holdfast.config.check import validated
    from holdfast.runs.folder import CONFIG, read_info
    from holdfast.runs.result import Results
    from holdfast.runs.run import resume, run

    if (folder / CONFIG).is_file():
        resume(folder, quiet=True)
    else:
        if folder.exists():
            shutil.rmtree(folder)
        job = validated(config)
        job.notes = list(notes)
        run(job, folder, quiet=True, command=command)
    state = str(read_info(folder).get("state") or "finished")
    return state, next(
        (run.diverged for run in Results.load(folder) if run.diverged), ""
    ) if state == "diverged" else ""


if __name__ == "__main__":
    main()
