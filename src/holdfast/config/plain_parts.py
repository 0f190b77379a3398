"""The blocks of a job that choose nothing by name: when to save, where runs go, and how a source's batches arrive."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

Fields = dict[str, Any]

PATTERN = "pattern of new folders, with {date}, {time}, {clock}, {experiment} and {method}; null for"

CHECKPOINT: Fields = {
    "every_seconds": (float | None, Field(30.0, gt=0, description="seconds between checkpoints; null for none")),
    "every_steps": (int | None, Field(None, ge=1, description="steps between checkpoints; null for none")),
}

FOLDERS: Fields = {
    "run": (str | None, Field(None, description=f"{PATTERN} runs/... or logs/<experiment>/runs/...")),
    "multirun": (
        str | None,
        Field(None, description=f"{PATTERN} multiruns/... or logs/<experiment>/multiruns/..."),
    ),
    "experiences": (
        bool,
        Field(False, description="a folder for each experience: checkpoint after it, results and training as CSV"),
    ),
}

ARRIVAL: Fields = {
    "policy": (
        Literal["auto", "none", "block", "drop", "reservoir"],
        Field(
            "auto",
            description="what happens while training is slower than the source: the source waits (block), rows are"
            " dropped and counted (drop), seen rows are drawn again and no unseen one is lost (reservoir); none reads"
            " without a queue; auto is block for what is live",
        ),
    ),
    "capacity": (int | None, Field(None, ge=1, description="of the queue, in batches (64); in rows of a reservoir")),
    "timeout": (float | None, Field(None, gt=0, description="seconds to wait for a batch; null for the source's own")),
    "on_failure": (
        Literal["raise", "end"],
        Field("raise", description="whether a source that fails is an error, or an end"),
    ),
    "watermark": (int | None, Field(None, ge=1, description="rows in a reservoir before the first batch")),
    "window": (
        int | None,
        Field(
            None, ge=1, description="newest rows that batches are drawn from at random; null takes them as they come"
        ),
    ),
    "min_steps": (int, Field(1, ge=1, description="with a window: steps between two arrivals, at least")),
    "max_steps": (int, Field(3, ge=1, description="with a window: steps after an arrival, at most; then it waits")),
    "after_end": (int, Field(0, ge=0, description="with a window: further steps after the source ended")),
    "hold_out": (float, Field(0.0, ge=0, lt=1, description="share of the rows never trained on, to be asked about")),
    "observe_every": (int, Field(200, ge=1, description="batches between two looks at rows held out and memory")),
    "observe_rows": (int, Field(1000, ge=1, description="rows held out that are kept, at most")),
}
"""The keys of the block `arrival`."""
