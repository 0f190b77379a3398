"""Streams by class: split, blurry, and any table of proportions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.ranges import Count, Share, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.scenario import Paradigm, Relabel, Scenario, Validation, ValidationSeed, first_labels, make_stream
from holdfast.streams.tables import check_table, ordered_classes, rng, whole_classes


@ranged
def split(
    dataset: Dataset,
    experiences: Count | None = None,
    class_order: Literal["natural", "random"] | list[int] = "natural",
    sizes: list[int] | None = None,
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Each experience brings new classes, with all their samples (Split MNIST and its like).

    In class-incremental streams labels are renumbered in order of first appearance. In task-incremental ones they are
    too, and each experience has its index as task label. In domain-incremental ones the label is the class's position
    within its experience, so that five experiences of two digits need a head of two.

    Args:
        dataset: what is split.
        experiences: how many; 5, or as many as sizes are given. The first ones get one class more if it is uneven.
        class_order: "natural", "random" (by the seed), or every class once in order of appearance.
        sizes: number of classes in each experience; they sum to the number of classes.
        relabel: false keeps the data set's own labels.
        seed: of a random class order.

    Raises:
        ConfigError: more experiences than classes, sizes that do not sum, an order that is not a permutation.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = split(synthetic(classes=5), experiences=2, class_order=[4, 2, 0, 1, 3])
        >>> [experience.classes for experience in stream], stream.class_names
        ([(0, 1, 2), (3, 4)], ('4', '2', '0', '1', '3'))
    """
    dataset.targets()
    order = ordered_classes(class_order, dataset.classes, seed)
    sizes = even_sizes(dataset, experiences) if sizes is None else _checked(sizes, experiences, dataset)
    table = whole_classes(order, sizes)
    labels = list(range(dataset.classes))
    if relabel:
        labels = _positions(order, sizes) if paradigm == "domain" else first_labels(table, dataset, order)
    return make_stream(
        Scenario(
            name="split",
            paradigm=paradigm,
            experiences=len(sizes),
            classes=dataset.classes,
            table=table,
            labels=labels,
            class_order=order,
            seed=seed,
            validation=validation,
            validation_seed=validation_seed,
        ),
        dataset,
    )


