"""Runs that are trained at once: the seeds of one job, and the runs of a sweep that differ in numbers alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.config.job import Job, make_device
from holdfast.runs.recording import stop_on_signals
from holdfast.training.stacked import Member, Stack, member

NUMBERS = ("method", "optimizer", "criterion")
"""Blocks of a job whose fractional numbers change no shape: strengths, temperatures, learning rates, momentum."""


def wanted(config: Mapping[str, Any]) -> bool:
    """Whether runs of a job are to be trained at once with others like it."""
    alone = config["protocol"] != "continual" or config.get("source") is not None
    trainer = config["trainer"]
    return trainer["stack"] not in ("none", 1) and not alone and trainer["devices"] * trainer["num_nodes"] == 1


def groups_of(parts: Mapping[str, Job]) -> list[list[str]]:
    """The parts of a run that may be trained at once: its seeds, and those of each of its references."""
    if member() is not None:  # this run is one among several already
        return []
    groups: dict[str, list[str]] = {}
    for where, part in parts.items():
        if wanted(part.config):
            groups.setdefault(alike(part.config), []).append(where)
    return [group for group in groups.values() if len(group) > 1]


def alike(config: Mapping[str, Any]) -> str:
    """What jobs have in common whose steps may be of equal shape: everything but seeds and certain numbers."""

    def without(value: Any, numbers: bool) -> Any:
        if isinstance(value, Mapping):
            kept = {key: one for key, one in value.items() if key != "seed" and not (numbers and type(one) is float)}
            return {key: without(one, numbers) for key, one in kept.items()}
        return [without(one, numbers) for one in value] if isinstance(value, list) else value

    kept = {key: value for key, value in config.items() if key not in ("tags", "seed", "references", "checkpoint")}
    return json.dumps({key: without(value, key in NUMBERS) for key, value in kept.items()}, sort_keys=True, default=str)


def train_at_once(
    places: Mapping[str, Path], parts: Mapping[str, Job], train: Callable[[str, Path, bool], None], quiet: bool
) -> dict[Path, BaseException]:
    """Train parts of a run at once; a single one is left to the usual way.

    Args:
        places: their folders, by name.
        parts: their jobs.
        train: trains one of a name in a folder, silently or not.
        quiet: draw and print nothing; else the first of them tells how far it is.

    Returns:
        What broke off those that did not come to their end, by folder.
    """
    if len(places) < 2:
        return {}
    works = [
        functools.partial(train, where, folder, quiet or number > 0)
        for number, (where, folder) in enumerate(places.items())
    ]
    members = together(works, parts[next(iter(places))].config)
    return {folder: one.error for folder, one in zip(places.values(), members) if one.error is not None}


def together(works: Sequence[Callable[[], Any]], config: Mapping[str, Any]) -> list[Member]:
    """Do several trainings at once; Ctrl-C lets all of them save their state.

    Args:
        works: each trains one run.
        config: of one of them.

    Returns:
        For each, its result or the error that broke it off.
    """
    most = config["trainer"]["stack"]
    stack = Stack(works, make_device(config["device"]), most if isinstance(most, int) else None)
    with stop_on_signals(stack):
        return stack.run()
