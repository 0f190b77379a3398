"""Model inputs, whatever containers they come in: one tensor, several in a tuple, or several by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor

Tree = Union[Tensor, tuple[Tensor, ...], Mapping[str, Tensor]]  # noqa: UP007
"""Model inputs: one tensor, a tuple passed as positional arguments, or a mapping passed as keyword arguments."""

State = dict[str, Any]
"""What a checkpoint has of something: tensors and plain values by name, those of a user's own classes among them."""

Saved = Mapping[str, Any]
"""The same, as it comes back."""

Plain = dict[str, Any]
"""What JSON holds of something: plain values by name."""


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


def tree_cat(trees: Sequence[Tree]) -> Tree:
    """Join trees of equal structure along the sample dimension."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(trees)  # type: ignore[arg-type]
    if isinstance(first, Mapping):
        return {key: torch.cat([tree[key] for tree in trees]) for key in first}  # type: ignore[index, misc, call-overload]
    return tuple(torch.cat([tree[i] for tree in trees]) for i in range(len(first)))  # type: ignore[index, misc]
