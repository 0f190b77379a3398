"""Calls of a recorded step that depend on nothing of one another, side by side in one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.core.tape import Node, refs

LANES, MANY = 8, 100
"""Lanes of a program of so many calls."""

SMALL = 64 * 2**20
"""Bytes of intermediate results, all of which stay while calls run side by side; a step with more has one lane."""


class Plan(NamedTuple):
    """In which lane each call of a program is made, and after which others.

    Attributes:
        lane: of each call; those of a lane are made in order. None for one that only looks at memory in another way,
            which nothing has to wait for.
        after: for each call, the calls of other lanes that have to be made before.
    """

    lane: list[int | None]
    after: list[list[int]]


def only_looks(node: Node, groups: Sequence[int]) -> bool:
    """Whether a call computes nothing: what it makes is memory that is there, looked at in another way."""
    read = {groups[number] for number in refs(node)}
    return not node.writes and bool(node.outs) and all(n >= 0 and groups[n] in read for n in node.outs)


def dependencies(nodes: Sequence[Node], groups: Sequence[int]) -> list[set[int]]:
    """For each call the earlier ones that it must come after: they made, read or wrote the memory that it works on.

    Calls that only look depend on nothing, and nothing depends on them.

    Args:
        nodes: the calls, in order.
        groups: of each value, the memory that it lies in.
    """
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    before: list[set[int]] = []
    for position, node in enumerate(nodes):
        if only_looks(node, groups):
            before.append(set())
            continue
        read = {groups[number] for number in refs(node)}
        written = {groups[number] for number in (*node.writes, *node.outs) if number >= 0}
        needs = {writer[group] for group in read | written if group in writer}
        for group in written:
            needs.update(readers.pop(group, ()))
            writer[group] = position
        for group in read - written:
            readers.setdefault(group, []).append(position)
        before.append(needs - {position})
    return before


def plan(nodes: Sequence[Node], groups: Sequence[int], lanes: int = LANES) -> Plan:
    """Part calls into lanes: the longest chain stays in one, and what hangs on it goes beside.

    Args:
        nodes: the calls, in order.
        groups: of each value, the memory that it lies in.
        lanes: how many there may be.
    """
    before = dependencies(nodes, groups)
    length = [1] * len(nodes)  # of the longest chain from each call on
    for position in reversed(range(len(nodes))):
        for earlier in before[position]:
            length[earlier] = max(length[earlier], length[position] + 1)
    heir: dict[int, int] = {}  # of each call, who goes on in its lane
    for position, needs in enumerate(before):
        for earlier in needs:
            if earlier not in heir or length[position] > length[heir[earlier]]:
                heir[earlier] = position
    lane: list[int] = []
    last = [-1] * lanes  # of each lane, the last call
    looks = [only_looks(node, groups) for node in nodes]
    for position, needs in enumerate(before):
        if looks[position]:
            lane.append(-1)
            continue
        inherited = [lane[earlier] for earlier in needs if heir[earlier] == position and last[lane[earlier]] == earlier]
        waited_for = {lane[earlier] for earlier in needs if last[lane[earlier]] == earlier}
        others = [one for one in range(lanes) if one not in waited_for] or list(range(lanes))
        chosen = inherited[-1] if inherited else min(others, key=lambda one: last[one])
        lane.append(chosen)
        last[chosen] = position
    return Plan([None if one < 0 else one for one in lane], _waits(before, lane, lanes))


def _waits(before: list[set[int]], lane: list[int], lanes: int) -> list[list[int]]:
    """What each call has to wait for, without what its lane has waited for already."""
    heard = [[-1] * lanes for _ in range(lanes)]  # of each lane, the last call of each other that it comes after
    at: list[list[int]] = []  # the same, of each call
    waits: list[list[int]] = []
    for position, needs in enumerate(before):
        here = heard[lane[position]]  # any, for a call that only looks: it waits for nothing
        new: list[int] = []
        for earlier in sorted(needs, reverse=True):
            if lane[earlier] != lane[position] and here[lane[earlier]] < earlier:
                new.append(earlier)
                heard[lane[position]] = here = [max(pair) for pair in zip(here, at[earlier])]
                here[lane[earlier]] = max(here[lane[earlier]], earlier)
        waits.append(new)
        at.append(list(here))
    return waits


def fitting_lanes(calls: int, most_bytes: int) -> int:
    """How many lanes pay for themselves.

    On one H200, experience replay on a small perceptron (66 calls) took 137 us in one lane, 111 in three and 107 in
    four, which took the host longer to start than the device to make. DER++ (158 calls) took 400 us in one, 295 in four
    and 168 in eight.

    Args:
        calls: of the program.
        most_bytes: of the results that stay until its end.
    """
    return 1 if most_bytes > SMALL else 3 if calls < MANY else LANES


def side_by_side(
    nodes: Sequence[Node], groups: Sequence[int], lanes: int, make: Callable[[int], None], device: torch.device
) -> None:
    """Make calls on several streams, while they are recorded as a CUDA graph, which keeps what may run side by side.

    What they make must stay until all of them are: no memory may be given to another call while streams that do not
    know of each other use it.

    Args:
        nodes: the calls, in order.
        groups: of each value, the memory that it lies in.
        lanes: how many streams.
        make: makes a call, by its place in `nodes`.
        device: where.
    """
    made = plan(nodes, groups, lanes)
    first = torch.cuda.current_stream(device)
    streams = [first, *(torch.cuda.Stream(device) for _ in range(lanes - 1))]
    begun, ended = torch.cuda.Event(), dict[int, torch.cuda.Event]()
    begun.record(first)
    awaited, used = {earlier for waits in made.after for earlier in waits}, {0}
    for position, lane in enumerate(made.lane):
        if lane is None:
            make(position)
            continue
        if lane not in used:
            used.add(lane)
            streams[lane].wait_event(begun)
        for earlier in made.after[position]:
            streams[lane].wait_event(ended[earlier])
        with torch.cuda.stream(streams[lane]):
            make(position)
        if position in awaited:
            ended[position] = torch.cuda.Event()
            ended[position].record(streams[lane])
    for lane in used - {0}:
        last = torch.cuda.Event()
        last.record(streams[lane])
        first.wait_event(last)


@torch.no_grad()
def graph_of(inputs: Sequence[Tensor], call: Callable[[], object], record: Callable[[], object]) -> Callable[[], None]:
    """A step as one CUDA graph; it is made once before, on a stream beside, so that libraries are warm, and taken back.

    Args:
        inputs: all that the step reads and writes.
        call: makes the step.
        record: makes it to be recorded.
    """
    kept = [tensor.clone() for tensor in inputs]
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        call()
    torch.cuda.current_stream().wait_stream(beside)
    torch.cuda.synchronize()
    for tensor, value in zip(inputs, kept):
        tensor.copy_(value)
    del kept
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        record()
    return graph.replay


def pinned(like: Tensor) -> Tensor:
    """Memory of the host for the values of a tensor, from which a GPU copies while the host goes on."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
