"""Task inference by lowest entropy: against a loop, and for every kind of model with a part per task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from holdfast.core.forward import forward_task
from holdfast.core.method import Method
from holdfast.methods import hat, packnet, separate_networks, xdg
from holdfast.metrics.summary import compute
from holdfast.models import mlp
from holdfast.models.hypernetwork import hypernetwork
from holdfast.operations.infer_task import InferTask, entropies
from holdfast.streams import split
from holdfast.streams.datasets import synthetic
from holdfast.training import Trainer


def stream() -> Any:
    return split(synthetic(classes=6, features=5, samples=40, test_samples=15, seed=1), experiences=3, paradigm="task")


def net(head: str = "task") -> torch.nn.Module:
    return mlp(input_shape=(5,), classes=6, hidden=[30, 30], head=head, seed=0)


def test_entropy_is_that_of_each_row():
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [1 / 3] * 3])
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = -np.nansum(np.where(p > 0, p * np.log(p), 0), axis=1)
    found = entropies(torch.tensor(p).log())
    assert torch.allclose(found, torch.tensor(wanted))


def answers_by_hand(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[list[int], list[int]]:
    """For each sample the surest task, and its answer."""
    tasks, labels = [], []
    for row in inputs:
        best = None
        for task in range(3):
            with forward_task(task), torch.no_grad():
                outputs = model(row[None])[0, 2 * task : 2 * task + 2]
            p = torch.softmax(outputs, 0)
            entropy = float(-(p * p.log()).sum())
            if best is None or entropy < best[0]:
                best = (entropy, task, 2 * task + int(outputs.argmax()))
        tasks.append(best[1])
        labels.append(best[2])
    return tasks, labels


@pytest.mark.parametrize("kind", ["task head", "hypernetwork"])
def test_the_answer_is_that_of_the_task_with_the_lowest_entropy(kind):
    model = (
        net()
        if kind == "task head"
        else hypernetwork(input_shape=(5,), classes=6, backbone={"name": "mlp", "hidden": [20]}, tasks=3, seed=0)
    )
    trainer = Trainer(Method(InferTask()), optimizer="Adam", batch_size=8, epochs=2)
    events = trainer.fit(model, stream())
    model.eval()
    of = stream()
    for number, experience in enumerate(of):
        inputs, targets = (lambda b: (b.inputs, b.targets))(experience.test.gather(torch.arange(len(experience.test))))
        _, labels = answers_by_hand(model, inputs)
        outputs = trainer.engine.predict(inputs, number)
        assert outputs.argmax(1).tolist() == labels
        with forward_task(number), torch.no_grad():
            known = model(inputs).argmax(1)
        aware = outputs[:, 2 * number : 2 * number + 2].argmax(1) + 2 * number
        assert aware.tolist() == known.tolist(), "with the task given, the same answers as without inference"
        (event,) = [e for e in events if e["event"] == "evaluate" and e["after"] == 2 and e["experience"] == number]
        assert event["correct"] == int((torch.tensor(labels) == targets).sum())
        assert event["correct_task"] == int((known == targets).sum())


def test_outputs_are_logarithms_of_probabilities_of_the_surest_task_and_lower_for_the_others():
    model = net()
    trainer = Trainer(Method(InferTask()), optimizer="Adam", batch_size=8)
    trainer.fit(model, stream())
    model.eval()
    inputs = torch.randn(20, 5)
    with torch.no_grad():
        outputs = trainer.engine.predict(inputs, 0)
    tasks, _ = answers_by_hand(model, inputs)
    for row, task in zip(outputs, tasks, strict=True):
        for other in range(3):
            total = float(row[2 * other : 2 * other + 2].exp().sum())
            assert total == pytest.approx(1.0 if other == task else float(np.exp(-1 - np.log(2))), rel=1e-4)


@pytest.mark.parametrize("method", [hat, packnet, xdg, separate_networks])
def test_every_method_with_a_part_per_task_can_be_asked_without_the_task(method):
    plain, inferred = method(), method(infer_task=True)
    results = []
    for one in (plain, inferred):
        model = net()
        trainer = Trainer(one, optimizer={"name": "Adam", "lr": 0.01}, batch_size=8, epochs=6)
        events = trainer.fit(model, stream())
        last = [e for e in events if e["event"] == "evaluate" and e["after"] == 2]
        results.append([(e["correct"], e["correct_task"]) for e in last])
    aware = [[after for _, after in rows] for rows in results]
    assert aware[0] == aware[1], "the task-aware answers are the same"
    assert sum(right for right, _ in results[1]) < sum(right for right, _ in results[0]), (
        "without the task it is harder"
    )
    told = {"event": "start", "stream": {"paradigm": "task"}}
    assert all(event["inferred"] for event in last)
    assert compute([told, *last])["headline"] == "", "what counts is accuracy among all classes"
    known = [{key: value for key, value in event.items() if key != "inferred"} for event in last]
    assert compute([told, *known])["headline"] == "task_aware_"
    chance = 90 / 6
    assert sum(right for right, _ in results[1]) > 1.5 * chance


def test_the_classes_of_tasks_are_restored(toy: Any):
    of, keep = stream(), toy.KeepAt(40)
    first, second = net(), net()
    settings = {"evaluate": "test", "evaluate_before": False}
    whole = toy.train(Method(InferTask()), first, of, checkpoints=keep, **settings)
    resumed = toy.train(Method(InferTask()), second, of, resume=keep.kept, **settings)
    assert (
        whole.method.operations[0].classes == resumed.method.operations[0].classes == {0: [0, 1], 1: [2, 3], 2: [4, 5]}
    )