@ranged
def proportions(
    dataset: Dataset,
    table: list[list[float]],
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Any table of proportions: entry (c, t) is the share of class c's samples that experience t gets.

    Every sample of a class goes to exactly one experience (shares are rounded by largest remainder), and training and
    test data follow the same table. Classes may come back; labels follow first appearance. In domain-incremental
    streams labels stay as they are; in task-incremental ones a class has another label in every task (c + t * classes).

    Args:
        dataset: what is shared out.
        table: one row per class, one column per experience; rows sum to 1, or to 0 to leave a class out.
        seed: of which samples go where.

    Raises:
        ConfigError: a wrong shape, a negative share, a row that sums to neither 1 nor 0, an experience without classes.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = proportions(synthetic(classes=2, samples=10), table=[[0.7, 0.3], [0.0, 1.0]])
        >>> [experience.train.targets.bincount(minlength=2).tolist() for experience in stream]
        [[7, 0], [3, 10]]
    """
    return by_table(dataset, "proportions", table, paradigm, relabel, validation, validation_seed, seed, {})


proportions.check_arguments = {"table": [[0.5, 0.5]] * 20}  # type: ignore[attr-defined]


@ranged
def blurry(
    dataset: Dataset,
    experiences: Count = 5,
    overlap: Share = 0.1,
    disjoint: Share = 0.0,
    class_order: Literal["natural", "random"] | list[int] = "natural",
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """Classes have a home experience, and a share of their samples is spread over all the others.

    The definition is Blurry-M of Bang et al., Rainbow Memory (CVPR 2021), with M = 100 * overlap: a class leaves
    1 - overlap of its samples at home and overlap / (T - 1) in each other experience. With disjoint > 0 it is
    i-Blurry-N-M of Koh et al. (ICLR 2022), with N = 100 * disjoint: that share of the classes, drawn at random, stays
    wholly at home.

    Differences from the papers: test data follow the same table, and classes need not divide evenly.

    Args:
        dataset: what is shared out.
        experiences: how many.
        overlap: share of each blurry class's samples that goes to other experiences.
        disjoint: share of the classes that does not blur.
        class_order: "natural", "random" (by the seed), or every class once; homes follow it.
        seed: of a random class order, the disjoint classes, and which samples go where.

    Raises:
        ConfigError: a share outside 0..1, an overlap with a single experience, more experiences than classes.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = blurry(synthetic(classes=2, samples=10), experiences=2, overlap=0.2)
        >>> [experience.train.targets.bincount().tolist() for experience in stream]
        [[8, 2], [2, 8]]
    """
    dataset.targets()
    sizes = even_sizes(dataset, experiences)
    if overlap and experiences == 1:
        raise ConfigError(f"overlap is {overlap} with one experience. Give overlap=0 or more experiences.")
    order = ordered_classes(class_order, dataset.classes, seed)
    table = whole_classes(order, sizes)
    still = torch.randperm(dataset.classes, generator=rng(seed, "disjoint"))[: round(disjoint * dataset.classes)]
    for label in set(range(dataset.classes)) - set(still.tolist()):
        if overlap:
            table[label] = [(1 - overlap) if home else overlap / (experiences - 1) for home in table[label]]
    extra = {"overlap": overlap, "disjoint": disjoint}
    return by_table(dataset, "blurry", table, paradigm, relabel, validation, validation_seed, seed, extra, order)


def by_table(
    dataset: Dataset,
    name: str,
    table: Sequence[Sequence[float]],
    paradigm: Paradigm,
    relabel: bool,
    validation: float,
    validation_seed: int,
    seed: int,
    extra: dict[str, Any],
    order: list[int] | None = None,
) -> Stream:
    """The stream of a table in which classes may come back."""
    dataset.targets()
    rows = check_table(table, dataset.classes)
    order = list(range(dataset.classes)) if order is None else order
    once = all(sum(1 for share in row if share) <= 1 for row in rows)
    labels = list(range(dataset.classes))
    if relabel and (paradigm == "class" or (paradigm == "task" and once)):
        labels = first_labels(rows, dataset, order)
    return make_stream(
        Scenario(
            name=name,
            paradigm=paradigm,
            experiences=len(rows[0]),
            classes=dataset.classes,
            table=rows,
            labels=labels,
            shift=dataset.classes if paradigm == "task" and not once else 0,
            class_order=order,
            seed=seed,
            validation=validation,
            validation_seed=validation_seed,
            extra=extra,
        ),
        dataset,
    )


def even_sizes(dataset: Dataset, experiences: int | None) -> list[int]:
    """Classes per experience as even as can be, larger ones first.

    Raises:
        ConfigError: more experiences than classes.
    """
    experiences = 5 if experiences is None else experiences
    if experiences > dataset.classes:
        raise ConfigError(
            f"{experiences} experiences from the {dataset.classes} classes of {dataset.name}. "
            f"Give at most {dataset.classes}, or use data_incremental."
        )
    base, more = divmod(dataset.classes, experiences)
    return [base + (number < more) for number in range(experiences)]


def _checked(sizes: Sequence[int], experiences: int | None, dataset: Dataset) -> list[int]:
    wrong = [size for size in sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
    if wrong or not sizes:
        raise ConfigError(f"sizes is {list(sizes)}. Give at least one class to every experience.")
    if sum(sizes) != dataset.classes:
        raise ConfigError(
            f"sizes {list(sizes)} sum to {sum(sizes)}, and {dataset.name} has {dataset.classes} classes. "
            "Give every class to one experience."
        )
    if experiences is not None and experiences != len(sizes):
        raise ConfigError(f"experiences is {experiences} and there are {len(sizes)} sizes. Leave one of them out.")
    return list(sizes)


def _positions(order: Sequence[int], sizes: Sequence[int]) -> list[int]:
    labels, start = [0] * len(order), 0
    for size in sizes:
        for position, label in enumerate(order[start : start + size]):
            labels[label] = position
        start += size
    return labels
