"""The events of a run, and the window of training steps that the next one is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.core.experience import Stream
from holdfast.core.learner import Learner
from holdfast.core.memory import Memory
from holdfast.training.divergence import OnDivergence, Watch
from holdfast.training.progress import State


class Tally(Protocol):
    """Sums over steps that leave neither outputs nor losses behind."""

    @property
    def right(self) -> int | None:
        """Samples predicted right since the last reading; None without classes."""

    def read(self) -> tuple[dict[str, float], int | None, int, int]:
        """Sums of the terms, samples predicted right (None without classes), samples and steps; starts anew."""


class Window:
    """Losses and accuracy of the steps since the last reading: kept as tensors on the device, read once a window.

    Args:
        learner: whose logged scalars are read.

    Attributes:
        steps: in the window.
        first: the largest loss, or term of a loss, of the very first step; None before the first reading.
        right: samples of all windows read so far that were predicted right; None before any had classes.
        tally: of steps that were run as recorded; None where none are.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self.steps = 0
        self.first: float | None = None
        self.right: int | None = None
        self.tally: Tally | None = None

    def add(self, outputs: Tensor | None, targets: Tensor, fresh: Tensor | None = None) -> None:
        """Keep one step's outputs and targets, of the rows that are `fresh`; nothing is computed yet."""
        if outputs is not None and outputs.dim() == 2 and not targets.is_floating_point():
            if fresh is not None:
                outputs, targets = outputs[fresh.to(outputs.device)], targets[fresh.to(targets.device)]
            self._outputs.append(outputs.detach())
            self._targets.append(targets)
        self.steps += 1

    def read(self) -> dict[str, Any]:
        """Means over the window, as floats: `loss`, `accuracy` and `terms`; empties it."""
        sums = {name: _weighted_sum(values) for name, values in self._learner.logged.items()}
        more, right, rows, steps = ({}, None, 0, 0) if self.tally is None else self.tally.read()
        if self.first is None and self.steps:
            logged = [values[0][0] for values in self._learner.logged.values() if len(values) == self.steps - steps]
            self.first = max((abs(float(value)) for value in logged), default=None)
        terms = {name: (sums.get(name, 0.0) + more.get(name, 0.0)) / self.steps for name in {**sums, **more}}
        hits, accuracy = self._hits(), None
        if hits is not None and right is None:
            accuracy = hits.float().mean().item() if len(hits) else None
            self.right = (self.right or 0) + int(hits.sum())
        elif right is not None:
            right_rows = right + (0 if hits is None else int(hits.sum()))
            accuracy = float(torch.tensor(right_rows).float() / (rows + (0 if hits is None else len(hits))))
            self.right = (self.right or 0) + right_rows
        self._learner.logged.clear()
        self._outputs.clear()
        self._targets.clear()
        self.steps = 0
        return {"loss": terms.get("loss"), "accuracy": accuracy, "terms": terms}

    def load(self, right: int | None) -> None:
        """Begin an empty window, after so many right predictions."""
        self.right, self.steps = right, 0
        self._learner.logged.clear()
        self._outputs.clear()
        self._targets.clear()

    def right_so_far(self) -> int | None:
        """`right`, with the steps that were not read yet."""
        hits, more = self._hits(), None if self.tally is None else self.tally.right
        if hits is None and more is None:
            return self.right
        return (self.right or 0) + (more or 0) + (0 if hits is None else int(hits.sum()))

    def _hits(self) -> Tensor | None:
        """`[samples]` bool: whether the class of the largest output is the target."""
        if not self._outputs:
            return None
        if len({outputs.shape[1] for outputs in self._outputs}) > 1:  # outputs grew within the window
            pairs = zip(self._outputs, self._targets)
            return torch.cat([outputs.argmax(1) == targets for outputs, targets in pairs])
        return torch.cat(self._outputs).argmax(1) == torch.cat(self._targets)


def _weighted_sum(values: list[tuple[Tensor, float]]) -> float:
    tensors = torch.stack([value for value, _ in values]).double()
    return float(
        tensors.dot(torch.tensor([factor for _, factor in values], dtype=torch.float64, device=tensors.device))
    )


