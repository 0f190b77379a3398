"""What earlier searches found, kept in a file of this user's, and tried first on data like those it was found on."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.config.check import validated
from holdfast.core.errors import HoldfastError
from holdfast.discovery.plan import Plan
from holdfast.discovery.protocols import meta_features, tuning_stream
from holdfast.discovery.rungs import ordered
from holdfast.discovery.study import Book

MOST_POINTS, MOST_SETS = 3, 3
"""How many compositions of a search are kept, and of how many data sets they are proposed."""

LOGARITHMIC = ("ch", "samples", "features", "classes", "experiences")
"""Meta-features that are compared by factors."""


def file() -> Path:
    """The file: `$HOLDFAST_KNOWLEDGE`, or `holdfast/searches.jsonl` among this user's data."""
    named = os.environ.get("HOLDFAST_KNOWLEDGE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "holdfast" / "searches.jsonl"


def features(plan: Plan) -> dict[str, float]:
    """The meta-features of the data that the trials of a search may look at."""
    return meta_features(tuning_stream(validated(plan.protocol.tuned(plan.base))))


def entries() -> Iterator[dict[str, Any]]:
    """What is kept, oldest first; a damaged line is passed over."""
    path = file()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get("points"), list):
            yield content


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How unlike two data sets are: mean difference of the meta-features that both have, sizes by factors of e.

    Example:
        >>> distance({"classes": 10, "c2": 0.0}, {"classes": 10, "c2": 0.5})
        0.25
    """
    shared = sorted(set(one) & set(other))
    if not shared:
        return math.inf
    gaps = [
        abs(math.log(max(one[name], 1e-9) / max(other[name], 1e-9)))
        if name in LOGARITHMIC
        else abs(one[name] - other[name])
        for name in shared
    ]
    return sum(gaps) / len(gaps)


def proposals(plan: Plan) -> list[dict[str, Any]]:
    """The compositions that were best on the nearest data sets, as points of this search, the nearest data set first.

    Args:
        plan: of the search; where an earlier one knew operations or ranges that this one lacks, they are left out.
    """
    similar = [one for one in entries() if one.get("paradigm") == paradigm(plan)]
    if not similar:
        return []
    mine = features(plan)
    similar.sort(key=lambda one: distance(mine, one.get("features", {})))
    points = []
    for one in similar[:MOST_SETS]:
        for point in one["points"][:MOST_POINTS]:
            params = fitted(plan, point.get("params", {}))
            if params is not None and params not in points:
                points.append(params)
    return points


def fitted(plan: Plan, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Values of another search as values of this one; None where the operations differ."""
    axes = plan.space.axes()
    kept = dict(plan.space.usual())
    for name, value in params.items():
        axis = axes.get(name)
        if axis is None:
            if name in ("memory.items", "optimizer.lr") or name.startswith(("trainer.", "model", "optimizer")):
                continue
            return None
        if axis.choices and not axis.holds(value):
            return None
        kept[name] = axis.nearest(value)
    return kept


def paradigm(plan: Plan) -> str:
    """Of the stream, as far as its configuration says."""
    stream = plan.base["stream"]
    return str((stream.get("of") or stream).get("paradigm", ""))


def keep(plan: Plan, book: Book) -> None:
    """Add what a search found; a file that cannot be written is no reason to fail.

    Args:
        plan: of the search.
        book: its study.
    """
    measured = book.entries()
    levels = book.levels(measured)
    if not levels:
        return
    best = ordered(levels[max(levels)])[:MOST_POINTS]
    by_key = {one.key: one for one in measured}
    content = {
        "time": time.time(),
        "stream": plan.base["stream"],
        "model": plan.base["model"]["name"],
        "paradigm": paradigm(plan),
        "protocol": plan.protocol.name,
        "objectives": list(plan.settings.objectives),
        "points": [_point(by_key[key].params, by_key[key].values, plan.settings.objectives) for key in best],
    }
    try:
        content["features"] = features(plan)
        path = file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(content) + "\n")
    except (OSError, HoldfastError, ValueError):
        return


def _point(params: Mapping[str, Any], values: Mapping[str, float], objectives: Sequence[str]) -> dict[str, Any]:
    return {"params": dict(params), "values": {name: values.get(name) for name in objectives}}
