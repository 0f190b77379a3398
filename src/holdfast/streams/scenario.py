"""A scenario: the plain values that turn a data set into a stream, and the one function that applies them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, unknown
from holdfast.core.experience import Data, Experience, Stream
from holdfast.core.ranges import BelowOne, Doc
from holdfast.streams.dataset import Dataset
from holdfast.streams.tables import (
    allocation,
    check_counts,
    check_table,
    class_counts,
    deal,
    draw_counts,
    hold_out,
    rng,
)
from holdfast.streams.transforms import from_description
from holdfast.streams.views import View

Paradigm = Annotated[Literal["class", "task", "domain"], Doc('"class", "task" or "domain" incremental.')]
Relabel = Annotated[bool, Doc("false keeps the data set's own labels in class-incremental streams.")]
Validation = Annotated[BelowOne, Doc("fraction of each class held out from training.")]
ValidationSeed = Annotated[int, Doc("of the held-out choice.")]
"""Arguments that most streams have: each is described here once."""

PARADIGMS = ("class", "task", "domain")
DRAWS = ("table", "sampled", "all", "shuffled", "ordered", "groups")


@dataclass
class Scenario:
    """How a stream is made from a data set, in JSON values.

    Args:
        name: of the generator that wrote it.
        experiences: how many.
        classes: of the data set it was made for; 0 for regression.
        draw: how samples are shared out: "table" by proportions, "sampled" by numbers of samples drawn anew for each
            experience, "all" everything to every experience, "shuffled" in equal chunks at random (tests whole),
            "ordered" in equal consecutive chunks, "groups" as the data set says.
        table: proportions P, one row per class and one column per experience; rows sum to 1, or to 0 to leave a class
            out. The same table serves training and test data. For "sampled" numbers of training samples; a class's
            test samples are dealt out evenly to the experiences it is in.
        labels: the new label of each class; -1 for a class that is left out.
        shift: added to the labels once per experience: experience t has `labels + t * shift`.
        class_order: the classes in the order in which they appear.
        seed: of the allocation of samples.
        validation: fraction of each class of each experience's training data that is held out.
        validation_seed: of that choice alone.
        transforms: one description per experience (`streams.transforms`), or none.
        chunk: cut every experience into shuffled chunks of this many training samples; 0 does not.
        chunk_seed: of those shuffles alone.
        test: "shared" as `draw` says; "whole" makes all test data those of the first experience, the only ones.
        extra: what else the generator was told, for the record.
    """

    name: str
    paradigm: Paradigm
    experiences: int
    classes: int
    draw: Literal["table", "sampled", "all", "shuffled", "ordered", "groups"] = "table"
    table: list[list[float]] | None = None
    labels: list[int] = field(default_factory=list)
    shift: int = 0
    class_order: list[int] = field(default_factory=list)
    seed: int = 0
    validation: float = 0.0
    validation_seed: int = 0
    transforms: list[dict[str, Any]] = field(default_factory=list)
    chunk: int = 0
    chunk_seed: int = 0
    test: Literal["shared", "whole"] = "shared"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_paradigm(self.paradigm)
        check_experiences(self.experiences)
        if self.draw not in DRAWS:
            raise ConfigError(unknown("draw", self.draw, DRAWS))
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation is {self.validation}. Give the fraction to hold out, from 0 to below 1.")
        if self.chunk < 0:
            raise ConfigError(f"chunk is {self.chunk}. Give the number of samples, or 0 to leave experiences whole.")
        if len(self.labels) != self.classes:
            raise ConfigError(f"there are {len(self.labels)} labels for {self.classes} classes. Give one for each.")
        if self.test not in ("shared", "whole"):
            raise ConfigError(unknown("kind of test data", self.test, ("shared", "whole")))
        if self.draw in ("table", "sampled"):
            check = check_table if self.draw == "table" else check_counts
            self.table = check(self.table or [], self.classes)
            if len(self.table[0]) != self.experiences:
                raise ConfigError(
                    f"the table has {len(self.table[0])} columns for {self.experiences} experiences. Give one for each."
                )
        if self.transforms and len(self.transforms) != self.experiences:
            raise ConfigError(
                f"there are {len(self.transforms)} transforms for {self.experiences} experiences. Give one for each."
            )

    @property
    def outputs(self) -> int:
        """Number of labels over the whole stream."""
        return self.shift * self.experiences if self.shift else max(self.labels, default=-1) + 1

    def to_json(self) -> dict[str, Any]:
        """The scenario as plain values; `from_json` gives it back exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scenario:
        """The scenario that plain values describe.

        Raises:
            ConfigError: an unknown or a missing key, or a wrong value.
        """
        keys = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in keys:
                raise ConfigError(unknown("scenario key", key, keys))
        missing = [key for key in ("name", "paradigm", "experiences", "classes") if key not in values]
        if missing:
            raise ConfigError(f"the scenario lacks {', '.join(missing)}. Give what `Scenario.to_json` wrote.")
        return cls(**copy.deepcopy(dict(values)))


