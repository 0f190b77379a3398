"""Where runs go, and the folder of each experience."""

import csv
import json
import re
import shutil

import pytest
import torch

from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError, DataError, Interrupted
from holdfast.metrics import read_log
from holdfast.runs.assemble import job_key
from holdfast.runs.folder import drop_leftovers, keep_experience, new_folder
from holdfast.runs.run import evaluate, resume, run
from holdfast.runs.sweep import _folder, planned

SMALL = ["experiment=digits", "trainer.epochs=1", "stream.experiences=3", "model.hidden=[8]"]


def job(*changes):
    return resolve(compose(None, [*SMALL, *changes]).config)


def test_a_pattern_says_where_a_run_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = new_folder(None, "er", "mine", "out/{experiment}/{method}")
    assert place.as_posix() == "out/mine/er"
    assert new_folder(None, "er", "mine", "out/{experiment}/{method}").as_posix() == "out/mine/er-2"
    assert new_folder(None, "er", None, "out/{experiment}").as_posix() == "out/er"
    arena = new_folder(None, "er", "mine", job("folders=arena")["folders"]["run"])
    assert re.fullmatch(r"logs/mine/runs/\d{4}(-\d\d){2}_\d\d-\d\d-\d\d", str(arena))
    assert re.fullmatch(r"runs/\d{4}(-\d\d){2}-\d{6}-er", str(new_folder(None, "er")))
    assert re.fullmatch(r"logs/mine/runs/\d{4}(-\d\d){2}-\d{6}", str(new_folder(None, "er", "mine")))


def test_a_multirun_goes_where_its_pattern_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    todo = planned(None, [*SMALL, "folders=arena", "experiment_name=mine", "seed=0,1"])
    assert re.fullmatch(r"logs/mine/multiruns/\d{4}(-\d\d){2}_\d\d-\d\d-\d\d", str(_folder(todo)))
    assert re.fullmatch(r"multiruns/\d{4}(-\d\d){2}-\d{6}", str(_folder(planned(None, [*SMALL, "seed=0,1"]))))


@pytest.mark.parametrize("pattern", ["runs/{data}", "runs/{date", "runs/{date:>9}", "{method.__class__}", "''"])
def test_a_pattern_that_means_nothing_is_refused(pattern):
    with pytest.raises(ConfigError, match=r"folders\.run"):
        resolve({**compose(None, SMALL).config, "folders": {"run": pattern if pattern != "''" else " "}})


def test_where_a_run_goes_has_no_effect_on_its_key():
    assert job_key(job("folders=arena")) == job_key(job())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run with a folder for each experience."""
    return run(job("folders.experiences=true"), tmp_path_factory.mktemp("runs") / "one", quiet=True)


def rows(path):
    return list(csv.DictReader(path.open()))


def test_each_experience_has_its_results_and_its_training(folder):
    events = read_log(folder)
    for index in range(3):
        found = rows(folder / f"experience{index}" / "results.csv")
        expected = [e for e in events if e["event"] == "evaluate" and e["after"] == index]
        assert len(found) == len(expected) > 0
        for row, event in zip(found, expected, strict=True):
            assert int(row["experience"]) == event["experience"]
            assert float(row["accuracy"]) == event["correct"] / event["samples"]
            assert float(row["task_aware_accuracy"]) == event["correct_task"] / event["samples"]
        trained = [e for e in events if e["event"] == "train" and e["experience"] == index]
        found = rows(folder / f"experience{index}" / "train.csv")
        assert [int(row["step"]) for row in found] == [e["step"] for e in trained]


def test_the_checkpoint_of_an_experience_is_the_model_as_it_was_then(folder):
    events = read_log(folder)
    first = evaluate(folder / "experience0")
    expected = [e["correct"] for e in events if e["event"] == "evaluate" and e["after"] == 0]
    assert [one["correct"] for one in first["experiences"]][: len(expected)] == expected
    last = torch.load(folder / "experience2" / "checkpoints" / "model.pt", weights_only=True)
    final = torch.load(folder / "checkpoints" / "model.pt", weights_only=True)
    assert all(torch.equal(last[key], final[key]) for key in final)


def test_a_run_without_the_layout_has_no_such_folders(tmp_path):
    plain = run(job("trainer.limit_train_batches=1"), tmp_path / "plain", quiet=True)
    assert not list(plain.glob("experience*"))


def test_a_folder_that_is_there_is_never_written_again(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "experience1" / "results.csv").write_text("mine")
    content = torch.load(copy / "experience1" / "checkpoints" / "last.pt", weights_only=True)
    keep_experience(copy, content)
    assert (copy / "experience1" / "results.csv").read_text() == "mine"
    shutil.rmtree(copy / "experience1")
    (copy / ".experience1.tmp").mkdir()  # of a process that was killed
    keep_experience(copy, content)
    assert (copy / "experience1" / "results.csv").read_text() == (folder / "experience1" / "results.csv").read_text()
    (copy / ".experience2.tmp").mkdir()
    drop_leftovers(copy)
    assert not list(copy.glob(".experience*"))


def test_interrupted_and_resumed_it_has_the_same_folders(folder, tmp_path, monkeypatch):
    from holdfast.runs import folder as checkpoints

    saved, kept = [], checkpoints.CheckpointFolder.save

    def save(self, state):
        kept(self, state)
        saved.append(1)
        if len(saved) == 2:
            raise Interrupted("stopped")

    monkeypatch.setattr(checkpoints.CheckpointFolder, "save", save)
    with pytest.raises(Interrupted):
        run(job("folders.experiences=true"), tmp_path / "two", quiet=True)
    resume(tmp_path / "two", quiet=True)
    for index in range(3):
        name = f"experience{index}/results.csv"
        assert (tmp_path / "two" / name).read_text() == (folder / name).read_text()
    assert json.loads((tmp_path / "two" / "run.json").read_text())["state"] == "finished"


def test_a_run_that_is_refused_before_it_learns_leaves_no_folder_that_blocks_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_DATA", str(tmp_path / "nothing"))
    job = {"stream": {"name": "split", "dataset": "mnist"}, "method": "finetune", "trainer": {"epochs": 1}}
    with pytest.raises(DataError, match="mnist"):
        run(job, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    job["stream"] = {"name": "split", "dataset": "digits", "experiences": 2}
    assert run(job, tmp_path / "out", quiet=True) == tmp_path / "out"
    with pytest.raises(ConfigError, match="exists already"):
        run(job, tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "metrics.json").is_file()
