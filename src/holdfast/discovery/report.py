"""The files that a search leaves: `best.json`, `pareto.json`, `optimization_results.json`, and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.config.check import validated
from holdfast.discovery import findings
from holdfast.discovery.finals import BESIDE, FINAL, Final, final_runs, kept, lost, pages, settings_of, titled
from holdfast.discovery.findings import duration, said
from holdfast.discovery.plan import Plan
from holdfast.discovery.protocols import FRESH
from holdfast.discovery.rungs import ordered, ranks
from holdfast.discovery.study import Book
from holdfast.discovery.trial import Entry
from holdfast.metrics.log import read_json, replace_file, write_json
from holdfast.metrics.statistics import Paired, Spread, named
from holdfast.metrics.table import METRICS
from holdfast.runs.drawing import ACCENT, GRID, INK, MUTED, SMALL, fitted, legend_entry, new_axes
from holdfast.runs.figures import Plot
from holdfast.runs.plots import so_far
from holdfast.runs.report import page
from holdfast.runs.sweep_report import Setting, pairs
from holdfast.runs.words import mean_matrix, number, percent, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_search_report(folder: Path, plan: Plan, book: Book) -> str:
    """Write every file, and return the verdict in words.

    Args:
        folder: of the search.
        plan: what was searched.
        book: its study.
    """
    about = read_json(folder / "search.json")
    entries = book.entries()
    keys = about.get("finalists", [])
    finals = final_runs(folder, plan, entries, keys)
    best = best_of(book, entries)
    skipped = bool(finals and keys and finals[0].key != keys[0])
    if skipped:  # what cannot be trained to the end is no answer, whatever its validation data say
        best = next(one for one in reversed(entries) if one.key == finals[0].key and one.state == "done")
    text = verdict(plan, entries, finals, lost(folder, plan, entries, keys), about.get("final_runs"), skipped)
    if best is not None:
        write_json(folder / "best.json", best_job(folder, plan, best, finals))
        write_json(folder / "pareto.json", pareto(plan, book, entries))
        write_json(folder / "optimization_results.json", optimization(plan, best, pareto(plan, book, entries)))
    content = _content(folder, plan, book, entries, finals, text, about)
    replace_file(folder / "report.html", page("search.html.j2", content))
    return text


def best_of(book: Book, entries: Sequence[Entry]) -> Entry | None:
    """The composition that is best on the longest prefix, by validation data."""
    levels = book.levels(entries)
    if not levels:
        return None
    length = max(levels)
    key = ordered(levels[length])[0]
    return next(one for one in entries if one.key == key and one.length == length and one.state == "done")


def verdict(
    plan: Plan,
    entries: Sequence[Entry],
    finals: Sequence[Final],
    lost: Mapping[str, str] | None = None,
    counts: Mapping[str, int] | None = None,
    skipped: bool = False,
) -> str:
    """What came out, in words: what is best by validation data, what test data say of it, and how sure that is.

    Args:
        plan: of the search.
        entries: every trial.
        finals: the finalists that were measured on test data, the best first.
        lost: finalist -> what became of its final runs that have no result.
        counts: how many final runs were `wanted` and `done`.
        skipped: whether a better one has no result.
    """
    told = list((lost or {}).values())
    if counts and counts["done"] < counts["wanted"]:
        told.append(f"The budget had room for {counts['done']} of {counts['wanted']} final runs.")
    measure = plan.settings.objectives[0]
    count = len({one.key for one in entries if one.state in ("done", "diverged", "failed")})
    if not finals:
        done = [one for one in entries if one.state == "done"]
        if not done:
            return "Nothing was measured."
        return " ".join([f"{plan.told(count)} tried; no final run on test data has a result.", *told])
    first = finals[0]
    several = len(plan.settings.objectives) > 1
    best = f"the one with the best {measure} of those that no other one dominates" if several else "best"
    best += " on validation data" + (" of those that could be trained to the end" if skipped else "")
    lines = [
        f"Of {plan.told(count)}, {first.name} was {best}. Its {measure} on test data is "
        f"{shown(measure, first.values[measure])} ({named(len(first.runs))})."
    ]
    compared = [one for one in pairs(list(finals), measure) if first in one[:2]]
    down = METRICS[measure].direction == "down"
    for one, other, result in compared:
        lines.append(_compared(first, other if one is first else one, result, one is first, measure, down))
    better = [one for one in finals[1:] if _mean(one, measure) is not None and _beats(one, first, measure, down)]
    if better:
        lines.append(
            f"On test data {better[0].name} came out ahead; the choice was made by validation data, and stands."
        )
    return " ".join([*lines, *told])


def _compared(first: Setting, other: Setting, result: Paired, ahead: bool, measure: str, down: bool) -> str:
    difference = result.difference if ahead else -result.difference
    share = METRICS[measure].direction == "up"
    size = points(abs(difference)).lstrip("+") + " points" if share else number(abs(difference))
    if result.half is not None:
        half = f" ± {100 * result.half:.1f}" if share else f" ± {number(result.half)}"
        size = size.replace(" points", f"{half} points") if share else size + half
    than = f"{size} {'better' if (difference < 0) == down else 'worse'} than" if difference else "the same as"
    told = f"That is {than} {other.name} over the same {result.seeds} seeds"
    if result.corrected is None:
        return f"{told}, too few for an interval."
    sure = "" if result.corrected < 0.05 else ", which may be chance"
    return f"{told} (paired, 95 % t interval; p = {result.corrected:.2g}{sure})."


def _mean(one: Final, measure: str) -> float | None:
    value = one.values[measure]
    return None if value is None else value.mean


def _beats(one: Final, other: Final, measure: str, down: bool) -> bool:
    first, second = _mean(one, measure), _mean(other, measure)
    return first is not None and second is not None and (first < second if down else first > second)


def shown(name: str, value: Spread | float | None) -> str:
    """A measure over seeds, for reading."""
    share = METRICS[name].direction == "up" or "forgetting" in name
    return percent(value) if share else number(value)


def best_job(folder: Path, plan: Plan, best: Entry, finals: Sequence[Final]) -> dict[str, Any]:
    """The job of the best composition as its first final run had it, so that `holdfast run` gives the same numbers."""
    path = folder / FINAL / f"{best.key}-{FRESH}" / "config.json"
    config = read_json(path)
    return config or validated(plan.protocol.final(plan.space.job(best.params), FRESH)).config


def pareto(plan: Plan, book: Book, entries: Sequence[Entry]) -> dict[str, Any]:
    """The compositions on the longest prefix that no other one dominates, with their jobs."""
    levels = book.levels(entries)
    length = max(levels, default=0)
    front = [key for key, rank in ranks(levels.get(length, {})).items() if rank == 0]
    entries_on_front = [one for one in entries if one.key in front and one.length == length and one.state == "done"]
    means = {key: plan.settings.turned(values) for key, values in levels.get(length, {}).items()}
    return {
        "objectives": list(plan.settings.objectives),
        "measured": f"on validation data, after {length} experiences",
        "front": [
            {
                "name": titled(plan, one),
                "key": one.key,
                "values": dict(zip(plan.settings.objectives, means[one.key])),
                "job": plan.space.job(one.params),
            }
            for one in {one.key: one for one in entries_on_front}.values()
        ],
    }


def optimization(plan: Plan, best: Entry, front: Mapping[str, Any]) -> dict[str, Any]:
    """The best values as Hydra's Optuna sweeper writes them."""
    axes = plan.space.axes()
    params = {name: axes[name].value(value) for name, value in best.params.items() if name in axes}
    here = next((one["values"] for one in front["front"] if one["key"] == best.key), best.values)
    values = [here[name] for name in plan.settings.objectives]
    if len(values) == 1:
        return {"name": "optuna", "best_params": params, "best_value": values[0]}
    solutions = [{"name": one["name"], "values": list(one["values"].values())} for one in front["front"]]
    return {"name": "optuna", "best_params": params, "best_value": values, "solutions": solutions}


