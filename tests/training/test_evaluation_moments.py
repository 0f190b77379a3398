"""When and on what a run is evaluated: after each experience or at the end, all experiences or those seen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import methods
from holdfast.config.compose import load
from holdfast.core.errors import ConfigError
from holdfast.metrics import compute
from holdfast.metrics.matrix import accuracy_matrix
from holdfast.runs.run import run
from holdfast.training import Trainer

SETTINGS: dict[str, Any] = {"optimizer": "Adam", "batch_size": 4, "seed": 3}


def _trained(toy: Any, **other: Any) -> tuple[Any, list[dict[str, Any]]]:
    of = toy.stream()
    net = toy.model(of)
    events = Trainer(methods.er(capacity=10, size=4), **SETTINGS, **other).fit(net, of)
    return net, events


def _matrix(events: list[dict[str, Any]]) -> np.ndarray:
    return accuracy_matrix([event for event in events if event.get("after", 0) >= 0])


def test_what_is_evaluated_when_moves_no_weight_and_what_is_measured_is_the_same(toy: Any) -> None:
    whole, events = _trained(toy)
    full = _matrix(events)
    seen, at_end = np.tril(np.ones((3, 3), dtype=bool)), np.arange(3)[:, None] == 2
    for settings, measured in (
        ({"evaluate_on": "seen"}, seen),
        ({"evaluate_when": "end"}, at_end & np.ones((3, 3), dtype=bool)),
        ({"evaluate_when": "end", "evaluate_on": "seen"}, at_end & np.ones((3, 3), dtype=bool)),
    ):
        net, some = _trained(toy, **settings)
        assert toy.equal(net, whole)
        matrix = _matrix(some)
        assert (np.isfinite(matrix) == measured).all()
        assert (matrix[measured] == full[measured]).all()
        assert not any(event["after"] == -1 for event in some if event["event"] == "evaluate")


def test_metrics_say_what_can_be_said_and_nothing_of_the_time_between(toy: Any) -> None:
    start = {"event": "start", "stream": {"experiences": 3, "paradigm": "class"}}
    full, seen, at_end = (
        compute([start, *_trained(toy, **settings)[1], {"event": "end", "seconds": 1.0}])
        for settings in ({}, {"evaluate_on": "seen"}, {"evaluate_when": "end"})
    )
    for name in ("average_accuracy", "sample_accuracy", "worst_class", "average_loss"):
        assert full[name] == seen[name] == at_end[name] is not None
    for name in ("average_incremental_accuracy", "plasticity", "forgetting_first", "waacc", "wamica"):
        assert full[name] == seen[name] is not None
        assert at_end[name] is None
    assert full["forward_transfer"] is not None
    assert seen["forward_transfer"] is None
    assert at_end["learned"] == 3


def test_a_run_that_ran_out_of_time_is_evaluated_where_it_stopped(toy: Any) -> None:
    of = toy.stream(samples=200)
    events = Trainer(methods.finetune(), **SETTINGS, epochs=10_000, max_seconds=0.05, evaluate_when="end").fit(
        toy.model(of), of
    )
    after = {event["after"] for event in events if event["event"] == "evaluate"}
    assert after == {0}


def test_reports_and_files_of_such_runs_leave_blank_what_was_not_measured(tmp_path: Any) -> None:
    job = {"stream": {"name": "split", "dataset": "digits", "experiences": 3}, "method": "finetune"}
    (tmp_path / "job.json").write_text(json.dumps({**job, "trainer": {"epochs": 1, "evaluate_when": "end"}}))
    folder = run(load(tmp_path / "job.json"), tmp_path / "out", quiet=True)
    lines = (folder / "accuracy_matrix.csv").read_text().splitlines()
    assert lines[1:3] == ["0,nan,nan,nan", "1,nan,nan,nan"]
    assert "nan" not in lines[3]
    assert json.loads((folder / "metrics.json").read_text())["plasticity"] is None
    assert ">nan<" not in (folder / "report.html").read_text()


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="evaluate_when"):
        Trainer(methods.finetune(), evaluate_when="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="evaluate_on"):
        Trainer(methods.finetune(), evaluate_on="old")  # type: ignore[arg-type]


def test_a_run_of_several_seeds_evaluated_at_its_end_can_be_compared(tmp_path: Any) -> None:
    job = {"stream": {"name": "split", "dataset": "digits", "experiences": 2}, "method": "finetune", "seeds": [0, 1]}
    (tmp_path / "job.json").write_text(json.dumps({**job, "trainer": {"epochs": 1, "evaluate_when": "end"}}))
    folder = run(load(tmp_path / "job.json"), tmp_path / "out", quiet=True)
    values = [json.loads((folder / f"seed-{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    assert all(value["average_accuracy"] is not None and value["backward_transfer"] is None for value in values)
    assert torch.tensor([value["average_accuracy"] for value in values]).std() >= 0
