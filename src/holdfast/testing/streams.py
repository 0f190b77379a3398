"""What every stream must offer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Experience, Stream, Tree, tree_rows
from holdfast.methods import finetune
from holdfast.models import mlp
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset, Prepare
from holdfast.streams.datasets import polynomial, synthetic
from holdfast.testing import toys
from holdfast.testing.checking import DoesNotApply, expect
from holdfast.testing.construction import check_documentation
from holdfast.testing.training import tensors_of


@dataclass(frozen=True)
class StreamSubject:
    """A stream that is checked.

    Attributes:
        factory: makes it.
        arguments: to make it with.
    """

    factory: Callable[..., Stream]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As messages call it."""
        return getattr(self.factory, "__name__", "stream")

    def make(self) -> Stream:
        """A new one; data sets are supplied where it takes them: of vectors, or the first that it does not refuse."""
        first = next(iter(inspect.signature(self.factory).parameters), "")
        if first == "datasets" and first not in self.arguments:
            return self.factory([vectors(1), vectors(2)], **self.arguments)
        if first != "dataset" or first in self.arguments:
            return self.factory(**self.arguments)
        refused: ConfigError | None = None
        for make in (lambda: vectors(1), square_images, in_groups, lambda: polynomial(samples=100)):
            try:
                return self.factory(make(), **self.arguments)
            except ConfigError as error:
                refused = refused or error
        assert refused is not None  # there are data sets above
        raise refused


def vectors(seed: int) -> Dataset:
    """Twenty classes of vectors of five numbers."""
    return synthetic(classes=20, features=5, samples=5, test_samples=3, seed=seed)


def square_images() -> Dataset:
    """Twenty classes of grey images `[1, 8, 8]`."""
    generator = torch.Generator().manual_seed(1)
    train, test = (
        TensorData(
            torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(count) % 20
        )
        for count in (100, 60)
    )
    return Dataset("images", train, test, 20, (1, 8, 8), prepare=Prepare())


def in_groups() -> Dataset:
    """The vectors in four groups, each with rows of every class."""
    dataset = vectors(1)
    groups, test_groups = (torch.arange(len(dataset.targets(test))) % 4 for test in (False, True))
    return replace(
        dataset, groups=groups, test_groups=test_groups, group_names=("spring", "summer", "autumn", "winter")
    )


def stream_documented(subject: StreamSubject) -> None:
    """Its docstring says what it is, and what each argument means."""
    check_documentation(subject.factory)


def stream_arguments(subject: StreamSubject) -> None:
    """Its arguments are plain values that JSON can hold."""
    supplied = ("dataset", "datasets")
    values = {key: value for key, value in subject.arguments.items() if key not in supplied}
    for key, parameter in inspect.signature(subject.factory).parameters.items():
        if key not in supplied and parameter.default is not parameter.empty:
            values.setdefault(key, parameter.default)
    for key, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            expect(
                False, f"`{subject.name}` takes {value!r:.60} as {key!r}, which no JSON can hold. Take plain values."
            )


def rows(data: Data) -> Tree:
    """All inputs of some data."""
    return data.gather(torch.arange(len(data))).inputs


def parts(experience: Experience) -> Iterator[tuple[str, Data]]:
    """The data of an experience, with what each part is called."""
    for name in ("train", "test", "validation"):
        data = getattr(experience, name)
        if data is not None:
            yield name, data


def stream_consistent(subject: StreamSubject) -> None:
    """Its experiences are numbered in order and hold what they announce: rows, classes, tasks and shapes."""
    stream, who = subject.make(), f"`{subject.name}`"
    expect(len(stream), f"{who} has no experiences.")
    expect(stream.paradigm in ("class", "domain", "task"), f"{who} is of the paradigm {stream.paradigm!r}.")
    for number, experience in enumerate(stream):
        which = f"{who}, experience {number}"
        expect(experience.index == number, f"{which} has the index {experience.index}. Number them from 0 in order.")
        expect(experience.stream is stream, f"{which} belongs to another stream. Make a Stream of the experiences.")
        expect(len(experience.train), f"{which} has no training data.")
        labelled = stream.paradigm == "task"
        expect(
            (experience.task is not None) == labelled,
            f"{which} has the task label {experience.task}, and the stream is {stream.paradigm}-incremental.",
        )
        for name, data in parts(experience):
            check_part(f"{which}, {name}", data, stream)
        if stream.classes:
            seen = tuple(sorted(set(experience.train.targets.tolist())))
            expect(
                experience.classes == seen,
                f"{which} announces the classes {experience.classes}, and its training data have {seen}.",
            )


