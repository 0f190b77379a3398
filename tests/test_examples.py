"""The examples: each runs as a user would run it, and says what it should."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import holdfast
from holdfast import cli

SOURCE = Path(holdfast.__file__).parents[1]
FOLDER = Path(__file__).parents[1] / "examples"


def run(*words, cwd):
    """In a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=240, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Runs an example as `python examples/NAME` would, but in this process, which has imported torch already."""

    def run_here(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run_here


def command(*words):
    """What `holdfast` answers."""
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def percentages(text):
    return [float(number) for number in re.findall(r"(\d+\.\d)%", text)]


def test_the_trainer_keeps_most_of_the_digits(example):
    output = example("train_with_trainer.py")
    rows = [line.split() for line in output.splitlines() if re.match(r"^[ \d.]+$", line)]
    assert [len(row) for row in rows] == [5] * 5
    kept, forgot = percentages(output.splitlines()[-1])
    assert kept > 60 > forgot


def test_one_changed_line_keeps_what_the_plain_loop_forgets(example):
    plain, changed = percentages(example("drop_in.py"))
    assert changed > plain + 30


def test_an_operation_of_ones_own_composes_with_replay(example):
    output = example("own_operation.py")
    nothing, _, composed = percentages(output)
    assert "freeze_old_outputs + replay + remember" in output
    assert composed > nothing + 30


@pytest.mark.slow
def test_methods_are_compared_in_a_table(example):
    output = example("compare_methods.py")
    table = {line.split()[0]: percentages(line) for line in output.splitlines()[1:]}
    assert len(table) == 7
    assert table["finetune"][0] < table["er"][0]
    assert table["finetune"][0] < table["der_plus_plus"][0]


def test_arrays_of_ones_own_become_a_stream(example):
    output = example("own_data.py")
    assert "classes ant, bee, cat, dog" in output
    assert len(re.findall(r"^experience \d: ", output, re.MULTILINE)) == 3
    assert min(percentages(output)) > 30


def test_a_stream_without_labels_is_learned_with_a_boundary(example):
    output = example("unlabelled_stream.py")
    assert "refused: `joint`" in output
    finetune, ewc, er = percentages(output)
    assert ewc > finetune
    assert er > finetune


def test_the_job_runs_and_leaves_its_folder(tmp_path):
    output = command("run", FOLDER / "job.json", "trainer.epochs=2", "--out", tmp_path / "out", "--quiet")
    folder = Path(output.splitlines()[-1])
    assert (folder / "report.html").is_file()
    for seed in (0, 1):
        found = json.loads((folder / f"seed-{seed}" / "metrics.json").read_text())
        control = json.loads((folder / f"references/finetune/seed-{seed}" / "metrics.json").read_text())
        assert found["average_accuracy"] > control["average_accuracy"]


def test_every_file_of_a_run_is_described(tmp_path):
    words = ("trainer.epochs=1", "references=[finetune]", "stream.experiences=2")
    folder = Path(command("run", *words, "--out", tmp_path / "out", "--quiet").splitlines()[-1])
    page = (FOLDER.parent / "docs/run_folder.md").read_text(encoding="utf-8")
    found = {path.name for path in folder.iterdir()} | {path.name for path in (folder / "checkpoints").iterdir()}
    assert sorted(name for name in found if name not in page) == []


@pytest.mark.slow
def test_methods_in_a_plain_loop_keep_what_is_known_of_mnist(tmp_path, monkeypatch):
    data = Path(os.environ.get("HOLDFAST_DATA", FOLDER.parent / "../shared/data")).resolve()
    if not (data / "mnist").is_dir():
        pytest.skip("mnist is not in the folder that HOLDFAST_DATA says")
    monkeypatch.setenv("HOLDFAST_DATA", str(data))
    output = run(FOLDER.parent / "benchmarks" / "five_methods.py", "1", "finetune", "er", cwd=tmp_path)
    table = {line.split()[0]: float(re.findall(r"class-IL +([\d.]+)", line)[0]) for line in output.splitlines()}
    assert table["finetune"] < 25
    assert table["er"] > 70


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_is_run_here(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith('"""')
    tests = Path(__file__).parent.rglob("test_*.py")
    assert any(path.name in test.read_text(encoding="utf-8") for test in tests)


@pytest.mark.examples
def test_the_wandering_gaussians_are_drawn(tmp_path):
    for kind in ("td", "tdds"):
        assert "(10, 512, 2) points" in run(FOLDER / "toy8_picture.py", kind, f"{kind}.png", cwd=tmp_path)
        assert (tmp_path / f"{kind}.png").stat().st_size > 10_000


@pytest.mark.examples
def test_replay_keeps_what_a_wandering_stream_was_at_first(tmp_path):
    output = run(FOLDER / "toy8_training.py", cwd=tmp_path)
    without, replayed = (float(text) for text in re.findall(r"first step (\d+\.\d+)", output))
    assert replayed < without / 2