# The page --------------------------------------------------------------------------------------------------


def _content(
    folder: Path,
    plan: Plan,
    book: Book,
    entries: Sequence[Entry],
    finals: Sequence[Final],
    text: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    length, ranked = findings.measured(book)
    names = [*dict.fromkeys((*plan.settings.objectives, *BESIDE))]
    roles, numbers = findings.families(book), findings.parameters(book)
    wrong = findings.failures(entries, plan.space)
    rounds: dict[int, int] = {}
    for one in entries:
        if one.state == "done" and one.seed == 0:
            rounds[one.length] = rounds.get(one.length, 0) + 1
    return {
        "title": "Sweep" if plan.sweep else "Search",
        "command": about.get("command", ""),
        "verdict": text,
        "protocol": plan.protocol.words(plan.experiences),
        "orders": plan.protocol.fresh_orders,
        "limits": [
            f"{name} at most {said(name, most).removeprefix(name)}" for name, most in plan.settings.at_most.items()
        ]
        + [f"{name} at least {said(name, least).removeprefix(name)}" for name, least in plan.settings.at_least.items()],
        "head": ["composition", "seeds", *names],
        "rows": [[one.name, str(len(one.runs)), *(shown(name, one.values[name]) for name in names)] for one in finals],
        "links": [(one.name, pages(one, folder)) for one in finals],
        "kept": [(one.name, kept(one)) for one in finals],
        "numbers": [(one.name, text) for one in finals if (text := settings_of(plan, entries, one))],
        "statistic": named(max((len(one.runs) for one in finals), default=1)),
        "board": _board(plan, book, entries),
        "objectives": list(plan.settings.objectives),
        "families": roles,
        "parameters": numbers,
        "few": ""
        if roles or numbers
        else f"Fewer than {findings.FEWEST} compositions were measured on one prefix, too few to say.",
        "measured": (length, len(ranked)),
        "trust": findings.trust(book, folder, plan.prefixes),
        "rounds": sorted(rounds.items()),
        "again": len({(one.key, one.seed) for one in entries if one.state == "done" and one.seed}),
        "tried": findings.tried(entries, plan.space) if not plan.sweep else [],
        "failed": wrong["failed"],
        "diverged": wrong["diverged"],
        "left_out": sorted(plan.space.left_out.items()),
        "notes": plan.notes,
        "plots": pictures(plan, book, entries, finals, roles),
        "seconds": duration(float(about.get("seconds", 0.0))),
        "budget": "" if plan.settings.budget is None else f" of a budget of {duration(plan.settings.budget)}",
        "sampler": plan.settings.chosen_sampler + (" and neighbours of the leaders" if plan.settings.mixed else ""),
        "plan": json.dumps(plan.settings.plain(), indent=2, ensure_ascii=False),
    }


def _board(plan: Plan, book: Book, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every measured composition once, on the longest prefix it reached, the best first."""
    levels = book.levels(entries)
    rows, seen = [], set()
    for length in sorted(levels, reverse=True):
        for key in ordered(levels[length]):
            if key not in seen:
                seen.add(key)
                one = next(e for e in entries if e.key == key and e.length == length and e.state == "done")
                means = plan.settings.turned(levels[length][key])
                rows.append((titled(plan, one), one, dict(zip(plan.settings.objectives, means))))
    over = {one.key: one for one in entries if one.state == "done" and one.key not in seen}
    for one in over.values():
        why = "went wrong later" if book.within(one) else "beyond a limit"
        rows.append((f"{titled(plan, one)} ({why})", one, one.values))
    return [
        {
            "name": name,
            "origin": one.origin,
            "length": one.length,
            "cells": [said(key, values.get(key)).removeprefix(f"{key} ") for key in plan.settings.objectives],
            "seconds": duration(one.seconds),
            "key": one.key,
        }
        for name, one, values in rows
    ]


def pictures(
    plan: Plan, book: Book, entries: Sequence[Entry], finals: Sequence[Final], roles: Sequence[findings.Finding]
) -> list[Plot]:
    """Learning curves of the final runs, how the search went, the front, and partial dependence: what there is."""
    plots = []
    tables = {one.name: mean_matrix(list(one.runs.values()), next(iter(one.runs.values())).prefix + "accuracy_matrix")
              for one in finals}  # fmt: skip
    if tables and plan.experiences > 1 and all(np.isfinite(table).any() for table in tables.values()):
        names = [str(index) for index in range(plan.experiences)]
        caption = "Mean accuracy on what was learned so far, test data of the final runs, mean over their seeds."
        plots.append(Plot("learning_curves", so_far(tables, names), "Learning curves", caption))
    length, measured = findings.measured(book)
    if len(measured) > 1:
        caption = (
            f"Each point is a composition after {length} experiences, in the order tried; the line is the best so far."
        )
        plots.append(Plot("progress", progress(plan, measured), "How the search went", caption))
    level = book.levels(entries)
    if len(plan.settings.objectives) > 1 and level:
        caption = f"After {max(level)} experiences, validation data. The line joins those that no other one dominates."
        plots.append(Plot("pareto", front(plan, level[max(level)]), "Pareto front", caption))
    if roles:
        caption = f"What a surrogate expects after {length} experiences when every composition has the operation."
        plots.append(Plot("dependence", dependence(plan, roles), "Partial dependence", caption))
    return plots


def dependence(plan: Plan, roles: Sequence[findings.Finding], most: int = 14) -> Figure:
    """What the surrogate expects of each operation: those of the roles that matter most, the best of each on top."""
    up = plan.settings.better[0] == "up"
    shares = max(1, most // len(roles))
    rows = [(role.name, *one) for role in roles for one in (role.curve[-shares:] if up else role.curve[:shares][::-1])]
    figure, axes = new_axes(4.7, max(2.0, 0.27 * len(rows)))
    axes.scatter([value for *_, value in rows], range(len(rows)), s=26, color=ACCENT, zorder=2)
    axes.set_yticks(range(len(rows)), [fitted(f"{name} ({role})", 34) for role, name, _ in rows])
    axes.set_xlabel(fitted(plan.settings.objectives[0], 30))
    axes.locator_params(axis="x", nbins=4)
    return figure


def progress(plan: Plan, entries: Sequence[Entry]) -> Figure:
    """The first objective of each composition in the order tried, and the best so far."""
    figure, axes = new_axes(4.7, 3.75)
    name = plan.settings.objectives[0]
    values = np.array([one.values[name] for one in sorted(entries, key=lambda one: one.number)])
    up = plan.settings.better[0] == "up"
    axes.scatter(range(len(values)), values, s=16, color=MUTED, zorder=2)
    best = np.maximum.accumulate(values) if up else np.minimum.accumulate(values)
    axes.step(range(len(values)), best, where="post", color=ACCENT, linewidth=1.8)
    axes.set_xlabel("composition")
    axes.set_ylabel(fitted(name, 30))
    return figure


def front(plan: Plan, level: Mapping[str, tuple[float, ...]]) -> Figure:
    """The first two objectives of all compositions on a prefix; the front's are joined."""
    figure, axes = new_axes(4.7, 3.75)
    first = ranks(level)
    turned = {key: plan.settings.turned(values) for key, values in level.items()}
    for key, (x, y, *_) in turned.items():
        axes.scatter([x], [y], s=26 if first[key] == 0 else 14, color=ACCENT if first[key] == 0 else MUTED, zorder=2)
    line = sorted(turned[key][:2] for key in level if first[key] == 0)
    axes.plot([x for x, _ in line], [y for _, y in line], color=INK, linewidth=1.0, label=legend_entry("front"))
    axes.set_xlabel(fitted(plan.settings.objectives[0], 30))
    axes.set_ylabel(fitted(plan.settings.objectives[1], 30))
    axes.tick_params(labelsize=SMALL)
    axes.spines["left"].set_color(GRID)
    return figure
