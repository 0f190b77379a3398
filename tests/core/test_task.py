"""The task of a forward ends with it: nobody has to put it back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast import Continual, methods, models
from holdfast.core.forward import enter_task, forward_task, leave_task, running_task
from holdfast.core.learner import Learner
from holdfast.models.heads import MASKED

TASKED = [
    "icarl",
    "exemplar_replay",
    "er_exemplars",
    "ncm",
    "lwf",
    "er",
    "dgr",
    "ewc",
    "gem",
    "separate_networks",
    "hat",
]


def test_the_task_is_that_of_the_innermost_forward_and_ends_after_an_error_too() -> None:
    with forward_task(1):
        with forward_task("all"):
            assert running_task() == "all"
        assert running_task() == 1
        with pytest.raises(ZeroDivisionError), forward_task(2):
            _ = 1 / 0
        assert running_task() == 1
    assert running_task() is None
    token = enter_task(3)
    assert running_task() == 3
    leave_task(token)
    assert running_task() is None


@pytest.mark.parametrize("name", TASKED)
def test_after_an_experience_the_users_own_model_answers_for_its_task(name: str, toy: Any) -> None:
    """The head was left at task "all" by operations that take features when an experience ends."""
    stream = toy.stream("task", experiences=2, classes=4)
    net = toy.model(stream, "task")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    cl = Continual(net, getattr(methods, name)(), optimizer, prepare=stream.prepare)
    net.train()
    for number, experience in enumerate(stream):
        data = cl.begin(experience, epochs=1, batch_size=4)
        for batch in data.batches(torch.arange(len(data)), 4):
            optimizer.zero_grad()
            outputs = cl(batch.inputs)
            loss = cl.loss(outputs, batch.targets, batch.inputs)
            cl.backward(loss, batch.targets, inputs=batch.inputs)
            optimizer.step()
        cl.end()
        net.eval()
        inputs = stream.prepare(experience.test.gather(torch.arange(3)).inputs, False, None)
        with torch.no_grad():
            found = net(inputs)
        own, other = [2 * number, 2 * number + 1], [c for c in range(found.shape[1]) if c // 2 != number]
        assert (found[:, own] != MASKED).all()
        assert (found[:, other] == MASKED).all()
        assert running_task() is None
        net.train()


def test_a_task_that_a_user_sets_on_the_head_holds_for_forwards_of_their_own() -> None:
    model = models.mlp(input_shape=(4,), classes=4, hidden=[3], head="task", seed=0)
    model.head.grow(4)
    model.head.assign(0, [0, 1])
    model.head.assign(1, [2, 3])
    learner = Learner(model)
    model.head.task = 1
    x = torch.zeros(2, 4)
    assert (model(x)[0] == MASKED).tolist() == [True, True, False, False]
    assert (learner(x, 0)[0] == MASKED).tolist() == [False, False, True, True]
    assert (model(x)[0] == MASKED).tolist() == [True, True, False, False]


def test_a_forward_that_fails_in_the_drop_in_leaves_no_task_behind(toy: Any) -> None:
    stream = toy.stream("task", experiences=2, classes=4)
    net = toy.model(stream, "task")
    cl = Continual(net, methods.finetune(), torch.optim.SGD(net.parameters(), lr=0.1))
    cl.begin(stream[0])
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 99))
    assert running_task() is None


@pytest.mark.slow
def test_a_compiled_head_reads_the_running_task() -> None:
    model = models.mlp(input_shape=(4,), classes=4, hidden=[3], head="task", seed=0)
    model.head.grow(4)
    model.head.assign(0, [0, 1])
    model.head.assign(1, [2, 3])
    learner, compiled = Learner(model), torch.compile(model)
    x = torch.zeros(2, 4)
    for task in (0, 1, "all", torch.tensor([1, 0])):
        assert torch.allclose(learner.forward(x, task, compiled), learner(x, task))
