"""What a run cost (time, steps, parameters, memory) and how its losses went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from holdfast.metrics.log import Event, read_log

COSTS: dict[str, tuple[Literal["up", "down"], str]] = {
    "steps": ("down", "optimisation steps"),
    "train_seconds": ("down", "seconds of training"),
    "evaluation_seconds": ("down", "seconds of evaluation"),
    "total_seconds": ("down", "seconds of the whole run"),
    "steps_per_second": ("up", "optimisation steps per second of training"),
    "parameters_start": ("down", "parameters of the model at the start"),
    "parameters": ("down", "parameters of the model at the end"),
    "memory_items": ("down", "samples remembered at the end"),
    "memory_bytes": ("down", "bytes remembered at the end"),
    "memory_bytes_peak": ("down", "most bytes remembered after any experience"),
    "method_bytes": ("down", "bytes kept beside the model at the end: memory, statistics, copies of the model"),
    "method_bytes_peak": ("down", "most bytes kept beside the model after any experience"),
}
"""Every cost with its good direction and one line."""


def costs(events: Iterable[Event]) -> dict[str, float | None]:
    """Time, steps, parameters and memory of a run, as far as it got.

    Args:
        events: the log.

    Returns:
        `steps` (optimisation steps), `train_seconds`, `evaluation_seconds`, `total_seconds` (wall clock, once
        finished), `steps_per_second` (of training time), `parameters_start`, `parameters`, `memory_items`,
        `memory_bytes` (after the last experience) and `memory_bytes_peak`, of samples alone; `method_bytes` and
        `method_bytes_peak`, of all that the method keeps beside the model; None where the log does not say.

    Example:
        >>> costs([{"event": "experience", "experience": 0, "steps": 50, "seconds": 2.0}])["steps_per_second"]
        25.0
    """
    log = read_log(events)
    done = log.of("experience")
    first = log.start.get("parameters")
    steps, seconds = _total(done, "steps"), _total(done, "seconds")
    if log.start.get("source"):
        steps, seconds = _last(log.of("train"), "step"), _last([*log.of("source"), *log.of("end")], "seconds")
        done = [{"memory_items": event["items"], "memory_bytes": event["bytes"]} for event in log.of("memory")]
    return {
        "steps": steps,
        "train_seconds": seconds,
        "evaluation_seconds": _total(done, "evaluation_seconds"),
        "total_seconds": _last(log.of("end"), "seconds"),
        "steps_per_second": steps / seconds if steps and seconds else None,
        "parameters_start": first,
        "parameters": first if _last(done, "parameters") is None else _last(done, "parameters"),
        "memory_items": _last(done, "memory_items"),
        "memory_bytes": _last(done, "memory_bytes"),
        "memory_bytes_peak": max(_values(done, "memory_bytes"), default=None),
        "method_bytes": _last(done, "method_bytes"),
        "method_bytes_peak": max(_values(done, "method_bytes"), default=None),
    }


def curves(events: Iterable[Event]) -> dict[str, Any]:
    """The training curves: what each part of the loss was, step by step.

    Args:
        events: the log.

    Returns:
        `step`, `experience`, `loss`, `accuracy`, `lr`: one value per `train` event (None where not said), and `terms`:
        such a list for each name in the events' `terms`, in order of first appearance.

    Example:
        >>> curves([{"event": "train", "step": 50, "experience": 0, "terms": {"loss": 0.5, "replay": 0.25}}])["terms"]
        {'loss': [0.5], 'replay': [0.25]}
    """
    train = read_log(events).of("train")
    terms = [event.get("terms") or {} for event in train]
    names = dict.fromkeys(name for one in terms for name in one)
    lines: dict[str, Any] = {
        key: [event.get(key) for event in train] for key in ("step", "experience", "loss", "accuracy", "lr")
    }
    lines["terms"] = {name: [one.get(name) for one in terms] for name in names}
    return lines


def _values(events: list[Event], key: str) -> list[float]:
    return [event[key] for event in events if event.get(key) is not None]


def _total(events: list[Event], key: str) -> float | None:
    values = _values(events, key)
    return sum(values) if values else None


def _last(events: list[Event], key: str) -> float | None:
    values = _values(events, key)
    return values[-1] if values else None
