"""A recorded step as something that runs: call by call, as one CUDA graph, or compiled by Inductor."""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from holdfast.core.errors import ConfigError
from holdfast.core.tape import Live, Node, Ref, Tape, refs
from holdfast.core.tree import leaves, mapped
from holdfast.training.inductor import compiled_once
from holdfast.training.lanes import fitting_lanes, side_by_side
from holdfast.training.rates import Numbers, nothing

aten = torch.ops.aten

CaptureMode = Literal["auto", "graph", "compile", "tape", "none"]
"""How steps are run that were recorded: `auto` is a CUDA graph on a GPU and `none` elsewhere."""


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
        tape: recorded, finished and not yet released.
        numbers: those of the host, how each is asked for.

    Attributes:
        rates: the tensors that `with_tensors` gave it for `Live` numbers: by number, their name and factor.
        kinds: dtype and device of each value.
        sizes: bytes of each memory.
        fed: whether `with_tensors` was there.
    """

    def __init__(self, tape: Tape, numbers: Numbers) -> None:
        self.nodes = tape.nodes
        used = {number for node in tape.nodes for number in (*refs(node), *node.writes)}
        self.external = {number: tensor.detach() for number, tensor in tape.external.items() if number in used}
        self.groups = list(tape.groups)
        self.kinds = [(value.dtype, value.device) for value in tape.values]
        self.sizes = {group: value.untyped_storage().nbytes() for group, value in zip(tape.groups, tape.values)}
        asked = {one.name for node in tape.nodes for one in leaves((node.args, node.kwargs)) if isinstance(one, Live)}
        self._numbers = Numbers({name: numbers.ask[name] for name in asked}, numbers.made)
        self.rates: dict[int, tuple[str, float]] = {}
        self.fed = False
        last: dict[int, int] = {}
        for position, node in enumerate(self.nodes):
            last.update(dict.fromkeys((*refs(node), *node.outs), position))
        self.dropped: list[list[int]] = [[] for _ in self.nodes]
        for number, position in last.items():
            if number >= 0 and number not in self.external:
                self.dropped[position].append(number)

    def ask(self, count: bool = True) -> dict[str, float]:
        """The numbers of the host for the coming step, by name.

        Args:
            count: whether that step will be made.
        """
        numbers = {name: ask() for name, ask in self._numbers.ask.items()}
        if count:
            self._numbers.made()
        return numbers

    @property
    def steady(self) -> bool:
        """Whether the host counts nothing, so that its numbers stay the same until somebody sets a rate."""
        return self._numbers.made is nothing

    @torch.no_grad()
    def __call__(self) -> None:
        """Run it once; what `with_tensors` made of it is given its numbers before."""
        values: dict[int, Any] = dict(self.external)
        numbers = {} if self.fed else self.ask()
        for node, dropped in zip(self.nodes, self.dropped):
            self.make(node, values, numbers)
            for number in dropped:
                values.pop(number, None)

    def make(self, node: Node, values: dict[int, Any], numbers: Mapping[str, float] | None = None) -> None:
        """Make one call.

        Args:
            node: the call.
            values: by number; what it makes is added.
            numbers: of the host, by name; None where calls take tensors for them.
        """

        def filled(one: Any) -> Any:
            if isinstance(one, Ref):
                return values[one.number]
            return numbers[one.name] * one.factor if isinstance(one, Live) and numbers is not None else one

        args, kwargs = mapped(filled, (node.args, node.kwargs))
        out = node.func(*args, **kwargs)
        for number, value in zip(node.outs, leaves(out)):
            values[number] = value


def is_value(one: object) -> bool:
    """Whether an argument is a value of the tape, or a number that is asked for."""
    return isinstance(one, Ref | Live)


def signature(program: Program) -> int:
    """What programs that can be stacked have in common: the calls, what they read and write, shapes, and no numbers."""
    numbers: dict[int, int] = {}
    parts: list[object] = []
    written = {program.groups[number] for node in program.nodes for number in node.writes}

    def name(number: int) -> object:
        tensor = program.external.get(number)
        if tensor is not None and not tensor.dim() and program.groups[number] not in written:
            return str(tensor.dtype)  # constants that are equal in some runs are one tensor there
        if number not in numbers:
            numbers[number] = len(numbers)
        return (numbers[number], None if tensor is None else (tuple(tensor.shape), str(tensor.dtype)))

    for node in program.nodes:
        flat, spec = tree_flatten((node.args, node.kwargs), is_leaf=is_value)
        arguments = [name(v.number) if isinstance(v, Ref) else "float" if type(v) is float else str(v) for v in flat]
        outs = [name(number) if number >= 0 else None for number in node.outs]
        parts.append((str(node.func), str(spec), arguments, outs))
    return hash(str(parts))


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


def with_tensors(program: Program) -> Callable[[bool], None]:
    """Let calls take tensors where they took numbers of the host.

    Returns:
        What brings these up to date; it takes whether a step with them will be made.
    """
    kept: dict[tuple[str, float, torch.dtype], int] = {}

    def tensor_of(live: Any, like: tuple[torch.dtype, torch.device]) -> Any:
        if not isinstance(live, Live):
            return live
        key = (live.name, live.factor, like[0])
        if key not in kept:
            kept[key] = len(program.groups)
            program.external[kept[key]] = torch.zeros((), dtype=like[0], device=like[1])
            program.groups.append(-1 - kept[key])
        return Ref(kept[key])

    nodes: list[Node] = []
    for node in program.nodes:
        live = any(isinstance(one, Live) for one in leaves((node.args, node.kwargs)))
        nodes += _taking_tensors(node, program, tensor_of) if live else [node]
    program.nodes, program.fed = nodes, True
    program.dropped = [[] for _ in nodes]
    program.rates = {number: (name, factor) for (name, factor, _), number in kept.items()}
    values: dict[int, float] = {}

    def feed(count: bool = True) -> None:
        numbers = program.ask(count)
        for (name, factor, _), number in kept.items():
            value = numbers[name] * factor
            if values.get(number) != value:
                values[number] = value
                program.external[number].fill_(value)

    return feed


def _taking_tensors(node: Node, program: Program, tensor_of: Callable[[Any, Any], Any]) -> list[Node]:
    """The calls that do the same with numbers that are tensors; each rounds as often as before."""
    args, kinds = node.args, program.kinds
    name, _, kind = str(node.func).removeprefix("aten.").partition(".")
    if name.startswith("_fused_"):
        device = kinds[args[0][0].number][1]
        read = torch.float64 if device.type == "cpu" else torch.float32  # what the kernels read there
        rate = tensor_of(node.kwargs["lr"], (read, device))
        return [node._replace(func=getattr(aten, name).tensor_lr, kwargs={**node.kwargs, "lr": rate})]
    if not name.startswith("_foreach_"):
        number = node.kwargs.get("value", node.kwargs.get("alpha", args[-1]))
        given = args[:-1] if number is args[-1] else args
        return _one_taking(node, name, given, tensor_of(number, kinds[args[0].number]), program)
    lists = [one for one in args if isinstance(one, list) and isinstance(one[0], Ref)]
    numbers = args[-1] if kind == "ScalarList" else [node.kwargs.get("alpha", args[-1])] * len(lists[0])
    calls = []
    for given, number in zip(zip(*lists), numbers):
        rate = tensor_of(number, kinds[given[0].number])
        calls += _one_taking(node, name.removeprefix("_foreach_"), given, rate, program)
    return calls


def _one_taking(node: Node, name: str, given: tuple[Any, ...], rate: Any, program: Program) -> list[Node]:
    """One call, or one of those that a call on lists makes, with `rate` as its number."""
    target = given[0]
    if name == "div":  # its result is a new tensor, which keeps its number
        return [node._replace(args=(target, rate))]
    place = (target.number,)
    if name in ("mul_", "div_"):
        return [Node(getattr(aten, name).Tensor, (target, rate), {}, place, place, node.where)]
    if name == "add_":
        return [Node(aten.addcmul_.default, (target, given[1], rate), {}, place, place, node.where)]
    quotient = len(program.groups)  # p += a / b * rate, in two calls
    program.groups.append(-1 - quotient)
    return [
        Node(aten.div.Tensor, given[1:3], {}, (quotient,), (), node.where),
        Node(aten.addcmul_.default, (target, Ref(quotient), rate), {}, place, place, node.where),
    ]


# CUDA graphs and Inductor ---------------------------------------------------------------------------------


def bytes_made(program: Program) -> int:
    """Bytes of what the calls of a program make."""
    made = {program.groups[number] for node in program.nodes for number in node.outs if number >= 0}
    own = made - {program.groups[number] for number in program.external}
    return sum(size for group, size in program.sizes.items() if group in own)


@torch.no_grad()
def run_side_by_side(program: Program) -> None:
    """Run a program once, all whose numbers are tensors, in as many lanes as pay for themselves."""
    lanes = fitting_lanes(len(program.nodes), bytes_made(program))
    if lanes == 1:
        program()
        return
    values: dict[int, Any] = dict(program.external)
    device = next((tensor.device for tensor in program.external.values()), torch.device("cuda"))
    side_by_side(
        program.nodes, program.groups, lanes, lambda position: program.make(program.nodes[position], values), device
    )


def graphed(program: Program, feed: Callable[[bool], None]) -> Callable[[], None]:
    """A program as one CUDA graph; what it records is not run while it is recorded."""
    feed(False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_side_by_side(program)

    def run() -> None:
        feed(True)
        graph.replay()

    return run


def compiled(program: Program, feed: Callable[[bool], None]) -> Callable[[], None]:
    """A program compiled by Inductor, which takes seconds."""
    feed(False)
    module, inputs = as_graph(program)
    call = compiled_once(module, inputs)

    def run() -> None:
        feed(True)
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
        args, kwargs = mapped(lambda one: values[one.number] if isinstance(one, Ref) else one, (node.args, node.kwargs))
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
