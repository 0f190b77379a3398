"""Memories that hold chosen samples or the samples of each experience, behind the face of a `Memory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.decide import decide
from holdfast.core.experience import Tree, tree_map
from holdfast.core.tree import Fill, flatten, join, restore
from holdfast.memory.exemplars import ExemplarSets
from holdfast.memory.insertion import Ring
from holdfast.memory.memory import Memory
from holdfast.memory.retrieval import Retrieval

Selection = Literal["herding", "random", "closest"]


class ExemplarMemory:
    """Exemplar sets behind the face of a `Memory`: it can be drawn from, listed, saved, but not added to row by row.

    With `by="class"` a class has one set: where it comes again, the set is chosen anew among its exemplars and what
    arrived. With `by="experience"` it gets one more set, so that `per_class` counts per class and experience, and
    `capacity` is shared by all sets.

    Args:
        capacity: samples in all; or
        per_class: samples of each class (of each experience).
        selection: which samples are kept.
        by: what a set belongs to.
        generator: CPU generator for the selection "random".
        device: where samples are kept.
        gives: the device that samples are drawn to; None leaves them where they are kept.
    """

    def __init__(
        self,
        capacity: int | None = None,
        per_class: int | None = None,
        selection: Selection = "herding",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        by: Literal["class", "experience"] = "experience",
        gives: torch.device | None = None,
    ) -> None:
        self.by = by
        self._labels: list[int] = []  # the class of each set, in the order in which they came
        self._sets = ExemplarSets(capacity, per_class, selection, by="experience", generator=generator)
        self._device = None if device is None else torch.device(device)
        self._gives = None if gives == self._device else gives
        self._columns: dict[str, Tensor] | None = None
        self._count: int | None = None

    def choose(
        self, rows: Mapping[str, Tree], features: Tensor, label: int | None = None, size: int | None = None
    ) -> None:
        """Choose the exemplars of one more class, and shrink the other sets to make room.

        Args:
            rows: all samples of one class of one experience, fields by name; with `by="class"` its exemplars too.
            features: `[samples, d]` of the same samples; for the selection "random" only their number counts.
            label: the class, with `by="class"`.
            size: exemplars of it instead of `per_class`.
        """
        if self._gives is not None:
            rows = {name: tree_map(lambda leaf: leaf.to(self._device), tree) for name, tree in rows.items()}
        key = len(self._sets.keys)
        if self.by == "class" and label is not None:
            if label not in self._labels:
                self._labels.append(label)
            key = self._labels.index(label)
        self._sets.update(key, rows, features, size)
        self._columns = self._count = None

    def of(self, label: int) -> dict[str, Tree]:
        """A copy of the exemplars of a class; empty where it has none, or sets belong to experiences."""
        return self._sets.rows(self._labels.index(label)) if label in self._labels else {}

    def all(self) -> dict[str, Tree]:
        """A copy of all exemplars, by experience and class, the most important of each set first."""
        return {name: self._given(tree) for name, tree in self._sets.all().items()}

    def _given(self, tree: Tree) -> Tree:
        return tree if self._gives is None else tree_map(lambda leaf: leaf.to(self._gives), tree)

    def draw(self, size: int, retrieval: Retrieval) -> dict[str, Tree] | None:
        """`size` exemplars, or all if fewer are held, as `Memory.draw`; None if there are none."""
        if not len(self):
            return None
        chosen = decide(lambda: retrieval.indices(len(self), min(size, len(self)), self), self._device)
        drawn = {name: value.index_select(0, chosen) for name, value in self._all().items()}
        return {name: self._given(tree) for name, tree in restore(drawn, self._sets.structure).items()}

    def column(self, name: str) -> Tensor:
        """`[len(self), ...]` one column of all exemplars, to look at only."""
        return self._all()[name]

    @property
    def arrivals(self) -> Tensor:
        """`[len(self)]` the order in which exemplars were chosen."""
        return torch.arange(len(self), device=self.device)

    @property
    def device(self) -> torch.device | None:
        """Where exemplars are kept; None until known."""
        return self._device

    def __len__(self) -> int:
        if self._count is None:  # counted once an experience: every step asks
            self._count = len(self._sets)
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of all exemplars."""
        return self._sets.nbytes

    def state(self) -> dict[str, Any]:
        """A copy of all that `load` needs, as tensors and plain values."""
        return {**self._sets.state(), "labels": list(self._labels)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._sets.load(state)
        self._labels = list(state.get("labels", []))
        if self._device is not None:
            self._sets.to(self._device)
        self._columns = self._count = None

    def _all(self) -> dict[str, Tensor]:
        if self._columns is None:
            self._columns, _ = flatten(self._sets.all())
        return self._columns


class _Several:
    """What several memories are as one, for whoever draws from them or lists them."""

    @property
    def parts(self) -> list[Any]:
        """The memories, in order."""
        raise NotImplementedError

    def all(self) -> dict[str, Tree]:
        """A copy of all rows, memory by memory."""
        parts = [flatten(part.all()) for part in self.parts]
        if not parts:
            return {}
        columns, structure = parts[0]
        return restore({name: join([part[name] for part, _ in parts]) for name in columns}, structure)

    def draw(self, size: int, retrieval: Retrieval) -> dict[str, Tree] | None:
        """`size` rows of any memory, or all if fewer are held, as `Memory.draw`; None if there are none."""
        if not len(self):
            return None
        chosen = decide(lambda: retrieval.indices(len(self), min(size, len(self)), self), self.device)
        columns, structure = flatten(self.all())
        return restore({name: value.index_select(0, chosen) for name, value in columns.items()}, structure)

    def column(self, name: str) -> Tensor:
        """`[len(self), ...]` one column of all rows, memory by memory."""
        return join([part.column(name) for part in self.parts])

    @property
    def arrivals(self) -> Tensor:
        """`[len(self)]` the number each row had within its memory."""
        return torch.cat([part.arrivals for part in self.parts])

    @property
    def device(self) -> torch.device | None:
        """Where rows are kept; None until known."""
        raise NotImplementedError

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, empty slots included."""
        return sum(part.nbytes for part in self.parts)


class Joined(_Several):
    """Several memories as one, for what draws from them or lists them; each is filled by itself.

    Args:
        parts: of the same fields.

    Attributes:
        members: the same.
    """

    def __init__(self, parts: Sequence[ExemplarMemory]) -> None:
        self.members: list[Any] = list(parts)

    @property
    def parts(self) -> list[Any]:
        """Those that hold anything, in order."""
        return [part for part in self.members if len(part)]

    @property
    def device(self) -> torch.device | None:
        """Where rows are kept; None until known."""
        return next((part.device for part in self.members), None)

    def state(self) -> dict[str, Any]:
        """A copy of all that `load` needs, as tensors and plain values."""
        return {"parts": [part.state() for part in self.members]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        for part, saved in zip(self.members, state["parts"], strict=True):
            part.load(saved)


class ExperienceMemories(_Several):
    """The newest rows of each experience, the same number of each; draws are over all of them.

    Args:
        per_experience: rows kept of each.
        device: where rows are kept.
        fill: what rows of different lengths are padded with; None refuses them.
        gives: the device that rows are drawn to; None leaves them where they are kept.

    Example:
        >>> from holdfast.memory import Uniform
        >>> memories = ExperienceMemories(per_experience=2)
        >>> memories.add(0, {"inputs": torch.arange(5.0), "targets": torch.arange(5)})
        >>> memories.add(1, {"inputs": torch.arange(9.0), "targets": torch.arange(9)})
        >>> sorted(memories.all()["targets"].tolist()), memories.of(0)["targets"].tolist()
        ([3, 4, 7, 8], [4, 3])
    """

    def __init__(
        self,
        per_experience: int,
        device: torch.device | str | None = None,
        *,
        fill: Fill | None = None,
        gives: torch.device | None = None,
    ) -> None:
        self.per_experience = per_experience
        self._fill, self._gives = fill, gives
        self._device = None if device is None else torch.device(device)
        self._parts: dict[int, Memory] = {}

    def add(self, experience: int, rows: Mapping[str, Tree | int]) -> None:
        """Offer a batch to the memory of `experience`, which is made if need be."""
        if experience not in self._parts:
            self._parts[experience] = self._made()
        self._parts[experience].add(rows)

    def _made(self) -> Memory:
        return Memory(self.per_experience, insertion=Ring(), device=self._device, fill=self._fill, gives=self._gives)

    def of(self, experience: int) -> dict[str, Any]:
        """A copy of the rows of one experience; empty if there are none."""
        return self._parts[experience].all() if experience in self._parts else {}

    @property
    def experiences(self) -> list[int]:
        """The experiences that have a memory, ascending."""
        return sorted(self._parts)

    @property
    def parts(self) -> list[Any]:
        """The memory of each experience, in order."""
        return [self._parts[key] for key in self.experiences]

    @property
    def device(self) -> torch.device | None:
        """Where rows are kept; None until known."""
        return next((part.device for part in self._parts.values()), self._device)

    def state(self) -> dict[str, Any]:
        """A copy of all that `load` needs, as tensors and plain values."""
        return {"parts": {key: part.state() for key, part in self._parts.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._parts = {}
        for key, part in state["parts"].items():
            self._parts[key] = self._made()
            self._parts[key].load(part)
