"""What a report and `holdfast show` say of a run on a source: its numbers, its plots, and what arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.metrics.stream import accuracy_so_far, passed
from holdfast.runs.drawing import ACCENT, INK, MUTED, QUALITATIVE, legend_above, new_axes, series
from holdfast.runs.given_back import pictures_of, read_given_back
from holdfast.runs.pictures import loss_map
from holdfast.runs.plots import heat_map
from holdfast.runs.result import Result
from holdfast.runs.words import headline_item, measure, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = (
    *("prequential_accuracy", "windowed_accuracy", "anytime_accuracy", "held_out_accuracy", "old_accuracy", "old_loss"),
    *("anytime_held_out_accuracy", "share_seen", "rows_dropped", "share_idle", "detection_delay", "missed_drifts"),
    "false_alarms",
)
"""The measures that are shown, in order."""

SHARES = tuple(name for name in MEASURES if "accuracy" in name or name.startswith("share"))
"""Those of them that are shares."""

MOST_LISTED = 20
"""Boundaries that are listed one by one."""


def of_source(run: Result) -> bool:
    """Whether a run learned from a source."""
    return bool(run.log.start.get("source"))


def headline(runs: Sequence[Result]) -> list[dict[str, str]]:
    """The numbers that matter: right before training on it, lately, and on what the stream has moved on from."""
    right, lately = measure(runs, "prequential_accuracy"), measure(runs, "windowed_accuracy")
    old, loss = measure(runs, "old_accuracy"), measure(runs, "old_loss")
    items = []
    if right is not None:
        items.append(
            headline_item(
                "Predicted", percent(right), "This share of all rows was predicted right before it was trained on."
            )
        )
        items.append(headline_item("Lately", percent(lately), "The same over about the last thousand rows."))
    if old is not None:
        sentence = "At the end, this share of the rows held out of the older half of the stream is answered right."
        items.append(headline_item("Kept", percent(old), sentence))
    elif loss is not None:
        sentence = (
            "At the end, this is the mean loss on rows held out of the older half of the stream; lower is better."
        )
        items.append(headline_item("Kept", number(loss), sentence))
    if right is None and loss is None:
        last = [run.log.values("train", "loss") for run in runs]
        finite = [float(values[-1]) for values in last if values.size and np.isfinite(values[-1])]
        value = number(float(np.mean(finite))) if finite else "–"
        items.append(headline_item("Loss", value, "The mean training loss of the last records, before the steps."))
    return items


def sentence(runs: Sequence[Result]) -> str:
    """What was done, and what came of it."""
    run = runs[0]
    start = run.log.start
    train = run.log.of("train")
    rows = int(train[-1]["samples"]) if train else 0
    boundaries = len(run.log.of("boundary"))
    result = (
        f" and came to {boundaries} boundar{'y' if boundaries == 1 else 'ies'}" if start["source"]["boundary"] else ""
    )
    gaps = run.log.of("gap")
    gap = "" if not gaps else f" It was resumed {len(gaps)} time{'s' * (len(gaps) > 1)} with a gap in the stream."
    right = measure(runs, "prequential_accuracy")
    came = "" if right is None else f"; it predicted {percent(right)} of them right before it was trained on them"
    return f"{start.get('method')} learned {rows:,} rows of {start['source']['name']}{result}{came}.{gap}"


def facts(run: Result) -> list[tuple[str, str]]:
    """What arrived, what was lost, what was waited for, and where boundaries were found."""
    last = (run.log.of("source") or [{}])[-1]
    words = {
        "samples": "rows trained on",
        "arrived": "rows that arrived",
        "dropped": "rows dropped while the queue was full",
        "passed_over": "rows that left the window untrained",
        "waiting": "rows that waited at the end",
    }
    rows = [(word, number(last[key])) for key, word in words.items() if key in last]
    if last.get("seconds"):
        idle = last["idle_seconds"]
        rows.append(("seconds of waiting for data", f"{idle:.1f} of {last['seconds']:.1f}"))
    for gap in run.log.of("gap"):
        rows.append((f"gap at step {gap['step']}", f"{gap['batches']} batches that {gap['source']} did not give again"))
    boundaries = run.log.of("boundary")
    for event in boundaries[:MOST_LISTED]:
        why = ", ".join(str(event[key]) for key in ("detector", "on") if key in event)
        name = f"experience {event['experience']} begins"
        rows.append((name, f"after {event['samples']:,} rows ({why or event['boundary']})"))
    if len(boundaries) > MOST_LISTED:
        rows.append(("further boundaries", number(len(boundaries) - MOST_LISTED)))
    return rows


def figures(run: Result) -> list[tuple[str, Figure, str, str]]:
    """Name, figure, title and caption of each plot."""
    plots = []
    accuracy = _accuracy(run)
    if accuracy is not None:
        caption = "Share of the rows that were predicted right before being trained on: in each record, and so far."
        plots.append(("stream_accuracy", accuracy, "Predicted before trained on", caption + _marks_in_words(run)))
    else:
        caption = "The mean loss of each record, before the steps."
        plots.append(("stream_loss", _loss(run), "Loss", caption + _marks_in_words(run)))
    if run.log.of("held_out"):
        classified = any(event.get("correct") is not None for event in run.log.of("held_out"))
        what = "Accuracy" if classified else "Loss"
        caption = f"{what} on rows that were never trained on, by quarters of all that had arrived, the oldest first."
        plots.append(("held_out", _held_out(run, classified), "Rows held out", caption))
        plots += _stretches(run, classified)
    if any("ages" in event for event in run.log.of("memory")):
        caption = "Rows in the memory by tenths of the stream so far; the darkest are the oldest."
        plots.append(("memory", _memory(run), "What the memory holds", caption))
    return plots


def pictures(run: Result) -> list[tuple[str, Figure, str, str]]:
    """Name, figure, title and caption of each picture of what the model gave back, which are wider than plots."""
    kept = read_given_back(run.path)
    if kept is None:
        return []
    names = stretch_matrix(run, "loss")[1]
    names += [f"part {number + 1}" for number in range(len(names), len(kept.chosen))]
    named = kept._replace(chosen=np.arange(len(kept.chosen)))
    return list(pictures_of(named, names[: len(kept.chosen)], "stretch of the stream"))


def stretch_matrix(run: Result, key: str) -> tuple[np.ndarray, list[str]]:
    """Of each stretch of the stream (columns) after each (rows), what `key` says; and the rows learned by its end.

    Args:
        run: on a source, with rows held out.
        key: `loss`, the mean; or `correct`, the share of right answers.

    Returns:
        `[S, S]`, NaN where nobody looked, and the names of the stretches; empty without any.
    """
    looks: list[Any] = run.log.of("stretches")
    if not looks:
        return np.empty((0, 0)), []
    most, count = int(looks[-1]["looks"]), len(looks[-1]["stretches"])
    values, ends = np.full((count, count), np.nan), [""] * count
    for look in looks:
        each, left = divmod(most, max(1, int(look["looks"])))  # stretches that have become one since
        row, rest = divmod(look["ended"], max(1, each))
        if look is looks[-1]:
            row = count
        elif left or not each or rest or not 0 < row <= count:
            continue
        for column in range(row):
            parts = look["stretches"][column * each : (column + 1) * each]
            asked = [part for part in parts if part["rows"] and part.get(key) is not None]
            rows = sum(part["rows"] for part in asked)
            if rows:
                weights = [1 if key == "correct" else part["rows"] for part in asked]
                values[row - 1, column] = sum(part[key] * weight for part, weight in zip(asked, weights)) / rows
        ends[row - 1] = f"to {look['samples']:,}"
    return values, [end or f"part {number + 1}" for number, end in enumerate(ends)]


def _stretches(run: Result, classified: bool) -> list[tuple[str, Figure, str, str]]:
    """The matrix of the stretches, as a plot or none."""
    values, names = stretch_matrix(run, "correct" if classified else "loss")
    if len(names) < 2 or not np.isfinite(values).any():
        return []
    figure = (heat_map if classified else loss_map)(values, names)
    figure.axes[0].set(xlabel="rows held out of the stretch", ylabel="after the stretch")
    what = "Accuracy" if classified else "Loss"
    caption = (
        f"{what} on rows held out of each stretch of the stream (columns; it ends at that row), after each (rows)."
    )
    return [("stretches", figure, f"{what} by stretch", caption)]


def _marks_in_words(run: Result) -> str:
    words = ""
    if run.log.of("boundary"):
        words += " Dashed lines are boundaries, where a detector gave the alarm or a rule said so."
    if run.log.start["source"].get("drifts"):
        words += " Ticks at the bottom are known changes."
    return words


def _marked(axes: Axes, run: Result) -> None:
    """Boundaries as dashed lines, known changes as ticks at the bottom."""
    for event in run.log.of("boundary")[:500]:
        axes.axvline(event["samples"], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    drifts = [drift for drift in run.log.start["source"].get("drifts") or [] if drift <= axes.get_xlim()[1]]
    for drift in drifts[:500]:
        axes.axvline(drift, ymax=0.04, color=MUTED, linewidth=1.4)
    axes.set_xlabel("rows")
    axes.grid(visible=False, axis="x")


def _accuracy(run: Result) -> Figure | None:
    from matplotlib.ticker import PercentFormatter

    windows = passed(run.log)
    if not windows.samples.size:
        return None
    figure, axes = new_axes(4.7, 3.75)
    rows = np.cumsum(windows.samples)
    axes.plot(rows, windows.accuracy, color=ACCENT, linewidth=1.0, alpha=0.65, label="each record")
    axes.plot(rows, accuracy_so_far(run.log), color=INK, linewidth=1.8, label="so far")
    axes.set(ylim=(0, 1), xlim=(0, float(rows[-1])))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _marked(axes, run)
    axes.set_ylabel("predicted right")
    legend_above(axes, 2)
    return figure


def _loss(run: Result) -> Figure:
    figure, axes = new_axes(4.7, 3.75)
    axes.plot(run.log.values("train", "samples"), run.log.values("train", "loss"), color=ACCENT, linewidth=1.2)
    _marked(axes, run)
    axes.set_ylabel("loss")
    return figure


def _held_out(run: Result, classified: bool) -> Figure:
    from matplotlib.ticker import PercentFormatter

    figure, axes = new_axes(4.7, 3.75)
    looks: list[Any] = run.log.of("held_out")
    rows = [event["samples"] for event in looks]
    names = ("oldest quarter", "second", "third", "newest")
    for age, colour in enumerate(series(len(names))):
        parts = [event["ages"][age] for event in looks]
        if classified:
            heights = [part["correct"] / part["rows"] if part["rows"] else np.nan for part in parts]
        else:
            heights = [np.nan if part["loss"] is None else part["loss"] for part in parts]
        marker = "o" if len(rows) == 1 else None
        axes.plot(rows, heights, color=colour, linewidth=1.6, marker=marker, label=names[age])
    if classified:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _marked(axes, run)
    axes.set_ylabel("answered right" if classified else "loss")
    legend_above(axes, 4)
    return figure


def _memory(run: Result) -> Figure:
    figure, axes = new_axes(4.7, 3.75)
    looks: list[Any] = [event for event in run.log.of("memory") if "ages" in event]
    rows = [event["samples"] for event in looks]
    ages = np.array([event["ages"] for event in looks], dtype=np.float64).T
    colours = series(len(ages))
    if len(rows) == 1:
        axes.bar(range(len(ages)), ages[:, 0], color=QUALITATIVE[0])
        axes.set_xlabel("tenth of the stream")
    else:
        axes.stackplot(rows, ages, colors=colours, linewidth=0)
        axes.set_xlim(rows[0], rows[-1])
        axes.set_xlabel("rows")
    axes.set_ylabel("rows in the memory")
    return figure
