"""What methods need, what each way to train offers, and the sentence where the two do not meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from holdfast.core.errors import NeedError

NEEDS: dict[str, str] = {
    "boundaries": "does something when an experience begins or ends, and this loop never says when that is",
    "data": "goes over an experience's data once more when it ends, and this loop does not hand it over",
    "replacement": "chooses which data an experience is trained on, and this loop chooses its own",
    "stream": "uses the data of every experience, and this loop has only the current one",
    "task": "uses task labels, and this stream has none",
    "progress": "follows how far the experience has come, and this loop has no end to measure against",
    "update": "acts after the optimiser moved, and this loop does not say when that was",
    "batch": "adds rows to the batch before the forward, and this loop's model takes no more rows",
    "criterion": "brings its own loss instead of the default one, and this loop computes its own",
    "classes": "works with class labels, and these targets are not integers",
}
"""Every need, with the sentence that says why a loop without it will not do."""

OFFERS: dict[str, frozenset[str]] = {
    "trainer": frozenset(NEEDS),
    "wrapper, `begin` and `end` called": frozenset(NEEDS),
    "wrapper, `boundary=Every(...)` or `OnNewClass()`": frozenset({"boundaries", "data", "update", "batch", "classes"}),
    "Lightning": frozenset(NEEDS),
    "unlabelled stream": frozenset({"update", "batch", "classes", "criterion"}),
}
"""What each way to train offers; the "Can I use?" table of every method page is this, against its needs."""


def check_needs(
    method: str, needs: Mapping[str, str], offers: Iterable[str], advice: Mapping[str, str] | None = None
) -> None:
    """Raise if a method needs what a loop does not offer.

    Args:
        method: the method's name.
        needs: need -> name of the operation that has it.
        offers: what the loop offers.
        advice: need -> what to write instead, in this loop.

    Raises:
        NeedError: with the first missing need and the sentence that helps.
    """
    offered = set(offers)
    for need, operation in needs.items():
        if need not in offered:
            who = f"`{method}`" if method == operation else f"`{method}` (its operation `{operation}`)"
            help_ = (advice or {}).get(need, "Choose a method that does without: er, der, der_plus_plus, agem.")
            raise NeedError(f"{who} {NEEDS[need]}.\n  {help_}")
