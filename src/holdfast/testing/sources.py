"""What every source and every boundary must offer."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError, DataError, HoldfastError
from holdfast.core.experience import Batch, Tree
from holdfast.core.source import Source
from holdfast.core.step import Step
from holdfast.core.tree import tree_rows
from holdfast.methods import ewc_online
from holdfast.models import mlp
from holdfast.testing import toys
from holdfast.testing.checking import DoesNotApply, expect
from holdfast.testing.construction import check_documentation, evaluated
from holdfast.testing.streams import equal_trees
from holdfast.testing.training import refused
from holdfast.training.endless import StreamTrainer

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
        count = len(taken(source, source.length + 1))
        expect(count == source.length, f"`{subject.name}` says that it has {source.length} batches, and gives {count}.")


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


@dataclass(frozen=True)
class BoundarySubject:
    """A boundary that is checked.

    Attributes:
        kind: its class.
        arguments: to make one with.
    """

    kind: Callable[..., Boundary]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As messages call it."""
        return getattr(self.kind, "__name__", "boundary")

    def make(self) -> Boundary:
        """A new one."""
        return self.kind(**self.arguments)


def steps(count: int = 40, seed: int = 0) -> list[Step]:
    """Steps in which the classes, the inputs and the loss change after every ten."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        phase = index // 10
        inputs = torch.randn(4, 5, generator=generator) + 3 * phase
        targets = torch.randint(2 * phase, 2 * phase + 2, (4,), generator=generator)
        outputs = torch.randn(4, 8, generator=generator)
        loss = torch.tensor(2.0 / (1 + index % 10) + phase)
        made.append(Step(inputs, targets, loss, outputs, None, index))
    return made


def decisions(boundary: Boundary, of: list[Step]) -> list[bool]:
    """What a boundary says to each step."""
    return [boundary.crossed(step) for step in of]


def boundary_documented(subject: BoundarySubject) -> None:
    """Its docstring says what it is, and what each argument means."""
    check_documentation(subject.kind)
    window = subject.make().window
    expect(
        isinstance(window, int) and window > 0,
        f"`{subject.name}` has the window {window!r}. Give the number of recent samples to keep, at least 1.",
    )


def boundary_repr(subject: BoundarySubject) -> None:
    """Its `repr` evaluates back to it, and names the arguments it was given."""
    boundary = subject.make()
    text = repr(boundary)
    built = evaluated(text, {subject.name: subject.kind})
    expect(repr(built) == text, f"`{subject.name}` is {text}, which evaluates to {built!r}.")
    for key in subject.arguments:
        expect(key in text, f"the repr {text} does not tell the argument {key!r}.")


def boundary_decides(subject: BoundarySubject) -> None:
    """It says yes or no to every step, the same again for the same steps, and changes nothing of them."""
    of = steps()
    before = [(step.inputs.clone(), step.targets.clone(), step.loss.clone()) for step in of]  # type: ignore[union-attr]
    random_state = torch.get_rng_state()
    first, second = decisions(subject.make(), of), decisions(subject.make(), of)
    kinds = {type(value).__name__ for value in first} - {"bool"}
    expect(not kinds, f"`{subject.name}` answers with {', '.join(sorted(kinds))}. Return True or False.")
    expect(first == second, f"two of `{subject.name}` with the same arguments disagree on the same steps.")
    expect(not first[0], f"`{subject.name}` opens an experience with the very first step, before which there was none.")
    expect(torch.equal(random_state, torch.get_rng_state()), f"`{subject.name}` draws from torch's global generator.")
    for step, (inputs, targets, loss) in zip(of, before):
        same = torch.equal(step.inputs, inputs) and torch.equal(step.targets, targets) and torch.equal(step.loss, loss)  # type: ignore[arg-type]
        expect(same, f"`{subject.name}` changes the step that it looks at.")


def boundary_state(subject: BoundarySubject) -> None:
    """Saved in the middle and loaded into a new one, it goes on as if nothing had happened."""
    of = steps()
    whole = decisions(subject.make(), of)
    for after in (7, 15, 31):
        one, other = subject.make(), subject.make()
        decisions(one, of[:after])
        try:
            state = toys.through_disk(one.state())
        except Exception as error:
            expect(
                False, f"the state of `{subject.name}` cannot be saved and loaded ({error}). Keep plain values only."
            )
        other.load(state)
        resumed = decisions(other, of[after:])
        expect(
            resumed == whole[after:],
            f"`{subject.name}` loaded after {after} steps decides otherwise than one that went on. Return all it counts"
            " from `state`, and put it back in `load`.",
        )


def boundary_trains(subject: BoundarySubject) -> None:
    """A method that needs boundaries is trained on a stream that nobody announces, and resumed to equal weights."""
    nets = [mlp(input_shape=(5,), classes=8, hidden=[7], seed=0) for _ in range(2)]
    batches: list[tuple[Tree, Tensor]] = [(step.inputs, step.targets) for step in steps()]

    def trainer(net: torch.nn.Module) -> StreamTrainer:
        return StreamTrainer(net, ewc_online(), boundary=subject.make(), seed=toys.SEED)

    try:
        whole = trainer(nets[0])
        whole.train(batches[:23])
        state = toys.through_disk(whole.state_dict())
        weights = copy.deepcopy(nets[0].state_dict())
        whole.train(batches[23:])
    except HoldfastError as error:
        expect(refused(error), f"`{subject.name}` is refused, but in no sentence: {error}")
        raise DoesNotApply(str(error)) from None
    other = trainer(nets[1])
    nets[1].load_state_dict(weights)
    other.load_state_dict(state)
    other.train(batches[23:])
    expect(toys.equal(*nets), f"with `{subject.name}` a stream that is resumed ends with other weights.")


def boundary_numbers(subject: BoundarySubject) -> None:
    """Targets that are not classes are watched too, or refused in a sentence."""
    of = [
        Step(step.inputs, torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), step.loss) for step in steps()
    ]
    try:
        decisions(subject.make(), of)
    except ConfigError as error:
        expect(refused(error), f"`{subject.name}` refuses numbers, but in no sentence: {error}")


BOUNDARY_CHECKS: dict[str, Callable[[BoundarySubject], None]] = {
    "documented": boundary_documented,
    "repr": boundary_repr,
    "decides": boundary_decides,
    "state": boundary_state,
    "trains": boundary_trains,
    "numbers": boundary_numbers,
}
