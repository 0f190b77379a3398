"""Exemplar sets: a few chosen samples for each class, and the ways to choose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.experience import Tree
from holdfast.core.randomness import on_cpu
from holdfast.core.tree import Structure, flatten, join, restore, row_count


def unit_rows(features: Tensor) -> Tensor:
    """`[n, d]` features scaled to L2 norm 1, as float32 or wider; a zero row stays zero.

    Raises:
        DataError: not a matrix, or not finite.
    """
    if features.ndim != 2:
        raise DataError(
            f"features of shape {tuple(features.shape)} are no matrix. Flatten them to [samples, features]."
        )
    if not bool(torch.isfinite(features).all()):
        raise DataError("some features are not finite, so no sample is nearest. Check the model for NaN or overflow.")
    features = features.detach()
    return normalize(features if features.dtype == torch.float64 else features.float(), dim=1)


def select_random(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Any `count` different samples, with equal probability.

    Args:
        features: `[n, ...]`; only the number of rows is looked at.
        count: how many; all, in random order, if there are fewer.
        generator: CPU generator the draw comes from.

    Returns:
        `[min(count, n)]` int64 on the features' device.

    Example:
        >>> sorted(select_random(torch.zeros(4, 2), 9, torch.Generator().manual_seed(0)).tolist())
        [0, 1, 2, 3]
    """
    return torch.randperm(len(features), generator=on_cpu(generator))[: max(0, count)].to(features.device)


def select_herding(features: Tensor, count: int) -> Tensor:
    """Samples whose running mean stays nearest to the mean of all (Welling 2009; iCaRL, Rebuffi et al. 2017, eq. 4).

    With features f of norm 1, their mean m, and the sum s of the k-1 picks so far, pick number k is

        argmin |m - (f + s) / k|^2  =  argmax f . (k m - s) - |f|^2 / 2

    over the samples not yet picked: one matrix-vector product a pick. Any prefix is a herding of its own, so a set
    shrinks by dropping its last exemplars.

    Difference from the paper: it scales means to norm 1 again ("not written explicitly"); eq. 4 as written does not,
    and no sample is picked twice.

    Args:
        features: `[n, d]` of samples of one class; normalised here.
        count: how many; all if there are fewer.

    Returns:
        `[min(count, n)]` int64 in order of picking, on the features' device.

    Raises:
        DataError: features are no matrix, or not finite.

    Example:
        >>> select_herding(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), 2).tolist()
        [1, 0]
    """
    features = unit_rows(features)
    count = max(0, min(count, len(features)))
    picks = torch.empty(count, dtype=torch.int64, device=features.device)
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    half_norm = features.square().sum(1) / 2  # infinite once picked
    for k in range(1, count + 1):
        pick = torch.mv(features, k * mean - total).sub_(half_norm).argmax().view(1)
        picks[k - 1 : k] = pick
        total += features.index_select(0, pick)[0]
        half_norm.index_fill_(0, pick, torch.inf)
    return picks


def select_closest(features: Tensor, count: int) -> Tensor:
    """The samples nearest to the mean of all, the nearest first; features are scaled to norm 1 before.

    Args:
        features: `[n, d]` of samples of one class; normalised here.
        count: how many; all if there are fewer.

    Returns:
        `[min(count, n)]` int64 on the features' device; among equals the first sample comes first.

    Raises:
        DataError: features are no matrix, or not finite.

    Example:
        >>> select_closest(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), 1).tolist()
        [1]
    """
    features = unit_rows(features)
    distance = (features - features.mean(0)).square().sum(1)
    return distance.argsort(stable=True)[: max(0, count)]


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
    for index, most in enumerate(available):
        if spare > 0 and most > shares[index]:
            shares[index] += 1
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
        self.structure: Structure = {}

    def update(self, key: int, rows: Mapping[str, Tree], features: Tensor, size: int | None = None) -> None:
        """Choose the exemplars of `key` and shrink the other sets; a set that `key` had is replaced.

        Args:
            key: class index, or experience index.
            rows: all samples of that key; fields by name, one row per sample.
            features: `[samples, d]` of the same samples in the same order.
            size: exemplars of this key instead of `per_class`; the other sets stay as they are.

        Raises:
            DataError: rows and features differ in number, fields differ from before, or a target is not the key.
        """
        columns, structure = flatten(rows)
        count = row_count(columns)
        if count != len(features) or count == 0:
            raise DataError(
                f"{count} rows with {len(features)} features. Give one or more samples, each with its features."
            )
        if self._sets and structure != self.structure:
            raise DataError(
                f"rows with fields {structure} cannot join sets with fields {self.structure}. Pass the same."
            )
        if self.by == "class" and ("targets" not in columns or bool((columns["targets"] != key).any())):
            raise DataError(
                f"rows given as class {key} have other targets, or none. Pass rows['targets'] of that class only."
            )
        self.structure = structure
        others = [other for other in self._sets if other != key]
        keys = sorted([*others, key])
        if size is not None:
            share = {**{other: self.count(other) for other in others}, key: size}
        elif self.per_class is not None:
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
        return restore({name: join([rows[name] for rows in sets]) for name in sets[0]}, self.structure)

    def rows(self, key: int) -> dict[str, Tree]:
        """A copy of the exemplars of one key, the most important first; empty if there are none."""
        exemplars = self._sets.get(key)
        return (
            {}
            if exemplars is None
            else restore({name: value.clone() for name, value in exemplars.items()}, self.structure)
        )

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
        return sum(value.nbytes for rows in self._sets.values() for value in rows.values())

    def clear(self) -> None:
        """Release all exemplars."""
        self._sets = {}
        self.structure = {}

    def to(self, device: torch.device | str) -> ExemplarSets:
        """Move all exemplars to `device`, in place; returns itself."""
        self._sets = {key: {name: value.to(device) for name, value in rows.items()} for key, rows in self._sets.items()}
        return self

    def state(self) -> dict[str, Any]:
        """A copy of all that `load` needs to go on exactly here, as tensors and plain values."""
        return {
            "structure": dict(self.structure),
            "sets": {key: {name: value.clone() for name, value in rows.items()} for key, rows in self._sets.items()},
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: what `state` returned.
        """
        self.structure = dict(state["structure"])
        self._sets = {key: {name: value.clone() for name, value in rows.items()} for key, rows in state["sets"].items()}
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())

    def _select(self, features: Tensor, count: int) -> Tensor:
        if self.generator is not None and self.selection == "random":
            return select_random(features, count, self.generator)
        return select_herding(features, count) if self.selection == "herding" else select_closest(features, count)

    def _shrunk(self, key: int, count: int) -> dict[str, Tensor]:
        """The first exemplars of a key; a copy where rows are dropped, so that these are released."""
        rows = self._sets[key]
        return rows if self.count(key) <= count else {name: value[:count].clone() for name, value in rows.items()}
