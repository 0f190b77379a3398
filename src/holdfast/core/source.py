"""Where batches come from when nobody says how many there will be: the contract, and the sources that are in memory."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, UsageError
from holdfast.core.experience import Batch, Stream
from holdfast.core.learner import derive_seed
from holdfast.core.tree import Plain, Saved, Tree, tree_map, tree_rows, tree_split

__all__ = ["Arrays", "Experiences", "Iterated", "Source", "as_source"]

BLOCK = 256
"""Batches that are cut at once: to slice each by itself costs as much as a small layer, and thousands of them at once
outlive the young generations of Python's collector, which then goes over everything."""


class Source(ABC):
    """Batches in the order in which they arrive, each once.

    **End.** `batches` returns when the source has no more; the training ends without an error, and may go on with
    another source. **Errors.** What `batches` raises passes through the training unchanged: the steps before it stand,
    and so does the last checkpoint. **Closing.** Whoever made a source closes it; `close` may be called twice, and a
    closed source gives no more batches. A source is its own context manager.

    Attributes:
        length: number of batches from the beginning to the end, or None if it is unknown or there is no end.
        seekable: whether `seek` goes back to exactly the batch that a `position` names. Where it does not, a resumed
            training goes on with what arrives now, and records how many batches lie between.
        live: whether a batch may have to be waited for, since somebody writes them while they are read; `holdfast run`
            reads such a source in a thread of its own (see `holdfast.sources.Queued`).
        input_shape: of one sample, where it is known before the first batch.
        classes: how many outputs the targets ask for, where that is known: classes, or numbers of a regression.
        prepare: turns raw inputs into the model's, as `Stream.prepare` does; None where they are the model's.
        drifts: how many rows come before each place where the data are known to change, for measures of detectors.
        class_names: one per class, where the source knows them.
        table: how the columns of a table become the inputs, as plain JSON values; None where they are no table's.
    """

    length: int | None = None
    seekable: bool = False
    live: bool = False
    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    prepare: Callable[..., Any] | None = None
    drifts: Sequence[int] = ()
    class_names: Sequence[str] = ()
    table: dict[str, object] | None = None

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """The batches from the current position on; the position moves as each is given."""

    @abstractmethod
    def position(self) -> Plain:
        """Plain values that name the next batch; `batches`, how many were given, is always among them."""

    def seek(self, position: Saved) -> None:
        """Make the batch that `position` names the next one.

        Raises:
            DataError: where this source cannot go back.
        """
        raise DataError(
            f"{type(self).__name__} cannot go back to batch {position['batches']}. Give a source that can, such as"
            " holdfast.core.source.Arrays, or go on from here without it."
        )

    def halt(self) -> None:  # noqa: B027
        """Let a wait for the next batch end at once, as if there were no more: the training was told to stop."""

    def counts(self) -> dict[str, int]:
        """Rows that `arrived`, were `dropped` and the like, where a source counts them; nothing by default."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Let go of what the source holds: files, connections, other processes."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Iterated(Source):
    """What any iterable gives: pairs `(inputs, targets)` or batches.

    A list or tuple can be gone back in; another iterable may not give the same batches again.

    Args:
        items: finite or not.
        length: how many it gives, if that is known; read off a list or tuple.

    Example:
        >>> source = Iterated([(torch.zeros(2, 3), torch.zeros(2)), (torch.ones(2, 3), torch.ones(2))])
        >>> batches = source.batches()
        >>> int(next(batches).targets.sum()), source.position(), source.length
        (0, {'batches': 1}, 2)
    """

    def __init__(self, items: Iterable[Batch | tuple[Tree, Tensor]], length: int | None = None) -> None:
        self.items = items
        self.seekable = isinstance(items, list | tuple)
        self.length = len(items) if length is None and isinstance(items, list | tuple) else length
        self._served = 0
        self._rest: Iterator[object] | None = None

    def batches(self) -> Iterator[Batch]:
        """The items as batches.

        Raises:
            UsageError: for an item that is neither a batch nor a pair.
        """
        if isinstance(self.items, list | tuple):
            rest = iter(self.items[self._served :])
        else:
            rest = self._rest = iter(self.items) if self._rest is None else self._rest
        for item in rest:
            self._served += 1
            yield item if isinstance(item, Batch) else Batch(*_pair(item))

    def position(self) -> Plain:
        """How many items were given."""
        return {"batches": self._served}

    def seek(self, position: Saved) -> None:
        """Go to an item of a list or tuple; see `Source.seek`."""
        if not self.seekable:
            super().seek(position)
        self._served = int(position["batches"])

    def close(self) -> None:
        """Close a generator."""
        if self._rest is not None and hasattr(self._rest, "close"):
            self._rest.close()


def _pair(item: object) -> tuple[Tree, Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UsageError(f"a source gave a batch of type {type(item).__name__}. Give pairs (inputs, targets).")
    return item[0], item[1]


class Arrays(Source):
    """Inputs and targets in memory, in order or in a new order each pass.

    Args:
        inputs: `[rows, ...]` tensor or NumPy array, or a tuple or mapping of them.
        targets: `[rows, ...]` tensor or NumPy array.
        batch_size: rows of a batch; the last one of a pass may be smaller.
        passes: over the data; None for no end.
        seed: of the order; None keeps the rows in theirs.

    Raises:
        ConfigError: for numbers below 1.
        DataError: where inputs and targets differ in rows, or there are none.

    Example:
        >>> source = Arrays(torch.arange(5.0).unsqueeze(1), torch.arange(5), batch_size=2)
        >>> [batch.targets.tolist() for batch in source.batches()], source.length
        ([[0, 1], [2, 3], [4]], 3)
        >>> source.seek({"batches": 1})
        >>> next(source.batches()).targets.tolist()
        [2, 3]
    """

    seekable = True

    def __init__(
        self, inputs: Any, targets: Any, batch_size: int = 1, passes: int | None = 1, seed: int | None = None
    ) -> None:
        if batch_size < 1 or (passes is not None and passes < 1):
            raise ConfigError(
                f"`Arrays` got batch_size={batch_size} and passes={passes}. Give numbers of at least 1, or passes=None"
                " for no end."
            )
        self.inputs: Tree = _tensors(inputs)
        self.targets: Tensor = torch.as_tensor(targets)
        rows = tree_rows(self.inputs)
        if rows != len(self.targets) or not rows:
            raise DataError(
                f"`Arrays` got {rows} inputs and {len(self.targets)} targets. Give a target for each input."
            )
        self.batch_size = batch_size
        self.passes = passes
        self.seed = seed
        self._per_pass = -(-rows // batch_size)
        self.length = None if passes is None else passes * self._per_pass
        self._served = 0

    def batches(self) -> Iterator[Batch]:
        """Rows in batches, from the current position on."""
        while self.passes is None or self._served < self.passes * self._per_pass:
            number, first = divmod(self._served, self._per_pass)
            for inputs, targets in self._pass(number, first * self.batch_size):
                self._served += 1
                yield Batch(inputs, targets)

    def _pass(self, number: int, first: int) -> Iterator[tuple[Tree, Tensor]]:
        """One pass over the rows from row `first` on, cut a block of batches at a time."""
        order, size = None, self.batch_size
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = torch.randperm(len(self.targets), generator=generator)
        for start in range(first, len(self.targets), BLOCK * size):
            rows: Any = slice(start, start + BLOCK * size)
            if order is not None:
                rows = order[rows]
            inputs = tree_map(lambda leaf: leaf[rows], self.inputs)  # noqa: B023
            yield from zip(tree_split(inputs, size), tree_split(self.targets[rows], size))

    def position(self) -> Plain:
        """How many batches were given."""
        return {"batches": self._served}

    def seek(self, position: Saved) -> None:
        """Go to a batch, in any pass."""
        self._served = int(position["batches"])


def _tensors(inputs: Any) -> Tree:
    if isinstance(inputs, Mapping):
        return {name: torch.as_tensor(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(torch.as_tensor(value) for value in inputs)
    return torch.as_tensor(inputs)


class Experiences(Source):
    """A stream of experiences as one source: its batches one after another, with their task labels and no boundaries.

    Args:
        stream: the experiences, in order.
        batch_size: rows of a batch; the last one of an epoch may be smaller.
        epochs: passes over each experience's data.
        seed: of the order, which is then that of a `Trainer` with this seed; None keeps the rows in theirs.
    """

    seekable = True

    def __init__(self, stream: Stream, batch_size: int = 32, epochs: int = 1, seed: int | None = None) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.length = sum(-(-len(experience.train) // batch_size) * epochs for experience in stream)
        self.input_shape, self.classes, self.prepare = tuple(stream.input_shape), stream.outputs, stream.prepare
        self.class_names = tuple(stream.class_names)
        rows = itertools.accumulate(len(experience.train) * epochs for experience in stream)
        self.drifts = list(rows)[:-1]
        self._served = 0

    def batches(self) -> Iterator[Batch]:
        """Every experience's batches, epoch by epoch, from the current position on."""
        skip, generator = self._served, None
        if self.seed is not None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order"))
        for experience in self.stream:
            rows = len(experience.train)
            for _ in range(self.epochs if rows else 0):
                order = torch.arange(rows) if generator is None else torch.randperm(rows, generator=generator)
                for batch in experience.train.batches(order[skip * self.batch_size :], self.batch_size):
                    if batch.task is None:
                        batch.task = experience.task
                    self._served += 1
                    yield batch
                skip = max(0, skip - -(-rows // self.batch_size))

    def position(self) -> Plain:
        """How many batches were given."""
        return {"batches": self._served}

    def seek(self, position: Saved) -> None:
        """Go to a batch."""
        self._served = int(position["batches"])


def as_source(
    given: Source | Iterable[Batch | tuple[Tree, Tensor]] | Sequence[Any], last: Source | None = None
) -> Source:
    """`given` itself if it is a source, else what iterating it gives; an iterator that `last` was goes on counting."""
    if isinstance(last, Iterated) and last.items is given and not last.seekable:
        return last
    return given if isinstance(given, Source) else Iterated(given)
