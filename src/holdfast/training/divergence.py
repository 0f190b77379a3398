"""Whether a training has diverged: a loss or a weight that is not finite, or a loss a thousand times its start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from holdfast.core.errors import ConfigError, Diverged

OnDivergence = Literal["stop", "go_on"]

FACTOR = 1000.0
"""A loss so many times that at the start is no loss that training will mend."""

LOOK = 10
"""In which of so many log windows the weights are looked at."""

LEAST = 0.1
"""A start below this counts as this: the loss of a model that knows its first data already is no measure."""

ADVICE = (
    "Give a smaller learning rate, clip gradients (trainer.clip_norm), give the method a smaller strength, or, where"
    " targets are numbers, bring them near 1;"
    " trainer.on_divergence=go_on trains on regardless."
)


class Watch:
    """Looks at the events of a run, so once a log window and once an evaluation and at no step in between.

    Losses are looked at each time, weights in each tenth window and where an experience begins or ends: a weight that
    takes part in a loss shows there at once.

    The start is the largest of the losses of the first step (in this process, if training was resumed) and of those
    measured before training; it is compared with means over a window. An evaluation counts only on the experience
    learned last: methods that mask classes give infinite losses on others, and nothing is wrong.

    Args:
        model: whose weights must stay finite.
        on_divergence: whether to `stop`, or to `go_on` and record it once.
        answers: whether the method answers in its own way (distances to means, say): a class that it cannot answer with
            has a huge loss then, and evaluations are not looked at.

    Raises:
        ConfigError: for another word.
    """

    def __init__(self, model: nn.Module, on_divergence: OnDivergence = "stop", answers: bool = False) -> None:
        if on_divergence not in ("stop", "go_on"):
            raise ConfigError(f"the trainer got on_divergence={on_divergence!r}. Choose stop or go_on.")
        self.model = model
        self.on_divergence = on_divergence
        self.answers = answers
        self._start = LEAST
        self._trained = False
        self._noticed = False
        self._windows = 0
        self._experience: Any = None

    def notice(self, event: Mapping[str, Any], first: float | None = None) -> dict[str, Any] | None:
        """The event that says that training diverged, if `event` shows that it has and that was not said before.

        Args:
            event: a `train` or `evaluate` event, with its numbers as they are; others say nothing.
            first: the largest loss of the first step; None where it is not known: the first window's count instead.
        """
        reason = "" if self._noticed else self._reason(event, first)
        if not reason:
            return None
        self._noticed = True
        about = {"experience": event.get("experience"), "step": event.get("step")}
        return {"event": "diverged", **about, "reason": f"{reason}."}

    def stop(self, noticed: Mapping[str, Any]) -> None:
        """Stop, where that is asked for.

        Raises:
            Diverged: with the reason and what to do.
        """
        if self.on_divergence == "stop":
            raise Diverged(f"{noticed['reason']} {ADVICE}")

    def _reason(self, event: Mapping[str, Any], first: float | None) -> str:
        if event["event"] == "evaluate":
            return self._evaluated(event)
        if event["event"] == "experience":
            where = f"after experience {event.get('experience')}"
            return "" if finite(self.model) else f"a weight is not finite {where}"
        if event["event"] != "train":
            return ""
        moment = f"at step {event.get('step')}"
        losses = {"loss": event.get("loss"), **(event.get("terms") or {})}
        present = {name: float(value) for name, value in losses.items() if value is not None}
        for name, value in present.items():
            if not math.isfinite(value):
                return f"the {_told(name)} is not finite {moment}"
        if not self._trained:
            self._trained = True
            self._raise_start(*(present.values() if first is None else [first]))
        largest = max(present, key=lambda name: abs(present[name]), default="")
        if largest and (value := abs(present[largest])) > FACTOR * self._start:
            return f"the {_told(largest)} is {value:.3g} {moment}, {self._times(value)}"
        self._windows += 1
        looked = self._windows % LOOK == 1 or event.get("experience") != self._experience
        self._experience = event.get("experience")
        return f"a weight is not finite {moment}" if looked and not finite(self.model) else ""

    def _evaluated(self, event: Mapping[str, Any]) -> str:
        loss = event.get("loss")
        if loss is None or self.answers:
            return ""
        if event["after"] < 0:
            self._raise_start(loss)
            return ""
        if event["after"] != event["experience"]:
            return ""
        where = f"on the {event.get('split', 'test')} data of experience {event['experience']}, just learned"
        if not math.isfinite(loss):
            return f"the loss is not finite {where}"
        if self._trained and abs(loss) > FACTOR * self._start:
            return f"the loss is {loss:.3g} {where}, {self._times(abs(loss))}"
        return ""

    def _raise_start(self, *losses: float) -> None:
        self._start = max(self._start, *(abs(loss) for loss in losses if math.isfinite(loss)), 0.0)

    def _times(self, value: float) -> str:
        return f"{value / self._start:.3g} times the loss at the start"


def finite(model: nn.Module) -> bool:
    """Whether every weight is a finite number; one transfer from the device, unless one is not."""
    weights = [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in model.parameters()]
    if not weights:
        return True
    # A sum over NaN or infinity is not finite, at a tenth of the cost of a norm; but finite numbers may overflow.
    sums = torch.stack([weight.sum().to(weights[0].device, torch.float64) for weight in weights])
    return bool(sums.isfinite().all()) or all(bool(weight.isfinite().all()) for weight in weights)


def _told(name: str) -> str:
    return "loss" if name == "loss" else f"loss term {name}"
