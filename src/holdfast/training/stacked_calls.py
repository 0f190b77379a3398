"""Calls of torch on tensors with a row for each of several runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from holdfast.core.tape import Node, Ref, refs
from holdfast.training.programs import is_value

aten = torch.ops.aten

# fmt: off
ELEMENTWISE = frozenset((
    *("add", "sub", "mul", "div", "addcmul", "addcdiv", "lerp", "clamp", "clamp_min", "clamp_max", "exp"),
    *("log", "log1p", "expm1", "sqrt", "rsqrt", "sigmoid", "tanh", "relu", "threshold_backward"),
    *("sigmoid_backward", "tanh_backward", "neg", "abs", "square", "pow", "where", "eq", "ne", "lt", "le"),
    *("gt", "ge", "logical_and", "logical_or", "logical_not", "bitwise_not", "bitwise_and", "bitwise_or"),
    *("isnan", "maximum", "minimum", "masked_fill", "reciprocal", "sign", "sgn", "softplus", "zero", "copy"),
    *("_to_copy", "clone", "zeros_like", "ones_like"),
))
# fmt: on
"""Calls that treat every number for itself: they take stacked tensors as they are, once dimensions are lined up."""


def _index_copy_(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    aten.index_put_(x.movedim(dim, 0), [index], source.movedim(dim, 0))
    return x


FORMS: dict[str, Callable[..., Any]] = {"index_copy_": _index_copy_}
"""Calls that torch's vmap makes run by run, in a form that it makes at once."""


class CannotStack(Exception):  # noqa: N818
    """Recorded steps of runs that are not one program; the text says why."""


