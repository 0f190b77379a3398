"""Calls of a recorded step that a CUDA graph makes side by side, made here in any order that the plan allows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from holdfast.core.method import Method
from holdfast.core.tape import refs
from holdfast.methods import agem, er, hat, si
from holdfast.testing import toys
from holdfast.training import lanes, programs


def in_any_order(chosen: lanes.Plan, nodes: list[Any]) -> Iterator[int]:
    """The calls that compute, as streams that know of each other only what a plan says may make them."""
    queues = [[i for i, lane in enumerate(chosen.lane) if lane == number] for number in range(lanes.LANES)]
    made: set[int] = set()
    order = random.Random(len(nodes))
    while any(queues):
        ready = [queue for queue in queues if queue and made.issuperset(chosen.after[queue[0]])]
        position = order.choice(ready).pop(0)
        made.add(position)
        yield position


def side_by_side(how: str, tape: Any, numbers: Any) -> Callable[[], None]:
    program = programs.Program(tape, numbers)
    feed, nodes = programs.with_tensors(program), program.nodes
    chosen = lanes.plan(nodes, program.groups)
    assert len({lane for lane in chosen.lane if lane is not None}) > 2
    maker = {number: i for i, node in enumerate(nodes) if chosen.lane[i] is None for number in node.outs}

    def make(position: int, values: dict[int, Any]) -> None:
        for number in refs(nodes[position]):  # calls that only look are made when somebody wants what they see
            if number not in values and number in maker:
                make(maker[number], values)
        program.make(nodes[position], values)

    @torch.no_grad()
    def run() -> None:
        feed(True)
        values = dict(program.external)
        for position in in_any_order(chosen, nodes):
            make(position, values)

    return run


@pytest.mark.parametrize("make", [lambda: er(capacity=20, size=4), lambda: agem(capacity=20, size=4), si, hat])
def test_calls_side_by_side_give_the_same_weights_in_whatever_order_they_end(
    make: Callable[[], Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.training.captured.runner", side_by_side)
    nets = []
    for capture in ("none", "tape"):
        method = make()
        stream = toys.stream_for(method, samples=13)
        nets.append(toys.model(stream, "growing"))
        trainer = toys.train(method, nets[-1], stream, epochs=2, log_every=4, capture=capture)
    assert toys.differing(*nets) == []
    assert sum(event["captured"] for event in trainer.events if event["event"] == "capture") > 4
