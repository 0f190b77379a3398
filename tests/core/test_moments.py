"""Each entry point fires exactly once per moment, in the same order through the trainer and the wrapper."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from holdfast.core.boundary import Every
from holdfast.core.method import Method
from holdfast.core.operation import ENTRY_POINTS, Operation
from holdfast.training import Continual
from holdfast.training.evaluation import evaluate

CALLS: list[tuple[str, str]] = []


def _probe(*moments: str) -> type[Operation]:
    """An operation that writes down when it is called at these moments, and changes nothing."""

    def record(moment: str) -> Any:
        def called(self: Operation, *arguments: Any) -> Any:
            CALLS.append((self.name, moment))
            if moment in ("batch", "predict"):
                return arguments[0]
            if moment == "criterion":
                return nn.functional.cross_entropy(arguments[0], arguments[1])
            if moment == "take_step":
                step, _, optimizer = arguments
                step.loss.backward()
                optimizer.step()
            return None

        return called

    return type("Probe", (Operation,), {moment: record(moment) for moment in moments})


def _calls() -> list[str]:
    found = [moment for _, moment in CALLS]
    CALLS.clear()
    return found


STEP = ["batch", "loss", "gradient", "observe", "update"]
WITH_OWN_LOSS = ["batch", "criterion", *STEP[1:]]


def test_in_the_trainer_every_moment_comes_once_and_in_order(toy: Any) -> None:
    CALLS.clear()
    stream = toy.stream(experiences=2, classes=4, samples=5)  # 10 samples: batches of 4, 4 and 2
    moments = [moment for moment in ENTRY_POINTS if moment not in ("predict", "take_step")]
    toy.train(Method(_probe(*moments)()), toy.model(stream), stream, epochs=2)
    one = ["begin", *WITH_OWN_LOSS * 6, "end"]
    assert _calls() == ["setup", *one, *one]


def test_a_step_that_an_operation_takes_has_no_backward_of_the_engines(toy: Any) -> None:
    CALLS.clear()
    stream = toy.stream(experiences=1, classes=2, samples=4)
    toy.train(Method(_probe(*(moment for moment in ENTRY_POINTS if moment != "predict"))()), toy.model(stream), stream)
    step = ["batch", "criterion", "take_step", "update"]
    assert _calls() == ["setup", "begin", *step * 2, "end"]


def test_predict_comes_once_a_batch_of_evaluation_and_never_in_training(toy: Any) -> None:
    CALLS.clear()
    stream = toy.stream(experiences=2, classes=4, samples=5)
    trainer = toy.train(Method(_probe("predict")()), toy.model(stream), stream)
    assert _calls() == []
    evaluate(trainer.engine, stream[0].test, stream[0].classes, None, batch_size=4)  # 10 samples
    assert _calls() == ["predict"] * 3


def test_evaluation_fires_nothing_but_predict(toy: Any) -> None:
    CALLS.clear()
    stream = toy.stream(experiences=2, classes=4, samples=5)
    trainer = toy.train(Method(_probe(*(m for m in ENTRY_POINTS if m != "take_step"))()), toy.model(stream), stream)
    CALLS.clear()
    evaluate(trainer.engine, stream[0].test, stream[0].classes, None)
    assert _calls() == ["predict"]


def test_in_the_wrapper_the_same_moments_come_in_the_same_order(toy: Any) -> None:
    CALLS.clear()
    stream = toy.stream(experiences=2, classes=4, samples=5)
    moments = [m for m in ENTRY_POINTS if m not in ("predict", "take_step", "criterion")]
    for prepare in (True, False):
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
        toy.wrap(Method(_probe(*moments)()), toy.model(stream), stream, optimizer, epochs=2, prepare=prepare)
        one = ["begin", *STEP * 6, "end"]
        assert _calls() == ["setup", *one, *one]


def test_two_operations_take_turns_within_every_moment(toy: Any) -> None:
    CALLS.clear()
    stream = toy.stream(experiences=1, classes=2, samples=4)
    probe = _probe(*(m for m in ENTRY_POINTS if m not in ("predict", "take_step", "criterion")))
    toy.train(Method(probe(), probe()), toy.model(stream), stream)
    found = list(CALLS)
    CALLS.clear()
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first[1] == second[1]
        assert (first[0], second[0]) == ("probe", "probe_2")


def test_prediction_through_the_wrapper_fires_predict_alone(toy: Any) -> None:
    CALLS.clear()
    model = nn.Linear(3, 2)
    probe = _probe(*(m for m in ENTRY_POINTS if m not in ("take_step", "criterion")))
    cl = Continual(model, Method(probe()), torch.optim.SGD(model.parameters(), lr=0.1))
    _calls()
    cl.predict(torch.zeros(4, 3))
    assert _calls() == ["predict"]
    assert model.training


def test_with_a_boundary_experiences_begin_and_end_around_the_right_steps() -> None:
    CALLS.clear()
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cl = Continual(model, Method(_probe("begin", "loss", "end")()), optimizer, boundary=Every(steps=3))
    for _ in range(7):
        x, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
        cl.backward(nn.functional.cross_entropy(model(x), y), y, inputs=x)
        optimizer.step()
        optimizer.zero_grad()
    experience = ["begin", "loss", "loss", "loss", "end"]
    assert _calls() == [*experience, *experience, "begin", "loss"]


def test_update_fires_once_after_the_optimiser_even_if_it_steps_again() -> None:
    CALLS.clear()
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cl = Continual(model, Method(_probe("update")()), optimizer)
    x, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    cl.backward(nn.functional.cross_entropy(model(x), y), y, inputs=x)
    optimizer.step()
    optimizer.step()
    assert Counter(_calls()) == {"update": 1}


def test_a_closed_wrapper_leaves_nothing_on_the_model_or_the_optimiser() -> None:
    CALLS.clear()
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cl = Continual(model, Method(_probe("batch", "update")()), optimizer)
    cl.close()
    _calls()
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert _calls() == []
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
