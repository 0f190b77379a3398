"""Model inputs, whatever containers they come in: one tensor, several in a tuple, or several by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Union

import torch
from torch import Tensor

Tree = Union[Tensor, tuple[Tensor, ...], Mapping[str, Tensor]]  # noqa: UP007
"""Model inputs: one tensor, a tuple passed as positional arguments, or a mapping passed as keyword arguments."""


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply `function` to every tensor of `tree`, keeping its shape of containers."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: function(value) for key, value in tree.items()}
    return tuple(function(value) for value in tree)


def tree_rows(tree: Tree) -> int:
    """The number of samples (first dimension) in `tree`."""
    if isinstance(tree, Tensor):
        return tree.shape[0]
    first = next(iter(tree.values())) if isinstance(tree, Mapping) else tree[0]
    return first.shape[0]


Fill = Callable[[str, Tensor], float | None]
"""What a column is padded with, by its name and some of its rows; None where nobody knows."""


def padded(value: Tensor, shape: Sequence[int], fill: float) -> Tensor:
    """`value` with its rows as long as `shape` (without the dimension of rows), `fill` behind their ends.

    Example:
        >>> padded(torch.ones(1, 2), (3,), 0)
        tensor([[1., 1., 0.]])
    """
    if tuple(value.shape[1:]) == tuple(shape):
        return value
    wide = value.new_full((value.shape[0], *shape), fill)
    wide[(slice(None), *(slice(0, length) for length in value.shape[1:]))] = value
    return wide


def longest(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The largest of each dimension."""
    return tuple(max(lengths) for lengths in zip(*shapes))


def tree_cat_padded(trees: Sequence[Tree], fill: Fill, name: str = "inputs") -> Tree:
    """`tree_cat` of trees whose rows may be of different lengths: shorter ones are padded as `fill` says."""
    first = trees[0]
    if isinstance(first, Tensor):
        parts: list[Tensor] = list(trees)  # type: ignore[arg-type]
        shapes = [part.shape[1:] for part in parts]
        value = fill(name, first) if len(set(shapes)) > 1 and len({len(shape) for shape in shapes}) == 1 else None
        return torch.cat(parts if value is None else [padded(part, longest(shapes), value) for part in parts])
    keys = list(first) if isinstance(first, Mapping) else list(range(len(first)))
    joined = {k: tree_cat_padded([tree[k] for tree in trees], fill, f"{name}.{k}") for k in keys}  # type: ignore[index]
    return joined if isinstance(first, Mapping) else tuple(joined.values())  # type: ignore[return-value, arg-type]


def tree_cat(trees: Sequence[Tree]) -> Tree:
    """Join trees of equal structure along the sample dimension."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(trees)  # type: ignore[arg-type]
    if isinstance(first, Mapping):
        return {key: torch.cat([tree[key] for tree in trees]) for key in first}  # type: ignore[index, misc, call-overload]
    return tuple(torch.cat([tree[i] for tree in trees]) for i in range(len(first)))  # type: ignore[index, misc]
