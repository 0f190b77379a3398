"""How a report says its numbers: per cent, points, plain numbers, and the three that come first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from holdfast.runs.report_data import Run, Spread, measure


def percent(value: float | Spread | None) -> str:
    """A share as per cent with one decimal, with its standard error where there are several: `87.3 %`.

    Example:
        >>> percent(0.8734), percent(None)
        ('87.3 %', '–')
    """
    if isinstance(value, Spread):
        error = "" if value.error is None else f" ± {100 * value.error:.1f}"
        return f"{100 * value.mean:.1f}{error} %".replace("-", "−")
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %".replace("-", "−")


def points(value: float | Spread | None) -> str:
    """A difference of shares in points with its sign: `−12.3`."""
    if isinstance(value, Spread):
        error = "" if value.error is None else f" ± {100 * value.error:.1f}"
        return f"{100 * value.mean:+.1f}{error}".replace("-", "−")
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:+.1f}".replace("-", "−")


def number(value: float | Spread | None) -> str:
    """A number for reading: thousands apart, four digits below that, with its standard error.

    Example:
        >>> number(1234567), number(0.123456), number(None)
        ('1,234,567', '0.1235', '–')
    """
    if isinstance(value, Spread):
        return number(value.mean) + ("" if not value.error else f" ± {number(value.error)}")
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


def headline(runs: Sequence[Run], prefix: str, loss_only: bool) -> list[dict[str, str]]:
    """The numbers that matter, kept, learned and forgot: each a `word`, a `value` and a `sentence` that explains it.

    Args:
        runs: of one configuration.
        prefix: of the measures that count for the paradigm (`""` or `"task_aware_"`).
        loss_only: speak of the loss, since there is no accuracy (regression).
    """
    total, learned = int(runs[0].metrics.get("experiences") or 0), min(run.learned for run in runs)
    finished = all(run.metrics.get("finished") for run in runs)
    moment = "At the end," if finished else f"So far, after {learned} of {total} experiences,"
    if loss_only:
        kept, gained = measure(runs, "average_loss"), measure(runs, "loss_increase")
        return [
            _item("Kept", number(kept), f"{moment} this is the mean loss on the experiences learned; lower is better."),
            _item("Forgot", number(gained), "The loss on earlier experiences grew by this much after learning them."),
        ]
    told = ", told which experience it comes from" if prefix else ""
    return [
        _item(
            "Kept",
            percent(measure(runs, prefix + "average_accuracy")),
            f"{moment} this share of the held-out samples is answered right{told}: "
            "the mean over the experiences learned.",
        ),
        _item(
            "Learned",
            percent(measure(runs, prefix + "plasticity")),
            "Just after an experience was learned, this share of its held-out samples was answered right.",
        ),
        _forgot(measure(runs, prefix + "forgetting_first"), measure(runs, prefix + "forgetting_max")),
    ]


def _forgot(lost: Spread | None, most: Spread | None) -> dict[str, str]:
    if lost is None:
        return _item("Forgot", "–", "There is nothing to forget yet: that takes a second experience.")
    gained = lost.mean < 0
    value = points(Spread(abs(lost.mean), lost.error, lost.runs)).lstrip("+") + " points"
    verb = "gained" if gained else "lost"
    sentence = f"Each earlier experience {verb} this much between the moment it was learned and the end."
    if most is not None:
        best = f"{100 * most.mean:.1f}".replace("-", "−")
        sentence += f" Counted from its best moment, it lost {best} points."
    return _item("Forgot" if not gained else "Forgot nothing, gained", value, sentence)


def _item(word: str, value: str, sentence: str) -> dict[str, str]:
    return {"word": word, "value": value, "sentence": sentence}
