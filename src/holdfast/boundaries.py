"""Boundaries of an endless stream: those of the core, and the one that a drift detector finds."""

from __future__ import annotations

import inspect
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.boundary import Boundary, Every, OnNewClass
from holdfast.core.errors import ConfigError, needs_extra, unknown
from holdfast.core.mmd import MMD, KernelDetector
from holdfast.core.ranges import Count, guard
from holdfast.core.step import Step
from holdfast.core.tree import Tree

__all__ = ["MMD", "Boundary", "Every", "OnDrift", "OnNewClass"]

Detector = Literal["adwin", "ddm", "page_hinkley", "kswin", "mmd"]
On = Literal["error", "loss", "features", "inputs"]


RIVER = {"adwin": "ADWIN", "ddm": "binary.DDM", "page_hinkley": "PageHinkley", "kswin": "KSWIN"}
"""Detector -> its class in `river.drift`."""


RECENT = 30
"""Values whose mean tells whether errors rise or fall."""


class OnDrift(Boundary):
    """A boundary where a detector finds that the data, or how well they are predicted, have changed.

    The detector looks at every step before the weights move, row by row for `error`, `features` and `inputs`, and once
    a step for `loss`; rows that were trained on before are left out. After an alarm it begins anew, with the rows of
    the step that raised it. Errors and losses that fall are a model that learns, and raise none. It waits for the
    device at every step.

    `adwin` (Bifet and Gavalda 2007), `page_hinkley` (Page 1954), `kswin` (Raab et al. 2020) and `ddm` (Gama et al.
    2004; errors only) are those of river, which the extra `stream` brings; `mmd` is `MMD` over the newest rows. Those
    of river watch one number: the distance of a row's features from those of the first `warm_up` rows, each feature
    divided by its standard deviation there. The features of a model that trains change with it; `inputs` do not.

    Args:
        detector: which one.
        on: what it watches: whether a row was predicted wrongly, the step's loss, the features before the head, or the
            inputs themselves.
        parameters: of the detector, by its own names: `{"delta": 0.01}`.
        warm_up: rows, for a loss steps, before an alarm can come: a model that begins to learn is no drift.
        window: recent samples kept for a pass over the data at the boundary.

    Raises:
        ConfigError: for a parameter that the detector does not have, or `ddm` on something else than errors.
        ImportError: where river is not installed.

    Example:
        >>> OnDrift("mmd", on="inputs", parameters={"window": 40})
        OnDrift(detector='mmd', on='inputs', parameters={'window': 40}, warm_up=100, window=1024)
    """

    check_arguments = {"detector": "mmd", "on": "inputs", "parameters": {"reference": 8, "window": 8}, "warm_up": 4}

    def __init__(
        self,
        detector: Detector = "adwin",
        on: On = "error",
        parameters: dict[str, Any] | None = None,
        warm_up: Count = 100,
        window: Count = 1024,
    ) -> None:
        if detector == "ddm" and on != "error":
            raise ConfigError(f"the detector ddm counts errors, and on is {on!r}. Write on=error, or detector=adwin.")
        self.detector = detector
        self.on = on
        self.parameters = dict(parameters or {})
        self.warm_up = warm_up
        self.window = window
        self._features: Callable[[Tree], Tensor] | None = None
        self._made = self._make()
        self._rows = 0
        self._centre: Tensor | None = None
        self._spread: Tensor | None = None
        self._first: list[Tensor] = []
        self._mean = self._recent = 0.0
        self._counted = 0

    def _make(self) -> Any:
        """A new detector."""
        if self.detector == "mmd":
            kind: Any = KernelDetector
        else:
            try:
                from river import drift
            except ImportError as error:
                raise needs_extra(f"the drift detector {self.detector}", "river", "stream") from error
            kind = drift
            for part in RIVER[self.detector].split("."):
                kind = getattr(kind, part)
        taken = [name for name in inspect.signature(kind).parameters if name != "window" or self.detector == "mmd"]
        for name in self.parameters:
            if name not in taken:
                raise ConfigError(unknown(f"parameter of the detector {self.detector}", name, taken))
        usual: dict[str, Any] = {"seed": 0} if "seed" in taken else {}
        if self.detector == "page_hinkley":
            usual["mode"] = "up"
        try:
            return kind(**{**usual, **self.parameters})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the detector {self.detector} refuses {self.parameters}: {error}.") from error

    def bind(self, features: Callable[[Tree], Tensor]) -> None:
        """See `Boundary.bind`."""
        self._features = features if self.on == "features" else None

    def crossed(self, step: Step) -> bool:
        """True where the detector raises an alarm at `step`."""
        values = self._values(step)
        if values is None or not len(values):
            return False
        self._rows += len(values)
        if not self._alarm(values):
            return False
        if self._rows <= self.warm_up:
            return False
        self._made, self._rows = self._make(), len(values)
        self._centre = self._spread = None
        self._first.clear()
        self._counted = 0
        self._alarm(values)
        return True

    def _values(self, step: Step) -> Tensor | None:
        """What is watched, `[rows]` or `[rows, d]`."""
        if self.on == "loss":
            return step.loss.detach().reshape(1)
        keep = slice(None) if step.fresh is None else step.fresh.to(step.targets.device)
        if self.on == "error":
            if step.targets.is_floating_point() or step.outputs is None or step.outputs.dim() != 2:
                raise ConfigError(
                    "on_drift watches errors, and these targets are no classes. Write on=loss, or on=inputs."
                )
            return (step.outputs.detach().argmax(1) != step.targets)[keep].float()
        if self.on == "inputs":
            leaves = step.inputs
            if not isinstance(leaves, Tensor):
                leaves = torch.cat(
                    [x.flatten(1) for x in (leaves.values() if isinstance(leaves, Mapping) else leaves)], 1
                )
            return leaves.detach()[keep].flatten(1).float()
        if self._features is None:
            raise ConfigError("on_drift watches features, and nothing has given it the model. Train by StreamTrainer.")
        with torch.no_grad():
            return self._features(step.inputs).detach()[keep].flatten(1).float()

    def _alarm(self, values: Tensor) -> bool:
        """Update the detector, and whether it raised an alarm at any of the values."""
        if self.detector == "mmd":
            self._made.update(values)
            return bool(self._made.drift_detected)
        if values.dim() > 1:
            numbers = self._distances(values.cpu())
            if numbers is None:
                return False
            values = numbers
        alarm = False
        for value in values.tolist():
            self._made.update(bool(value) if self.detector == "ddm" else value)
            self._count(value)
            if self._made.drift_detected:
                alarm = alarm or self.on not in ("error", "loss") or self._recent > self._mean
                self._counted = 0
        return alarm

    def _count(self, value: float) -> None:
        """Follow the mean since the detector began, and that of about the last `RECENT` values."""
        self._counted += 1
        if self._counted == 1:
            self._mean = self._recent = value
        self._mean += (value - self._mean) / self._counted
        self._recent += (value - self._recent) / min(self._counted, RECENT)

    def _distances(self, rows: Tensor) -> Tensor | None:
        """`[rows]` mean squared distance from the first rows in standard deviations; None while these are gathered."""
        if self._centre is None or self._spread is None:
            self._first.append(rows)
            first = torch.cat(self._first)
            if len(first) < self.warm_up:
                return None
            self._centre, self._spread = first.mean(0), first.std(0).clamp_min(1e-6)
            self._first.clear()
            rows = first
        return ((rows - self._centre) / self._spread).square().mean(1)

    def reason(self) -> dict[str, Any]:
        """Which detector raised the last alarm, on what."""
        return {"detector": self.detector, "on": self.on}

    # State -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The detector's own state as plain values and tensors, and the rows seen since it began."""
        return {
            "detector": _saved(self._made),
            "rows": self._rows,
            "means": [self._mean, self._recent, self._counted],
            "centre": self._centre,
            "spread": self._spread,
            "first": [rows.clone() for rows in self._first],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._made = self._make()
        _restore(self._made, state["detector"])
        self._rows = int(state["rows"])
        self._mean, self._recent, self._counted = state["means"]
        self._centre, self._spread = state["centre"], state["spread"]
        self._first = [rows.clone() for rows in state["first"]]

    def __repr__(self) -> str:
        return (
            f"OnDrift(detector={self.detector!r}, on={self.on!r}, parameters={self.parameters!r},"
            f" warm_up={self.warm_up}, window={self.window})"
        )


guard(OnDrift)


def _saved(value: Any) -> Any:
    """An object of river's, or of ours, as values that a checkpoint can hold: no code comes back from one."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, deque | list | tuple):
        return {"values": [_saved(item) for item in value]}
    if isinstance(value, random.Random):
        version, numbers, gauss = value.getstate()
        return {"random": [version, torch.tensor(numbers), gauss]}
    if hasattr(value, "dtype") and hasattr(value, "item"):  # a number of NumPy's
        return value.item()
    if hasattr(value, "__dict__"):
        return {"object": {name: _saved(item) for name, item in vars(value).items() if not callable(item)}}
    packed = value.__getstate__()
    return {"bytes": torch.frombuffer(bytearray(packed), dtype=torch.uint8).clone()}


def _restore(target: Any, saved: Mapping[str, Any]) -> None:
    """Give a new object the values that `_saved` took of another one."""
    for name, item in saved["object"].items():
        now = vars(target).get(name)
        if not isinstance(item, Mapping):
            setattr(target, name, item)
        elif "values" in item:
            values = list(item["values"])
            setattr(target, name, deque(values, now.maxlen) if isinstance(now, deque) else values)
        elif "random" in item:
            version, numbers, gauss = item["random"]
            now.setstate((version, tuple(numbers.tolist()), gauss))  # type: ignore[union-attr]
        elif "bytes" in item:
            now.__setstate__(bytes(item["bytes"].tolist()))  # type: ignore[union-attr]
        else:
            _restore(now, item)