def make_stream(scenario: Scenario, dataset: Dataset) -> Stream:
    """Apply a scenario to a data set.

    Args:
        scenario: how samples, labels and transforms are shared out.
        dataset: what is shared out; nothing of it is copied.

    Returns:
        A stream whose `description` is the scenario as plain values.

    Raises:
        ConfigError: the data set has another number of classes than the scenario, or an experience gets no sample.
    """
    if scenario.classes != dataset.classes:
        raise ConfigError(
            f"the scenario {scenario.name!r} is for {scenario.classes} classes, and {dataset.name} has "
            f"{dataset.classes}. Make one for this data set."
        )
    if scenario.draw == "groups" and len(dataset.group_names) != scenario.experiences:
        raise ConfigError(
            f"the scenario {scenario.name!r} is for {scenario.experiences} groups, and {dataset.name} has "
            f"{len(dataset.group_names)}. Name the column that makes them, for instance csv(by='month')."
        )
    train = _shares(scenario, dataset.train, "train", dataset.groups)
    test = None if dataset.test is None else _shares(scenario, dataset.test, "test", dataset.test_groups)
    experiences = []
    for number in range(scenario.experiences):
        whole = _present(scenario, dataset.train, train[number], number)
        if len(whole) == 0:
            raise ConfigError(
                f"experience {number} of {scenario.name!r} gets none of the {len(dataset.train)} training samples. "
                "Make fewer experiences, or give this one a larger share."
            )
        test_view = (
            None if dataset.test is None or test is None else _present(scenario, dataset.test, test[number], number)
        )
        kept, validation = _validation(scenario, whole, number)
        experiences.append(
            Experience(
                index=number,
                train=kept,
                test=test_view if test_view is not None and len(test_view) else None,
                validation=validation,
                classes=present_classes(kept) if scenario.classes else (),
                task=number if scenario.paradigm == "task" else None,
            )
        )
    stream = Stream(
        experiences,
        input_shape=dataset.input_shape,
        classes=scenario.outputs,
        paradigm=scenario.paradigm,
        prepare=dataset.prepare,
        name=f"{scenario.name}_{dataset.name}",
        class_names=_names(scenario, dataset.names),
        description=scenario.to_json(),
        table=None if dataset.table is None else dataset.table.describe(),
    )
    for experience in experiences:
        experience.name = _experience_name(scenario, experience, stream.class_names)
    return cut(stream, scenario.chunk, scenario.chunk_seed) if scenario.chunk else stream


def cut(stream: Stream, samples: int, seed: int = 0) -> Stream:
    """Cut every experience of a stream into consecutive chunks, each an experience of its own.

    The samples of an experience are shuffled first. A chunk keeps the test data, validation data and task label of
    the experience it came from, and its classes are those with a sample in the chunk.

    Args:
        stream: any stream.
        samples: training samples per chunk; the last one of an experience may be smaller.
        seed: of the shuffles.

    Raises:
        ConfigError: fewer than one sample.
    """
    if samples < 1:
        raise ConfigError(f"a chunk of {samples} samples. Give at least 1.")
    chunks: list[Experience] = []
    for parent in stream.experiences:
        order = torch.randperm(len(parent.train), generator=rng(seed, "chunks", parent.index))
        for number, part in enumerate(order.split(samples)):
            data = parent.train.subset(part)
            classes = present_classes(data) if parent.classes else ()
            name = f"{parent.name} [{number}]"
            chunks.append(Experience(len(chunks), data, parent.test, parent.validation, classes, parent.task, name))
    return replace(stream, experiences=chunks)


def first_labels(table: Sequence[Sequence[float]], dataset: Dataset, order: Sequence[int]) -> list[int]:
    """Labels in order of first appearance; -1 for classes that never appear.

    Experience by experience, the classes that have a training sample in it and had none before get the next numbers,
    in the order given.
    """
    counts = allocation([list(row) for row in table], class_counts(dataset.targets(), dataset.classes))
    labels = [-1] * dataset.classes
    following = 0
    for column in range(len(table[0])):
        for label in order:
            if labels[label] < 0 and counts[label][column]:
                labels[label] = following
                following += 1
    for label in order:  # in the table, but without a training sample
        if labels[label] < 0 and any(table[label]):
            labels[label] = following
            following += 1
    return labels


