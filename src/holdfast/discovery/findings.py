"""What a search found out, as plain values: importances, what a surrogate expects, how far prefixes can be trusted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.config import kinds
from holdfast.core.operation import SHORT
from holdfast.discovery.rungs import correlation
from holdfast.discovery.space import Space
from holdfast.discovery.study import Book, distribution, library, quiet
from holdfast.discovery.trial import TRIALS, Entry, measures
from holdfast.metrics.log import LOG_NAME, Log
from holdfast.metrics.table import METRICS

FEWEST, COMMON = 8, 5
"""Compositions below which nothing is said about what mattered, and about a parameter that not all have."""


LEAST = 0.005
"""Importance below which a parameter is not worth a sentence."""


@dataclass(frozen=True)
class Finding:
    """What mattered, and how.

    Attributes:
        name: of a role or a parameter.
        importance: 0..1, by PED-ANOVA; those of all parameters sum to 1.
        sentence: what the compositions with it did.
        curve: value -> what the surrogate expects there, where it was asked.
    """

    name: str
    importance: float
    sentence: str
    curve: tuple[tuple[str, float], ...] = ()


def measured(book: Book) -> tuple[int, list[Entry]]:
    """The prefix on which most compositions were measured, and these, each once."""
    done = [one for one in book.entries() if one.state == "done" and one.seed == 0 and book.objectives(one) is not None]
    lengths = [one.length for one in done]
    length = max(set(lengths), key=lambda n: (lengths.count(n), -n), default=0)
    return length, list({one.key: one for one in done if one.length == length}.values())


def importances(book: Book, entries: Sequence[Entry]) -> dict[str, float]:
    """Parameter -> its share in what the first objective depends on; empty where there are too few compositions.

    PED-ANOVA: Watanabe, Bansal and Hutter 2023, "PED-ANOVA: efficiently quantifying hyperparameter importance in
    arbitrary subspaces".

    Args:
        book: the study.
        entries: compositions measured on one prefix.
    """
    if len(entries) < FEWEST:
        return {}
    optuna, axes = library(), book.space.axes()
    with quiet(), warnings.catch_warnings():
        view = optuna.create_study(direction="maximize" if book.settings.better[0] == "up" else "minimize")
        for one in entries:
            ranges = {name: distribution(axes[name]) for name in one.params if name in axes}
            params = {name: one.params[name] for name in ranges}
            value = one.values[book.settings.objectives[0]]
            view.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=value))
        judge = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        try:
            return dict(optuna.importance.get_param_importances(view, evaluator=judge))
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}


def families(book: Book) -> list[Finding]:
    """For each role how much depends on it, and which of its operations a surrogate expects most of.

    The surrogate is CLMixer's: gradient-boosted trees of 50 rounds over what a composition is made of; its partial
    dependence is the mean of what it expects when every composition tried had, or had not, the operation.

    Args:
        book: the study of a search among compositions.
    """
    _, entries = measured(book)
    weights = importances(book, entries)
    if not weights or book.space.fixed:
        return []
    expected = _dependence(book, entries)
    tell = _teller(book)
    best = max if book.settings.better[0] == "up" else min
    result = []
    for word in SHORT.values():
        names = {name for slot, listed in book.space.slots.items() if slot.split(".")[0] == word for name in listed}
        keys = {*names, *(slot for slot in book.space.slots if slot.split(".")[0] == word)}
        weight = sum(share for name, share in weights.items() if _owner(name) in keys or name.split(".")[0] == word)
        curve = {name: expected[name] for name in names if name in expected}
        if not curve:
            continue
        top = best(curve, key=lambda name: curve[name][1])
        without, with_it = expected[top]
        count = sum(top in book.space.chosen(one.params) for one in entries)
        better = with_it > without if book.settings.better[0] == "up" else with_it < without
        expects = f"{tell(with_it)} with it, {tell(without)} without"
        sentence = (
            f"The surrogate expects most of {top}, which {count} of {len(entries)} compositions had: {expects}."
            if better
            else f"The surrogate expects no gain from any operation tried; {top} comes nearest: {expects}."
        )
        shown = sorted(((name, pair[1]) for name, pair in curve.items()), key=lambda one: one[1])
        result.append(Finding(word, weight, sentence, tuple(shown)))
    return sorted(result, key=lambda one: -one.importance)


def parameters(book: Book, most: int = 12) -> list[Finding]:
    """The parameters that most depends on, and what the best third of the compositions with them had.

    Args:
        book: the study.
        most: how many; those that fewer than `COMMON` compositions had are left out.
    """
    _, entries = measured(book)
    axes = book.space.axes()
    sign = -1 if book.settings.better[0] == "up" else 1
    result: list[Finding] = []
    for name, weight in sorted(importances(book, entries).items(), key=lambda one: -one[1]):
        having = [one for one in entries if name in one.params]
        if len(having) < COMMON or len(result) == most or weight < LEAST or name.endswith(".used"):
            continue
        having.sort(key=lambda one: sign * one.values[book.settings.objectives[0]])
        best = [one.params[name] for one in having[: max(1, len(having) // 3)]]
        if axes[name].choices:
            counted = sorted(((best.count(one), one) for one in dict.fromkeys(best)), key=lambda one: -one[0])
            what = ", ".join(f"{value} {'once' if times == 1 else f'{times} times'}" for times, value in counted[:3])
            sentence = f"The best third of the {len(having)} compositions with it had {what}."
        else:
            middle = float(np.median(best))
            sentence = (
                f"The best third of the {len(having)} compositions with it had {middle:.3g}; the search went from "
                f"{axes[name]}."
                if min(best) == max(best)
                else f"The best third of the {len(having)} compositions with it lay between {min(best):.3g} and "
                f"{max(best):.3g}, half of them below {middle:.3g}; the search went from {axes[name]}."
            )
        result.append(Finding(name, weight, sentence))
    return result


def _owner(name: str) -> str:
    return name.split(".")[0]


def _teller(book: Book) -> Any:
    name = book.settings.objectives[0]
    return lambda value: said(name, value).removeprefix(f"{name} ")


def _dependence(book: Book, entries: Sequence[Entry]) -> dict[str, tuple[float, float]]:
    """Operation -> what the surrogate expects without and with it."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    names = sorted({name for one in entries for name in parts(book.space, one)})
    common = [axis.name for axis in book.space.common if not axis.choices]
    rows = [
        [*(float(name in parts(book.space, one)) for name in names), *(float(one.params.get(key, 0)) for key in common)]
        for one in entries
    ]
    x, y = np.array(rows), np.array([one.values[book.settings.objectives[0]] for one in entries])
    model = HistGradientBoostingRegressor(max_iter=50, min_samples_leaf=max(2, len(entries) // 10), random_state=0)
    model.fit(x, y)
    expected = {}
    for column, name in enumerate(names):
        both = []
        for value in (0.0, 1.0):
            changed = x.copy()
            changed[:, column] = value
            both.append(float(model.predict(changed).mean()))
        expected[name] = (both[0], both[1])
    return expected


def parts(space: Space, one: Entry) -> list[str]:
    """The operations of a composition, what fills its memory included."""
    return [*space.chosen(one.params), *([one.params["memory"]] if "memory" in one.params else [])]


def trust(book: Book, folder: Path, prefixes: Sequence[int]) -> list[dict[str, Any]]:
    """How the ranking after each number of experiences agrees with that after all that the search could see.

    Args:
        book: the study.
        folder: of the search.
        prefixes: the lengths that were used.

    Returns:
        For each length `length`, `compositions` (that were trained to the end) and `correlation`, Spearman's, of the
        first objective; None below three of them.
    """
    last, name = prefixes[-1], book.settings.objectives[0]
    ended = [one for one in book.entries() if one.state == "done" and one.length == last and one.seed == 0]
    logs = [Log.read(folder / TRIALS / one.key) for one in ended if (folder / TRIALS / one.key / LOG_NAME).is_file()]
    rows = []
    for length in range(1, last):
        pairs = [(measures(log, length).get(name), measures(log, last).get(name)) for log in logs]
        both = [(one, other) for one, other in pairs if one is not None and other is not None]
        agreed = correlation([one for one, _ in both], [other for _, other in both])
        rows.append(
            {"length": length, "used": length in prefixes, "compositions": len(both), "correlation": agreed}
        )  # fmt: skip
    return rows


def failures(entries: Sequence[Entry], space: Space) -> dict[str, list[dict[str, Any]]]:
    """What failed and what diverged, with the reason; each composition once."""
    reasons: dict[str, list[dict[str, Any]]] = {"failed": [], "diverged": []}
    for one in {one.key: one for one in entries if one.state in reasons}.values():
        reasons[one.state].append({"name": space.named(one.params), "reason": one.reason, "key": one.key})
    return reasons


def tried(entries: Sequence[Entry], space: Space) -> list[dict[str, Any]]:
    """Every operation with how many compositions had it, and what became of them."""
    latest = {one.key: one for one in entries if one.state in ("done", "diverged", "failed")}
    counts: dict[str, dict[str, int]] = {}
    for one in latest.values():
        for name in parts(space, one):
            row = counts.setdefault(name, {"done": 0, "diverged": 0, "failed": 0})
            row[one.state] += 1
    operations = kinds.names("operations")
    return [
        {"name": name, "role": SHORT[operations[name].role] if name in operations else "", **row}
        for name, row in sorted(counts.items(), key=lambda one: -sum(one[1].values()))
    ]


def plain(findings: Sequence[Finding]) -> list[Mapping[str, Any]]:
    """As JSON values."""
    return [
        {"name": one.name, "importance": one.importance, "sentence": one.sentence, "expected": dict(one.curve)}
        for one in findings
    ]


def said(name: str, value: float | None) -> str:
    """A measure with its value, for reading."""
    if value is None:
        return f"{name} –"
    share = METRICS[name].direction == "up" or "forgetting" in name
    if share and abs(value) <= 1:
        return f"{name} {100 * value:.1f} %"
    return f"{name} {value:,.0f}" if abs(value) >= 100 else f"{name} {value:.3g}"


def duration(seconds: float) -> str:
    """A time in words: `0.4 s`, `12 s`, `3 min`, `1.5 h`.

    Example:
        >>> duration(12.3), duration(200), duration(5400)
        ('12 s', '3 min', '1.5 h')
    """
    if seconds < 90:
        return f"{seconds:.1f} s" if 0 < seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
