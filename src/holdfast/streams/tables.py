"""Tables of proportions: which share of each class's samples goes to which experience, and how counts are rounded."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError

Table = list[list[float]]


def rng(seed: int, *names: object) -> torch.Generator:
    """A generator for one purpose: a function of the seed and the names alone."""
    mixed = zlib.crc32(repr(names).encode())
    return torch.Generator().manual_seed((int(seed) * 0x9E3779B1 + mixed) % 2**63)


def check_table(table: Sequence[Sequence[float]], classes: int) -> Table:
    """The table as plain floats.

    Raises:
        ConfigError: not one row per class, rows of unequal length, a negative number, a row that sums to neither 1
            nor 0, or an experience that gets nothing.
    """
    rows = [[float(value) for value in row] for row in table]
    if len(rows) != classes:
        raise ConfigError(f"the table has {len(rows)} rows and the data set {classes} classes. Give one row per class.")
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {0}:
        raise ConfigError(f"the table's rows have {sorted(widths)} entries. Give each one entry per experience.")
    for number, row in enumerate(rows):
        if not all(math.isfinite(value) and value >= 0 for value in row):
            raise ConfigError(f"row {number} of the table is {row}. Give proportions from 0 to 1.")
        total = math.fsum(row)
        if abs(total - 1) > 1e-6 and total != 0:
            raise ConfigError(
                f"row {number} of the table sums to {total:g}. It must be 1, or 0 to leave the class out."
            )
    for column, values in enumerate(zip(*rows)):
        if sum(values) == 0:
            raise ConfigError(f"experience {column} of the table gets no class. Give it some, or leave the column out.")
    return rows


def allocate(count: int, proportions: Sequence[float], turn: int = 0) -> list[int]:
    """Whole numbers in these proportions that sum to `count` exactly (largest remainder).

    Equal remainders are served from experience `turn` on, so that over many classes none is favoured.

    Args:
        count: samples to give away.
        proportions: not negative; all zero gives nothing.
        turn: who comes first among equals.

    Example:
        >>> allocate(10, [0.5, 0.25, 0.25])
        [5, 3, 2]
    """
    total = math.fsum(proportions)
    if total == 0:
        return [0] * len(proportions)
    exact = [count * value / total for value in proportions]
    counts = [math.floor(value + 1e-9) for value in exact]
    fraction = [round(value - whole, 9) for value, whole in zip(exact, counts)]
    width = len(counts)
    ranked = sorted(range(width), key=lambda column: (-fraction[column], (column - turn) % width))
    for column in ranked[: count - sum(counts)]:
        counts[column] += 1
    return counts


def check_counts(table: Sequence[Sequence[float]], classes: int) -> Table:
    """A table of whole numbers of samples rather than proportions, as floats.

    Raises:
        ConfigError: not one row per class, rows of unequal length, a number that is not a count, or an experience that
            gets nothing.
    """
    rows = [[float(value) for value in row] for row in table]
    if any(not math.isfinite(value) or value < 0 or value != int(value) for row in rows for value in row):
        raise ConfigError("the table of samples holds a number that is not a count. Give whole numbers from 0 up.")
    check_table([[value / (math.fsum(row) or 1) for value in row] for row in rows], classes)
    return rows


def labels_of_first_appearance(table: Sequence[Sequence[float]], order: Sequence[int]) -> list[int]:
    """Labels in order of first appearance in a table: of classes that appear together, first in `order` comes first.

    Classes that never appear get -1.
    """
    labels = [-1] * len(table)
    following = 0
    for column in range(len(table[0])):
        for label in order:
            if labels[label] < 0 and table[label][column]:
                labels[label] = following
                following += 1
    return labels


def draw_counts(targets: Tensor, table: Table, generator: torch.Generator) -> list[Tensor]:
    """Row indices of each experience, ascending: as many of each class as the table says, anew for each experience.

    Within an experience no row comes twice; a class with fewer rows than are asked for gives all it has.
    """
    members = [(targets == label).nonzero().flatten() for label in range(len(table))]
    hands = []
    for column in range(len(table[0])):
        hand = []
        for label, row in enumerate(table):
            if row[column]:
                order = torch.randperm(len(members[label]), generator=generator)
                hand.append(members[label][order[: int(row[column])]])
        hands.append(torch.cat(hand).sort().values)
    return hands


def class_counts(targets: Tensor, classes: int) -> list[int]:
    """Number of samples of each class."""
    return torch.bincount(targets, minlength=classes).tolist()


def allocation(table: Table, counts: Sequence[int]) -> list[list[int]]:
    """How many samples of each class go to each experience; every sample of a class with a row goes somewhere."""
    return [allocate(count, row, turn) for turn, (count, row) in enumerate(zip(counts, table))]


def deal(targets: Tensor, table: Table, generator: torch.Generator) -> list[Tensor]:
    """Row indices of each experience, ascending: each class is shuffled, then cut as the table says."""
    counts = allocation(table, class_counts(targets, len(table)))
    order = targets.argsort(stable=True)
    hands: list[list[Tensor]] = [[] for _ in table[0]]
    start = 0
    for total, row in zip(class_counts(targets, len(table)), counts):
        members = order[start : start + total]
        start += total
        if sum(1 for count in row if count) > 1:
            members = members[torch.randperm(total, generator=generator)]
        start_row = 0
        for hand, count in zip(hands, row):
            hand.append(members[start_row : start_row + count])
            start_row += count
    return [torch.cat(hand).sort().values for hand in hands]


def hold_out(targets: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions kept and held out: the fraction of each class (rounded, never all of it), drawn at random.

    Targets that are not classes (floats) count as one class.
    """
    labels = torch.zeros(len(targets), dtype=torch.int64) if targets.is_floating_point() else targets
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        count = min(len(members) - 1, math.floor(fraction * len(members) + 0.5))
        is_held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()


def ordered_classes(class_order: str | Sequence[int], classes: int, seed: int) -> list[int]:
    """The classes in the order in which they appear.

    Args:
        class_order: "natural", "random" (by the seed), or a list with every class once.
        classes: how many there are.
        seed: of the random order.

    Raises:
        ConfigError: another word, or a list that is not a permutation of the classes.
    """
    if isinstance(class_order, str):
        if class_order == "natural":
            return list(range(classes))
        if class_order == "random":
            return torch.randperm(classes, generator=rng(seed, "class order")).tolist()
        raise ConfigError(f"class_order is {class_order!r}. Give 'natural', 'random' or a list with every class once.")
    order = list(class_order)
    if any(isinstance(label, bool) or not isinstance(label, int) for label in order):
        raise ConfigError(f"class_order is {order}. Give class numbers.")
    doubled = sorted({label for label in order if order.count(label) > 1})
    missing = sorted(set(range(classes)) - set(order))
    foreign = sorted(set(order) - set(range(classes)))
    if doubled or missing or foreign:
        wrong = ", ".join(
            f"{word} {labels}"
            for word, labels in (("repeats", doubled), ("lacks", missing), ("has the unknown", foreign))
            if labels
        )
        raise ConfigError(f"class_order {wrong}. List each of the classes 0 to {classes - 1} once.")
    return order


def whole_classes(order: Sequence[int], sizes: Sequence[int]) -> Table:
    """The table in which each class is wholly in one experience: `sizes[t]` classes of `order` after each other."""
    table = [[0.0] * len(sizes) for _ in order]
    start = 0
    for column, size in enumerate(sizes):
        for label in order[start : start + size]:
            table[label][column] = 1.0
        start += size
    return table
