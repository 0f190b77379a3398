"""A recorded step as something that runs: call by call, as one CUDA graph, or compiled by Inductor."""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from holdfast.core.errors import ConfigError
from holdfast.core.tape import Live, Node, Ref, Tape, leaves, refs
from holdfast.training.inductor import compiled_once

aten = torch.ops.aten

CaptureMode = Literal["auto", "graph", "compile", "tape", "none"]
"""How steps are run that were recorded: `auto` is a CUDA graph on a GPU and `none` elsewhere."""

Numbers = Mapping[str, Callable[[], float]]


def chosen(capture: str, device: torch.device) -> str:
    """What `capture` means on a device: `graph`, `compile`, `tape` or `none`.

    Raises:
        ConfigError: for a graph without a GPU, or where nothing can compile.
    """
    if capture == "auto":
        return "graph" if device.type == "cuda" else "none"
    if capture == "graph" and device.type != "cuda":
        raise ConfigError(
            f"capture='graph' is for NVIDIA GPUs, and the device is {device}. Write capture='compile', or leave it out."
        )
    if capture == "compile" and compiler() is None:
        raise ConfigError(
            "capture='compile' needs a C++ compiler, and there is none on this machine: neither $CXX, g++ nor clang++."
            " Install one, or leave capture out."
        )
    return capture


def stacked_by(capture: str, device: torch.device) -> str:
    """How the steps of several runs are run as one program, where `capture` says how those of a single run are."""
    how = chosen(capture, device)
    if how != "none":
        return how
    return "tape" if compiler() is None else "compile"


def compiler() -> str | None:
    """The C++ compiler that a compiled step is built with; None if there is none."""
    import os

    return next((path for name in (os.environ.get("CXX", ""), "g++", "clang++") if (path := shutil.which(name))), None)


class Program:
    """A tape as a function of its external tensors, run call by call.

    Args:
        tape: recorded and finished.
        numbers: of each `Live` number, how it is asked for.

    Attributes:
        rates: the tensors that `with_tensors` gave it for `Live` numbers: by number, their name and factor.
    """

    def __init__(self, tape: Tape, numbers: Numbers) -> None:
        self.nodes = tape.nodes
        self.external = {number: tensor.detach() for number, tensor in tape.external.items()}
        self.groups = list(tape.groups)
        self.numbers = numbers
        self.rates: dict[int, tuple[str, float]] = {}
        last: dict[int, int] = {}
        for position, node in enumerate(self.nodes):
            last.update(dict.fromkeys((*refs(node), *node.outs), position))
        self.dropped: list[list[int]] = [[] for _ in self.nodes]
        for number, position in last.items():
            if number >= 0 and number not in self.external:
                self.dropped[position].append(number)

    @torch.no_grad()
    def __call__(self) -> None:
        """Run it once."""
        values: dict[int, Any] = dict(self.external)
        numbers = {name: ask() for name, ask in self.numbers.items()}

        def filled(one: Any) -> Any:
            if isinstance(one, Ref):
                return values[one.number]
            return numbers[one.name] * one.factor if isinstance(one, Live) else one

        for node, dropped in zip(self.nodes, self.dropped):
            args, kwargs = tree_map(filled, (node.args, node.kwargs), is_leaf=is_value)
            out = node.func(*args, **kwargs)
            for number, value in zip(node.outs, (out,) if isinstance(out, Tensor) else tree_flatten(out)[0]):
                values[number] = value
            for number in dropped:
                values.pop(number, None)


def is_value(one: object) -> bool:
    """Whether an argument is a value of the tape, or a number that is asked for."""
    return isinstance(one, Ref | Live)


def runner(how: str, tape: Tape, numbers: Numbers) -> Callable[[], None]:
    """What runs the recorded step.

    Args:
        how: `tape`, `graph` or `compile`.
        tape: recorded and finished.
        numbers: of each `Live` number, how it is asked for.
    """
    program = Program(tape, numbers)
    if how == "tape":
        return program
    feed = with_tensors(program)
    return graphed(program, feed) if how == "graph" else compiled(program, feed)


# Numbers of the host as tensors ---------------------------------------------------------------------------


