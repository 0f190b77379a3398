"""The numbers of an optimiser in a recorded step that the host gives it anew at each run: rates, and counted steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.core.tape import READS, Live, Node, Ref, Tape, aten
from holdfast.core.tree import leaves


def nothing() -> None:
    """Nothing is counted."""


class Numbers(NamedTuple):
    """The numbers that the host gives a recorded step anew at each run.

    Attributes:
        ask: how each is asked for, for the coming step.
        made: to be called once they were asked for a step that will be made.
    """

    ask: Mapping[str, Callable[[], float]]
    made: Callable[[], None] = nothing


class Rates:
    """The learning rates of an optimiser in a recorded step, and what it computes of them and of counted steps.

    SGD, RMSprop and Adadelta, which move by `-lr` times something, and the fused optimisers take their rate so. Adam
    and AdamW count the steps of each parameter on the host, and what they compute of it there is asked for as well,
    with the rounding of their own steps. In others the rate stands in more than one number as a constant, and a step
    with another rate is recorded anew.

    Args:
        optimizer: returns the optimiser.

    Attributes:
        constant: the groups whose rate stands in a step as it is.
        read: whether an operation reads the optimiser's numbers in a step, so that all of them stand in it.
    """

    def __init__(self, optimizer: Callable[[], torch.optim.Optimizer | None]) -> None:
        self._optimizer = optimizer
        self.constant: set[int] = set()
        self._moved: tuple[int, int] = (0, 0)
        self._said: tuple[int, int] = (0, 0)
        self._tape: Tape | None = None
        self._counts: list[Tensor] = []
        self._asked: dict[str, Callable[[], float]] = {}
        self._alike: Hashable = None
        self.read = False

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimiser."""
        optimizer = self._optimizer()
        return [] if optimizer is None else optimizer.param_groups

    @property
    def numbers(self) -> Numbers:
        """What the step that was marked last is given."""
        ask = {f"lr/{i}": lambda i=i: float(self.groups[i]["lr"]) for i in range(len(self.groups))}
        counts = self._counts

        def count() -> None:
            torch._foreach_add_(counts, 1.0)
            if len(counts) < len(self._steps()):
                self._alike = None

        return Numbers({**ask, **self._asked}, count if counts else nothing)  # type: ignore[arg-type]

    def moving(self, move: Callable[[], Any], tape: Callable[[], Tape | None]) -> Callable[[], Any]:
        """`move`, with a note of where on the tape it stands."""

        def noted() -> Any:
            self.start(tape())
            out = move()
            self.stop()
            return out

        return noted

    def begin(self) -> None:
        """Nothing that was recorded is valid any more."""
        self.read, self._alike = False, None

    def watched(self, optimizer: Callable[[], Any], recording: Callable[[], bool]) -> Callable[[], Any]:
        """`optimizer` for operations: one that looks at it where `recording` says so reads its numbers as they are."""

        @wraps(optimizer)
        def read() -> Any:
            self.read = self.read or recording()
            return optimizer()

        return read

    def start(self, tape: Tape | None) -> None:
        """The optimiser is about to move."""
        self._tape = tape
        if tape is not None:
            self._moved, self._said = (len(tape.nodes), 0), (len(tape.problems), 0)

    def stop(self) -> None:
        """The optimiser has moved."""
        self._alike = None
        if self._tape is not None:
            self._moved = (self._moved[0], len(self._tape.nodes))
            self._said = (self._said[0], len(self._tape.problems))

    def moved_otherwise(self) -> None:
        """A step was made that was not recorded."""
        self._alike = None

    def _sentence(self) -> str:
        name, group = type(self._optimizer()).__name__, self.groups[0]
        if "fused" in group:
            return f"{name} counts its steps on the host; with optimizer.fused=true it does so on the device"
        if "capturable" in group and group["params"][0].device.type == "cuda":
            return f"{name} counts its steps on the host; with optimizer.capturable=true it does so on the device"
        return f"{name} reads its own values on the host"

    # What stands on a tape -------------------------------------------------------------------------------

    def mark(self, tape: Tape) -> None:
        """Mark the numbers on a tape."""
        start, end = self._moved if self._tape is tape else (0, 0)
        first, last = self._said if self._tape is tape else (0, 0)
        self._counts, self._asked = [], {}
        marked = self._mark_counted(tape, start, end)
        if marked is None:
            marked = self._mark_rates(tape, start, end)
            if last > first:
                tape.problems[first:last] = [self._sentence()]
        elif last > first:
            del tape.problems[first:last]
        if self.read and self._counts:
            tape.problems.append(f"{COUNTS_READ}; optimizer.fused=true counts on the device")
        self.constant = set(range(len(self.groups))) - (set() if self.read else marked)

    def _mark_rates(self, tape: Tape, start: int, end: int) -> set[int]:
        """The groups whose rates were marked where they stand as they are."""
        marked, simple = set(), type(self._optimizer()) in MOVING_BY_RATE
        group_of = {storage: group for storage, (group, _) in self._parameters().items()}
        for position in range(start, end):
            node = tape.nodes[position]
            first = next(iter(leaves(node.args)), None)
            group = group_of.get(tape.groups[first.number]) if isinstance(first, Ref) else None
            if group is None:
                continue
            rate, kwargs = self.groups[group]["lr"], node.kwargs
            name, last = FACTORS.get(node.func, ("", -1))
            factor = kwargs.get(name, node.args[last] if len(node.args) > last >= 0 else None)
            if simple and name and type(factor) is float and factor == -rate:
                args = node.args[:last] if last > 0 else node.args
                tape.nodes[position] = node._replace(args=args, kwargs={**kwargs, name: Live(f"lr/{group}", -1.0)})
                marked.add(group)
            elif node.func._schema.name.startswith("aten::_fused_") and kwargs.get("lr") == rate:
                tape.nodes[position] = node._replace(kwargs={**kwargs, "lr": Live(f"lr/{group}", 1.0)})
                marked.add(group)
        return marked

    def _parameters(self) -> dict[int, tuple[int, int]]:
        """Group and place in it of each parameter, by its storage."""
        return {
            parameter.untyped_storage()._cdata: (i, k)
            for i, group in enumerate(self.groups)
            for k, parameter in enumerate(group["params"])
        }

    # Adam and AdamW, which count on the host -----------------------------------------------------------------

    def _steps(self) -> list[Tensor | None]:
        """How many steps each parameter has made, of an optimiser that counts them on the host; else nothing."""
        optimizer = self._optimizer()
        if optimizer is None or type(optimizer) not in COUNTING:
            return []
        apart = ("fused", "capturable", "differentiable")
        if any(group[key] for group in optimizer.param_groups for key in apart):
            return []
        state = optimizer.state
        return [state[p].get("step") if p in state else None for g in optimizer.param_groups for p in g["params"]]

    def _mark_counted(self, tape: Tape, start: int, end: int) -> set[int] | None:
        """Mark what is computed of counted steps, and take the counting off the tape.

        Returns:
            The groups that moved so; None for another optimiser, and where something else is read than the counts.
        """
        steps = {step.untyped_storage()._cdata: step for step in self._steps() if isinstance(step, Tensor)}
        nodes, counts, reads = [], [], 0
        for node in tape.nodes[start:end]:
            written = [tape.groups[number] for number in node.writes]
            if any(storage in steps for storage in written):
                counts += [steps[storage] for storage in written if storage in steps]
            elif node.func._schema.name in READS and tape.groups[node.args[0].number] in steps:
                reads += 1
            else:
                nodes.append(node)
        first, last = self._said
        said = tape.problems[first:last]
        if not counts or len(said) > 2 * reads or any(not text.startswith(READ) for text in said):
            return None
        found = Computed(self.groups, self._optimizer())
        moved = self._parameters()
        made = [found.marked(node, tape, moved) for node in nodes]
        if found.moved != len(counts):
            return None
        tape.nodes[start:end] = made
        self._counts = counts
        self._asked = {name: self._asking(*name.split("/")) for name in found.names}
        return {group for group, _ in found.first}

    def _asking(self, what: str, group: str, place: str) -> Callable[[], float]:
        def ask() -> float:
            settings = self.groups[int(group)]
            optimizer = self._optimizer()
            assert optimizer is not None
            step = 0.0 if what == "decay" else float(optimizer.state[settings["params"][int(place)]]["step"]) + 1
            return COMPUTED[what](settings, step)

        return ask

    # What a recording is good for ---------------------------------------------------------------------------

    def baked(self) -> Hashable:
        """The numbers of the optimiser that stand in a step as they are, and which parameters moved equally often."""
        if self._alike is None:
            places: dict[float | None, int] = {None: -1}
            counted = [None if step is None else float(step) for step in self._steps()]
            self._alike = tuple(places.setdefault(count, len(places)) for count in counted)
        return (self._alike, *self._settings())

    def _settings(self) -> Iterator[Hashable]:
        for i, group in enumerate(self.groups):
            rate = (_plain(group["lr"]),) if i in self.constant else ()
            plain = [(key, v if type(v) in NUMBERS else _plain(v)) for key, v in group.items() if key not in APART]
            yield (*plain, *rate)


