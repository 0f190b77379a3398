"""Graphs compiled by Inductor, each once, with the gradients of large weights added as they are computed."""

from __future__ import annotations

import functools
import gc
import operator
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


class CannotRun(Exception):  # noqa: N818
    """A recorded step that cannot be compiled; the text says why."""


_compiled: dict[Hashable, Callable[..., Any]] = {}
MOST = 64
"""Compiled programs that are kept to be run on other tensors."""


def compiled_once(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """A graph compiled by Inductor; one of the same calls on tensors of the same shapes is compiled once in a process.

    Args:
        module: a graph without constants of its own.
        inputs: what it is called with, in order.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    try:
        in_place(module, inputs)
        factors_apart(module)
        join_late(module)
    except RuntimeError as error:  # a graph of a form that nobody thought of: its steps are made as written
        raise CannotRun(f"the step cannot be rewritten for Inductor: {str(error)[:200]}") from error
    # The storage's address says which inputs share memory: a program of others that share in another way is not theirs.
    alone = not any(node.op == "get_attr" for node in module.graph.nodes)
    aliased = [
        next(i for i, other in enumerate(inputs) if other.untyped_storage()._cdata == t.untyped_storage()._cdata)
        for t in inputs
    ]
    forms = tuple((t.shape, t.stride(), t.dtype, t.device, t.storage_offset(), t.requires_grad) for t in inputs)
    key = (module.code, forms, tuple(aliased))
    if alone and key in _compiled:
        return _compiled[key]
    # Inductor's own random numbers are others than eager ones: with the fallback, masks of dropout stay those of torch.
    try:
        with torch.no_grad(), config.patch(fallback_random=True, size_asserts=False, alignment_asserts=False):
            call: Any = compile_fx(module, inputs)  # type: ignore[arg-type]
    except Exception as error:  # of Inductor, of what it calls, and of the C++ compiler: nothing that they share
        told = next(iter(str(error).splitlines()), "").partition(": attempted")[0]
        raise CannotRun(f"torch cannot compile the step: {told[:200] or type(error).__name__}") from error
    gc.collect()  # of the million objects that this leaves: else it comes amid the steps, and takes as long as hundreds
    if len(_compiled) >= MOST:
        _compiled.pop(next(iter(_compiled)))
    _compiled[key] = call
    return call  # type: ignore[no-any-return]


SUMS = {aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor}
"""Calls that take a factor of what they add."""


def factors_apart(module: torch.fx.GraphModule) -> None:
    """Let `a + alpha * b` be a product and a sum.

    Inductor makes one `addmm` of a product of matrices and a sum, and takes no notice of the sum's `alpha`: a weight
    decay of 0.01 was one of 1 there (torch 2.14).
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in SUMS or node.kwargs.get("alpha", 1) == 1:
            continue
        with graph.inserting_before(node):
            scaled = graph.call_function(aten.mul.Tensor, (node.args[1], node.kwargs["alpha"]))
        node.args, node.kwargs = (node.args[0], scaled), {}
    module.recompile()


def join_late(module: torch.fx.GraphModule) -> None:
    """Let `cat([a, b]) / 255` be `cat([a / 255, b / 255])`.

    Inductor joins bytes by a call of its own and makes another pass over them; numbers are written where they are
    joined as they are made.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.cat.default or len(node.users) != 1:
            continue
        (user,) = node.users
        to_numbers = _name(user) == "aten::_to_copy" and getattr(user.kwargs.get("dtype"), "is_floating_point", False)
        if not (to_numbers or (user.target is aten.div.Tensor and isinstance(user.args[1], int | float))):
            continue
        with graph.inserting_before(node):
            parts = [graph.call_function(user.target, (one, *user.args[1:]), user.kwargs) for one in node.args[0]]
            user.replace_all_uses_with(graph.call_function(aten.cat.default, (parts, *node.args[1:]), node.kwargs))
        graph.erase_node(user)
        graph.erase_node(node)
    module.recompile()


LARGE = 2**15
"""Numbers of a weight from which on its gradient is added to it as it is computed."""


def in_place(module: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
    """Let `w.addcmul_(a @ b, rate)` be `w += (a * rate) @ b`, one pass over the weight where Inductor makes three.

    Only where the product is nothing but that update, and neither factor changes in between.
    """
    graph = module.graph
    graph.eliminate_dead_code()
    sizes = dict(zip((node for node in graph.nodes if node.op == "placeholder"), inputs))

    def memory(value: Any) -> Any:
        root = _root(value)
        return sizes[root].untyped_storage()._cdata if root in sizes else root

    places = {node: position for position, node in enumerate(graph.nodes)}
    written = [(position, memory(one)) for node, position in places.items() for one in _written(node)]
    for node in list(graph.nodes):
        if node.target is not aten.addcmul_.default or node.kwargs or len(node.args) != 3:
            continue
        weight, product, rate = node.args
        while _name(product) in VIEWS and len(product.users) == 1:
            product = product.args[0]
        size = sizes.get(weight)
        if product.target not in PRODUCTS or len(product.users) > 1 or size is None or size.numel() < LARGE:
            continue
        if size.dim() != PRODUCTS[product.target] or not _is_rate(rate, sizes, size.shape[:-2]):
            continue
        factors = {memory(factor) for factor in product.args}
        if any(places[product] < position < places[node] and one in factors for position, one in written):
            continue
        with graph.inserting_before(node):
            scaled = graph.call_function(aten.mul.Tensor, (product.args[0], rate))
            graph.call_function(add_product(), (weight, scaled, product.args[1]))
        node.replace_all_uses_with(weight)  # a second move of a step is of what the first one returned
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def _is_rate(node: Any, sizes: dict[torch.fx.Node, Tensor], runs: torch.Size) -> bool:
    """Whether a value is one number for each matrix."""
    if node in sizes:
        shape = tuple(sizes[node].shape)
    else:
        shape = tuple(node.args[1]) if getattr(node, "target", None) is aten.view.default else (0,)
    return shape in ((), (*runs, 1, 1))


PRODUCTS = {aten.mm.default: 2, aten.bmm.default: 3}
"""Products of matrices, and the dimensions of their results."""


VIEWS = ("aten::view", "aten::_unsafe_view")
"""Calls that give a value another shape; the schema of the second does not say that it is the same memory."""


def _name(node: Any) -> str:
    return str(getattr(getattr(node.target, "_schema", None), "name", ""))


def _root(node: Any) -> Any:
    """The node that made the memory in which a value lies."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function":
        returns = getattr(getattr(node.target, "_schema", None), "returns", ())
        alias = any(one.alias_info is not None for one in returns)
        if not (alias or _name(node) in VIEWS or node.target is operator.getitem):
            break
        node = node.args[0]
    return node


def _written(node: torch.fx.Node) -> list[Any]:
    """What a call writes in place."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    named = [one for one in arguments if one.alias_info is not None and one.alias_info.is_write]
    values: list[Any] = []
    for one in named:
        position = arguments.index(one)
        value = node.args[position] if position < len(node.args) else node.kwargs.get(one.name)
        values += value if isinstance(value, list | tuple) else [value]
    return values


@functools.cache
def add_product() -> Any:
    """The operator `holdfast::add_product_(x, a, b)`: `x += a @ b` in place, of matrices or of stacks of them."""
    library = torch.library.Library("holdfast", "FRAGMENT")
    library.define("add_product_(Tensor(a!) x, Tensor a, Tensor b) -> ()")

    def add(x: Tensor, a: Tensor, b: Tensor) -> None:
        (x.baddbmm_ if x.dim() == 3 else x.addmm_)(a, b)

    library.impl("add_product_", add, "CompositeExplicitAutograd")
    _libraries.append(library)  # what a library defines goes with it
    return torch.ops.holdfast.add_product_.default


_libraries: list[torch.library.Library] = []
