"""Streams whose classes come in random, uneven amounts: the three tables of CLMixer."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.ranges import Count, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.scenario import Paradigm, Relabel, Validation, ValidationSeed
from holdfast.streams.splits import by_table
from holdfast.streams.tables import rng

DRAWS = 1000


@ranged
def cil(
    dataset: Dataset,
    experiences: Count = 5,
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int | None = 0,
) -> Stream:
    """Every class wholly in one random experience, so that experiences differ in their number of classes.

    The first T classes go one to each experience, in random order, so that none is empty; each of the rest goes to an
    experience drawn uniformly (the `cil` table of CLMixer).

    Args:
        dataset: what is shared out.
        experiences: how many.
        seed: of the table; None is 0, and in a configuration the job's own seed.

    Raises:
        ConfigError: more experiences than classes.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = cil(synthetic(classes=6), experiences=3)
        >>> sum(len(experience.classes) for experience in stream)
        6
    """
    seed = seed or 0
    _check(dataset, experiences, at_most=dataset.classes)
    generator = rng(seed, "cil")
    homes = torch.cat(
        (
            torch.randperm(experiences, generator=generator),
            torch.randint(experiences, (dataset.classes - experiences,), generator=generator),
        )
    )
    table = torch.eye(experiences, dtype=torch.float64)[homes]
    return by_table(dataset, "cil", table.tolist(), paradigm, relabel, validation, validation_seed, seed, {})


@ranged
def indus(
    dataset: Dataset,
    experiences: Count = 5,
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int | None = 0,
) -> Stream:
    """Every class in every experience, in random proportions (the `indus` table of CLMixer).

    Entry (c, t) is drawn uniformly from 0..1, and rows are divided by their sums.

    Args:
        dataset: what is shared out.
        experiences: how many.
        seed: of the table and of which samples go where; None is 0, and in a configuration the job's own seed.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = indus(synthetic(classes=2, samples=10), experiences=2)
        >>> sum(len(experience.train) for experience in stream)
        20
    """
    seed = seed or 0
    _check(dataset, experiences)
    table = _uniform(dataset.classes, experiences, rng(seed, "indus"))
    return by_table(dataset, "indus", table.tolist(), paradigm, relabel, validation, validation_seed, seed, {})


@ranged
def indus_cil(
    dataset: Dataset,
    experiences: Count = 5,
    paradigm: Paradigm = "class",
    relabel: Relabel = True,
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int | None = 0,
) -> Stream:
    """Classes appear, vanish and come back in uneven amounts (the `indus_cil` table of CLMixer).

    As `indus`; then a fair coin for every entry masks it out, and what a masked entry held moves to the next
    experience (after the last comes the first), masked or not. Tables with an empty experience are drawn again.

    Args:
        dataset: what is shared out.
        experiences: how many.
        seed: of the table and of which samples go where; None is 0, and in a configuration the job's own seed.

    Raises:
        ConfigError: no table without an empty experience was found.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = indus_cil(synthetic(classes=4), experiences=3)
        >>> len(stream), stream.classes
        (3, 4)
    """
    seed = seed or 0
    _check(dataset, experiences)
    generator = rng(seed, "indus_cil")
    for _ in range(DRAWS):
        table = _uniform(dataset.classes, experiences, generator)
        kept = torch.rand(table.shape, generator=generator) < 0.5
        table = table * kept + (table * ~kept).roll(1, dims=1)
        if bool((table.sum(0) > 0).all()):
            return by_table(
                dataset, "indus_cil", table.tolist(), paradigm, relabel, validation, validation_seed, seed, {}
            )
    raise ConfigError(f"no table gives all of {experiences} experiences a class of {dataset.name}. Give fewer.")


def _uniform(classes: int, experiences: int, generator: torch.Generator) -> Tensor:
    table = torch.rand(classes, experiences, generator=generator, dtype=torch.float64)
    return table / table.sum(1, keepdim=True)


def _check(dataset: Dataset, experiences: int, at_most: int | None = None) -> None:
    dataset.targets()
    if at_most is not None and experiences > at_most:
        raise ConfigError(
            f"{experiences} experiences from the {at_most} classes of {dataset.name}. Give at most {at_most}."
        )
