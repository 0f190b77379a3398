"""What the events of a log hold, by kind: a value of another kind is told when the log is read, by its name."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.core.errors import DataError

NUMBER, COUNT, INDEX, TEXT, LABEL = "a number", "a whole number", "the number of an experience", "text", "a label"
COUNTS, LISTS = {COUNT: COUNT}, [COUNT]
"""A mapping of one shape to another, and a list of one shape. Another mapping has a shape for each name."""

STREAM = {
    **dict.fromkeys(("name", "paradigm"), TEXT),
    "experiences": INDEX,
    "classes": COUNT,
    "train_samples": LISTS,
    "test_samples": LISTS,
    "experience_names": [LABEL],
    "class_names": [LABEL],
    "experience_classes": [LISTS],
    "description": {TEXT: None},
}
HELD_OUT = {"rows": COUNT, "correct": COUNT, "loss": NUMBER}
TIMES = ("seconds", "evaluation_seconds", "idle_seconds", "time")
SHAPES: dict[str, dict[str, Any]] = {
    "start": {
        **dict.fromkeys(("seed", "parameters"), COUNT),
        "method": TEXT,
        "stream": STREAM,
        "source": {"drifts": [NUMBER]},
    },
    "train": {
        **dict.fromkeys(("epoch", "step", "samples", "right"), COUNT),
        "experience": INDEX,
        **dict.fromkeys(("lr", "loss", "accuracy", "norm", *TIMES), NUMBER),
        "terms": {TEXT: NUMBER},
    },
    "evaluate": {
        **dict.fromkeys(("after", "experience"), INDEX),
        **dict.fromkeys(("samples", "correct", "correct_task"), COUNT),
        **dict.fromkeys(("loss", "error"), NUMBER),
        **dict.fromkeys(("class_samples", "class_correct"), COUNTS),
        "split": TEXT,
        "confusion": {COUNT: COUNTS},
    },
    "experience": {
        **dict.fromkeys(("steps", "parameters", "memory_items", "memory_bytes", "method_bytes"), COUNT),
        "experience": INDEX,
        **dict.fromkeys(TIMES, NUMBER),
        "memory_classes": COUNTS,
        "method_kept": {TEXT: NUMBER},
    },
    "during": {
        **dict.fromkeys(("samples", "correct", "correct_task"), LISTS),
        "experience": INDEX,
        "step": COUNT,
        "old": [INDEX],
    },
    "held_out": {**HELD_OUT, "old": HELD_OUT, "samples": COUNT},
    "stretches": {"looks": COUNT, "ended": COUNT, "samples": COUNT, "stretches": [HELD_OUT]},
    "boundary": {"experience": INDEX, "step": COUNT, "samples": COUNT},
    "memory": {"classes": COUNTS, "ages": LISTS, **dict.fromkeys(("items", "bytes", "samples", "offered"), COUNT)},
    "source": {
        **dict.fromkeys(("samples", "arrived", "dropped", "waiting"), COUNT),
        **dict.fromkeys(TIMES, NUMBER),
    },
    "end": dict.fromkeys(TIMES, NUMBER),
}
REQUIRED = {
    "evaluate": ("after", "experience"),
    "during": ("experience", "step", "old", "samples", "correct"),
    "experience": ("experience",),
    "boundary": ("samples",),
    "stretches": ("looks", "ended", "samples", "stretches"),
}
"""What a measure cannot do without."""

LARGEST = {COUNT: 2**63, INDEX: 10**6}
"""Of an experience, so that nobody makes a matrix of that many rows."""


def check(kinds: Mapping[str, Sequence[Mapping[str, Any]]], where: str) -> None:
    """Insist that events hold what their kind says; unknown names and kinds may hold anything, and null is missing.

    Args:
        kinds: the events of a log by kind.
        where: they come from, for errors.

    Raises:
        DataError: a value is of another kind, or missing where nothing can be computed without it.
    """
    for kind, shapes in SHAPES.items():
        events = kinds.get(kind, ())
        required = REQUIRED.get(kind, ())
        for name, shape in shapes.items() if events else ():
            values = [event.get(name) for event in events]
            wrong = next((value for value in values if value is not None and not _fits(value, shape)), None)
            if wrong is None and (name not in required or None not in values):
                continue
            told = f"has no `{name}`" if wrong is None else f"holds {str(wrong)[:60]!r} as `{name}`"
            raise DataError(
                f"{where} is damaged: an event `{kind}` {told}. Restore the file, or remove that line if the run can do"
                " without it."
            )


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list | tuple) and all(_fits(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        if type(value) is not dict and not isinstance(value, Mapping):
            return False
        only = next(iter(shape))
        if only in (TEXT, COUNT):
            if _are_counts(value, only, shape[only]):
                return True
            return all(_named(key, only) and _fits(one, shape[only]) for key, one in value.items())
        return all(value.get(name) is None or _fits(value[name], shape[name]) for name in shape)
    if shape is None or (shape in (NUMBER, LABEL) and value is None):
        return True
    if shape in (TEXT, LABEL) and isinstance(value, str):
        return True
    kind = numbers.Integral if shape == INDEX else numbers.Real
    if shape == TEXT or isinstance(value, bool) or not isinstance(value, kind):
        return False
    return (shape == NUMBER and isinstance(value, float)) or -1 <= value < LARGEST.get(shape, 2**63)  # type: ignore[operator]


def _are_counts(value: Mapping[Any, Any], names: str, shape: Any) -> bool:
    """Whether what most of a long log is, numbers by class, is so; False where a closer look is needed."""
    if shape == COUNT:
        numbers_fit = all(type(one) is int and -1 <= one < LARGEST[COUNT] for one in value.values())
    elif isinstance(shape, dict) and len(shape) == 1 and type(value) is dict:
        ((inner, counts),) = shape.items()
        numbers_fit = all(type(one) is dict and _are_counts(one, inner, counts) for one in value.values())
    else:
        return False
    return numbers_fit and (names == TEXT or all(type(key) is str and key.isdigit() for key in value))


def _named(key: Any, shape: str) -> bool:
    """Whether a key is a word, or the number that JSON makes a word of."""
    return shape == TEXT or str(key).removeprefix("-").isdigit()
