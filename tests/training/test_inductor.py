"""Graphs of recorded steps as they are rewritten before Inductor compiles them: other calls, the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.training import inductor

aten = torch.ops.aten


@pytest.mark.parametrize("stacked", [False, True])
def test_the_gradient_of_a_large_weight_is_added_where_it_is_computed(stacked: bool) -> None:
    shape = (3, 200, 400) if stacked else (200, 400)
    module, inputs = updating(shape, lambda graph, a, b: graph.call_function(aten.relu.default, (a,)))
    again = [one.clone() for one in inputs]
    module(*inputs)
    inductor.in_place(module, again)
    assert [node.target for node in module.graph.nodes].count(inductor.add_product()) == 1
    module(*again)
    torch.testing.assert_close(again[0], inputs[0], rtol=1e-5, atol=1e-6)


def doubled(graph: torch.fx.Graph, a: torch.fx.Node, b: torch.fx.Node) -> Any:
    return graph.call_function(aten.mul_.Tensor, (b, 2.0))


@pytest.mark.parametrize(("between", "rate"), [(doubled, ()), (lambda *_: None, (200, 400))])
def test_a_gradient_is_not_added_elsewhere_where_that_would_be_another_sum(between: Any, rate: tuple[int, ...]) -> None:
    """A factor that is written between the product and the update, and a rate for every number of the weight."""
    module, inputs = updating((200, 400), between)
    inputs[3] = torch.rand(rate)
    again = [one.clone() for one in inputs]
    module(*inputs)
    inductor.in_place(module, again)
    assert inductor.add_product() not in [node.target for node in module.graph.nodes]
    module(*again)
    assert torch.equal(again[0], inputs[0])


@pytest.mark.parametrize("call", [aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor])
def test_the_factor_of_a_sum_is_a_call_of_its_own_since_torch_loses_it_beside_a_product(call: Any) -> None:
    """Inductor makes one call of `a @ b + 0.01 * w` that has no 0.01: the weight decay of every compiled step."""
    graph = torch.fx.Graph()
    a, b, weight = (graph.placeholder(name) for name in ("a", "b", "weight"))
    product = graph.call_function(aten.mm.default, (a, b))
    graph.output(graph.call_function(call, (product, weight), {"alpha": 0.01}))
    module = torch.fx.GraphModule(nn.Module(), graph)
    inputs = torch.rand(3, 4), torch.rand(4, 5), torch.rand(3, 5)
    before = module(*inputs)
    inductor.factors_apart(module)
    assert not any(node.kwargs for node in module.graph.nodes)
    torch.testing.assert_close(module(*inputs), before)


@pytest.mark.parametrize(
    ("call", "joined"),
    [
        (lambda graph, x, y: graph.call_function(aten.div.Tensor, (x, 255.0)), True),
        (lambda graph, x, y: graph.call_function(aten._to_copy.default, (x,), {"dtype": torch.float64}), True),
        (lambda graph, x, y: graph.call_function(aten._to_copy.default, (x,), {"dtype": torch.int64}), False),
        (lambda graph, x, y: graph.call_function(aten.div.Tensor, (x, y)), False),
        (lambda graph, x, y: graph.call_function(aten.div.Tensor, (y, x)), False),
        (lambda graph, x, y: graph.call_function(aten.mul.Tensor, (x, 300)), False),
    ],
    ids=["divided", "converted", "whole numbers", "by a tensor", "of a tensor", "multiplied"],
)
def test_bytes_become_numbers_before_they_are_joined(call: Callable[..., Any], joined: bool) -> None:
    graph = torch.fx.Graph()
    a, b, y = (graph.placeholder(name) for name in ("a", "b", "y"))
    both = graph.call_function(aten.cat.default, ([a, b], 1))
    graph.output(call(graph, both, y))
    module = torch.fx.GraphModule(nn.Module(), graph)
    inputs = torch.arange(6, dtype=torch.uint8).view(2, 3), torch.arange(250, 256, dtype=torch.uint8).view(2, 3)
    y = torch.tensor(7.0)
    before = module(*inputs, y)
    inductor.join_late(module)
    calls = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert (calls[-1] is aten.cat.default) is joined
    after = module(*inputs, y)
    assert after.dtype == before.dtype
    assert torch.equal(after, before)


def test_a_weight_that_moves_twice_in_a_step_is_moved_in_place_both_times() -> None:
    """The optimiser's step and one of a method's own (`meta_replay`, `function_distance_step`)."""
    graph = torch.fx.Graph()
    weight, a, b, rate = (graph.placeholder(name) for name in ("weight", "a", "b", "rate"))
    moved = graph.call_function(aten.addcmul_.default, (weight, graph.call_function(aten.mm.default, (a, b)), rate))
    left = graph.call_function(aten.mm.default, (moved, graph.call_function(aten.t.default, (b,))))
    product = graph.call_function(aten.mm.default, (left, b))
    graph.output(graph.call_function(aten.addcmul_.default, (moved, product, rate)))
    module = torch.fx.GraphModule(nn.Module(), graph)
    generator = torch.Generator().manual_seed(0)
    sizes = ((200, 400), (200, 7), (7, 400), ())
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) / 10 for size in sizes]
    again = [one.clone() for one in inputs]
    before = module(*inputs)
    inductor.in_place(module, again)
    assert [node.target for node in module.graph.nodes].count(inductor.add_product()) == 2
    torch.testing.assert_close(module(*again), before)
    torch.testing.assert_close(again[0], inputs[0])


def updating(shape: tuple[int, ...], between: Callable[..., Any]) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """`w += (a @ b) * rate`, with a call in between, and inputs."""
    graph = torch.fx.Graph()
    weight, a, b, rate = (graph.placeholder(name) for name in ("weight", "a", "b", "rate"))
    product = graph.call_function(aten.bmm.default if len(shape) == 3 else aten.mm.default, (a, b))
    between(graph, a, b)
    graph.call_function(aten.addcmul_.default, (weight, product, rate))
    graph.output(())
    generator, runs = torch.Generator().manual_seed(0), shape[:-2]
    sizes = (shape, (*runs, shape[-2], 7), (*runs, 7, shape[-1]), (*runs, 1, 1) if runs else ())
    inputs = [torch.randn(size, generator=generator) for size in sizes]
    return torch.fx.GraphModule(nn.Module(), graph), inputs