class Calls:
    """Makes calls of torch on values some of which are stacked.

    Args:
        values: by number.
        hot: the numbers of those that are stacked.
        count: of runs.

    Attributes:
        made_stacked: whether the results of the last call are.
    """

    def __init__(self, values: dict[int, Any], hot: set[int], count: int) -> None:
        self.values = values
        self.hot = hot
        self.count = count
        self.made_stacked = False

    def make(self, node: Node, unlike: bool = False) -> list[Any]:
        """The results of a call, flat.

        Args:
            node: the call.
            unlike: whether tensors stand in it in the place of numbers.
        """
        name = node.func._schema.name.split("::")[1]
        stacked = [number for number in refs(node) if number in self.hot]
        self.made_stacked = bool(stacked)
        if not stacked:
            return _flat(node.func(*self._filled(node.args), **self._filled(node.kwargs)))
        if "out" in node.kwargs:
            rest = {key: value for key, value in node.kwargs.items() if key != "out"}
            kind = str(node.func).rpartition(".")[2].removesuffix("out").removesuffix("_") or "default"
            packet = getattr(aten, name)
            plain = node._replace(func=getattr(packet, kind, packet), kwargs=rest, writes=(), outs=(0,))
            target = self.values[node.kwargs["out"].number]
            target.copy_(self.make(plain, unlike)[0])
            return [target]
        if name.startswith("_foreach_"):
            return self._foreach(name, node, unlike)
        if name.startswith("_fused_"):
            return self._fused(name, node)
        function: Callable[..., Any] = FORMS.get(name, node.func)
        if unlike:
            function = with_numbers(name, node)
        elif name.rstrip("_") in ELEMENTWISE:
            direct = self._directly(name, node)
            if direct is not None:
                return direct
        return self._mapped(function, node.args, node.kwargs)

    def _filled(self, value: Any) -> Any:
        flat, spec = tree_flatten(value, is_leaf=is_value)
        return tree_unflatten([self.values[one.number] if isinstance(one, Ref) else one for one in flat], spec)

    def _mapped(self, function: Callable[..., Any], args: Any, kwargs: Any) -> list[Any]:
        """A call for every run, by torch's vmap."""
        flat, spec = tree_flatten((args, kwargs), is_leaf=is_value)
        hot = [isinstance(one, Ref) and one.number in self.hot for one in flat]
        cold = [self.values[one.number] if isinstance(one, Ref) and not h else one for one, h in zip(flat, hot)]
        missing: list[bool] = []

        def one_run(*stacked: Tensor) -> Any:
            rows = iter(stacked)
            args, kwargs = tree_unflatten([next(rows) if h else value for value, h in zip(cold, hot)], spec)
            out = _flat(function(*args, **kwargs))
            missing[:] = [value is None for value in out]  # vmap returns tensors only; a None is put back below
            return tuple(value for value in out if value is not None)

        stacked_values = [self.values[one.number] for one, h in zip(flat, hot) if h]
        out = iter(torch.func.vmap(one_run, randomness="error")(*stacked_values))
        return [None if gone else next(out) for gone in missing]

    def _directly(self, name: str, node: Node) -> list[Any] | None:
        """An elementwise call on the stacked tensors themselves; None where it has to be mapped."""
        flat, spec = tree_flatten((node.args, node.kwargs), is_leaf=is_value)
        tensors = [(self.values[one.number], one.number in self.hot) for one in flat if isinstance(one, Ref)]
        rank = max(tensor.dim() - hot for tensor, hot in tensors)
        if len({tensor.dtype for tensor, _ in tensors}) > 1 and any(t.dim() - hot < rank for t, hot in tensors):
            return None  # a number's kind counts less than a tensor's
        if name.endswith("_") and not (tensors[0][1] and tensors[0][0].dim() - 1 == rank):
            return None
        filled = []
        for one in flat:
            value = self.values[one.number] if isinstance(one, Ref) else one
            if isinstance(one, Ref) and one.number in self.hot and value.dim() - 1 < rank:
                value = value.reshape(self.count, *[1] * (rank - value.dim() + 1), *value.shape[1:])
            filled.append(value)
        args, kwargs = tree_unflatten(filled, spec)
        return _flat(node.func(*args, **kwargs))

    def _foreach(self, name: str, node: Node, unlike: bool) -> list[Any]:
        """A call on lists: at once where all in them is stacked, else one after the other."""
        lists = [one for one in node.args if _is_list(one)]
        length, base = len(lists[0]), name.removeprefix("_foreach_")
        numbers = refs(node)
        whole = all(number in self.hot for number in numbers) and not unlike
        if whole and base != "norm" and not any(isinstance(one, Ref) for one in node.args):
            return _flat(node.func(*self._filled(node.args), **self._filled(node.kwargs)))
        outs: list[Any] = []
        for position in range(length):
            args = tuple(one[position] if _is_list(one) else one for one in node.args)
            function = with_numbers(base, node) if unlike else getattr(aten, base)
            mine = [one for one in args if isinstance(one, Ref)]
            if any(one.number in self.hot for one in mine):
                outs += self._mapped(function, args, node.kwargs)
            else:
                value = function(*self._filled(args), **self._filled(node.kwargs))
                outs.append(value.expand(self.count, *value.shape).clone() if not base.endswith("_") else value)
        return outs if node.outs else []

    def _fused(self, name: str, node: Node) -> list[Any]:
        """The fused step of an optimiser, written out."""
        forms: dict[str, Callable[..., Any]] = {"_fused_sgd_": _sgd, "_fused_adam_": _adam, "_fused_adamw_": _adam}
        write = forms.get(name)
        if write is None:
            raise CannotStack(f"nobody has written out {name} for several runs ({node.where})")
        count = len(node.args[0])
        lists = [one or [None] * count for one in node.args if _is_list(one)]
        names = [one.name for one in node.func._schema.arguments]
        settings = {key: value for key, value in zip(names, node.args) if not _is_list(value)}
        settings |= node.kwargs
        for tensors in zip(*lists):
            self._mapped(functools.partial(write, decoupled=name == "_fused_adamw_"), tensors, settings)
        return []


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple) and not is_value(value)


def _flat(value: Any) -> list[Any]:
    return [value] if isinstance(value, Tensor) else tree_flatten(value)[0] if value is not None else []


