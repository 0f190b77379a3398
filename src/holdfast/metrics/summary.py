"""Every measure of a run at once: the plain values that `metrics.json` holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from holdfast.metrics.classes import per_class
from holdfast.metrics.log import Event, read_log
from holdfast.metrics.table import METRICS, TASK_AWARE, Record


def record(events: Iterable[Event], split: str | None = None) -> Record:
    """Read a log once for all measures.

    Args:
        events: the log.
        split: `"test"` or `"validation"`; None takes test data where any was evaluated, else validation data.

    Returns:
        What the measures read.
    """
    return Record(read_log(events), split)


def compute(events: Iterable[Event], split: str | None = None) -> dict[str, Any]:
    """Everything `metrics.json` holds, as plain JSON values (null where there is nothing to measure).

    Keys: every name in `METRICS` (the class-incremental measures, the same task-aware under `task_aware_<name>`,
    losses and costs); and `split`, `finished`, `diverged` (why, or null), `learned` (experiences evaluated so far),
    `experiences`, `seed`, `method`, `stream`, `paradigm`, `headline` (`""` or `"task_aware_"`: the family of names that
    counts for this paradigm), `accuracy_matrix`, `task_aware_accuracy_matrix`, `loss_matrix`, `accuracy_before`,
    `task_aware_accuracy_before`, `samples` and `classes` (of `per_class`).

    Args:
        events: the log.
        split: `"test"` or `"validation"`; None takes test data where any was evaluated, else validation data.

    Returns:
        A dictionary for `json.dump`.

    Example:
        >>> values = compute([{"event": "evaluate", "after": 0, "experience": 0, "split": "test",
        ...                    "samples": 4, "correct": 3, "loss": 0.5}])
        >>> values["average_accuracy"], values["forgetting_max"], values["finished"]
        (0.75, None, False)
    """
    data = record(events, split)
    log = data.log
    inferred = any(event.get("inferred") for event in log.of("evaluate"))
    values: dict[str, Any] = {name: metric.function(data) for name, metric in METRICS.items()}
    values |= {
        "split": data.split,
        "finished": log.finished,
        "diverged": log.diverged or None,
        "learned": data.learned if not data.joint else log.experiences,
        "experiences": log.experiences,
        "seed": log.start.get("seed"),
        "method": log.start.get("method"),
        "stream": log.stream.get("name"),
        "paradigm": log.stream.get("paradigm"),
        "headline": TASK_AWARE if log.stream.get("paradigm") == "task" and not inferred else "",
        "accuracy_matrix": data.accuracy,
        "task_aware_accuracy_matrix": data.aware,
        "loss_matrix": data.loss,
        "accuracy_before": data.before,
        "task_aware_accuracy_before": data.before_aware,
        "samples": data.samples,
        "classes": per_class(log, None, data.split, data.seen),
    }
    return {key: plain(value) for key, value in values.items()}


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays become lists, numpy numbers Python's, NaN and infinities None."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