class Computed:
    """The numbers that Adam and AdamW compute of rate and counted steps, as they stand in the calls of one step.

    Args:
        groups: of the optimiser, after the step.
        optimizer: whose step it was.

    Attributes:
        names: of those that were marked.
        first: by group and count, the place of the first parameter that moved so.
        moved: parameters whose move was marked.
    """

    def __init__(self, groups: list[dict[str, Any]], optimizer: torch.optim.Optimizer | None) -> None:
        self.groups = groups
        self.names: list[str] = []
        self.first: dict[tuple[int, float], int] = {}
        self.moved = 0
        state = {} if optimizer is None else optimizer.state
        for i, group in enumerate(groups):
            for k, parameter in enumerate(group["params"]):
                if parameter in state:
                    self.first.setdefault((i, float(state[parameter]["step"])), k)
        self._state = state

    def marked(self, node: Node, tape: Tape, places: Mapping[int, tuple[int, int]]) -> Node:
        """A call with such numbers marked."""
        func, args = node.func, node.args
        if func is aten.addcdiv_.default:
            live = self._size(tape, args[0], node.kwargs.get("value"), places)
            return node if live is None else node._replace(kwargs={**node.kwargs, "value": live})
        if func is aten._foreach_addcdiv_.ScalarList:
            sizes = [self._size(tape, ref, value, places) for ref, value in zip(args[0], args[3])]
            return node if None in sizes else node._replace(args=(*args[:3], sizes))
        if func is aten.div.Tensor and type(args[1]) is float:
            return node._replace(args=(args[0], self._root(args[1])))
        if func is aten._foreach_div_.ScalarList:
            return node._replace(args=(args[0], [self._root(value) for value in args[1]]))
        if func in (aten.mul_.Tensor, aten._foreach_mul_.Scalar):
            ref = args[0] if isinstance(args[0], Ref) else args[0][0]
            place = places.get(tape.groups[ref.number])
            if place is not None and args[1] == COMPUTED["decay"](self.groups[place[0]], 0.0):
                return node._replace(args=(args[0], self._named("decay", place[0], 0, 1.0)))
        return node

    def _size(self, tape: Tape, ref: Ref, value: object, places: Mapping[int, tuple[int, int]]) -> Live | None:
        place = places.get(tape.groups[ref.number])
        if place is None:
            return None
        group, k = place
        settings = self.groups[group]
        step = float(self._state[settings["params"][k]]["step"])
        if value != -COMPUTED["size"](settings, step):
            return None
        self.moved += 1
        return self._named("size", group, self.first[group, step], -1.0)

    def _root(self, value: float) -> Live | float:
        for (group, step), k in self.first.items():
            if COMPUTED["root"](self.groups[group], step) == value:
                return self._named("root", group, k, 1.0)
        return value

    def _named(self, what: str, group: int, place: int, factor: float) -> Live:
        name = f"{what}/{group}/{place}"
        if name not in self.names:
            self.names.append(name)
        return Live(name, factor)


