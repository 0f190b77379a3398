"""A step as the list of tensor operations it was: recorded below autograd, and compared with another recording."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.core.tree import leaves, mapped

aten = torch.ops.aten

Arguments = tuple[Any, ...]
Named = dict[str, Any]
"""What a call of torch is given: tensors, and lists of them, among numbers."""

READS = frozenset({"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"})
SIZES = frozenset(
    (
        *("aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::_unique2", "aten::unique_dim"),
        *("aten::unique_consecutive", "aten::bincount"),
    )
)
MOVES = frozenset({"aten::set_", "aten::resize_", "aten::resize_as_"})
BATCH_NORMS = frozenset({"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"})
RANDOM = ("dropout", "bernoulli", "rand", "normal", "uniform_", "multinomial", "exponential_")
ON_HOST = frozenset({"tolist", "numpy", "__array__", "item", "__dlpack__"})

TORCH = os.path.dirname(torch.__file__)
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RECORDERS = (
    "core/tape.py",
    "core/decide.py",
    "core/step.py",
    "core/walk.py",
    "training/recordings.py",
    "training/decisions.py",
)
UNSEEN = (TORCH, "<", *(os.path.join(PACKAGE, *name.split("/")) for name in RECORDERS))


class Ref(NamedTuple):
    """The value of that number on the tape."""

    number: int


class Live(NamedTuple):
    """A number that the host gives anew at each run: `factor` times the one called `name`."""

    name: str
    factor: float


class Node(NamedTuple):
    """One call of `func`: what it made (-1 for what is no tensor) and what it wrote in place, by number."""

    func: OpOverload
    args: Arguments
    kwargs: Named
    outs: tuple[int, ...]
    writes: tuple[int, ...]
    where: str


Alias = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Storage, offset, shape, strides and dtype."""


