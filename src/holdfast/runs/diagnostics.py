"""What a run folder holds besides results: the model by layers (`model.txt`), and where time went (`profile.txt`)."""

from __future__ import annotations

import contextlib
import cProfile
import io
import pstats
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from holdfast.core.experience import Stream
from holdfast.metrics.log import replace_file

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
        own = list(module.parameters(recurse=False))
        if own:
            trainable = sum(p.numel() for p in own if p.requires_grad)
            rows.append((name or "model", type(module).__name__, sum(p.numel() for p in own), trainable))
    return rows


def text(model: nn.Module, stream: Stream) -> str:
    """The summary as a table, with totals."""
    rows = summarise(model)
    width = max([len(name) for name, *_ in rows], default=5)
    kinds = max([len(kind) for _, kind, *_ in rows], default=4)
    lines = [f"{name:<{width}}  {kind:<{kinds}}  {count:>12,}" for name, kind, count, _ in rows]
    total, trainable = (sum(int(row[place]) for row in rows) for place in (2, 3))
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
