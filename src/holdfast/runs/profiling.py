"""Where the time of a run went, as `profile.txt` in its folder."""

from __future__ import annotations

import contextlib
import cProfile
import io
import pstats
from collections.abc import Iterator
from pathlib import Path

from holdfast.metrics.files import replace_file

FILE = "profile.txt"
ROWS = 60


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
            replace_file(folder / FILE, text.getvalue())
    else:
        import torch

        with torch.profiler.profile() as traced:
            try:
                yield
            finally:
                traced.stop()
                table = traced.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)
                replace_file(folder / FILE, table + "\n")