def alias_of(tensor: Tensor) -> Alias:
    """What two tensors have in common that are the same values; only while somebody holds one of them."""
    storage = tensor.untyped_storage()
    return (storage._cdata, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def line() -> str:
    """The line that makes the call that is running, as a user would look for it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith("core/forward.py") and frame.f_code.co_name == "backward":
            break
        if not name.startswith(UNSEEN) and not name.endswith("contextlib.py"):
            short = os.path.relpath(name, PACKAGE) if name.startswith(PACKAGE) else os.path.basename(name)
            return f"{short}:{frame.f_lineno}"
        frame = frame.f_back
    return "the backward pass"


def refs(node: Node) -> list[int]:
    """The numbers of the values that a call reads."""
    return [one.number for one in leaves((node.args, node.kwargs)) if isinstance(one, Ref)]


class Tape(TorchDispatchMode):
    """Records every call on tensors while it is entered.

    It holds every tensor that it saw, so that nothing else can come to lie where one of them was.

    Attributes:
        nodes: the calls, in order.
        values: the tensors, by number.
        external: those that were there before: parameters, state, the batch, decisions.
        problems: what a run of the tape could not do, each with the line that does it.
        random: whether random numbers are drawn on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.values: list[Tensor] = []
        self.groups: list[int] = []  # of each value: its storage
        self.external: dict[int, Tensor] = {}
        self.problems: list[str] = []
        self.random = False
        self.touched: set[int] = set()  # storages that the step made or wrote
        self._index: dict[Alias, int] = {}
        self._constants: dict[int, Tensor] = {}  # values written down in Python, as they were

    # While it records ------------------------------------------------------------------------------------

    def number_of(self, tensor: Tensor) -> int | None:
        """The number of a tensor; None if no call met it."""
        return self._index.get(alias_of(tensor))

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        """Make the call, and note it."""
        with DisableTorchFunction():  # `Watch` sees what the step does, and not how it is noted
            return self._noted(func, args, kwargs or {})

    def _noted(self, func: OpOverload, args: Arguments, kwargs: Named) -> object:
        name = func._schema.name
        if name.startswith("profiler::"):
            return func(*args, **kwargs)
        if name in ("aten::index", "aten::index_put_", "aten::index_put"):
            args = self._indexed(args)
        arguments, named = mapped(
            lambda one: Ref(self._note(one, True)) if isinstance(one, Tensor) else one, (args, kwargs)
        )
        out = func(*args, **kwargs)
        if name == "aten::lift_fresh":  # what `torch.tensor(...)` makes of numbers: the same in every run
            self._constants.setdefault(arguments[0].number, args[0].clone())
        if self._is_constant(name, arguments, args, out):
            self._constants[self._note(out, True)] = out.clone()
            return out
        self._examine(name, func, args, kwargs, out)
        before = len(self.values)
        outs = tuple(self._note(t, False) if isinstance(t, Tensor) else -1 for t in leaves(out))
        writes = self._writes(func, name, arguments, named, args)
        self.touched.update(self.groups[i] for i in (*writes, *(o for o in outs if o >= before)))
        if writes or not outs or any(o < 0 or o >= before for o in outs):  # else another name of what is there
            self.nodes.append(Node(func, arguments, named, outs, writes, line()))
        return out

    def _note(self, tensor: Tensor, external: bool) -> int:
        alias = alias_of(tensor)
        number = self._index.get(alias)
        if number is None:
            number = self._index[alias] = len(self.values)
            self.values.append(tensor.detach())
            self.groups.append(tensor.untyped_storage()._cdata)
            if external:
                self.external[number] = self.values[number]
        return number

    def _indexed(self, args: Arguments) -> Arguments:
        """A list in brackets comes as a tensor of the host; it goes to the device once."""
        device = args[0].device
        if device.type == "cpu":
            return args
        moved = []
        for index in args[1]:
            if isinstance(index, Tensor) and index.device.type == "cpu":
                index = index.to(device)
                self._constants[self._note(index, True)] = index.clone()
            moved.append(index)
        return (args[0], moved, *args[2:])

    def _is_constant(self, name: str, arguments: Arguments, args: Arguments, out: object) -> bool:
        """Whether a call brings a value written down in Python to the device, which is not done again."""
        if name != "aten::_to_copy" or not isinstance(out, Tensor):
            return False
        return arguments[0].number in self._constants and args[0].device.type != out.device.type

    def _examine(self, name: str, func: OpOverload, args: Arguments, kwargs: Named, out: object) -> None:
        """Note what could not be done again as it was."""
        if name in READS:
            self._problem("a value is read on the host")
        elif name in SIZES:
            self._problem(f"the size of what {name.removeprefix('aten::')} makes depends on values")
        elif name in MOVES or torch.Tag.inplace_view in func.tags:
            self._problem(f"a tensor is given another form in place by {name.removeprefix('aten::')}")
        elif name == "aten::repeat_interleave" and func is aten.repeat_interleave.Tensor:
            self._problem("the size of what repeat_interleave makes depends on values")
        elif name in ("aten::index", "aten::index_put_", "aten::index_put"):
            masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
            if masks and (name == "aten::index" or args[2].numel() != 1):
                self._problem("rows are chosen by a mask, and how many depends on values")
        elif name in ("aten::_to_copy", "aten::copy_") and isinstance(out, Tensor):
            source = args[0] if name == "aten::_to_copy" else args[1]
            if source.device.type != out.device.type and source.dim():
                self._problem(f"values are copied from {source.device.type} to {out.device.type}")
        if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            self._problem("numbers are drawn from a generator outside of a decision")
        elif any(word in name for word in RANDOM):
            self.random = True

    def _problem(self, what: str) -> None:
        self.problems.append(f"{what} ({line()})")

    def _writes(self, func: OpOverload, name: str, refs: Arguments, named: Named, args: Arguments) -> tuple[int, ...]:
        written: list[int] = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = refs[position] if position < len(refs) else named.get(argument.name)
                written += [one.number for one in leaves(value) if isinstance(one, Ref)]
        if name in BATCH_NORMS and args[5]:  # the schema does not say that the statistics move
            written += [refs[i].number for i in (3, 4) if isinstance(refs[i], Ref)]
        return tuple(written)

    # Afterwards ------------------------------------------------------------------------------------------

    def copy(self, target: Tensor, source: Tensor) -> None:
        """At the end of every run: `target.copy_(source)`."""
        with torch.no_grad(), self:
            target.detach().copy_(source.detach())

    def fresh(self, source: Tensor) -> Tensor:
        """At the end of every run: a copy of `source`, before anything is copied over it."""
        with torch.no_grad(), self:
            return source.detach().clone()

    def finish(self) -> None:
        """Let every run begin with the values that Python wrote down, where the step writes into them."""
        written = {self.groups[number] for node in self.nodes for number in node.writes}
        first = []
        for number, value in self._constants.items():
            if self.groups[number] in written:
                kept = self._note(value, True)
                self.external.pop(number)
                first.append(Node(aten.clone.default, (Ref(kept),), {}, (number,), (), ""))
        self.nodes = first + self.nodes

    def prune(self) -> None:
        """Leave out calls whose results nobody reads."""
        live = {self.groups[number] for number in self.external}
        kept = []
        for node in reversed(self.nodes):
            made = [number for number in (*node.writes, *node.outs) if number >= 0]
            drawn = any(word in node.func._schema.name for word in RANDOM)
            if drawn or any(self.groups[number] in live for number in (*node.writes, *made)):
                kept.append(node)
                live.update(self.groups[number] for number in refs(node))
        self.nodes = kept[::-1]

    def release(self) -> None:
        """Let go of all tensors but the external ones."""
        self.values = []
        self._index.clear()
        self._constants.clear()


class Watch(TorchFunctionMode):
    """Sees what a recorded step does behind the back of a tape: values read by numpy, and what decisions look at.

    Args:
        tape: that records.

    Attributes:
        deciding: whether a decision is being made, which may look at all that the step has not computed.
        looked: the storages that decisions looked at.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.deciding = False
        self.looked: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        """Look at the arguments, and make the call."""
        name = getattr(func, "__name__", "")
        if name != "__get__" and (self.deciding or name in ON_HOST):
            tensors = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
            if self.deciding:
                looked = {t.untyped_storage()._cdata for t in tensors if t.layout is torch.strided}
                self.looked |= looked
                if looked & self.tape.touched:
                    self.tape.problems.append(f"a decision looks at what the step computed ({line()})")
            elif tensors:
                self.tape.problems.append(f"a value is read on the host ({line()})")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def decision(self) -> Iterator[None]:
        """Inside a decision is made."""
        self.deciding = True
        try:
            yield
        finally:
            self.deciding = False


def differences(one: Tape, other: Tape, fed: Iterable[int]) -> list[str]:
    """In what two recordings of the same step differ: a decision of the host that nobody was told of.

    Args:
        one: the first.
        other: the second; both hold their tensors.
        fed: the numbers of what is given anew at each step.
    """
    for a, b in zip(one.nodes, other.nodes):
        if a.func is not b.func or a.outs != b.outs or refs(a) != refs(b):
            return [f"a step calls {a.func} at {a.where}, and the next {b.func} at {b.where}"]
        numbers, others = ([v for v in leaves((n.args, n.kwargs)) if not isinstance(v, Ref)] for n in (a, b))
        if not all(type(x) is type(y) and (x == y or x != x) for x, y in zip(numbers, others)):
            return [f"a number changes from step to step outside of a decision ({a.where})"]
    if len(one.nodes) != len(other.nodes):
        return [f"a step makes {len(one.nodes)} calls, and the next {len(other.nodes)}"]
    present = set(fed)
    written = {other.groups[number] for node in other.nodes for number in node.writes}
    for number, tensor in one.external.items():
        match = other.external.get(number)
        if number in present or (match is not None and alias_of(tensor) == alias_of(match)):
            continue
        where = next((node.where for node in one.nodes if number in refs(node)), "its end")
        if match is None or other.groups[number] in written:
            return [f"other tensors are used at each step ({where})"]
        alike = (tensor.shape, tensor.dtype, tensor.device) == (match.shape, match.dtype, match.device)
        if not alike or not torch.equal(tensor.nan_to_num(), match.nan_to_num()):
            return [f"a tensor is made anew at each step, outside of a decision ({where})"]
    return []
