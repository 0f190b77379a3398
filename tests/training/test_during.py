"""Measures inside an experience: they change no weight, keep to their share, and say what happened to old knowledge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast import Trainer, datasets, methods, metrics, models, streams
from holdfast.metrics.during import inside
from holdfast.training.observations import MOST_ROWS

DATA = datasets.synthetic(classes=6, samples=60, test_samples=20, spread=1.5)


def trained(method, share: float, paradigm: str = "class", **settings):
    stream = streams.split(DATA, experiences=3, paradigm=paradigm)
    head = "task" if paradigm == "task" else "fixed"
    layers = {"hidden": [16], "dropout": 0.3, "batch_norm": True, "head": head, "seed": 0}
    model = models.mlp(input_shape=stream.input_shape, classes=6, **layers)
    optimizer = {"name": "SGD", "lr": 0.1}
    trainer = Trainer(method, optimizer=optimizer, batch_size=4, evaluate_during=share, **settings)
    return trainer.fit(model, stream), model.state_dict(), stream


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "ewc", "agem", "icarl", "ncm", "lwf"])
def test_measuring_changes_no_weight(name: str) -> None:
    settings = {"strength": 0.01} if name == "ewc" else {}
    quiet, expected, _ = trained(getattr(methods, name)(**settings), 0.0)
    events, found, _ = trained(getattr(methods, name)(**settings), 0.2)
    assert [event["event"] for event in quiet].count("during") == 0
    assert [event["event"] for event in events].count("during") > 4
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [one for one in quiet if one["event"] == "train"] == [one for one in events if one["event"] == "train"]


def test_the_first_moment_is_what_was_measured_before_and_the_share_is_kept() -> None:
    events, _, _ = trained(methods.finetune(), 0.2, epochs=2)
    steps = {one["experience"]: one["steps"] for one in events if one["event"] == "experience"}
    for index in (1, 2):
        moments = [one for one in events if one["event"] == "during" and one["experience"] == index]
        assert moments[0]["step"] == 0
        assert 0 < moments[1]["step"] <= 2
        assert moments[-1]["step"] == steps[index] - 1
        assert len(moments) <= 0.2 * steps[index]
        assert sum(sum(one["samples"]) for one in moments) <= 2 * 0.2 * steps[index] * 4 + MOST_ROWS * 0
        assert moments[0]["old"] == list(range(index))
    before = {(one["after"], one["experience"]): one for one in events if one["event"] == "evaluate"}
    first = next(one for one in events if one["event"] == "during")
    if first["samples"][0] == before[0, 0]["samples"]:
        assert first["correct"][0] == before[0, 0]["correct"]


def test_task_labels_are_told_to_the_model() -> None:
    events, _, _ = trained(methods.finetune(), 0.5, paradigm="task", epochs=2)
    moments = [one for one in events if one["event"] == "during"]
    assert moments
    assert all(right >= chance for one in moments for right, chance in zip(one["correct_task"], one["correct"]))
    assert metrics.compute(events)["minimum_accuracy"] > 0.3


def test_a_training_of_few_steps_is_left_alone() -> None:
    events, _, _ = trained(methods.finetune(), 0.01)
    assert not [one for one in events if one["event"] == "during"]
    assert metrics.compute(events)["stability_gap"] is None


def log(rows: dict[int, list[list[int]]]) -> list[dict]:
    stream = {"experiences": 3, "paradigm": "class", "classes": 6}
    events: list[dict] = [{"event": "start", "stream": stream, "seed": 0, "method": "er", "parameters": 1}]
    for index in range(3):
        for step, correct in enumerate(rows.get(index, [])):
            about = {"old": list(range(index)), "samples": [10] * index, "correct_task": [10] * index}
            events.append({"event": "during", "experience": index, "step": step, "correct": correct, **about})
        for tested in range(index + 1):
            right = {"correct": 8, "correct_task": 9, "samples": 10, "loss": 0.1}
            events.append({"event": "evaluate", "after": index, "experience": tested, "split": "test", **right})
        events.append({"event": "experience", "experience": index, "steps": 3, "seconds": 1.0})
    return [*events, {"event": "end", "seconds": 3.0}]


def test_the_measures_are_those_of_their_formulas() -> None:
    events = log({1: [[9], [3], [6]], 2: [[7, 9], [5, 4], [6, 8]]})
    steps, table = inside(events, 2)
    assert steps.tolist() == [0, 1, 2]
    assert table.tolist() == [[0.7, 0.9], [0.5, 0.4], [0.6, 0.8]]
    assert metrics.minimum_accuracy(events) == pytest.approx((min(0.3, 0.5) + 0.4) / 2)
    assert metrics.stability_gap(events) == pytest.approx(((0.9 - 0.3) + (0.7 - 0.5) + (0.9 - 0.4)) / 3)
    assert metrics.worst_case_accuracy(events) == pytest.approx(0.8 / 3 + 2 / 3 * 0.35)
    assert metrics.accuracy_inside(events) == pytest.approx(np.mean([0.9, 0.3, 0.6, 0.8, 0.45, 0.7]))


def test_nothing_measured_is_no_number() -> None:
    found = metrics.compute(log({}))
    assert [found[name] for name in ("minimum_accuracy", "stability_gap", "worst_case_accuracy")] == [None] * 3


def test_a_run_folder_measures_by_default(tmp_path) -> None:
    from holdfast.config.check import validated

    assert validated({}).config["trainer"]["evaluate_during"] == 0.05
    assert Trainer(methods.finetune()).evaluate_during == 0.0
