"""References: derived, reused, and what is measured against them."""

import json
import sys

import numpy as np
import pytest

from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.metrics import read_log
from holdfast.metrics.references import against, forgetting_ratio, transfer_from_independent
from holdfast.runs.console import CONSOLE, console_log
from holdfast.runs.folder import read_info
from holdfast.runs.opened import show
from holdfast.runs.run import resume, run

SMALL = ["trainer.epochs=2", "stream.experiences=2", "model.hidden=[8]", "references=[joint,independent,random]"]


def job(*changes):
    return resolve(compose(None, [*SMALL, *changes]).config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with its references."""
    return run(job(), tmp_path_factory.mktemp("runs") / "first", quiet=True)


def matrix(place):
    rows = json.loads((place / "metrics.json").read_text())["accuracy_matrix"]
    return np.array([[np.nan if cell is None else cell for cell in row] for row in rows])


def test_each_reference_is_a_run_of_the_same_job(folder):
    main = json.loads((folder / "config.json").read_text())
    for name in ("joint", "independent", "random"):
        place = folder / "references" / name
        config = json.loads((place / "config.json").read_text())
        assert {key: config[key] for key in ("stream", "model", "optimizer", "trainer", "seed")} == {
            key: main[key] for key in ("stream", "model", "optimizer", "trainer", "seed")
        }
        assert read_info(place)["state"] == "finished"
        start = next(event for event in read_log(place) if event["event"] == "start")
        assert start["method"] == name


def test_independent_models_learn_one_experience_each(folder):
    events = read_log(folder / "references" / "independent")
    assert [event["experience"] for event in events if event["event"] == "experience"] == [0, 1]
    evaluated = [(event["after"], event["experience"]) for event in events if event["event"] == "evaluate"]
    assert evaluated == [(0, 0), (1, 1)]
    untrained = matrix(folder / "references" / "random")[-1]
    assert (matrix(folder / "references" / "independent").diagonal() > untrained + 0.1).all()


def test_an_untrained_model_was_never_trained(folder):
    events = read_log(folder / "references" / "random")
    assert not [event for event in events if event["event"] == "train"]
    assert matrix(folder / "references" / "random")[-1].max() < 0.6


def test_the_measures_are_those_of_the_formulas(folder):
    found = json.loads((folder / "metrics.json").read_text())["references"]
    own, joint, untrained, alone = (
        matrix(folder / part) for part in (".", "references/joint", "references/random", "references/independent")
    )
    transfer = own[1, 1] - alone[1, 1]
    assert found["forward_transfer_independent"] == pytest.approx(transfer)
    ratio = sum((own[-1, j] - untrained[-1, j]) / (joint[-1, j] - untrained[-1, j]) for j in range(2)) / 2 - 1
    assert found["forgetting_ratio"] == pytest.approx(ratio)
    report = (folder / "report.html").read_text()
    assert "forgetting ratio" in report
    assert f"{100 * transfer:+.1f} points".replace("-", "−") in report
    lines = dict(line.split(",") for line in (folder / "references.csv").read_text().split()[1:])
    assert {name: float(value) for name, value in lines.items()} == pytest.approx(found)


def test_show_says_what_references_make_measurable(folder, capsys):
    show([folder])
    said = capsys.readouterr().out
    assert all(name in said for name in ("forward transfer independent", "forgetting ratio"))
    found = json.loads((folder / "metrics.json").read_text())["references"]["forward_transfer_independent"]
    assert f"forward transfer independent {100 * found:.1f}" in " ".join(said.split())


def test_what_the_console_said_stands_in_the_run_folder_without_redrawn_lines(folder, tmp_path, capsys):
    said = (folder / CONSOLE).read_text()
    assert len(said.splitlines()) == 1  # quiet: only when it was begun
    (tmp_path / "run.json").write_text('{"state": "running", "command": "holdfast run x", "translated": ["a note"]}')

    def work():
        with console_log(tmp_path):
            sys.stdout.write("\x1b[31mred\x1b[0m\n")
            sys.stderr.write("\r50 %\r60 %")
            raise KeyError("gone")

    with pytest.raises(KeyError):
        work()
    with console_log(tmp_path):
        sys.stderr.write("again\n")
    lines = (tmp_path / CONSOLE).read_text().splitlines()
    assert [lines[0][20:], *lines[1:4]] == ["holdfast run x", "a note", "red", "KeyError: 'gone'"]
    assert [lines[4][20:], lines[5]] == ["gone on with", "again"]
    printed = capsys.readouterr()
    assert "\x1b[31mred" in printed.out
    assert "60 %" in printed.err


def test_finished_references_of_the_same_job_are_not_run_again(folder):
    second = run(job("method=finetune"), folder.parent / "second", quiet=True)
    for name in ("joint", "independent", "random"):
        place = second / "references" / name
        assert read_info(place)["reused"] == str(folder / "references" / name)
        assert (place / "log.jsonl").read_text() == (folder / "references" / name / "log.jsonl").read_text()
    third = run(job("trainer.epochs=1", "references=[random]"), folder.parent / "third", quiet=True)
    assert "reused" not in read_info(third / "references" / "random")


def test_a_damaged_folder_beside_a_run_does_not_stop_it(folder, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text("{no json")
    new = run(job("trainer.epochs=1", "references=[random]"), tmp_path / "new", quiet=True)
    assert read_info(new)["state"] == "finished"


def test_independent_training_goes_on_with_the_experience_that_was_interrupted(folder, tmp_path):
    whole = folder / "references" / "independent"
    half = tmp_path / "half"
    half.mkdir()
    lines = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if json.loads(line)["event"] == "experience")
    (half / "log.jsonl").write_text("".join(lines[: first + 2]))
    (half / "config.json").write_text((whole / "config.json").read_text())
    resume(half, quiet=True)
    np.testing.assert_array_equal(matrix(half), matrix(whole))


def test_measures_need_their_references():
    own = np.array([[1.0, np.nan], [0.5, 0.8]])
    assert against(own, {}) == {}
    assert set(against(own, {"independent": np.eye(2)})) == {"forward_transfer_independent"}
    assert against(own, {"joint": np.ones((2, 2))}) == {}


def test_transfer_and_ratio_by_hand():
    own = np.array([[0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.4, 0.6, 0.7]])
    assert transfer_from_independent(own, np.array([0.9, 0.7, 0.9])) == pytest.approx((0.1 - 0.2) / 2)
    ratio = forgetting_ratio(own[-1], np.array([0.9, 0.8, 1.0]), np.array([0.1, 0.2, 0.1]))
    assert ratio == pytest.approx((0.3 / 0.8 + 0.4 / 0.6 + 0.6 / 0.9) / 3 - 1)
    assert np.isnan(forgetting_ratio(np.array([0.5]), np.array([0.1]), np.array([0.1])))
