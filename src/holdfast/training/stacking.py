"""The recorded steps of several runs as one program: every call of torch once, on tensors with a row for each run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from holdfast.core.tape import Node, Ref, alias_of, refs
from holdfast.training.inductor import CannotRun, compiled_once
from holdfast.training.lanes import fitting_lanes, graph_of, pinned, side_by_side
from holdfast.training.programs import Program, bytes_made, is_value
from holdfast.training.stacked_calls import Calls, CannotStack


class Stacked:
    """Programs of several runs as one.

    What differs between the runs, and what is computed from it, has a first dimension for the runs.

    Args:
        programs: one of each run, with equal `signature`.
        fed: of each run, the tensors that it is given anew at each step, in the same order.
        dtype: of numbers that differ between the runs.
        steps: of a block: so many steps' values are given at once.
        given: how many of `fed` are of the batch; what comes after is decided by the host.

    Attributes:
        count: of runs.
        buffers: `[steps, runs, ...]` what is given, in the order of `fed`; None for what no call reads.
        staging: on a GPU, where what the host decides waits for the device.
        counter: `[1]` the step of the block that comes next.

    Raises:
        CannotStack: where they are not one program.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        fed: Sequence[Sequence[Tensor]],
        dtype: torch.dtype,
        steps: int,
        given: int = 0,
    ) -> None:
        self.count = len(programs)
        self.steps = steps
        self._programs = programs
        self._dtype = dtype
        self._ids: dict[tuple[int, ...], int] = {}
        self._storages: dict[tuple[int, ...], int] = {}
        self._group: list[int] = []
        self._external: dict[int, list[Tensor]] = {}
        self._unlike: set[int] = set()  # calls with numbers that differ between the runs
        self.device = next((t.device for t in programs[0].external.values()), torch.device("cpu"))
        self.nodes = [self._joined(position) for position in range(len(programs[0].nodes))]
        self._check_externals()
        self._fed = self._numbers_of(fed)
        self._hot = self._stacked_groups()
        self._drops = self._last_uses()
        self._values: dict[int, Tensor] = {}
        self._views: dict[int, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {}
        self._copied: list[tuple[Tensor, list[Tensor], bool]] = []
        self._allocate()
        self.buffers: list[Tensor | None] = []
        for number, tensor in zip(self._fed, fed[0]):
            shape = (steps, self.count, *tensor.shape)
            empty = None if number is None else torch.zeros(shape, dtype=tensor.dtype, device=self.device)
            self.buffers.append(empty)
        self.staging = [
            None if one is None or one.device.type != "cuda" else pinned(one) for one in self.buffers[given:]
        ]
        self.counter = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._brought: torch.cuda.Event | None = None
        self.run: Callable[[], None] = self.call

    # One program of several ---------------------------------------------------------------------------------

    def _joined(self, position: int) -> Node:
        nodes = [program.nodes[position] for program in self._programs]
        node = nodes[0]
        flats = [tree_flatten((one.args, one.kwargs), is_leaf=is_value) for one in nodes]
        leaves: list[Any] = []
        for values in zip(*(flat for flat, _ in flats)):
            one = values[0]
            if isinstance(one, Ref):
                leaves.append(Ref(self._id(tuple(value.number for value in values), node)))
            elif all(type(v) is type(one) and (v == one or v != v) for v in values):
                leaves.append(one)
            elif any(isinstance(v, bool) or not isinstance(v, int | float) for v in values) or type(one) is int:
                told = ", ".join(str(value) for value in dict.fromkeys(map(str, values)))
                raise CannotStack(f"the runs differ in more than numbers: {told:.60} ({node.where})")
            else:
                self._unlike.add(position)
                tensors = [torch.tensor(v, dtype=self._dtype, device=self.device) for v in values]
                leaves.append(Ref(self._new(tensors, -1 - len(self._group))))
        args, kwargs = tree_unflatten(leaves, flats[0][1])
        outs = tuple(
            -1 if number < 0 else self._id(tuple(one.outs[column] for one in nodes), node, made=True)
            for column, number in enumerate(node.outs)
        )
        writes = tuple(self._id(tuple(numbers), node) for numbers in zip(*(one.writes for one in nodes)))
        return Node(node.func, args, kwargs, outs, writes, node.where)

    def _id(self, numbers: tuple[int, ...], node: Node, made: bool = False) -> int:
        """The number here of a value that has these in the programs."""
        group_id = self._ids.get(numbers)
        if group_id is not None:
            return group_id
        external = [program.external.get(number) for program, number in zip(self._programs, numbers)]
        if not made and any(tensor is None for tensor in external):
            raise CannotStack(f"the runs work on different values ({node.where})")
        storages = tuple(program.groups[number] for program, number in zip(self._programs, numbers))
        group = self._storages.setdefault(storages, len(self._storages))
        group_id = self._ids[numbers] = len(self._group)
        self._group.append(group)
        if not made:
            self._external[group_id] = [tensor for tensor in external if tensor is not None]
        return group_id

    def _new(self, tensors: list[Tensor], key: int) -> int:
        """A value that no program has."""
        group = self._storages.setdefault((key,), len(self._storages))
        self._group.append(group)
        self._external[len(self._group) - 1] = tensors
        return len(self._group) - 1

    def _check_externals(self) -> None:
        """Refuse runs one of which works on one tensor where another works on two."""
        written = {self._group[number] for node in self.nodes for number in node.writes}
        seen: dict[tuple[int, int], int] = {}
        for numbers, group_id in self._ids.items():
            scalar = group_id in self._external and not self._external[group_id][0].dim()
            if scalar and self._group[group_id] not in written:
                continue
            for run, number in enumerate(numbers):
                if seen.setdefault((run, number), group_id) != group_id:
                    raise CannotStack("one of the runs works on one tensor where another works on two")
        self._written = written

    def _numbers_of(self, fed: Sequence[Sequence[Tensor]]) -> list[int | None]:
        places = {tuple(alias_of(tensor) for tensor in tensors): number for number, tensors in self._external.items()}
        return [places.get(tuple(alias_of(tensor) for tensor in tensors)) for tensors in zip(*fed)]

    def _stacked_groups(self) -> set[int]:
        """The storages that have a row for each run."""
        fed_numbers = {number for number in self._fed if number is not None}
        hot = {self._group[number] for number in fed_numbers}
        for number, tensors in self._external.items():
            group = self._group[number]
            if len({alias_of(tensor) for tensor in tensors}) == 1:
                if group in self._written and group not in hot:
                    raise CannotStack("the runs write into one tensor")
                continue
            alike = tensors[0].numel() <= 1 and all(torch.equal(tensors[0], other) for other in tensors)
            if group in self._written or not alike:
                hot.add(group)
        while True:
            before = len(hot)
            for node in self.nodes:
                if any(self._group[number] in hot for number in refs(node)):
                    hot |= {self._group[number] for number in (*node.writes, *node.outs) if number >= 0}
            if len(hot) == before:
                return hot

    def _last_uses(self) -> list[list[int]]:
        last: dict[int, int] = {}
        for position, node in enumerate(self.nodes):
            last.update(dict.fromkeys((*refs(node), *node.outs), position))
        drops: list[list[int]] = [[] for _ in self.nodes]
        for number, position in last.items():
            if number >= 0 and number not in self._external:
                drops[position].append(number)
        return drops

    # The tensors of the runs ----------------------------------------------------------------------------------

    def _allocate(self) -> None:
        members: dict[int, list[int]] = {}
        for number in self._external:
            if number not in self._fed:
                members.setdefault(self._group[number], []).append(number)
        for group, numbers in members.items():
            if group not in self._hot:
                self._values |= {number: self._external[number][0] for number in numbers}
            elif len(numbers) == 1:
                tensors = self._external[numbers[0]]
                stack = self._values[numbers[0]] = torch.stack(tensors)
                self._copied.append((stack, tensors, group in self._written))
            else:
                self._allocate_views(numbers, group in self._written)

    def _allocate_views(self, numbers: list[int], written: bool) -> None:
        """Several tensors of one storage become views of one that is stacked."""
        whole = []
        for run in range(self.count):
            tensor = self._external[numbers[0]][run]
            size = tensor.untyped_storage().nbytes() // tensor.element_size()
            flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            whole.append(flat.set_(tensor.untyped_storage(), 0, (size,), (1,)))
        if len({len(one) for one in whole}) > 1:
            raise CannotStack("the runs' tensors lie in memories of different sizes")
        size, base = len(whole[0]), torch.stack(whole)
        key = len(self._group)
        self._group.append(self._group[numbers[0]])
        self._values[key] = base
        self._copied.append((base, whole, written))
        for number in numbers:
            one = self._external[number][0]
            if one.dtype != base.dtype:
                raise CannotStack("the runs look at one memory as numbers of two kinds")
            shape, strides = (self.count, *one.shape), (size, *one.stride())
            self._views[number] = (key, shape, strides, int(one.storage_offset()))

    @torch.no_grad()
    def begin(self) -> None:
        """Before the first step of a block: take the values of the runs' own tensors."""
        if self._brought is not None:
            self._brought.synchronize()  # what is in `staging` is on the device, and may be overwritten
        self.counter.zero_()
        for stack, tensors, _ in self._copied:
            torch._foreach_copy_(list(stack.unbind()), tensors)  # one launch for all runs, instead of one each

    @torch.no_grad()
    def end(self, runs: Sequence[int]) -> None:
        """After the last step of a block: give some of the runs' own tensors the values that they have here."""
        if self.device.type == "cuda":
            self._brought = torch.cuda.Event()
            self._brought.record()
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for stack, tensors, written in self._copied:
            if written:
                rows = stack.unbind()
                targets += [tensors[run] for run in runs]
                sources += [rows[run] for run in runs]
        kinds = dict.fromkeys(tensor.dtype for tensor in targets)
        for kind in kinds:
            alike = [(target, source) for target, source in zip(targets, sources) if target.dtype == kind]
            torch._foreach_copy_([target for target, _ in alike], [source for _, source in alike])

    def rows_of(self, tensor: Tensor) -> Tensor | None:
        """What has a row for each run in the place of a tensor of the first one; None if no step works on it."""
        return next((stack for stack, own, _ in self._copied if alias_of(own[0]) == alias_of(tensor)), None)

    # A step of all runs ---------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[Tensor]:
        """Every tensor that a step reads or writes."""
        return [*self._values.values(), *(one for one in self.buffers if one is not None), self.counter]

    @torch.no_grad()
    def call(self) -> None:
        """Make the next step of the block, call by call."""
        self.interpret(*self.inputs)

    def interpret(self, *inputs: Tensor, lanes: int = 1) -> tuple[()]:
        """Make the next step of the block on other tensors in the place of `inputs`.

        Args:
            *inputs: the tensors.
            lanes: streams on which calls are made that do not depend on one another.
        """
        env: dict[int, Any] = dict(zip(self._values, inputs))
        buffers, counter = list(inputs[len(self._values) : -1]), inputs[-1]
        for number, buffer in zip(self._fed, self.buffers):
            if number is not None and buffer is not None:
                env[number] = buffers.pop(0).index_select(0, counter).squeeze(0)
        for number, (base, shape, strides, offset) in self._views.items():
            env[number] = env[base].as_strided(shape, strides, offset)
        calls = Calls(env, {number for number in env if self._group[number] in self._hot}, self.count)
        if lanes > 1:
            side_by_side(self.nodes, self._group, lanes, lambda position: self._make(position, calls), self.device)
        else:
            for position, drops in enumerate(self._drops):
                self._make(position, calls)
                for number in drops:
                    env.pop(number, None)
        counter.add_(1)
        return ()

    def _make(self, position: int, calls: Calls) -> None:
        """Make one call for all runs."""
        node, env = self.nodes[position], calls.values
        try:
            results = calls.make(node, position in self._unlike)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            told = next(iter(str(error).splitlines()), "").rstrip(".")
            raise CannotStack(f"torch cannot stack {node.func._schema.name}: {told} ({node.where})") from error
        for number, value in zip(node.outs, results):
            if number < 0 or (number in env and number in node.writes):
                continue
            stacked = self._group[number] in self._hot
            if stacked and not calls.made_stacked:
                value = value.expand(self.count, *value.shape).clone()
            env[number] = value
            (calls.hot.add if stacked else calls.hot.discard)(number)

    @property
    def lanes(self) -> int:
        """In how many lanes its calls are made in a CUDA graph."""
        return fitting_lanes(len(self.nodes), self.count * bytes_made(self._programs[0]) // 8)


# How it runs -----------------------------------------------------------------------------------------------


@torch.no_grad()
def runner_of(stacked: Stacked, how: str) -> Callable[[], None]:
    """What makes the next step of the block of all runs.

    Args:
        stacked: the program.
        how: `tape` call by call, `graph` as one CUDA graph, or `compile`.
    """
    if how != "tape":
        laned = functools.partial(stacked.interpret, *stacked.inputs, lanes=stacked.lanes)
        return graph_of(stacked.inputs, stacked.call, laned) if how == "graph" else _compiled(stacked)
    stacked.interpret(*_twins(stacked))  # what torch cannot stack is noticed before anything depends on it
    return stacked.call


def _twins(stacked: Stacked) -> list[Tensor]:
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t) for t in stacked.inputs]


@torch.no_grad()
def _compiled(stacked: Stacked) -> Callable[[], None]:
    """Compiled by Inductor; the same calls on tensors of the same shapes are compiled once in a process."""
    inputs = stacked.inputs
    module = make_fx(stacked.interpret)(*_twins(stacked))
    try:
        call = compiled_once(module, inputs)
    except CannotRun as error:
        raise CannotStack(str(error)) from error

    @torch.no_grad()
    def run() -> None:
        call(*inputs)

    return run