def check_part(which: str, data: Data, stream: Stream) -> None:
    """Fail unless some data hold what they say, in whatever order they are visited."""
    count, targets = len(data), data.targets
    expect(len(targets) == count, f"{which}: {len(targets)} targets for {count} samples.")
    if stream.classes:
        expect(targets.dtype == torch.int64, f"{which}: targets are {targets.dtype}. Class labels are int64.")
        wrong = bool(count) and (int(targets.min()) < 0 or int(targets.max()) >= stream.classes)
        expect(not wrong, f"{which}: targets are not all from 0 to {stream.classes - 1}, though the stream says so.")
    if not count:
        return
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    got = [batch.targets for batch in data.batches(order, 4)]
    expect(all(len(part) <= 4 for part in got), f"{which}: batches of 4 have up to {max(map(len, got))} rows.")
    expect(torch.equal(torch.cat(got), targets[order]), f"{which}: batches come in another order than asked for.")
    half = order[: max(1, count // 2)]
    expect(torch.equal(data.subset(half).targets, targets[half]), f"{which}: a subset has other targets than its rows.")
    expect(
        equal_trees(rows(data.subset(half)), data.gather(half).inputs),
        f"{which}: a subset has other inputs than its rows.",
    )
    expect(tree_rows(data.gather(half).inputs) == len(half), f"{which}: the inputs of {len(half)} rows are others.")
    inputs = data.gather(half).inputs
    if stream.prepare is not None:
        inputs = stream.prepare(inputs, False, None)  # type: ignore[arg-type]
    if isinstance(inputs, Tensor):
        shape = tuple(inputs.shape[1:])
        expect(shape == stream.input_shape, f"{which}: samples have the shape {shape}, and not {stream.input_shape}.")
        finite = not inputs.is_floating_point() or bool(inputs.isfinite().all())
        expect(finite, f"{which}: some inputs are not finite.")


def equal_trees(one: Tree, other: Tree) -> bool:
    """Whether two trees of tensors hold the same."""
    a, b = dict(tensors_of(one, "")), dict(tensors_of(other, ""))
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def stream_repeatable(subject: StreamSubject) -> None:
    """Made again it is the same stream, whatever the global random state, which it leaves alone."""
    made = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = toys.global_random_state()
            stream = subject.make()
            made.append([[(name, rows(data), data.targets) for name, data in parts(one)] for one in stream])
            after = toys.global_random_state()
            changed = [library for library in before if before[library] != after[library]]
            expect(
                not changed,
                f"`{subject.name}` draws from the global random numbers of {', '.join(changed)}. Use a torch.Generator"
                " with a seed.",
            )
    expect(len(made[0]) == len(made[1]), f"`{subject.name}` has {len(made[0])} experiences, then {len(made[1])}.")
    for number, (one, other) in enumerate(zip(*made)):
        for (name, inputs, targets), (_, again, labels) in zip(one, other):
            expect(
                torch.equal(targets, labels) and equal_trees(inputs, again),
                f"`{subject.name}` gives other {name} data in experience {number} when it is made again. Take a seed.",
            )


def stream_described(subject: StreamSubject) -> None:
    """What it says of itself can be written as JSON."""
    stream = subject.make()
    try:
        json.dumps(stream.description)
    except (TypeError, ValueError) as error:
        expect(False, f"the description of `{subject.name}` cannot be written as JSON: {error}.")
    names = stream.class_names
    expect(
        not names or len(names) == stream.classes, f"`{subject.name}` names {len(names)} of {stream.classes} classes."
    )


def stream_trained(subject: StreamSubject) -> None:
    """A model is trained on it, and resumed in the middle it ends with equal weights."""
    stream = subject.make()
    if not stream.outputs or not isinstance(stream[0].train.gather(torch.arange(1)).inputs, Tensor):
        raise DoesNotApply("a perceptron cannot be trained on it")
    head: Any = "task" if stream.paradigm == "task" else "fixed"

    def net() -> torch.nn.Module:
        return mlp(input_shape=stream.input_shape, classes=stream.outputs, hidden=[7], head=head, seed=0)

    criterion = None if stream.classes else torch.nn.functional.mse_loss
    settings: dict[str, Any] = {"criterion": criterion, "iterations": 3}
    whole, resumed = net(), net()
    keep = toys.KeepAt(2)
    toys.train(finetune(), whole, stream, checkpoints=keep, **{**settings, "evaluate": "test"})
    toys.train(finetune(), resumed, subject.make(), resume=keep.kept, **{**settings, "evaluate": "test"})
    wrong = [key for key, value in whole.state_dict().items() if not value.isfinite().all()]
    expect(not wrong, f"trained on `{subject.name}`, {', '.join(wrong)} are not finite.")
    expect(toys.equal(whole, resumed), f"resumed on `{subject.name}`, a model ends with other weights.")


STREAM_CHECKS: dict[str, Callable[[StreamSubject], None]] = {
    "documented": stream_documented,
    "arguments": stream_arguments,
    "consistent": stream_consistent,
    "repeatable": stream_repeatable,
    "described": stream_described,
    "trained": stream_trained,
}
