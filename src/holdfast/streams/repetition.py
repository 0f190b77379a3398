"""Streams with repetition: classes come back, in fixed slots or by chance, as often as a distribution says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.ranges import Count, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.occurrence import first_distribution, recurrence_distribution
from holdfast.streams.scenario import Relabel, Scenario, Validation, ValidationSeed, check_experiences, make_stream
from holdfast.streams.tables import Table, class_counts, labels_of_first_appearance, rng

Paradigm = Literal["class", "domain"]


@ranged
def repetition_slots(
    dataset: Dataset,
    experiences: Count = 10,
    slots: Count = 10,
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    test: Literal["shared", "whole"] = "shared",
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Every class is cut into equal slots, and each experience gets the same number of them, of classes that differ.

    With N experiences of K slots and C classes there are N * K slots: N * K // C for each class, and one more for the
    rest, drawn at random. All data are used exactly once. K * N = C is a class-incremental stream, K = C a
    domain-incremental one, and anything between repeats classes. The slot-based generator of "Class-incremental
    learning with repetition" (Hemati et al., CoLLAs 2023), algorithm 1. Differences: an experience never has two slots
    of one class (there some of the first ones do), and what does not divide evenly is shared out, not dropped.

    Args:
        dataset: what is shared out.
        experiences: how many, N.
        slots: of each experience, K.
        paradigm: "class" numbers labels in order of first appearance, "domain" keeps the data set's own.
        relabel: false keeps them in class-incremental streams too.
        test: "shared" cuts the test data in the same way, so that the experiences' together are all test data; "whole"
            evaluates all of them after every experience, once, as those of the first experience.
        validation: fraction of each class of each experience held out from training.
        seed: of the slots and of which samples go where.

    Raises:
        ConfigError: more slots than classes, fewer slots in all than classes, or more slots than samples of a class.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = repetition_slots(synthetic(classes=4, samples=10), experiences=4, slots=2)
        >>> class_table(stream).sum(1).tolist(), [len(experience.classes) for experience in stream]
        ([10, 10, 10, 10], [2, 2, 2, 2])
    """
    _check(dataset, paradigm)
    check_experiences(experiences)
    classes, total = dataset.classes, experiences * slots
    if not 1 <= slots <= classes:
        raise ConfigError(f"slots is {slots}, and {dataset.name} has {classes} classes. Give 1 to {classes}.")
    if total < classes:
        raise ConfigError(
            f"{experiences} experiences of {slots} slots have {total} slots for {classes} classes, so that some would "
            "never come. Give more of either."
        )
    generator = rng(seed, "slots")
    order = torch.randperm(classes, generator=generator).tolist()
    parts = [0] * classes
    for position, label in enumerate(order):
        parts[label] = total // classes + (position < total % classes)
    for label, count in enumerate(class_counts(dataset.targets(), classes)):
        if count < parts[label]:
            raise ConfigError(
                f"class {dataset.names[label]!r} has {count} samples for {parts[label]} slots. Give fewer experiences."
            )
    table = [[0.0] * experiences for _ in range(classes)]
    for column, chosen in enumerate(_slot_classes(parts, experiences, slots, generator)):
        for label in chosen:
            table[label][column] = 1 / parts[label]
    told = {"slots": slots}
    return _by_table(
        dataset, "repetition_slots", table, "table", paradigm, relabel, test, validation, validation_seed, seed, told
    )


