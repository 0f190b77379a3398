"""How numbers are told: several seeds as one, per cent and points, and what a run says at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from holdfast.metrics.log import read_json, replace_file, write_json
from holdfast.metrics.references import against
from holdfast.metrics.statistics import Spread, mean_share_interval, spread
from holdfast.metrics.table import METRICS
from holdfast.runs.result import METRICS_FILE, Result, Results


def distinct(runs: Iterable[Result]) -> list[Result]:
    """The runs in order of seed, each seed once: the same run twice is no second seed, and the one started last counts.

    Args:
        runs: of one configuration; one whose log does not say its seed counts by its folder.
    """
    kept: dict[Any, Result] = {}
    for run in sorted(runs, key=_started):
        kept[str(run.path.resolve()) if run.seed is None else run.seed] = run
    return sorted(kept.values(), key=lambda run: (run.seed is None, run.seed or 0, str(run.path)))


def _started(run: Result) -> float:
    """When it was started; 0 where its folder says no time, or something that is not a time."""
    started = run.info.get("started")
    return float(started) if isinstance(started, int | float) and abs(started) < 1e18 else 0.0


def measure(runs: Sequence[Result], name: str) -> Spread | None:
    """One measure over runs: mean, interval and range."""
    return spread(run.metrics.get(name) for run in runs)


def measures(runs: Sequence[Result]) -> dict[str, Spread | None]:
    """Every measure in `METRICS` over runs."""
    return {name: measure(runs, name) for name in METRICS}


def over_runs(runs: Sequence[Result], value: Callable[[Result], float | None]) -> Spread | None:
    """A number of each run as mean, interval and range."""
    return spread(value(run) for run in runs)


def mean_matrix(runs: Sequence[Result], key: str) -> np.ndarray:
    """The mean over runs of one matrix, cell by cell over the runs that evaluated it, `[T, T]`."""
    tables = [run.table(key) for run in runs]
    size = max((len(table) for table in tables), default=0)
    total, count = np.zeros((size, size)), np.zeros((size, size))
    for table in tables:
        finite = np.isfinite(table)
        total[: len(table), : len(table)] += np.where(finite, table, 0.0)
        count[: len(table), : len(table)] += finite
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def measure_against(runs: Results) -> dict[str, Spread]:
    """What the references of a run make measurable, seed by seed, over the seeds; see `metrics.references.against`.

    Args:
        runs: the seeds of a run; those that did not finish do not count.

    Returns:
        Name -> mean, interval and range; empty where the references are not there.
    """
    values: dict[str, list[float]] = {}
    for _, measured in _against(runs):
        for name, value in measured.items():
            values.setdefault(name, []).append(value)
    return {name: told for name, numbers in values.items() if (told := spread(numbers)) is not None}


def write_against(runs: Results) -> None:
    """Write what references make measurable into `metrics.json` of each seed, under `references`."""
    for run, measured in _against(runs):
        path = run.path / METRICS_FILE
        if measured and path.is_file():
            write_json(path, {**read_json(path), "references": measured})
            rows = [f"{name},{value}\n" for name, value in measured.items()]
            replace_file(run.path / "references.csv", "".join(["measure,value\n", *rows]))


def kept_against(runs: Sequence[Result]) -> dict[str, Spread]:
    """What `write_against` wrote of some seeds, over them."""
    values: dict[str, list[float]] = {}
    for run in runs:
        path = run.path / METRICS_FILE
        for name, value in (read_json(path).get("references") or {}).items() if path.is_file() else ():
            values.setdefault(name, []).append(float(value))
    return {name: told for name, numbers in values.items() if (told := spread(numbers)) is not None}


def _against(runs: Results) -> list[tuple[Result, dict[str, float]]]:
    references = {name: {run.seed: run for run in others} for name, others in runs.references.items()}
    measured = []
    for run in distinct(run for run in runs if run.finished) if references else []:
        family = run.prefix + "accuracy_matrix"
        tables = {name: others[run.seed].table(family) for name, others in references.items() if run.seed in others}
        measured.append((run, against(run.table(family), tables)))
    return measured


def percent(value: float | Spread | None) -> str:
    """A share as per cent with one decimal, with its interval or its two values where there are several: `87.3 %`.

    Example:
        >>> percent(0.8734), percent(None)
        ('87.3 %', '–')
        >>> from holdfast.metrics.statistics import spread
        >>> percent(spread([0.5, 0.7])), percent(spread([0.5, 0.6, 0.7]))
        ('60.0 (50.0, 70.0) %', '60.0 ± 24.8 %')
    """
    if isinstance(value, Spread):
        return f"{100 * value.mean:.1f}{spread_of(value, 100)} %".replace("-", "−")
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %".replace("-", "−")


def points(value: float | Spread | None) -> str:
    """A difference of shares in points with its sign: `−12.3`."""
    if isinstance(value, Spread):
        return f"{100 * value.mean:+.1f}{spread_of(value, 100)}".replace("-", "−")
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:+.1f}".replace("-", "−")


def number(value: float | Spread | None, digits: int = 4) -> str:
    """A number for reading: thousands apart, so many digits below that, with its interval or its two values.

    Example:
        >>> number(1234567), number(0.123456), number(0.123456, 2), number(None)
        ('1,234,567', '0.1235', '0.12', '–')
    """
    if isinstance(value, Spread):
        if value.runs == 2 and value.low != value.high:
            return f"{number(value.mean)} ({number(value.low)}, {number(value.high)})"
        return number(value.mean) + ("" if not value.half else f" ± {value.half:.2g}")
    if value is None or not np.isfinite(value):
        return "–"
    return (
        f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10.0 ** min(digits, 3) else f"{value:.{digits}g}"
    )


def spread_of(value: Spread, factor: float = 1.0) -> str:
    """What stands behind a mean: ` ± 4.1` (half the 95 % t interval), of two seeds ` (43.1, 69.7)`, of one nothing."""
    if value.half is not None:
        return f" ± {factor * value.half:.1f}"
    return f" ({factor * value.low:.1f}, {factor * value.high:.1f})" if value.runs == 2 else ""


def headline(runs: Sequence[Result], prefix: str, loss_only: bool) -> list[dict[str, str]]:
    """The numbers that matter, kept, learned and forgot: each a `word`, a `value` and a `sentence` that explains it.

    Args:
        runs: of one configuration.
        prefix: of the measures that count for the paradigm (`""` or `"task_aware_"`).
        loss_only: speak of the loss, since there is no accuracy (regression).
    """
    total, learned = int(runs[0].metrics.get("experiences") or 0), min(run.learned for run in runs)
    finished = all(run.finished for run in runs)
    moment = "At the end," if finished else f"So far, after {learned} of {total} experiences,"
    if loss_only:
        kept, gained = measure(runs, "average_loss"), measure(runs, "loss_increase")
        fell = gained is not None and gained.mean < 0
        if gained is not None and fell:
            gained = gained._replace(mean=-gained.mean, low=-gained.high, high=-gained.low)
        return [
            *_in_units(runs),
            headline_item(
                "Kept",
                number(kept),
                f"{moment} this is the mean loss on the experiences learned; lower is better.",
            ),
            headline_item(
                "Forgot nothing, loss fell" if fell else "Forgot",
                number(gained),
                f"The loss on earlier experiences {'fell' if fell else 'grew'} by this much after learning them.",
            ),
        ]
    told = ", told which experience it comes from" if prefix else ""
    return [
        headline_item(
            "Kept",
            percent(measure(runs, prefix + "average_accuracy")),
            f"{moment} this share of the held-out samples is answered right{told}: "
            f"the mean over the experiences learned{_measured_on(runs, prefix)}.",
        ),
        headline_item(
            "Learned",
            percent(measure(runs, prefix + "plasticity")),
            "Just after an experience was learned, this share of its held-out samples was answered right.",
        ),
        _forgot(
            measure(runs, prefix + "forgetting_first"),
            measure(runs, prefix + "forgetting_max"),
            len({event["after"] for event in runs[0].log.of("evaluate") if event["after"] >= 0}) > 1,
        ),
    ]


def _in_units(runs: Sequence[Result]) -> list[dict[str, str]]:
    """How far off a regression is in the units of its target, and the share of the variance that it explains."""
    error, share = measure(runs, "average_absolute_error"), measure(runs, "average_explained_variance")
    items = []
    if error is not None:
        sentence = "At the end, predictions are off by this much on average, in the units of the target."
        items.append(headline_item("Mean error", number(error), sentence))
    if share is not None:
        sentence = "R2: the share of the targets' variance that is explained, mean over experiences; 1 is perfect."
        items.append(headline_item("R2", number(share), sentence))
    return items


def _measured_on(runs: Sequence[Result], prefix: str) -> str:
    """How many test samples the accuracy at the end is of, and for one run its interval from their number alone."""
    events = [event for event in runs[0].log.of("evaluate") if event["after"] >= 0]
    last = max((event["after"] for event in events), default=-1)
    key, split = "correct_task" if prefix else "correct", runs[0].metrics.get("split", "test")
    ended = [
        event
        for event in events
        if event["after"] == last
        and event.get("split", split) == split
        and event.get(key) is not None
        and (runs[0].finished or event["experience"] <= last)
    ]
    count = sum(event["samples"] for event in ended)
    if not count:
        return ""
    if len(runs) > 1:
        return f" ({count:,} samples for each seed)"
    low, high = (100 * edge for edge in mean_share_interval([(event[key], event["samples"]) for event in ended]))
    return f" ({count:,} samples, whose number alone makes it {low:.1f} to {high:.1f} %)"


def _forgot(lost: Spread | None, most: Spread | None, often: bool) -> dict[str, str]:
    if lost is None and not often and most is None:
        sentence = "Not measured: that takes an evaluation after each of several experiences."
        return headline_item("Forgot", "–", sentence)
    if lost is None:
        return headline_item("Forgot", "–", "There is nothing to forget yet: that takes a second experience.")
    gained = lost.mean < 0
    if gained:
        lost = lost._replace(mean=-lost.mean, low=-lost.high, high=-lost.low)
    verb = "gained" if gained else "lost"
    sentence = f"Each earlier experience {verb} this much between the moment it was learned and the end."
    if most is not None:
        best = f"{100 * most.mean:.1f}".replace("-", "−")
        sentence += f" Counted from its best moment, it lost {best} points."
    return headline_item(
        "Forgot nothing, gained" if gained else "Forgot", points(lost).lstrip("+") + " points", sentence
    )


def headline_item(word: str, value: str, sentence: str) -> dict[str, str]:
    """One of the numbers that come first."""
    return {"word": word, "value": value, "sentence": sentence}
