"""Where an experience begins and ends in a loop that is not ours: said by the user, or found by a boundary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.boundary import Boundary
from holdfast.core.errors import UsageError
from holdfast.core.experience import Data, Experience
from holdfast.core.ranks import total_over_ranks
from holdfast.core.step import Step
from holdfast.memory import Memory, Ring
from holdfast.streams.data import TensorData
from holdfast.training.agreement import union_over_ranks
from holdfast.training.checks import Parameters, check_head
from holdfast.training.export import copied
from holdfast.training.forwards import Forwards
from holdfast.training.given import as_experience, checked_data


class Experiences(Forwards):
    """What `Continual` does at boundaries.

    Attributes:
        boundary: who finds them; None where the user says so.
    """

    boundary: Boundary | None

    def _watch_for(self, boundary: Boundary | None) -> None:
        """Start outside of any experience."""
        if boundary is not None:
            check_head(self.learner.head, boundary)
        self.boundary = boundary
        self._parameters = Parameters(self.learner)
        self._needs_classes = bool({"boundaries", "classes"} & set(self.method.needs))
        self._experience: Experience | None = None
        self._before: Any = None
        self._seen: Tensor | None = None
        self._watchful = 3
        self._per_epoch, self._epochs, self._done = 0, 1, 0
        self._recent: Memory | None = None
        if boundary is not None and "data" in self.method.needs:
            self._recent = Memory(boundary.window, insertion=Ring(), device=self.learner.device)

    # Said by the user ------------------------------------------------------------------------------------

    def begin(
        self,
        data: Experience | Data | None = None,
        *,
        task: int | None = None,
        classes: tuple[int, ...] = (),
        epochs: int = 1,
        batch_size: int | None = None,
        steps: int | None = None,
    ) -> Data | None:
        """Say that an experience begins.

        Args:
            data: an experience of a stream, or the data itself, for methods that choose or go over it.
            task: its task label, if it has one.
            classes: its classes, if the model's head must grow; read off the data where it is given.
            epochs: passes over the data, for methods that follow the progress.
            batch_size: rows per optimiser step, likewise; or
            steps: optimiser steps per pass.

        Returns:
            The data to train on: what was given, unless the method chose otherwise.
        """
        if self.boundary is not None:
            raise UsageError(
                f"begin() was called, but boundary={self.boundary!r} decides here. Leave one of the two out."
            )
        if self._experience is not None:
            raise UsageError("begin() was called twice. Call end() after each experience.")
        self._parameters.check()
        experience = data if isinstance(data, Experience) else self._wrap(data, task, classes)
        opened = self._open(experience)
        if steps is None and batch_size is not None:
            steps = -(-len(opened.train) // batch_size)
        if steps is None and "progress" in self.method.needs:
            raise UsageError(
                f"`{self.method.name}` follows how far the experience has come. Call begin(data, epochs=1,"
                " batch_size=32)."
            )
        self._per_epoch, self._epochs, self._done = steps or 0, epochs, 0
        self.learner.progress = self.learner.epoch_progress = None
        if self._per_epoch:
            self._tell_progress()
        return None if data is None else opened.train

    def end(self, data: Experience | Data | None = None) -> None:
        """Say that the experience ended, before its model is evaluated or the next one begins.

        Args:
            data: the experience's data, if `begin` did not get it and the method goes over it.
        """
        if self._experience is None:
            raise UsageError("end() was called without begin(). Call begin() before an experience's first step.")
        if data is not None:
            train = data.train if isinstance(data, Experience) else checked_data(data)
            self._experience = dataclasses.replace(self._experience, train=train)
        wanted = "data" in self.method.needs and "replacement" not in self.method.needs
        if wanted and total_over_ranks(len(self._experience.train), self.learner.device) == 0:
            raise UsageError(
                f"`{self.method.name}` goes over an experience's data when it ends, and got none. Pass it:"
                " begin(data) or end(data)."
            )
        self._close()

    def resume(self, experience: Experience) -> Data:
        """Hand the current experience over again after `load_state_dict` in its middle.

        Returns:
            The data to train on, as `begin` returned it.
        """
        if self._experience is None:
            raise UsageError("resume() was called outside of an experience. Call begin(experience) instead.")
        if self._before is None:
            self._experience = experience
            return experience.train
        state, before = copied(self.engine.state(check=False)), self._before
        progress = self._per_epoch, self._epochs, self._done
        older = copied(before)
        now = self.learner.model.state_dict()  # outputs that grew since stay, as they are in the optimiser
        older["learner"]["model"] = {**now, **older["learner"]["model"]}
        self.engine.load(older)
        opened = self._open(experience)
        self.engine.load(state)
        self._before = before
        self._per_epoch, self._epochs, self._done = progress
        return opened.train

    # Found by a boundary ---------------------------------------------------------------------------------

    def _watch(self, step: Step, between: bool) -> None:
        """Cross the boundary before `step` if there is one; `between` steps of the optimiser only."""
        assert self.boundary is not None
        crossed = between and self.boundary.crossed(step)
        if not crossed and self._experience is not None:
            return
        versions = [p._version for p in self.learner.model.parameters()]
        if self._experience is not None:
            if self._recent is not None and len(self._recent):
                rows = self._recent.all()
                self._experience.train = TensorData(rows["inputs"], rows["targets"])
                self._recent.clear()
            self._close()
        self._open(self._wrap(None, None, ()))
        if versions != [p._version for p in self.learner.model.parameters()]:
            raise UsageError(
                f"`{self.method.name}` changes weights at a boundary, and {self.boundary!r} finds one only after the"
                " forward. Leave boundary out and call begin() and end() yourself."
            )

    # Either way ------------------------------------------------------------------------------------------

    def _open(self, experience: Experience) -> Experience:
        busy, self._busy = self._busy, True
        before = copied(self.engine.state(check=False)) if "replacement" in self.method.needs else None
        try:
            self._experience, replaced = self.engine.begin(experience)
        finally:
            self._busy = busy
        self._before = before if replaced else None
        self._watchful = 3
        self._seen = None
        return self._experience

    def _close(self) -> None:
        assert self._experience is not None
        busy, self._busy = self._busy, True
        if self._seen is not None and not self._experience.classes:
            classes = tuple(self._seen.nonzero().flatten().tolist())
            if self._distributed:
                classes = union_over_ranks(classes)
            self._experience = dataclasses.replace(self._experience, classes=classes)
            self.learner.members[-1] = classes
            self.learner.see_classes(classes)
        try:
            self.engine.end(self._experience)
        finally:
            self._busy = busy
        self._experience = self._before = None

    def _wrap(self, data: Data | None, task: int | None, classes: tuple[int, ...]) -> Experience:
        experience = as_experience(self.learner.experience + 1, data, task, classes)
        if data is not None and self._distributed:
            experience.classes = union_over_ranks(experience.classes)
        return experience

    def _see(self, step: Step) -> None:
        """Note the classes of a batch, where nobody announced them, without waiting for the device."""
        outputs, targets = step.outputs, step.targets
        if outputs is None or outputs.dim() != 2 or targets.dtype != torch.int64 or targets.dim() != 1:
            return
        width = outputs.shape[1]
        if self._experience is None:
            self.learner.see_width(width)
            self.learner.see_targets(targets)
        elif not self._experience.classes:
            if self._seen is None or len(self._seen) < width:
                seen = torch.zeros(width, dtype=torch.bool, device=targets.device)
                if self._seen is not None:
                    seen[: len(self._seen)] = self._seen
                self._seen = seen
            self._seen.index_fill_(0, targets, True)

    def _tell_progress(self) -> None:
        self.learner.progress = min(1.0, self._done / (self._per_epoch * self._epochs))
        self.learner.epoch_progress = self._done % self._per_epoch / max(1, self._per_epoch - 1)

    # State -----------------------------------------------------------------------------------------------

    def _experience_state(self) -> dict[str, Any]:
        return {
            "boundary": {} if self.boundary is None else self.boundary.state(),
            "recent": None if self._recent is None else self._recent.state(),
            "inside": self._experience is not None,
            "classes": None if self._experience is None else list(self._experience.classes),
            "seen": self._seen,
            "before": self._before,
            "progress": [self._per_epoch, self._epochs, self._done],
        }

    def _load_experience_state(self, state: Mapping[str, Any]) -> None:
        if self.boundary is not None:
            self.boundary.load(state["boundary"])
        if self._recent is not None:
            self._recent.load(state["recent"])
        self._experience = None
        if state["inside"]:
            self._experience = self._wrap(None, self.learner.task, tuple(state["classes"]))
            self._experience.index = self.learner.experience
        self._seen, self._before = copied(state["seen"]), state["before"]
        self._per_epoch, self._epochs, self._done = state["progress"]
        if self._per_epoch and self._experience is not None:
            self._tell_progress()
