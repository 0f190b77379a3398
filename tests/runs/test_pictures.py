"""A report shows samples, the memory by class, confusions over time, losses, and old knowledge inside experiences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.core.errors import DataError
from holdfast.runs.folder import load_arrays
from holdfast.runs.pictures import (
    SAMPLES,
    confusions_over_time,
    loss_map,
    memory_map,
    read_gates,
    read_samples,
    sample_grid,
)
from holdfast.runs.result import Results
from holdfast.runs.run import run
from holdfast.runs.words import headline

FIGURES = True
SMALL = {"model": {"name": "mlp", "hidden": [16]}, "references": []}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = {
        **SMALL,
        "method": {"name": "er", "capacity": 40},
        "trainer": {"epochs": 2, "limit_experiences": 3, "evaluate_during": 0.4},
    }
    return run(job, tmp_path_factory.mktemp("pictures") / "run", quiet=True)


def test_gates_of_each_task_are_drawn_with_the_rates_and_the_capacity_that_is_left(tmp_path: Path) -> None:
    job = {
        **SMALL,
        "model": {"name": "mlp", "hidden": [12, 7], "head": "task"},
        "stream": {"name": "split", "dataset": {"name": "synthetic", "classes": 6}, "paradigm": "task"},
        "method": {"name": "hat"},
        "trainer": {"epochs": 2},
    }
    folder = run(job, tmp_path / "run", quiet=True)
    gates = read_gates(folder, job["method"])
    assert gates is not None
    assert (gates.widths, gates.tasks) == ([12, 7], list(range(len(gates.tasks))))
    assert set(np.unique(gates.used)) == {0.0, 1.0}
    assert gates.capacity[0] == 1
    assert gates.capacity[-1] < 1
    first = gates.rates[1, :12]  # a unit of the first layer moves unless the first task uses it
    assert (first == 1 - gates.used[0, :12]).all()
    assert all((folder / "plots" / f"{name}.png").is_file() for name in ("masks", "adjustment_rates", "capacity"))
    assert "Which units each task" in (folder / "report.html").read_text()
    assert read_gates(folder, {"name": "er"}) is None


def test_samples_are_kept_with_the_wrong_ones_first(digits: Path) -> None:
    samples = read_samples(digits)
    assert samples is not None
    assert samples.images.dtype == np.uint8
    wrong = samples.answers != samples.targets
    assert wrong.sum() > 0
    assert wrong.tolist() == sorted(wrong.tolist(), reverse=True)
    figure = sample_grid(samples, [str(number) for number in range(10)])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == len(wrong)
    assert texts[0].startswith("✗")
    assert "is " in texts[0]


def test_the_log_says_what_the_memory_holds(digits: Path) -> None:
    events = list(Results.load(digits)[0].log.of("experience"))
    for event in events:
        assert sum(event["memory_classes"].values()) == event["memory_items"] == 40
    assert set(events[0]["memory_classes"]) == {"0", "1"}
    assert set(events[2]["memory_classes"]) <= {"0", "1", "2", "3", "4", "5"}


def test_the_report_has_them_all(digits: Path) -> None:
    plots = {path.stem for path in (digits / "plots").glob("*.png")}
    assert {"samples", "memory", "confusion_over_time", "inside", "accuracy_matrix"} <= plots
    page = (digits / "report.html").read_text()
    for title in ("Samples", "Memory by class", "Confusions over time", "Inside the experiences"):
        assert f"<h3>{title}</h3>" in page
    assert "stability_gap" in page
    assert "minimum_accuracy" in page


def test_the_number_of_test_samples_and_their_interval_stand_by_the_accuracy(digits: Path) -> None:
    runs = list(Results.load(digits))
    kept = headline(runs, "", False)[0]
    count = sum(event["samples"] for event in runs[0].log.of("evaluate") if event["after"] == 2)
    assert f"({count} samples, whose number alone makes it" in kept["sentence"]


def test_regression_has_its_units_r2_and_a_matrix_of_losses(tmp_path: Path) -> None:
    datasets = [{"name": "polynomial", "degree": degree} for degree in (1, 2)]
    job = {**SMALL, "stream": {"name": "domains", "datasets": datasets}, "criterion": "mse", "method": "finetune"}
    made = run({**job, "trainer": {"epochs": 2}}, tmp_path / "run", quiet=True)
    words = [item["word"] for item in headline(list(Results.load(made)), "", True)]
    assert words == ["Mean error", "R2", "Kept", words[3]]
    assert words[3] in ("Forgot nothing, loss fell", "Forgot")
    assert (made / "plots" / "loss_matrix.png").is_file()
    assert not (made / SAMPLES).exists()


def test_figures_say_the_numbers_they_are_given() -> None:
    memory = memory_map(np.array([[4, 0], [2, 2]]), ["a", "b"], ["one", "two"])
    assert [text.get_text() for text in memory.axes[0].texts] == ["4", "2", "0", "2"]
    losses = loss_map(np.array([[0.5, 12.0], [0.25, 1.0]]), ["one", "two"])
    assert [text.get_text() for text in losses.axes[0].texts] == ["0.5", "12", "0.25", "1"]
    many = confusions_over_time([(str(index), np.eye(3)) for index in range(30)])
    assert len(many.axes) == 12
    assert many.axes[-1].get_title() == "after 29"


def test_a_damaged_file_of_samples_is_told(tmp_path: Path) -> None:
    (tmp_path / SAMPLES).write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path)


def test_the_entry_of_an_experience_is_plain_json(digits: Path) -> None:
    lines = (digits / "log.jsonl").read_text().splitlines()
    during = [json.loads(line) for line in lines if '"during"' in line]
    assert {event["experience"] for event in during} == {1, 2}


@pytest.mark.parametrize("keep", [4, 0.5, 0.9, "bytes"])
def test_a_damaged_file_of_arrays_is_told_in_a_sentence(keep: Any, tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).random((50, 8)))
    content = path.read_bytes()
    if keep == "bytes":
        middle = len(content) // 2
        wrong = bytes(255 - one for one in content[middle : middle + 40])
        path.write_bytes(content[:middle] + wrong + content[middle + 40 :])
    else:
        path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(DataError, match="cannot be read"):
        load_arrays(path, ["images"])
    assert load_arrays(tmp_path / "none.npz", ["images"]) is None
