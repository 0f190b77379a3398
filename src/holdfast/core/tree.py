"""Model inputs in whatever container: one tensor, several in a tuple, or several by name; and as columns of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Union, cast, overload

import torch
from torch import Tensor

from holdfast.core.errors import DataError

T = TypeVar("T")

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


def leaves(value: object) -> list[object]:
    """What is in tuples, lists and dictionaries, and in those in them; a tuple with names is a leaf itself."""
    if type(value) is tuple or type(value) is list:  # torch's own way takes ten times as long
        return [leaf for one in value for leaf in leaves(one)]
    if type(value) is dict:
        return [leaf for one in value.values() for leaf in leaves(one)]
    return [value]


def mapped(function: Callable[[object], object], value: T) -> T:
    """`value` with each of its `leaves` replaced."""
    made: object = value
    if type(made) is tuple:
        made = tuple([mapped(function, one) for one in made])
    elif type(made) is list:
        made = [mapped(function, one) for one in made]
    elif type(made) is dict:
        made = {key: mapped(function, one) for key, one in made.items()}
    else:
        made = function(made)
    return cast(T, made)


@overload
def tree_split(tree: Tensor, size: int) -> tuple[Tensor, ...]: ...
@overload
def tree_split(tree: Tree, size: int) -> Iterable[Tree]: ...
def tree_split(tree: Tree, size: int) -> Iterable[Tree]:
    """The samples of `tree` in parts of `size`, the last of which may be smaller; a slice of each would cost more.

    A tensor gives a tuple. `unbind` takes a fifth less time than `split` for each of the views, which is most of what
    it takes to read small batches.

    Example:
        >>> [part.tolist() for part in tree_split(torch.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    if isinstance(tree, Tensor):
        whole, rest = divmod(len(tree), size)
        if not whole:
            return (tree,)
        parts = (tree[: whole * size] if rest else tree).view(whole, size, *tree.shape[1:]).unbind()
        return (*parts, tree[whole * size :]) if rest else parts
    if isinstance(tree, Mapping):
        return (dict(zip(tree, part)) for part in zip(*(tree_split(leaf, size) for leaf in tree.values())))
    return zip(*(tree_split(leaf, size) for leaf in tree))


def tree_rows(tree: Tree) -> int:
    """The number of samples (first dimension) in `tree`."""
    if isinstance(tree, Tensor):
        return tree.shape[0]
    first = next(iter(tree.values())) if isinstance(tree, Mapping) else tree[0]
    return first.shape[0]


RANDOM_STATE = torch.Generator().get_state().shape
"""Of what a generator on the CPU is saved as."""


def bytes_in(value: object, seen: set[tuple[int, int]] | None = None) -> int:
    """Bytes of every tensor in nested lists, tuples and mappings; what is in them twice counts once.

    States of random generators do not count.

    Args:
        value: to look into; what is neither a tensor nor a container counts nothing.
        seen: tensors that were counted already, by address and size; those of `value` are added.

    Example:
        >>> one = torch.zeros(3)
        >>> bytes_in({"mean": one, "again": [one, 2.0]})
        12
    """
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        storage = (value.data_ptr(), value.nbytes)  # views of one flat tensor count each, the same view once
        counts = storage not in seen and not (value.dtype == torch.uint8 and value.shape == RANDOM_STATE)
        seen.add(storage)
        return value.nbytes if counts else 0
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(bytes_in(part, seen) for part in parts)


Fill = Callable[[str, Tensor], float | None]
"""What a column is padded with, by its name and some of its rows; None if unknown."""


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


Structure = dict[str, int | list[str] | None]
"""Per field: None for one tensor, the length of a tuple, or the sorted keys of a mapping; plain values for saving."""


def flatten(rows: Mapping[str, Tree]) -> tuple[dict[str, Tensor], Structure]:
    """Split fields into columns of one tensor each.

    Args:
        rows: fields by name; each a tensor, a tuple of tensors or a mapping of tensors.

    Returns:
        The columns by name (`field`, `field.0`, `field.key`), and the structure that `restore` needs.

    Raises:
        DataError: two columns get the same name, or something is not a tensor.

    Example:
        >>> import torch
        >>> columns, structure = flatten({"inputs": (torch.zeros(2), torch.ones(2)), "targets": torch.arange(2)})
        >>> list(columns), structure
        (['inputs.0', 'inputs.1', 'targets'], {'inputs': 2, 'targets': None})
    """
    columns: dict[str, Tensor] = {}
    structure: Structure = {}
    count = 0
    for field, tree in rows.items():
        if isinstance(tree, Mapping):
            structure[field] = sorted(tree)
            parts = {f"{field}.{key}": value for key, value in tree.items()}
        elif isinstance(tree, tuple | list):
            structure[field] = len(tree)
            parts = {f"{field}.{index}": value for index, value in enumerate(tree)}
        else:
            structure[field] = None
            parts = {field: tree}
        count += len(parts)
        columns.update(parts)
    for name, value in columns.items():
        if not isinstance(value, Tensor):
            raise DataError(
                f"column {name!r} is a {type(value).__name__}, and only tensors can be remembered. "
                "Pass a tensor with one row per sample, or leave the field out."
            )
    if len(columns) != count:
        raise DataError(f"two of the fields {sorted(rows)} become the same column. Rename a field that contains a dot.")
    return columns, structure


def restore(columns: Mapping[str, Tensor], structure: Structure) -> dict[str, Tree]:
    """Put columns back into the fields they came from; the inverse of `flatten`.

    Args:
        columns: tensors by column name.
        structure: what `flatten` returned with them.
    """
    rows: dict[str, Tree] = {}
    for field, shape in structure.items():
        if shape is None:
            rows[field] = columns[field]
        elif isinstance(shape, int):
            rows[field] = tuple(columns[f"{field}.{index}"] for index in range(shape))
        else:
            rows[field] = {key: columns[f"{field}.{key}"] for key in shape}
    return rows


def row_count(columns: Mapping[str, Tensor]) -> int:
    """The number of rows that all columns agree on.

    Raises:
        DataError: there is no column, a column has no row dimension, or they disagree.
    """
    counts = {name: value.shape[0] if value.ndim else -1 for name, value in columns.items()}
    first = next(iter(counts.values()), -1)
    if first < 0 or any(count != first for count in counts.values()):
        raise DataError(f"columns of different lengths: {counts} rows. Give every field one row per sample.")
    return first


def join(parts: Sequence[Tensor]) -> Tensor:
    """Rows of one column, one part after the other; narrower rows of floats (logits of a head that grew) end in NaN.

    Example:
        >>> join([torch.zeros(1, 1), torch.ones(1, 2)])
        tensor([[0., nan],
                [1., 1.]])
    """
    widths = {part.shape[-1] for part in parts if part.dim() > 1}
    if len(widths) < 2 or not parts[0].is_floating_point():
        return torch.cat(list(parts))
    wide = max(widths)
    return torch.cat([torch.nn.functional.pad(part, (0, wide - part.shape[-1]), value=torch.nan) for part in parts])