def present_classes(data: Data) -> tuple[int, ...]:
    """The classes with at least one sample, ascending."""
    return tuple(data.targets.unique().tolist())


def check_paradigm(paradigm: str) -> None:
    """Raise a ConfigError unless this is one of the three paradigms."""
    if paradigm not in PARADIGMS:
        raise ConfigError(unknown("paradigm", paradigm, PARADIGMS))


def check_experiences(experiences: int) -> None:
    """Raise a ConfigError unless this is a whole number of at least one."""
    if isinstance(experiences, bool) or not isinstance(experiences, int) or experiences < 1:
        raise ConfigError(f"experiences is {experiences!r}. Give a whole number, at least 1.")


def viewed(data: Data) -> View:
    """The data as a view, or a ConfigError for a kind that cannot be shared out."""
    if not isinstance(data, View):
        raise ConfigError(f"data of type {type(data).__name__} cannot be shared out. Use TensorData or LoaderData.")
    return data


def _shares(scenario: Scenario, data: Data, part: str, groups: Tensor | None = None) -> list[Tensor | None]:
    """Which samples each experience gets; None stands for all."""
    count, number = len(data), scenario.experiences
    if scenario.draw == "groups" and groups is not None:
        return [(groups == group).nonzero().flatten() for group in range(number)]
    if part == "test" and scenario.test == "whole":
        return [None, *[torch.zeros(0, dtype=torch.int64)] * (number - 1)]
    if scenario.table is not None and scenario.draw in ("table", "sampled"):
        generator = rng(scenario.seed, "samples", part)
        if scenario.draw == "table":
            return list(deal(data.targets, scenario.table, generator))
        if part == "train":
            return list(draw_counts(data.targets, scenario.table, generator))
        evenly = [[float(value > 0) / max(1, sum(map(bool, row))) for value in row] for row in scenario.table]
        return list(deal(data.targets, evenly, generator))
    if scenario.draw == "all" or (scenario.draw == "shuffled" and part == "test"):
        return [None] * number
    order = torch.arange(count)
    if scenario.draw == "shuffled":
        order = torch.randperm(count, generator=rng(scenario.seed, "samples", part))
    return list(order.tensor_split(number))


def _present(scenario: Scenario, data: Data, index: Tensor | None, number: int) -> View:
    transform = from_description(scenario.transforms[number]) if scenario.transforms else None
    return viewed(data).derive(
        index,
        label_map=torch.tensor(scenario.labels) if scenario.classes else None,
        target_shift=number * scenario.shift,
        task=number if scenario.paradigm == "task" else None,
        transform=transform,
    )


def _validation(scenario: Scenario, whole: View, number: int) -> tuple[View, View | None]:
    if not scenario.validation:
        return whole, None
    # Experiences that hold the same samples hold out the same ones.
    names = ("validation",) if scenario.draw == "all" else ("validation", number)
    kept, held_out = hold_out(whole.targets, scenario.validation, rng(scenario.validation_seed, *names))
    return whole.subset(kept), whole.subset(held_out) if len(held_out) else None


def _names(scenario: Scenario, names: Sequence[str]) -> tuple[str, ...]:
    """A name per label: joined where classes share one, numbered by experience where labels are shifted."""
    if scenario.shift:
        return tuple(f"{name} ({number})" for number in range(scenario.experiences) for name in names)
    shared: list[list[str]] = [[] for _ in range(scenario.outputs)]
    for label in scenario.class_order or range(scenario.classes):
        if scenario.labels[label] >= 0:
            shared[scenario.labels[label]].append(names[label])
    return tuple("/".join(group) for group in shared)


def _experience_name(scenario: Scenario, experience: Experience, names: Sequence[str]) -> str:
    number = experience.index
    if scenario.transforms:
        if "names" in scenario.extra:
            return str(scenario.extra["names"][number])
        described = dict(scenario.transforms[number])
        if described["kind"] == "rotate":
            return f"{described['degrees']:g} degrees"
        return "as it is" if described["kind"] == "none" else f"permutation {number + 1}"
    if scenario.draw == "groups":
        return str(scenario.extra["names"][number])
    if scenario.draw in ("shuffled", "ordered") or not scenario.classes:
        return f"part {number + 1} of {scenario.experiences}"
    if scenario.paradigm == "domain" and "names" in scenario.extra:
        return str(scenario.extra["names"][number])
    if len(experience.classes) > 4:
        return f"{len(experience.classes)} classes"
    return ", ".join(names[label] for label in experience.classes)
