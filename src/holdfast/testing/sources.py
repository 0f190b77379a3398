"""What every source must offer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from holdfast.core.batch import Batch
from holdfast.core.errors import DataError
from holdfast.core.source import Source
from holdfast.core.tree import tree_rows
from holdfast.testing import toys
from holdfast.testing.checking import DoesNotApply, expect
from holdfast.testing.construction import check_documentation
from holdfast.testing.streams import equal_trees
from holdfast.testing.training import refused

MOST = 20
"""Batches that are looked at of a source that may have no end."""


@dataclass(frozen=True)
class SourceSubject:
    """A source that is checked.

    Attributes:
        kind: its class, or a function that makes it.
        arguments: to make one with.
    """

    kind: Callable[..., Source]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As messages call it."""
        return getattr(self.kind, "__name__", "source")

    def make(self) -> Source:
        """A new one."""
        return self.kind(**self.arguments)


def taken(source: Source, most: int = MOST) -> list[Batch]:
    """The next batches of a source."""
    return list(itertools.islice(source.batches(), most))


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same."""
    return torch.equal(one.targets, other.targets) and equal_trees(one.inputs, other.inputs)


def source_documented(subject: SourceSubject) -> None:
    """Its docstring says what it is, and what each argument means."""
    check_documentation(subject.kind)


def source_counts(subject: SourceSubject) -> None:
    """It gives batches, and its position tells how many in plain values."""
    with subject.make() as source:
        for number, batch in enumerate(itertools.islice(source.batches(), MOST), start=1):
            expect(isinstance(batch, Batch), f"`{subject.name}` gives {type(batch).__name__}. Give Batch objects.")
            rows = tree_rows(batch.inputs)
            expect(rows == len(batch.targets), f"a batch of `{subject.name}` has {rows} rows and other targets.")
            position = source.position()
            try:
                plain = json.loads(json.dumps(position))
            except (TypeError, ValueError) as error:
                expect(False, f"the position of `{subject.name}` cannot be written as JSON ({error}).")
            expect(
                plain.get("batches") == number,
                f"after {number} batches the position of `{subject.name}` is {position}. Count `batches`, and move on"
                " before a batch is given.",
            )
        expect(source.position()["batches"], f"`{subject.name}` gives no batch at all.")


def source_length(subject: SourceSubject) -> None:
    """If it says how many batches there are, it gives as many."""
    with subject.make() as source:
        if source.length is None:
            raise DoesNotApply("it does not say how many batches there are")
        given = len(taken(source, source.length + 1))
        expect(given == source.length, f"`{subject.name}` says that it has {source.length} batches, and gives {given}.")


def source_seeks(subject: SourceSubject) -> None:
    """A new one goes on where another one was, or says that it cannot go back."""
    with subject.make() as source:
        before = taken(source, 3)
        position = json.loads(json.dumps(source.position()))
        rest = taken(source, 3)
        seekable = source.seekable
    with subject.make() as again:
        if not seekable:
            try:
                again.seek(position)
            except DataError as error:
                expect(refused(error), f"`{subject.name}` cannot go back, but says so in no sentence: {error}")
                return
            expect(False, f"`{subject.name}` goes back, and says that it cannot. Set seekable = True.")
        again.seek(position)
        expect(again.position() == position, f"`{subject.name}` is at {again.position()} after seek({position}).")
        other = taken(again, 3)
        equal = len(other) == len(rest) and all(map(same, rest, other))
        expect(equal, f"`{subject.name}` gives other batches after seek({position}) than one that went on.")
        first = {**position, "batches": 0} if set(position) == {"batches"} else None
        if first is not None:
            again.seek(first)
            expect(all(map(same, before, taken(again, 3))), f"`{subject.name}` does not go back to its beginning.")


def source_closes(subject: SourceSubject) -> None:
    """It can be closed twice, also before its end."""
    source = subject.make()
    taken(source, 2)
    source.close()
    source.close()


def source_random(subject: SourceSubject) -> None:
    """It leaves the global random state alone."""
    with torch.random.fork_rng():
        before = toys.global_random_state()
        with subject.make() as source:
            taken(source)
        after = toys.global_random_state()
    changed = [library for library in before if before[library] != after[library]]
    expect(
        not changed,
        f"`{subject.name}` draws from the global random numbers of {', '.join(changed)}. Use a torch.Generator.",
    )


SOURCE_CHECKS: dict[str, Callable[[SourceSubject], None]] = {
    "documented": source_documented,
    "counts": source_counts,
    "length": source_length,
    "seeks": source_seeks,
    "closes": source_closes,
    "random": source_random,
}
