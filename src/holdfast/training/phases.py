"""Where an experience begins and ends in a loop that is not told: said by the user, or found by a boundary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from holdfast.core.boundary import Boundary
from holdfast.core.criteria import ignored_label, labels_in
from holdfast.core.engine import Engine
from holdfast.core.errors import DataError, UsageError
from holdfast.core.experience import Data, Experience, Tree
from holdfast.core.inspect import eval_mode
from holdfast.core.ranks import total_over_ranks
from holdfast.core.services import Criterion, SeenClasses
from holdfast.core.step import Now, Step
from holdfast.memory import Memory, Ring
from holdfast.streams.data import Pairs, TensorData, as_data
from holdfast.training.checks import check_head
from holdfast.training.export import copied
from holdfast.training.ranks import union_over_ranks


class Phases:
    """Opens and closes the experiences of an engine.

    Args:
        engine: whose operations act at boundaries.
        boundary: who finds them; None where the user says so.
        distributed: whether other processes do the same.

    Attributes:
        current: the experience that is open, or None.
        watches_classes: whether the classes of batches must be noted.
    """

    def __init__(self, engine: Engine, boundary: Boundary | None = None, distributed: bool = False) -> None:
        if boundary is not None:
            check_head(engine.learner.head, boundary)
        needs = engine.method.needs
        self.engine = engine
        self.learner = engine.learner
        self.boundary = boundary
        self.distributed = distributed
        self.current: Experience | None = None
        self.watches_classes = bool({"boundaries", "classes"} & set(needs))
        self._reads = bool({"boundaries", "classes", "data", "replacement", "stream"} & set(needs))
        self._before: Any = None
        self._seen: SeenClasses | None = None
        self._per_epoch, self._epochs, self._done = 0, 1, 0
        self._recent: Memory | None = None
        if boundary is not None:
            boundary.bind(self._features)
        if boundary is not None and "data" in needs:
            self._recent = Memory(
                boundary.window, insertion=Ring(), device=engine.learner.device, fill=engine.services.fill
            )

    def _features(self, inputs: Tree) -> Tensor:
        """What enters the head, `[rows, d]`, in eval mode: looking changes no running mean."""
        with eval_mode(self.learner.model):
            return self.engine.services.features(inputs)

    # Said by the user ------------------------------------------------------------------------------------

    def begin(
        self,
        data: Experience | Pairs | None = None,
        *,
        task: int | None = None,
        classes: tuple[int, ...] = (),
        epochs: int = 1,
        batch_size: int | None = None,
        steps: int | None = None,
    ) -> Any:
        """Say that an experience begins; see `Continual.begin`."""
        if self.boundary is not None:
            raise UsageError(
                f"begin() was called, but boundary={self.boundary!r} decides here. Leave one of the two out."
            )
        if self.current is not None:
            raise UsageError("begin() was called twice. Call end() after each experience.")
        if isinstance(data, DataLoader) and steps is None and batch_size is None:
            steps = _length(data)
        ours = isinstance(data, Experience | Data)
        read = ours or self._reads or hasattr(self.learner.head, "grow")
        experience = data if isinstance(data, Experience) else self._wrap(data if read else None, task, classes)
        opened = self._open(experience)
        if steps is None and batch_size is not None:
            steps = -(-len(opened.train) // batch_size)
        if steps is None and "progress" in self.engine.method.needs:
            raise UsageError(
                f"`{self.engine.method.name}` follows how far the experience has come. Call begin(data, epochs=1,"
                " batch_size=32)."
            )
        self._per_epoch, self._epochs, self._done = steps or 0, epochs, 0
        self._tell_progress()
        if data is None or (not ours and opened.train is experience.train):
            return data
        return reloaded(opened.train, data) if isinstance(data, DataLoader) else opened.train

    def end(self, data: Experience | Pairs | None = None) -> None:
        """Say that the experience ended; see `Continual.end`."""
        if self.current is None:
            raise UsageError("end() was called without begin(). Call begin() before an experience's first step.")
        if data is not None:
            self.hand_over(data.train if isinstance(data, Experience) else data)
        needs = self.engine.method.needs
        wanted = "data" in needs and "replacement" not in needs
        if wanted and total_over_ranks(len(self.current.train), self.learner.device) == 0:
            raise UsageError(
                f"`{self.engine.method.name}` goes over an experience's data when it ends, and got none. Pass it:"
                " begin(data) or end(data)."
            )
        self._close()

    def hand_over(self, data: Pairs) -> None:
        """Hand over the data of the open experience."""
        assert self.current is not None
        self.current = dataclasses.replace(self.current, train=checked_data(data))

    def resume(self, experience: Experience) -> Data:
        """Hand the open experience over again after `load` in its middle; see `Continual.resume`."""
        if self.current is None:
            raise UsageError("resume() was called outside of an experience. Call begin(experience) instead.")
        if self._before is None:
            self.current = experience
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

    def cross(self, step: Step, between: bool = True) -> bool:
        """Cross the boundary before `step` if there is one.

        Args:
            step: with its loss, before backward.
            between: whether no other batch was added to the optimiser's step yet; within one nothing is crossed.

        Returns:
            Whether an experience was opened.

        Raises:
            UsageError: if the method changes weights at boundaries, after the forward that this one comes after.
        """
        assert self.boundary is not None
        crossed = between and self.boundary.crossed(step)
        if not crossed and self.current is not None:
            return False
        versions = [p._version for p in self.learner.model.parameters()]  # torch's count of writes: no copy, no compare
        if self.current is not None:
            if self._recent is not None and len(self._recent):
                rows = self._recent.all()
                self.current.train = TensorData(rows["inputs"], rows["targets"])
                self._recent.clear()
            self._close()
        self._open(self._wrap(None, None, ()))
        if versions != [p._version for p in self.learner.model.parameters()]:
            raise UsageError(
                f"`{self.engine.method.name}` changes weights at a boundary, and {self.boundary!r} finds one only after"
                " the forward. Leave boundary out and call begin() and end() yourself."
            )
        return True

    # Either way ------------------------------------------------------------------------------------------

    def _open(self, experience: Experience) -> Experience:
        before = copied(self.engine.state(check=False)) if "replacement" in self.engine.method.needs else None
        self.current, replaced = self.engine.begin(experience)
        self._before = before if replaced else None
        self._seen = None
        return self.current

    def _close(self) -> None:
        assert self.current is not None
        if self._seen is not None and not self.current.classes:
            ignored = ignored_label(self.learner.criterion)
            classes = tuple(label for label in self._seen.mask.nonzero().flatten().tolist() if label != ignored)
            if self.distributed:
                classes = union_over_ranks(classes)
            self.current = dataclasses.replace(self.current, classes=classes)
            self.learner.members[-1] = classes
            self.learner.see_classes(classes)
        self.engine.end(self.current)
        self.current = self._before = None

    def _wrap(self, data: Pairs | None, task: int | None, classes: tuple[int, ...]) -> Experience:
        experience = as_experience(self.learner.experience + 1, data, task, classes, self.learner.criterion)
        if data is not None and self.distributed:
            experience.classes = union_over_ranks(experience.classes)
        return experience

    def see(self, step: Step) -> None:
        """Note the classes of a batch, where nobody announced them, without waiting for the device."""
        outputs, targets = step.outputs, step.targets
        if outputs is None or outputs.dim() < 2 or targets.dtype != torch.int64:
            return
        if outputs.dim() == 2 and targets.dim() == 1:
            width = outputs.shape[1]
        elif outputs.shape[:-1] == targets.shape:
            width, targets = outputs.shape[-1], targets.flatten()
        elif outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            width, targets = outputs.shape[1], targets.flatten()
        else:
            return
        if self.current is None:
            self.engine.services.seen.widen(width)
            self.engine.services.seen.add_targets(targets)
        elif not self.current.classes:
            if self._seen is None:
                self._seen = SeenClasses(targets.device)
            self._seen.widen(width)
            self._seen.add_targets(targets)

    @property
    def keeper(self) -> Callable[[Step], None] | None:
        """Keeps the rows of each step whose gradient is complete, where the data at a boundary is made of them."""
        return None if self._recent is None else self._keep

    def _keep(self, step: Step) -> None:
        assert self._recent is not None
        self._recent.add({"inputs": step.inputs, "targets": step.targets})

    @property
    def recent(self) -> int:
        """How many rows are kept for the next boundary."""
        return 0 if self._recent is None else len(self._recent)

    def advance(self) -> None:
        """Count a step of the optimiser."""
        self._done += 1
        self._tell_progress()

    def _tell_progress(self) -> None:
        index, done, per_epoch = self.engine.index, self._done, self._per_epoch
        if per_epoch:
            progress = min(1.0, done / (per_epoch * self._epochs))
            self.engine.services.now = Now(index, progress, done % per_epoch / max(1, per_epoch - 1))
        else:
            self.engine.services.now = Now(index)

    # State -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What restores it, as tensors and plain values."""
        return {
            "boundary": {} if self.boundary is None else self.boundary.state(),
            "recent": None if self._recent is None else self._recent.state(),
            "inside": self.current is not None,
            "classes": None if self.current is None else list(self.current.classes),
            "seen": None if self._seen is None else self._seen.mask,
            "before": self._before,
            "progress": [self._per_epoch, self._epochs, self._done],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned, into an engine that was restored already."""
        if self.boundary is not None:
            self.boundary.load(state["boundary"])
        if self._recent is not None:
            self._recent.load(state["recent"])
        self.current = None
        if state["inside"]:
            self.current = self._wrap(None, self.learner.task, tuple(state["classes"]))
            self.current.index = self.learner.experience
        self._seen, self._before = None, state["before"]
        if state["seen"] is not None:
            self._seen = SeenClasses(self.learner.device)
            self._seen.mask = state["seen"].to(self.learner.device, copy=True)
        self._per_epoch, self._epochs, self._done = state["progress"]
        if self.current is not None:
            self._tell_progress()


def checked_data(data: Any) -> Data:
    """What `begin` and `end` take, as our data.

    Raises:
        UsageError: with what to give instead, for anything else.
    """
    try:
        return as_data(data)
    except (DataError, UsageError) as error:
        raise UsageError(
            f"an experience's data was given as {type(data).__name__}: {error} begin() and end() take a data set, a"
            " loader or a list of batches (inputs, targets)."
        ) from error


def as_experience(
    index: int, data: Pairs | None, task: int | None, classes: tuple[int, ...], criterion: Criterion | None = None
) -> Experience:
    """An experience of `data`, whose classes are read off it unless they are given; of nothing without data."""
    if data is None:
        data = TensorData(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    data = checked_data(data)
    if not classes and not data.targets.is_floating_point():
        classes = labels_in(data.targets, criterion)
    return Experience(index, data, classes=tuple(classes), task=task)


def reloaded(data: Data, like: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of `data` with the batch size of another one, shuffled if that is: where a method chose other data."""
    shuffles = not isinstance(like.sampler, SequentialSampler)
    rows = range(len(data))
    sampler: Sampler[int] = RandomSampler(rows, generator=like.generator) if shuffles else SequentialSampler(rows)
    batches = BatchSampler(sampler, like.batch_size or 32, like.drop_last)
    return DataLoader(_Rows(data), batch_size=None, sampler=batches, generator=like.generator)


class _Rows(Dataset[Any]):
    """Batches `(inputs, targets)` by the numbers of their rows."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __getitem__(self, rows: list[int]) -> tuple[Tree, Tensor]:
        batch = self.data.gather(torch.tensor(rows))
        return batch.inputs, batch.targets


def _length(loader: DataLoader[Any]) -> int | None:
    """Batches of a loader, where it knows."""
    try:
        return len(loader)
    except TypeError:
        return None
