"""What a forward of the user's loop leaves behind for `backward`, and how old rows join the model's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.core.experience import Tree, tree_cat, tree_rows
from holdfast.core.step import Step


class Capture(NamedTuple):
    """One forward in training mode: outputs with their graph, extras by operation, rows, and an input to know it by."""

    outputs: Tensor
    extras: dict[str, Any]
    rows: int
    leaf: Tensor | None


def first_leaf(tree: Tree) -> Tensor | None:
    """The first tensor of `tree`."""
    if isinstance(tree, Tensor):
        return tree
    return next(iter(tree.values() if isinstance(tree, Mapping) else tree), None)


def called_with(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tree:
    """The tensors of a call as a tree: the tensor itself if there is one, else by parameter name."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return args[0]
    tensors = {name: value for name, _, value in _tensors(model, args, kwargs)}
    if not tensors:
        raise UsageError(
            "the model was called without a tensor among its arguments. Call it with tensors by position or by name, "
            "or a mapping spread out: model(**batch)."
        )
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def join_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Sequence[Tree]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with more rows: `rows` hold what `backward(inputs=...)` got at other steps.

    Tensors are matched by name where `inputs` was a mapping, by position where it was a tuple; all else stays.
    """
    if len(args) == 1 and not kwargs and all(isinstance(part, Tensor) for part in rows):
        return (torch.cat([args[0], *rows]),), {}  # type: ignore[list-item]
    tensors, new_args, new_kwargs = _tensors(model, args, kwargs), list(args), dict(kwargs)
    for position, (name, place, value) in enumerate(tensors):
        try:
            parts = [_part(tree, name, position) for tree in rows]
        except (KeyError, IndexError):
            raise UsageError(
                f"the model was called with the tensor {name!r}, and backward() did not get it. "
                "Pass all of the model's inputs to backward(), by their names."
            ) from None
        joined = torch.cat([value, *parts])
        if isinstance(place, int):
            new_args[place] = joined
        else:
            new_kwargs[place] = joined
    return tuple(new_args), new_kwargs


def _tensors(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, int | str, Tensor]]:
    """Name, place and value of each tensor argument."""
    names = list(inspect.signature(model.forward).parameters) if args else []
    found: list[tuple[str, int | str, Any]] = [
        (names[i] if i < len(names) else str(i), i, value) for i, value in enumerate(args)
    ]
    found += [(name, name, value) for name, value in kwargs.items()]
    return [(name, place, value) for name, place, value in found if isinstance(value, Tensor)]


def _part(tree: Tree, name: str, position: int) -> Tensor:
    if isinstance(tree, Tensor):
        return (tree,)[position]
    return tree[name] if isinstance(tree, Mapping) else tree[position]


def join_steps(steps: Sequence[Step], fields: Sequence[str] = ()) -> Step:
    """Several accumulated batches as the one step that the optimiser makes of them.

    Args:
        steps: in order, without their graphs.
        fields: extras with a row per sample, to be joined; of others the last step's are kept.
    """
    last = steps[-1]
    if len(steps) == 1:
        return last
    extras = dict(last.extras)
    for name in fields:
        if name in extras and isinstance(extras[name], Tensor):
            extras[name] = torch.cat([step.extras[name] for step in steps])
    outputs = [step.outputs for step in steps if step.outputs is not None]
    tasks = [step.task for step in steps]
    task = last.task
    if any(isinstance(other, Tensor) or other != task for other in tasks):
        task = torch.cat([
            other
            if isinstance(other, Tensor)
            else torch.full((tree_rows(step.inputs),), -1 if other is None else other)
            for other, step in zip(tasks, steps)
        ])  # fmt: skip
    return Step(
        tree_cat([step.inputs for step in steps]),
        torch.cat([step.targets for step in steps]),
        torch.stack([step.loss for step in steps]).mean(),
        torch.cat(outputs) if len(outputs) == len(steps) else None,
        task,
        last.index,
        last.progress,
        extras,
        last.weight,
    )


def logits_of(found: Any) -> Any:
    """The tensor of outputs in what a model returned: itself, or its `logits`."""
    if isinstance(found, Tensor):
        return found
    return found.get("logits", found) if isinstance(found, Mapping) else getattr(found, "logits", found)


def cut(given: Any, rows: int, own: int) -> Any:
    """What a model returned, with only the first `own` of `rows` rows in each of its tensors."""
    if isinstance(given, Tensor):
        return given[:own] if given.dim() and given.shape[0] == rows else given
    if isinstance(given, Mapping):
        less = {key: cut(value, rows, own) for key, value in given.items()}
        return less if type(given) is dict else type(given)(**less)
    if isinstance(given, list | tuple):
        parts = [cut(value, rows, own) for value in given]
        return type(given)(*parts) if hasattr(given, "_fields") else type(given)(parts)
    return given