def with_numbers(name: str, node: Node) -> Callable[..., Any]:
    """A call some of whose numbers are tensors of no dimension, since they differ between runs.

    Raises:
        CannotStack: for a call that has no such form.
    """

    def added(x: Tensor, other: Any, alpha: Any = 1) -> Any:
        return getattr(torch.Tensor, name)(x, other * alpha)

    def plain(x: Tensor, *others: Any) -> Any:
        return getattr(torch.Tensor, name)(x, *others)

    def combined(x: Tensor, one: Tensor, other: Tensor, value: Any = 1) -> Any:
        part = (one * other if "mul" in name else one / other) * value
        return x.add_(part) if name.endswith("_") else x + part

    def filled(first: Any, value: Any, **other: Any) -> Any:
        if name == "fill_":
            return first.copy_(value.expand_as(first))
        kind = other.get("dtype") or (first.dtype if isinstance(first, Tensor) else value.dtype)
        shape = first.shape if isinstance(first, Tensor) else first
        return value.to(kind).expand(shape).clone()

    forms: dict[str, Callable[..., Any]] = {
        **dict.fromkeys(("add", "sub"), added),
        **dict.fromkeys(("mul", "div", "lerp", "pow"), plain),
        **dict.fromkeys(("addcmul", "addcdiv"), combined),
        **dict.fromkeys(("fill", "full", "full_like"), filled),
        "rsub": lambda x, other, alpha=1: other - x * alpha,
        "clamp_min": lambda x, least: torch.maximum(x, least.to(x)),
        "clamp_max": lambda x, most: torch.minimum(x, most.to(x)),
        "scalar_tensor": lambda value, **other: value.to(other.get("dtype") or value.dtype).clone(),
    }
    form = forms.get(name.rstrip("_"))
    if form is None or (name.endswith("_") and name.rstrip("_") in ("rsub", "clamp_min", "clamp_max")):
        raise CannotStack(f"a number differs between the runs that {name} takes as a constant ({node.where})")
    return form


def _sgd(
    p: Tensor,
    grad: Tensor,
    velocity: Tensor | None,
    *,
    weight_decay: Any,
    momentum: Any,
    lr: Any,
    dampening: Any,
    nesterov: bool,
    maximize: bool,
    is_first_step: bool,
    decoupled: bool = False,
    **_: Any,
) -> tuple[()]:
    """The step of `torch.optim.SGD`, for one parameter."""
    grad = -grad if maximize else grad
    if isinstance(weight_decay, Tensor) or weight_decay:
        grad = grad + p * weight_decay
    if velocity is not None:
        if is_first_step:
            velocity.copy_(grad)
        else:
            velocity.mul_(momentum).add_(grad * (1 - dampening))
        grad = grad + velocity * momentum if nesterov else velocity
    p.sub_(grad * lr)
    return ()


def _adam(
    p: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    most: Tensor | None,
    step: Tensor,
    *,
    lr: Any,
    beta1: Any,
    beta2: Any,
    weight_decay: Any,
    eps: Any,
    maximize: bool,
    decoupled: bool,
    **_: Any,
) -> tuple[()]:
    """The step of `torch.optim.Adam`, and of `AdamW` where the decay is decoupled, for one parameter."""
    grad = -grad if maximize else grad
    if isinstance(weight_decay, Tensor) or weight_decay:
        if decoupled:
            p.sub_(p * (lr * weight_decay))
        else:
            grad = grad + p * weight_decay
    mean.copy_(mean * beta1 + grad * (1 - beta1))
    square.copy_(square * beta2 + grad * grad * (1 - beta2))
    variance, step = square, step.double()  # as many digits as the numbers of the host have
    if most is not None:
        most.copy_(torch.maximum(most, square))
        variance = most
    unbiased = (variance / (1 - beta2**step)).sqrt() + eps
    p.sub_(mean / unbiased * (lr / (1 - beta1**step)))
    return ()