@ranged
def repetition_sampling(
    dataset: Dataset,
    experiences: Count = 500,
    samples: Count = 500,
    first: str | dict[str, Any] = "uniform",
    recurrence: str | dict[str, Any] = "random",
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    test: Literal["shared", "whole"] = "whole",
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Every class appears first at an experience drawn from one distribution, and comes back with a chance of its own.

    After its first appearance a class is in each later experience with its probability of recurrence. An experience's
    samples are divided evenly among its classes and drawn anew for each experience, without replacement within it, so
    that the same sample may come back later. Experiences without a class are left out, with a warning. The
    sampling-based generator of "Class-incremental learning with repetition" (Hemati et al., CoLLAs 2023), algorithm 2.

    Args:
        dataset: what is shared out.
        experiences: how many.
        samples: of each experience; fewer where its classes have fewer.
        first: distribution of the first appearance over experiences: "uniform"; `{"name": "uniform_alpha", "alpha": a}`
            (over the first share a of them); "poisson" (`mu`); "zipf" or "zipf_reversed" (`exponent`); "geometric"
            (`p`). Parameters have defaults.
        recurrence: chance to come back, for each class: "random" (uniform over 0 to 1); "fixed" (`p`); "poisson" (`mu`)
            or "zipf" (`exponent`), the k-th value to the k-th class of a random order; "fixed_dual": a share `fraction`
            of the classes has `low`, the others `high`.
        paradigm: "class" numbers labels in order of first appearance, "domain" keeps the data set's own.
        relabel: false keeps them in class-incremental streams too.
        test: "whole" evaluates all test data after every experience, once, as those of the first experience; "shared"
            deals each class's test data out evenly to the experiences it is in.
        validation: fraction of each class of each experience held out from training.
        seed: of everything drawn.

    Raises:
        ConfigError: an unknown distribution, or a parameter out of its range.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> data = synthetic(classes=3, samples=20)
        >>> stream = repetition_sampling(data, experiences=4, samples=12, first={"name": "geometric", "p": 0.9}, seed=1)
        >>> all(len(experience.train) == 12 for experience in stream)
        True
    """
    _check(dataset, paradigm)
    check_experiences(experiences)
    if samples < 1:
        raise ConfigError(f"samples is {samples}. Give at least 1 for each experience.")
    classes = dataset.classes
    weights = first_distribution(first, experiences)
    chances = recurrence_distribution(recurrence, classes, rng(seed, "chances"))
    begin_C = torch.multinomial(weights, classes, replacement=True, generator=rng(seed, "first"))
    drawn_CT = torch.rand(classes, experiences, generator=rng(seed, "recurrence"), dtype=torch.float64)
    when_T = torch.arange(experiences)
    present_CT = (when_T == begin_C[:, None]) | ((when_T > begin_C[:, None]) & (drawn_CT < chances[:, None]))
    filled_T = present_CT.any(0)
    if not bool(filled_T.all()):
        left = int(filled_T.sum())
        warnings.warn(
            f"{experiences - left} of {experiences} experiences got no class and are left out; {left} remain.",
            stacklevel=2,
        )
        present_CT = present_CT[:, filled_T]
    table = _even_counts(present_CT, samples, class_counts(dataset.targets(), classes), rng(seed, "rest"))
    told = {"samples": samples, "first": first, "recurrence": recurrence}
    return _by_table(
        dataset,
        "repetition_sampling",
        table,
        "sampled",
        paradigm,
        relabel,
        test,
        validation,
        validation_seed,
        seed,
        told,
    )


def class_table(stream: Stream) -> Tensor:
    """How many training samples of each class each experience has, `[classes, experiences]` int64."""
    columns = [torch.bincount(experience.train.targets, minlength=stream.classes) for experience in stream]
    return torch.stack(columns, dim=1)


def seen_classes(stream: Stream) -> list[tuple[int, ...]]:
    """The classes that had a training sample up to and with each experience, ascending."""
    seen: set[int] = set()
    result = []
    for experience in stream:
        seen |= set(experience.classes)
        result.append(tuple(sorted(seen)))
    return result


def _slot_classes(parts: list[int], experiences: int, slots: int, generator: torch.Generator) -> list[list[int]]:
    """The classes of each experience, from the last to the first: at random, but so that none is left over.

    A class with as many slots left as there are experiences left has to come in every one of them; since no class has
    more, and all slots together fill the experiences exactly, such a choice always exists.
    """
    left = list(parts)
    chosen: list[list[int]] = []
    for remaining in range(experiences, 0, -1):
        due = [label for label, count in enumerate(left) if count == remaining]
        free = [label for label, count in enumerate(left) if 0 < count < remaining]
        drawn = torch.randperm(len(free), generator=generator)[: slots - len(due)].tolist()
        now = due + [free[position] for position in drawn]
        for label in now:
            left[label] -= 1
        chosen.append(now)
    return chosen[::-1]


def _even_counts(present_CT: Tensor, samples: int, available: Sequence[int], generator: torch.Generator) -> Table:
    """Samples of each class in each experience: as even as can be, what remains to classes drawn at random."""
    counts = [[0.0] * present_CT.shape[1] for _ in range(present_CT.shape[0])]
    for column in range(present_CT.shape[1]):
        present = present_CT[:, column].nonzero().flatten()
        labels = present[torch.randperm(len(present), generator=generator)].tolist()
        base, more = divmod(samples, len(labels))
        for position, label in enumerate(labels):
            counts[label][column] = min(base + (position < more), available[label])
    return counts


def _by_table(
    dataset: Dataset,
    name: str,
    table: Table,
    draw: Literal["table", "sampled"],
    paradigm: Paradigm,
    relabel: bool,
    test: Literal["shared", "whole"],
    validation: float,
    validation_seed: int,
    seed: int,
    told: dict[str, Any],
) -> Stream:
    labels = list(range(dataset.classes))
    if relabel and paradigm == "class":
        labels = labels_of_first_appearance(table, labels)
    return make_stream(
        Scenario(
            name=name,
            paradigm=paradigm,
            experiences=len(table[0]),
            classes=dataset.classes,
            draw=draw,
            table=table,
            labels=labels,
            class_order=list(range(dataset.classes)),
            seed=seed,
            validation=validation,
            validation_seed=validation_seed,
            test=test,
            extra=told,
        ),
        dataset,
    )


def _check(dataset: Dataset, paradigm: str) -> None:
    dataset.targets()
    if paradigm not in ("class", "domain"):
        raise ConfigError(
            f"paradigm is {paradigm!r}, and in streams with repetition a class belongs to several experiences. "
            "Give 'class' or 'domain'."
        )
