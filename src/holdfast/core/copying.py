"""Deep copies of modules whose functions (forwards put in place, hooks) hold the copied layers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from types import CellType, FunctionType, MethodType
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
Memo = dict[int, object]


def deep_copy(module: M, memo: Memo | None = None) -> M:
    """A deep copy of `module` whose functions hold the copied layers, where those of `module` hold its own.

    `copy.deepcopy` copies no function. A forward that was put in place of a layer's (`layer.forward = lambda x:
    old(x) + adapter(x)`) or a hook (`lambda layer, args, out: out + adapter(args[0])`) would therefore go on with the
    original's `adapter` in the copy, and a teacher would silently learn with its student.

    A tensor within a graph, which modules keep of their last forward (`self.last = hidden`, the weight of
    `torch.nn.utils.weight_norm`) and which torch refuses to copy, is copied as a value.

    Args:
        module: any module.
        memo: of `copy.deepcopy`.

    Example:
        >>> import torch
        >>> layer, adapter = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> layer.adapter, before = adapter, layer.forward
        >>> layer.forward = lambda x: before(x) + adapter(x)
        >>> made = deep_copy(layer)
        >>> x = torch.ones(1, 2)
        >>> expected = made(x)
        >>> _ = nn.init.zeros_(adapter.weight), nn.init.zeros_(layer.weight)
        >>> bool(torch.equal(made(x), expected))
        True
    """
    memo = {} if memo is None else memo
    with _Values():
        made = copy.deepcopy(module, memo)
    done: Memo = {}
    for part in made.modules():
        for name, value in vars(part).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                held = _rebound(value, memo, done)
                if held is not value:
                    part.__dict__[name] = held
    return made


class _Values(TorchFunctionMode):
    """Within it, a deep copy of a tensor that has a graph is one of its values."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Torch calls this for every function of a tensor."""
        value = args[0] if args else None
        if func is Tensor.__deepcopy__ and isinstance(value, Tensor) and not value.is_leaf:
            return value.detach().clone()  # `copy.deepcopy` notes it in its memo
        return func(*args, **(kwargs or {}))


def _rebound(value: T, memo: Memo, done: Memo) -> T:
    """`value` with the copies of all layers and tensors that it holds and that were copied; itself if it has none."""
    if isinstance(value, nn.Module | Tensor):
        return cast("T", memo.get(id(value), value))
    if isinstance(value, FunctionType):
        return cast("T", _function(value, memo, done))
    if isinstance(value, MethodType):
        function, owner = _rebound(value.__func__, memo, done), _rebound(value.__self__, memo, done)
        same = function is value.__func__ and owner is value.__self__
        return value if same else cast("T", MethodType(function, owner))
    if isinstance(value, functools.partial):
        func, args = _rebound(value.func, memo, done), _rebound(value.args, memo, done)
        named = _rebound(value.keywords, memo, done)
        same = func is value.func and args is value.args and named is value.keywords
        return value if same else cast("T", functools.partial(func, *args, **named))
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [_rebound(item, memo, done) for item in value]
        return value if all(a is b for a, b in zip(items, value)) else cast("T", type(value)(items))
    if isinstance(value, dict):  # hooks, whose order and handles stay
        changed = {key: new for key, old in value.items() if (new := _rebound(old, memo, done)) is not old}
        if changed:
            value = copy.copy(value)
            value.update(changed)
    return value


def _function(function: FunctionType, memo: Memo, done: Memo) -> FunctionType:
    """`function` with the copies of what its closure, its defaults and its global names stand for."""
    if id(function) in done:
        return cast("FunctionType", done[id(function)])
    done[id(function)] = function  # where it refers to itself
    cells = function.__closure__ or ()
    content = [_content(cell) for cell in cells]
    held = [_rebound(value, memo, done) for value in content]
    names = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    layers = {
        name: new
        for name, old in names.items()
        if isinstance(old, nn.Module | MethodType) and (new := _rebound(old, memo, done)) is not old
    }
    defaults = _rebound(function.__defaults__, memo, done)
    if not layers and defaults is function.__defaults__ and all(a is b for a, b in zip(content, held)):
        return function
    space = {**function.__globals__, **layers} if layers else function.__globals__
    closure = tuple(cell if a is b else CellType(b) for cell, a, b in zip(cells, content, held))
    made = FunctionType(function.__code__, space, function.__name__, defaults, closure)
    made.__kwdefaults__ = _rebound(function.__kwdefaults__, memo, done)
    made.__dict__.update(function.__dict__)
    done[id(function)] = made
    return made


def _content(cell: CellType) -> object:
    """What a cell of a closure holds; None for one that holds nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
