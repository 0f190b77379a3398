"""What a model was called with and what it returned, told apart: rows of samples, other arguments, outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.core.experience import Batch, Tree, tree_rows

Path = tuple[int | str, ...]
"""Where a tensor lies in what a model returned: keys and positions, the outermost first."""


class Calls:
    """Reads and writes the arguments of a model's calls, by the names of its parameters.

    Args:
        model: the plain one, without wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: list[str] | None = None

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tree | None, dict[str, Any]]:
        """The tensors with a row per sample, and all other arguments by name.

        A tensor has a row per sample if it has as many rows as the first one. A single one stands for itself, several
        for a mapping; None if there is none.
        """
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            return args[0], {}
        rows, tree, others = None, {}, {}
        for name, _, value in self.named(args, kwargs):
            if isinstance(value, Tensor) and value.dim() and rows is None:
                rows = value.shape[0]
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows:
                tree[name] = value
            else:
                others[name] = value
        if not tree:
            return None, others
        return (next(iter(tree.values())) if len(tree) == 1 else tree), others

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, int | str, Any]]:
        """Name, position or keyword, and value of each argument; a number for a name if there is none."""
        names = self.parameters() if args else []
        return [
            *((names[i] if i < len(names) else str(i), i, value) for i, value in enumerate(args)),
            *((name, name, value) for name, value in kwargs.items()),
        ]

    def parameters(self) -> list[str]:
        """The names of the parameters that can be given by position, in order."""
        if self._names is None:
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            parameters = inspect.signature(self._model.forward).parameters.values()
            self._names = [one.name for one in parameters if one.kind in kinds]
        return self._names

    def put(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tree: Tree, appended: Sequence[Tree] = ()
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with the rows of `tree` in the place of its own, and `appended` ones behind them.

        Args:
            args: by position.
            kwargs: by keyword.
            tree: as `read` returned it, perhaps changed.
            appended: what was remembered at other steps: by name where that is a mapping, by order where it is a tuple.

        Raises:
            UsageError: if some of them lack a tensor that the model was called with.
        """
        if len(args) == 1 and not kwargs and isinstance(tree, Tensor) and all(isinstance(a, Tensor) for a in appended):
            return (torch.cat([tree, *appended]) if appended else tree,), {}  # type: ignore[list-item]
        wanted, _ = self.read(args, kwargs)
        chosen = {id(leaf) for leaf in leaves(wanted)} if wanted is not None else set()
        new_args, new_kwargs, order = list(args), dict(kwargs), 0
        for name, key, value in self.named(args, kwargs):
            if id(value) not in chosen:
                continue
            try:
                parts = [_part(one, name, order) for one in (tree, *appended)]
            except (KeyError, IndexError):
                raise UsageError(
                    f"the model was called with the tensor {name!r}, and what is remembered has none. Pass all of the"
                    " model's inputs to backward(), by their names, from the first step on."
                ) from None
            order += 1
            joined = torch.cat(parts) if appended else parts[0]
            if isinstance(key, int):
                new_args[key] = joined
            else:
                new_kwargs[key] = joined
        return tuple(new_args), new_kwargs


def _part(tree: Tree, name: str, order: int) -> Tensor:
    if isinstance(tree, Tensor):
        return (tree,)[order]
    return tree[name] if isinstance(tree, Mapping) else tree[order]


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of `tree`, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return list(tree.values() if isinstance(tree, Mapping) else tree)


def first_leaf(tree: Tree | None) -> Tensor | None:
    """The first tensor of `tree`."""
    if tree is None or isinstance(tree, Tensor):
        return tree
    return next(iter(tree.values() if isinstance(tree, Mapping) else tree), None)


def missing(passed: Tree, called: Tree) -> list[Tensor]:
    """The tensors of a call that are not among those passed, as the same objects."""
    passed_ids = {id(leaf) for leaf in leaves(passed)}
    return [leaf for leaf in leaves(called) if id(leaf) not in passed_ids]


def same_values(passed: Tree, called: Tree, look: bool) -> bool:
    """Whether the tensors passed hold what the model was called with, each in its place or by its name.

    Args:
        passed: to `backward`.
        called: what the model was called with; all that it has must be passed.
        look: at the values too, which waits for the device; else at shapes and types only.
    """
    order = list(called) if isinstance(called, Mapping) else [""]
    for position, name in enumerate(order):
        saw = called[name] if isinstance(called, Mapping) else leaves(called)[position]
        try:
            mine = _part(passed, name, position) if isinstance(called, Mapping) else first_leaf(passed)
        except (KeyError, IndexError):
            return False
        if mine is saw:
            continue
        if mine is None or mine.shape != saw.shape or mine.dtype != saw.dtype:
            return False
        if look and not torch.equal(mine.detach().to(saw.device), saw.detach()):
            return False
    return True


class Capture(NamedTuple):
    """One forward with a graph, for the `backward` that follows.

    Attributes:
        outputs: of the current rows, with their graph; None where it is not known which part of `returned` they are.
        extras: by operation.
        called: the tensors with a row per sample that the model was called with; None if unknown.
        inputs: what operations made of them; None where they left them alone.
        task: what they made of the task label.
        returned: what the model returned, where its outputs are not known.
        others: the other arguments of the call, by name.
        batch: with rows that operations appended and that wait for a forward of their own.
        waits: whether there may be such rows.
        training: whether the model was in training mode.
    """

    outputs: Tensor | None
    extras: dict[str, Any]
    called: Tree | None
    inputs: Tree | None
    task: int | Tensor | None
    returned: Any
    others: dict[str, Any]
    batch: Batch | None
    waits: bool
    training: bool

    @property
    def rows(self) -> int:
        """How many samples went through it."""
        if self.outputs is None:
            return 0 if self.called is None else tree_rows(self.called)
        return self.outputs.shape[0] if self.outputs.dim() else 1


# What it returned -----------------------------------------------------------------------------------------------


def logits_of(returned: Any) -> Any:
    """The tensor of outputs in what a model returned: itself, or its `logits`; else what it returned."""
    if isinstance(returned, Tensor):
        return returned
    return returned.get("logits", returned) if isinstance(returned, Mapping) else getattr(returned, "logits", returned)


def tensors_in(returned: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in what a model returned, with where it lies; containers in containers are looked into."""
    if isinstance(returned, Tensor):
        yield path, returned
        return
    parts: Any = ()
    if isinstance(returned, Mapping):
        parts = returned.items()
    elif isinstance(returned, list | tuple):
        parts = enumerate(returned)
    elif hasattr(returned, "__dataclass_fields__"):
        parts = vars(returned).items()
    for key, value in parts:
        yield from tensors_in(value, (*path, key))


class At:
    """Takes the tensor at one place out of what a model returns; a tensor that it returns alone stays.

    Args:
        path: where, as `tensors_in` says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, returned: Any) -> Tensor:
        """The tensor."""
        if isinstance(returned, Tensor):
            return returned
        for key in self.path:
            plain = isinstance(returned, Mapping | list | tuple)
            returned = returned[key] if plain else getattr(returned, str(key))
        return returned  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return "returned" + "".join(f"[{key!r}]" for key in self.path)


def own_loss_in(returned: Any) -> bool:
    """Whether a model returned a number of its own with a graph, which is of all rows that it was called with."""
    if isinstance(returned, Tensor):
        return False
    return any(not value.dim() and value.requires_grad for _, value in tensors_in(returned))


def described(returned: Any) -> str:
    """What a model returned, by the kinds and shapes of its parts."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    parts = [f"{At(path)!r} of shape {tuple(value.shape)}" for path, value in tensors_in(returned)]
    return f"a {type(returned).__name__} ({', '.join(parts) or 'without a tensor'})"


def cut(returned: Any, rows: int, keep: int) -> Any:
    """What a model returned, with only the first `keep` of `rows` rows in each of its tensors.

    Rows are the first dimension; where that has another size, the second (states of a recurrent network).
    """
    if isinstance(returned, Tensor):
        if returned.dim() and returned.shape[0] == rows:
            return returned[:keep]
        return returned[:, :keep] if returned.dim() > 1 and returned.shape[1] == rows else returned
    if isinstance(returned, Mapping):
        less = {key: cut(value, rows, keep) for key, value in returned.items()}
        return less if type(returned) is dict else type(returned)(**less)
    if isinstance(returned, list | tuple):
        parts = [cut(value, rows, keep) for value in returned]
        return type(returned)(*parts) if hasattr(returned, "_fields") else type(returned)(parts)
    return returned