class Stand(Protocol):
    """Where a training stands: `training.session.Position`, which this file does not know."""

    experience: int
    step: int


class Records:
    """Keeps every event, and passes it on.

    Args:
        record: called with each event, a mapping of plain values.
        learner: whose steps are in the window.
        on_divergence: what happens where the losses or the weights show that the training diverged.
        keep: whether events are kept in memory too; without end nobody could hold them all.
        answers: whether the method answers in its own way, so that losses of its answers tell nothing of the training.

    Attributes:
        events: those that were kept.
        latest: the newest `train` event; empty before.
        window: the steps since the last `train` event.
    """

    def __init__(
        self,
        record: Callable[[dict[str, Any]], None] | None,
        learner: Learner,
        on_divergence: OnDivergence = "stop",
        keep: bool = True,
        answers: bool = False,
    ) -> None:
        self.record = record
        self.keep = keep
        self.events: list[dict[str, Any]] = []
        self.latest: dict[str, Any] = {}
        self.window = Window(learner)
        self._watch = Watch(learner.model, on_divergence, answers)

    def state(self, position: Stand, stream: Stream | None, total: int | None, share: float) -> State:
        """The position for a reader.

        Args:
            position: where the training stands.
            stream: of experiences; None for a source.
            total: batches of the experience, or of the source; None if unknown.
            share: of the current experience that is done, or of the source.
        """
        whole = share if total else None
        if stream is not None:
            sizes = [len(one.train) for one in stream]
            whole = (sum(sizes[: position.experience]) + share * sizes[position.experience]) / max(1, sum(sizes))
        latest = self.latest.get("loss"), self.latest.get("accuracy")
        count = None if stream is None else len(stream)
        return State(position.step, total, whole, position.experience + 1, count, *latest)

    def accuracy(self, after: int, task_aware: bool) -> float | None:
        """The mean accuracy on the test data of what was learned up to experience `after`; None without any."""
        key, shares = "correct_task" if task_aware else "correct", []
        for event in reversed(self.events):
            if event["event"] == "evaluate" and event["after"] != after:
                break
            if event["event"] == "evaluate" and event["split"] == "test" and event["experience"] <= after:
                shares += [] if event[key] is None else [event[key] / event["samples"]]
        return sum(shares) / len(shares) if shares else None

    def write(self, **event: Any) -> None:
        """Keep one event.

        Raises:
            Diverged: if it shows that the training diverged, and is to stop then.
        """
        if self.keep:
            self.events.append(event)
        if event["event"] == "train":
            self.latest = event
        if self.record is not None:
            self.record(event)
        noticed = self._watch.notice(event, self.window.first)
        if noticed is not None:
            self.write(**noticed)
            self._watch.stop(noticed)


def classes_in(memory: Memory) -> dict[str, int]:
    """How many samples of each class a memory holds; empty where it holds none with a class."""
    column = getattr(memory, "column", None)  # a user's own memory need not have columns
    if column is None or not len(memory):
        return {}
    try:
        targets = column("targets")
    except (DataError, KeyError):  # it keeps something else, or knows no columns
        return {}
    if targets.dim() != 1 or targets.is_floating_point():
        return {}
    labels, counts = targets.unique(return_counts=True)
    return {str(label): count for label, count in zip(labels.tolist(), counts.tolist())}


def remembered(parts: list[dict[str, int]]) -> dict[str, dict[str, int]]:
    """The counts of all processes as an entry of an event; nothing if there are none."""
    total: dict[str, int] = {}
    for part in parts:
        for label, count in part.items():
            total[label] = total.get(label, 0) + count
    return {"memory_classes": dict(sorted(total.items(), key=lambda one: int(one[0])))} if total else {}


def mean_window(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One window of all processes together; a term that a process did not log counts as zero there."""
    if len(parts) == 1:
        return parts[0]
    names = list(dict.fromkeys(name for part in parts for name in part["terms"]))
    terms = {name: sum(part["terms"].get(name, 0.0) for part in parts) / len(parts) for name in names}
    right = [part["accuracy"] for part in parts if part["accuracy"] is not None]
    return {"loss": terms.get("loss"), "accuracy": sum(right) / len(right) if right else None, "terms": terms}
