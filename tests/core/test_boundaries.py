"""Who says that an experience ended, and what a method learns of it in a loop that never does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.boundary import Boundary, Every, OnNewClass
from holdfast.core.errors import ConfigError, NeedError, UsageError
from holdfast.core.step import Step
from holdfast.methods import er, ewc, finetune, joint, lwf, si
from holdfast.training import Continual


def _step(*targets: int) -> Step:
    return Step(torch.zeros(len(targets), 1), torch.tensor(targets), torch.zeros(()))


def _crossings(boundary: Boundary, batches: list[list[int]]) -> list[bool]:
    return [boundary.crossed(_step(*targets)) for targets in batches]


def test_every_crosses_before_each_multiple_of_its_steps_and_not_at_the_start() -> None:
    crossed = _crossings(Every(steps=3), [[0]] * 10)
    assert [index for index, found in enumerate(crossed) if found] == [3, 6, 9]


def test_every_step_can_be_a_boundary() -> None:
    assert _crossings(Every(steps=1), [[0]] * 4) == [False, True, True, True]


def test_a_new_class_crosses_once_whatever_else_is_in_the_batch() -> None:
    crossed = _crossings(OnNewClass(), [[0, 1], [1, 0], [1, 2], [2, 0], [3, 4], [4, 3]])
    assert crossed == [False, False, True, False, True, False]


def test_a_boundary_goes_on_where_its_state_was_saved() -> None:
    batches = [[0], [0], [1], [1], [2], [0], [3], [3]]
    for make in (lambda: Every(steps=3), OnNewClass):
        whole = _crossings(make(), batches)
        first = make()
        before = _crossings(first, batches[:4])
        second = make()
        second.load(first.state())
        assert before + _crossings(second, batches[4:]) == whole


def test_the_state_of_a_boundary_holds_plain_values_only() -> None:
    boundary = OnNewClass()
    _crossings(boundary, [[3, 1]])
    assert boundary.state() == {"seen": [1, 3]}


def test_boundaries_refuse_what_they_cannot_work_with() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Every(steps=0)
    with pytest.raises(ConfigError, match="Every"):
        OnNewClass().crossed(Step(torch.zeros(2, 1), torch.zeros(2), torch.zeros(())))


@pytest.mark.parametrize("boundary", [Every(steps=7, window=5), OnNewClass(window=6)])
def test_the_repr_of_a_boundary_evaluates_back(boundary: Any) -> None:
    again = eval(repr(boundary), {"Every": Every, "OnNewClass": OnNewClass})
    assert vars(again) == vars(boundary)


def _run(
    method: Any, toy: Any, boundary: Boundary | None, steps: int = 4, stop: int = 3
) -> tuple[nn.Module, Continual]:
    stream = toy.stream()
    model = toy.model(stream)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cl = Continual(model, method, optimizer, boundary=boundary, seed=1)
    for index in range(stop):
        if boundary is None:
            cl.begin(stream[index])
        _steps(cl, model, optimizer, toy.batches(stream, index, steps))
        if boundary is None:
            cl.end()
    return model, cl


def _steps(cl: Continual, model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        cl.backward(nn.functional.cross_entropy(model(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
        optimizer.step()


@pytest.mark.parametrize("boundary", [Every(steps=4), OnNewClass()])
@pytest.mark.parametrize("method", [si, lwf])
def test_a_boundary_in_the_right_place_equals_calling_begin_and_end(toy: Any, boundary: Any, method: Any) -> None:
    again = eval(repr(boundary), {"Every": Every, "OnNewClass": OnNewClass})
    by_boundary, cl = _run(method(), toy, again)
    by_hand, _ = _run(method(), toy, None)
    nothing, _ = _run(finetune(), toy, None)
    assert toy.equal(by_boundary, by_hand)
    assert not toy.equal(by_boundary, nothing)
    assert cl.learner.experience == 2


def test_where_nobody_announces_classes_they_are_read_off_the_targets(toy: Any) -> None:
    _, cl = _run(lwf(), toy, Every(steps=4), stop=3)
    assert cl.learner.members[:2] == [(0, 1), (2, 3)]
    assert cl.learner.classes[:4].all()


def test_ewc_at_a_boundary_consolidates_on_the_recent_window(toy: Any) -> None:
    method = ewc(fisher="empirical")
    _, cl = _run(method, toy, Every(steps=4, window=8), stop=2)
    (penalty,) = method.operations
    assert penalty.anchor.keys() == cl.learner.named_parameters().keys()
    assert any(float(value.abs().sum()) > 0 for value in penalty.importance.values())
    assert cl.phases.recent == 8  # of the 16 rows of the current experience


@pytest.mark.parametrize("boundary", [Every(steps=4), OnNewClass()])
@pytest.mark.parametrize("method", [er, ewc, si, lwf])
def test_the_wrapper_saved_and_loaded_goes_on_as_if_nothing_had_happened(toy: Any, boundary: Any, method: Any) -> None:
    stream = toy.stream()

    def fresh() -> tuple[nn.Module, Any, Continual]:
        model = toy.model(stream)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        own = eval(repr(boundary), {"Every": Every, "OnNewClass": OnNewClass})
        return model, optimizer, Continual(model, method(), optimizer, boundary=own, seed=1)

    one = fresh()
    _steps(one[2], one[0], one[1], toy.batches(stream, 0, 4))
    _steps(one[2], one[0], one[1], toy.batches(stream, 1, 2))
    saved = toy.through_disk((one[2].state_dict(), one[1].state_dict()))
    other = fresh()
    other[2].load_state_dict(saved[0])
    other[1].load_state_dict(saved[1])
    for model, optimizer, cl in (one, other):
        _steps(cl, model, optimizer, toy.batches(stream, 1, 2, seed=4))
        _steps(cl, model, optimizer, toy.batches(stream, 2, 5))
    assert toy.equal(one[0], other[0])


def test_calls_in_an_order_that_cannot_be_right_are_refused(toy: Any) -> None:
    stream = toy.stream()
    model = toy.model(stream)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cl = Continual(model, si(), optimizer)
    batch = toy.batches(stream, 0, 1)[0]
    loss = nn.functional.cross_entropy(model(batch.inputs), batch.targets)
    with pytest.raises(UsageError, match=r"begin\(\)"):
        cl.backward(loss, batch.targets, inputs=batch.inputs)
    with pytest.raises(UsageError, match="without begin"):
        cl.end()
    cl.begin(stream[0])
    with pytest.raises(UsageError, match="twice"):
        cl.begin(stream[1])
    with pytest.raises(UsageError, match="targets"):
        cl.backward(loss, batch.targets[:2], inputs=batch.inputs)
    with pytest.raises(UsageError, match="inputs=x"):
        cl.backward(loss, batch.targets)
    with pytest.raises(UsageError, match="scalar"):
        cl.backward(loss.detach(), batch.targets, inputs=batch.inputs)


def test_begin_is_refused_where_a_boundary_decides() -> None:
    model = nn.Linear(2, 2)
    cl = Continual(model, er(), torch.optim.SGD(model.parameters(), lr=0.1), boundary=Every(steps=2))
    with pytest.raises(UsageError, match="Leave one of the two out"):
        cl.begin()


def test_what_needs_the_optimiser_or_the_stream_says_so() -> None:
    with pytest.raises(NeedError, match=r"`si`.*\n.*optimizer="):
        Continual(nn.Linear(2, 2), si())
    model = nn.Linear(2, 2)
    with pytest.raises(NeedError, match=r"`joint`.*\n.*begin"):
        Continual(model, joint(), torch.optim.SGD(model.parameters(), lr=0.1), boundary=Every(steps=2))


def test_ewc_without_the_data_of_its_experience_says_where_to_pass_it(toy: Any) -> None:
    model = nn.Linear(5, 6)
    cl = Continual(model, ewc(), torch.optim.SGD(model.parameters(), lr=0.1))
    cl.begin()
    with pytest.raises(UsageError, match=r"end\(data\)"):
        cl.end()
    cl.end(toy.stream()[0].train)
    assert cl.method.operations[0].anchor