COMPUTED: dict[str, Callable[[dict[str, Any], float], float]] = {
    "size": lambda group, step: float(group["lr"] / (1 - group["betas"][0] ** step)),
    "root": lambda group, step: float((1 - group["betas"][1] ** step) ** 0.5),
    "decay": lambda group, step: float(1 - group["lr"] * group["weight_decay"]),
}
"""What Adam and AdamW compute on the host, of a group's settings and the steps that its parameters have made."""

COUNTING = (torch.optim.Adam, torch.optim.AdamW)

READ = "a value is read on the host"

COUNTS_READ = "an operation works with the optimiser's state, whose steps are counted on the host"

MOVING_BY_RATE = (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adadelta)
"""Optimisers in whose step the rate stands but once for each parameter."""

FACTORS: dict[Any, tuple[str, int]] = {
    aten.add_.Tensor: ("alpha", -1),
    aten._foreach_add_.List: ("alpha", -1),
    aten.addcdiv_.default: ("value", -1),
    aten._foreach_addcdiv_.Scalar: ("value", 3),
}
"""Calls that move by a factor: its name, and its place among the arguments, if it may stand there."""

NUMBERS = frozenset((bool, int, float, type(None)))

APART = frozenset(("params", "lr", "initial_lr"))
"""What of a group is no number, or is looked at by itself."""


def _plain(value: Any) -> Hashable:
    return float(value) if isinstance(value, Tensor) else tuple(value) if isinstance(value, list) else value
