"""Exemplar sets: a few chosen samples per class or experience, built at boundaries and shrunk to a common size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.experience import Tree
from holdfast.memory.columns import Structure, flatten, join, restore, row_count
from holdfast.memory.generators import on_cpu
from holdfast.memory.selection import select_closest, select_herding, select_random


def quotas(capacity: int, available: Sequence[int]) -> list[int]:
    """Share `capacity` among sets as equally as what each has allows; nothing is left over while any has more.

    Args:
        capacity: items in all.
        available: how many each set could fill. Where shares cannot be equal, earlier ones get one more.

    Example:
        >>> quotas(10, [50, 50, 50]), quotas(10, [1, 50, 50])
        ([4, 3, 3], [1, 5, 4])
    """
    left, level = capacity, 0
    for done, most in enumerate(sorted(available)):
        level = left // (len(available) - done)
        if most > level:
            break
        left -= most
    shares = [min(most, level) for most in available]
    spare = capacity - sum(shares)
    for place, most in enumerate(available):
        if spare > 0 and most > shares[place]:
            shares[place] += 1
            spare -= 1
    return shares


class ExemplarSets:
    """One set of exemplars per key, in order of importance.

    With `capacity`, every new key shrinks the sets before it to `capacity // keys` (the remainder is spread, and what a
    small class cannot fill goes to others); a set keeps its first exemplars, which herding and closest rank highest.
    With `per_class`, each set has that size for ever. Rows that are dropped are released.

    Args:
        capacity: exemplars in all; or
        per_class: exemplars per key.
        selection: which samples of a key are kept.
        by: what a key is; with "class", rows must carry `targets` equal to their key.
        generator: CPU generator for the selection "random".

    Raises:
        ConfigError: not exactly one size, an unknown name, or "random" without a generator.

    Example:
        >>> sets = ExemplarSets(capacity=4)
        >>> for label in (0, 1):
        ...     rows = {"inputs": torch.rand(6, 2), "targets": torch.full((6,), label)}
        ...     sets.update(label, rows, features=rows["inputs"])
        >>> sets.all()["targets"]
        tensor([0, 0, 1, 1])
    """

    def __init__(
        self,
        capacity: int | None = None,
        per_class: int | None = None,
        selection: Literal["herding", "random", "closest"] = "herding",
        by: Literal["class", "experience"] = "class",
        generator: torch.Generator | None = None,
    ) -> None:
        if (capacity is None) == (per_class is None) or (capacity or per_class or 0) < 1:
            raise ConfigError(
                f"exemplar sets got capacity={capacity} and per_class={per_class}. "
                "Give one of them, 1 or more: capacity=2000 for all, or per_class=20."
            )
        if selection not in ("herding", "random", "closest"):
            raise ConfigError(unknown("selection", selection, ("herding", "random", "closest")))
        if by not in ("class", "experience"):
            raise ConfigError(unknown("key", by, ("class", "experience")))
        if selection == "random" and generator is None:
            raise ConfigError(
                "the selection 'random' got no generator. Pass generator=torch.Generator().manual_seed(0)."
            )
        self.capacity = capacity
        self.per_class = per_class
        self.selection = selection
        self.by = by
        self.generator = None if generator is None else on_cpu(generator)
        self._sets: dict[int, dict[str, Tensor]] = {}
        self._structure: Structure = {}

    def update(self, key: int, rows: Mapping[str, Tree], features: Tensor) -> None:
        """Choose the exemplars of `key` and shrink the other sets; a set that `key` had is replaced.

        Args:
            key: class index, or experience index.
            rows: all samples of that key; fields by name, one row per sample.
            features: `[samples, d]` of the same samples in the same order.

        Raises:
            DataError: rows and features differ in number, fields differ from before, or a target is not the key.
        """
        columns, structure = flatten(rows)
        count = row_count(columns)
        if count != len(features) or count == 0:
            raise DataError(
                f"{count} rows with {len(features)} features. Give one or more samples, each with its features."
            )
        if self._sets and structure != self._structure:
            raise DataError(
                f"rows with fields {structure} cannot join sets with fields {self._structure}. Pass the same."
            )
        if self.by == "class" and ("targets" not in columns or bool((columns["targets"] != key).any())):
            raise DataError(
                f"rows given as class {key} have other targets, or none. Pass rows['targets'] of that class only."
            )
        self._structure = structure
        others = [other for other in self._sets if other != key]
        keys = sorted([*others, key])
        if self.per_class is not None:
            share = dict.fromkeys(keys, self.per_class)
        else:
            available = [count if other == key else self.count(other) for other in keys]
            share = dict(zip(keys, quotas(self.capacity or 0, available)))
        chosen = self._select(features, share[key])
        sets = {other: self._shrunk(other, share[other]) for other in others}
        sets[key] = {name: value.detach().index_select(0, chosen.to(value.device)) for name, value in columns.items()}
        self._sets = {other: sets[other] for other in keys}

    def all(self) -> dict[str, Tree]:
        """A copy of all exemplars, by ascending key and then in order of importance; empty if there are none."""
        if not self._sets:
            return {}
        sets = list(self._sets.values())
        return restore({name: join([held[name] for held in sets]) for name in sets[0]}, self._structure)

    def rows(self, key: int) -> dict[str, Tree]:
        """A copy of the exemplars of one key, the most important first; empty if there are none."""
        held = self._sets.get(key)
        return {} if held is None else restore({name: value.clone() for name, value in held.items()}, self._structure)

    def count(self, key: int) -> int:
        """How many exemplars a key has."""
        return row_count(self._sets[key]) if key in self._sets else 0

    @property
    def keys(self) -> list[int]:
        """The keys that have a set, ascending."""
        return list(self._sets)

    def __len__(self) -> int:
        return sum(self.count(key) for key in self._sets)

    @property
    def nbytes(self) -> int:
        """Bytes of all exemplars."""
        return sum(value.nbytes for held in self._sets.values() for value in held.values())

    def clear(self) -> None:
        """Release all exemplars."""
        self._sets = {}
        self._structure = {}

    def to(self, device: torch.device | str) -> ExemplarSets:
        """Move all exemplars to `device`, in place; returns itself."""
        self._sets = {key: {name: value.to(device) for name, value in held.items()} for key, held in self._sets.items()}
        return self

    def state(self) -> dict[str, Any]:
        """A copy of all that `load` needs to go on exactly here, as tensors and plain values."""
        return {
            "structure": dict(self._structure),
            "sets": {key: {name: value.clone() for name, value in held.items()} for key, held in self._sets.items()},
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """
        self._structure = dict(state["structure"])
        self._sets = {key: {name: value.clone() for name, value in held.items()} for key, held in state["sets"].items()}
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())

    def _select(self, features: Tensor, count: int) -> Tensor:
        if self.generator is not None and self.selection == "random":
            return select_random(features, count, self.generator)
        return select_herding(features, count) if self.selection == "herding" else select_closest(features, count)

    def _shrunk(self, key: int, count: int) -> dict[str, Tensor]:
        """The first exemplars of a key; a copy where rows are dropped, so that these are released."""
        held = self._sets[key]
        return held if self.count(key) <= count else {name: value[:count].clone() for name, value in held.items()}