def with_tensors(program: Program) -> Callable[[], None]:
    """Let calls take tensors where they took numbers of the host; returns what brings these up to date."""
    kept: dict[tuple[str, float, torch.dtype], int] = {}

    def tensor_of(live: Live, like: Tensor) -> Ref:
        key = (live.name, live.factor, like.dtype)
        if key not in kept:
            kept[key] = len(program.groups)
            program.external[kept[key]] = torch.zeros((), dtype=like.dtype, device=like.device)
            program.groups.append(-1 - kept[key])
        return Ref(kept[key])

    nodes: list[Node] = []
    for node in program.nodes:
        live = [one for one in leaves((node.args, node.kwargs)) if isinstance(one, Live)]
        nodes += [node] if not live else _taking_tensors(node, live[0], program, tensor_of)
    program.nodes = nodes
    program.dropped = [[] for _ in nodes]
    program.rates = {number: (name, factor) for (name, factor, _), number in kept.items()}
    values: dict[int, float] = {}

    def feed() -> None:
        for (name, factor, _), number in kept.items():
            value = program.numbers[name]() * factor
            if values.get(number) != value:
                values[number] = value
                program.external[number].fill_(value)

    return feed


def _taking_tensors(node: Node, live: Live, program: Program, tensor_of: Callable[[Live, Tensor], Ref]) -> list[Node]:
    """`p += alpha * g` as `p += g * tensor`, which rounds as often; a fused optimiser with a rate that is a tensor."""

    def like(ref: Ref) -> Tensor:
        return program.external[ref.number]

    if node.func is aten.add_.Tensor:
        rate = tensor_of(live, like(node.args[0]))
        return [node._replace(func=aten.addcmul_.default, args=(node.args[0], node.args[1], rate), kwargs={})]
    if node.func is aten.addcdiv_.default:
        target, numerator, denominator = node.args
        return _added_quotient(node, target, numerator, denominator, tensor_of(live, like(target)), program)
    if node.func is aten._foreach_addcdiv_.Scalar:
        quotients = [
            _added_quotient(node, target, above, below, tensor_of(live, like(target)), program)
            for target, above, below in zip(*node.args[:3])
        ]
        return [part for parts in quotients for part in parts]
    if node.func is aten._foreach_add_.List:
        parts = []
        for target, gradient in zip(*node.args[:2]):
            args = (target, gradient, tensor_of(live, like(target)))
            parts.append(Node(aten.addcmul_.default, args, {}, (target.number,), (target.number,), node.where))
        return parts
    overload = node.func._schema.name.split("::")[1]
    device = like(node.args[0][0]).device
    kind = torch.float64 if device.type == "cpu" else torch.float32  # of what the kernels read there
    rate = tensor_of(live, torch.zeros((), dtype=kind, device=device))
    return [node._replace(func=getattr(aten, overload).tensor_lr, kwargs={**node.kwargs, "lr": rate})]


def _added_quotient(node: Node, target: Ref, above: Ref, below: Ref, rate: Ref, program: Program) -> list[Node]:
    """`p += a / b * rate`, in two calls."""
    quotient = len(program.groups)
    program.groups.append(-1 - quotient)
    return [
        Node(aten.div.Tensor, (above, below), {}, (quotient,), (), node.where),
        Node(aten.addcmul_.default, (target, Ref(quotient), rate), {}, (target.number,), (target.number,), node.where),
    ]


# CUDA graphs and Inductor ---------------------------------------------------------------------------------


def graphed(program: Program, feed: Callable[[], None]) -> Callable[[], None]:
    """A program as one CUDA graph; what it records is not run while it is recorded."""
    feed()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program()

    def run() -> None:
        feed()
        graph.replay()

    return run


def compiled(program: Program, feed: Callable[[], None]) -> Callable[[], None]:
    """A program compiled by Inductor, which takes seconds."""
    feed()
    module, inputs = as_graph(program)
    call = compiled_once(module, inputs)

    def run() -> None:
        feed()
        with torch.no_grad():
            call(*inputs)

    return run


def as_graph(program: Program) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """A program as an FX graph over its external tensors, and these in order."""
    graph = torch.fx.Graph()
    values: dict[int, Any] = {}
    inputs: list[Tensor] = []
    for number, tensor in program.external.items():
        values[number] = graph.placeholder(f"x{number}")
        inputs.append(tensor)
    for node in program.nodes:
        args, kwargs = tree_map(
            lambda one: values[one.number] if isinstance(one, Ref) else one, (node.args, node.kwargs), is_leaf=is_value
        )
        call = graph.call_function(node.func, args, kwargs)
        returns = node.func._schema.returns
        if len(returns) == 1 and str(returns[0].type) == "Tensor":
            values[node.outs[0]] = call
            continue
        for position, number in enumerate(node.outs):
            if number >= 0:
                values[number] = graph.call_function(operator.getitem, (call, position))
    graph.output(())
    return torch.fx.GraphModule(torch.nn.Module(), graph), inputs
