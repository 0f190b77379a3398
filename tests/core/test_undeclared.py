"""What an operation keeps without declaring it is refused by name at the first checkpoint."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.core.step import Step


class Counter:
    """A helper object of an outsider's."""

    def __init__(self) -> None:
        self.count = 0


class Keeps(Operation):
    """Keeps one thing of each kind without saying so."""

    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        self.kind = kind
        self.kept: Any = None

    def setup(self, learner: Services) -> None:
        made = {
            "in place": torch.zeros(3),
            "counter": 0,
            "dictionary": {},
            "list": [0, torch.zeros(1)],
            "deque": deque([1.0], maxlen=3),
            "object": Counter(),
            "generator": torch.Generator().manual_seed(0),
        }
        self.kept = made.get(self.kind)

    def observe(self, step: Step, learner: Services) -> None:
        if self.kind == "tensor":
            self.kept = step.loss.detach()
        elif self.kind == "in place":
            self.kept.add_(1.0)
        elif self.kind == "counter":
            self.kept += 1
        elif self.kind == "dictionary":
            self.kept["last"] = step.loss.detach()
        elif self.kind == "list":
            self.kept[1].add_(1.0)
        elif self.kind == "deque":
            self.kept.append(2.0)
        elif self.kind == "object":
            self.kept.count += 1
        elif self.kind == "generator":
            torch.rand(1, generator=self.kept)
        elif self.kind == "late":
            self.made_late = 1


KINDS = ["tensor", "in place", "counter", "dictionary", "list", "deque", "object", "generator"]


def _declared(kind: str, **what: tuple[str, ...]) -> Operation:
    operation = type("Declares", (Keeps,), what)(kind)
    operation.kind = kind
    return operation


def _trained(operation: Operation, toy: Any) -> Any:
    stream = toy.stream(experiences=2, classes=4)
    return toy.train(Method(operation), toy.model(stream), stream).engine


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named_with_what_to_write(kind: str, toy: Any) -> None:
    with pytest.raises(UsageError, match=r"'keeps' keeps `kept`.*state = \('kept',\)"):
        _trained(Keeps(kind), toy).state()


def test_an_attribute_that_first_appears_while_learning_is_named_too(toy: Any) -> None:
    with pytest.raises(UsageError, match="`made_late`"):
        _trained(Keeps("late"), toy).state()


@pytest.mark.parametrize("kind", ["tensor", "in place", "counter", "dictionary", "list"])
def test_what_is_declared_as_state_or_scratch_is_not(kind: str, toy: Any) -> None:
    for declared in ("state", "scratch"):
        saved = _trained(_declared(kind, **{declared: ("kept",)}), toy).state()
        assert ("kept" in saved["operations"]["declares"]) == (declared == "state")


def test_scratch_of_a_base_class_holds_for_its_subclasses(toy: Any) -> None:
    base = type("Base", (Keeps,), {"scratch": ("kept",)})
    _trained(type("Derived", (base,), {"scratch": ("other",)})("counter"), toy).state()


def test_an_operation_that_keeps_nothing_passes(toy: Any) -> None:
    assert "kept" not in _trained(Keeps("nothing"), toy).state()["operations"]["keeps"]


def test_what_the_learner_saves_is_no_secret(toy: Any) -> None:
    class Draws(Operation):
        def setup(self, learner: Services) -> None:
            self.mine = learner.rng("draw/mine")

        def loss(self, step: Step, learner: Services) -> Tensor:
            return torch.rand((), generator=self.mine)

    _trained(Draws(), toy).state()


def test_a_copy_at_a_boundary_asks_nothing(toy: Any) -> None:
    assert _trained(Keeps("counter"), toy).state(check=False)["index"] > 0
