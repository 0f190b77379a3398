"""Runs in Python: `Trainer.fit(out=...)`, `holdfast.open`, evaluation, prediction, loggers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import holdfast
from holdfast import Trainer, cli
from holdfast.core.errors import ConfigError, DataError, Interrupted, UsageError
from holdfast.methods import er, finetune
from holdfast.metrics import accuracy_matrix, per_class
from holdfast.metrics.log import read_json, write_json
from holdfast.models import mlp
from holdfast.runs.folder import CheckpointFolder
from holdfast.runs.opened import Run, Runs
from holdfast.runs.run import run as run_job
from holdfast.streams import split
from holdfast.streams.datasets import digits, synthetic

EVERY = {"config.json", "run.json", "log.jsonl", "accuracy_matrix.csv", "metrics.json", "report.html", "model.txt"}
EVERY |= {"console.log"}


def parts(seed: int = 0, hidden: int = 8) -> tuple[torch.nn.Module, Any]:
    stream = split(digits(), experiences=2)
    return mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[hidden], seed=seed), stream


def trainer(**settings: Any) -> Trainer:
    return Trainer(er(capacity=20, size=8), optimizer={"name": "SGD", "lr": 0.1}, batch_size=64, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training in Python leaves."""
    place = tmp_path_factory.mktemp("runs") / "x"
    trainer().fit(*parts(), out=place)
    return place


def test_the_folder_is_that_of_the_command_line(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= EVERY | {"plots", "checkpoints"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.pt", "model.pt"}
    run = holdfast.open(folder)
    assert isinstance(run, Run)
    assert run.state == "finished"
    assert run.title == "er on split_digits"
    assert "Kept" in (folder / "report.html").read_text()
    assert "er on split_digits" in CliRunner().invoke(cli.app, ["show", str(folder)]).stdout


def test_what_is_printed_in_training_stands_in_console_log(tmp_path: Path) -> None:
    class Chatty(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            sys.stdout.write("a line of the user's own\n")
            return super().forward(inputs.flatten(1))

    _, stream = parts()
    Trainer(finetune(), batch_size=1000).fit(Chatty(64, 10), stream, out=tmp_path / "x")
    first, *said = (tmp_path / "x" / "console.log").read_text().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d python", first)
    assert "a line of the user's own" in said


def test_the_training_is_the_one_without_a_folder(folder: Path) -> None:
    model, stream = parts()
    events = trainer().fit(model, stream)
    weights = torch.load(folder / "checkpoints" / "model.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    np.testing.assert_array_equal(holdfast.open(folder).matrix, accuracy_matrix(events))


def test_the_configuration_says_what_can_be_written_and_names_the_rest(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == er(capacity=20, size=8).config()
    assert config["optimizer"] == {"name": "SGD", "lr": 0.1}
    assert (config["seed"], config["trainer"]["batch_size"]) == (0, 64)
    assert set(config["python"]) == {"model", "stream"}
    assert config["python"]["model"]["name"].endswith("Classifier")
    assert len(config["python"]["stream"]["digest"]) == 16


def test_a_folder_that_exists_is_never_written_over(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="never overwritten"):
        trainer().fit(*parts(), out=folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="never overwritten"):
        trainer().fit(*parts(), out=tmp_path, resume=True)


@pytest.mark.parametrize("command", [["resume"], ["eval"], ["predict", "test"]])
def test_the_command_line_says_what_it_needs_to_go_on(folder: Path, command: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [command[0], str(folder), *command[1:]])
    assert result.exit_code == 2
    assert "was trained in Python, and no file holds the model" in result.stderr
    assert "resume=True" in result.stderr


def test_interrupted_and_resumed_in_python_it_ends_with_equal_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, saved, save = tmp_path / "x", [], CheckpointFolder.save

    def interrupting(self: CheckpointFolder, state: dict[str, Any]) -> None:
        save(self, state)
        saved.append(1)
        if len(saved) == 1:
            raise Interrupted("stopped")

    monkeypatch.setattr(CheckpointFolder, "save", interrupting)
    with pytest.raises(Interrupted, match=r"resume=True"):
        trainer().fit(*parts(), out=out)
    assert holdfast.open(out).state == "interrupted"
    model, stream = parts(seed=5)  # the weights come from the checkpoint
    events = trainer().fit(model, stream, out=out, resume=True)
    assert holdfast.open(out).state == "finished"
    weights = torch.load(folder / "checkpoints" / "model.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    np.testing.assert_array_equal(accuracy_matrix(events), holdfast.open(folder).matrix)
    again, _ = parts(seed=6)
    trainer().fit(again, stream, out=out, resume=True)  # finished: only the weights are taken
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden": 9}, "another model"),
        ({"method": finetune()}, "with method"),
        ({"seed": 4}, "with seed 0, not 4"),
    ],
)
def test_another_model_method_or_seed_does_not_go_on_with_a_run(folder: Path, change: dict, says: str) -> None:
    model, stream = parts(hidden=change.get("hidden", 8))
    other = Trainer(change.get("method", er(capacity=20, size=8)), seed=change.get("seed", 0), batch_size=64)
    with pytest.raises(ConfigError, match=says):
        other.fit(model, stream, out=folder, resume=True)


def test_a_run_of_the_command_line_is_gone_on_with_there(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"method": {"name": "er"}}')
    with pytest.raises(ConfigError, match="holdfast resume"):
        trainer().fit(*parts(), out=tmp_path / "x", resume=True)


def test_resume_and_out_go_together() -> None:
    with pytest.raises(ConfigError, match="out is not given"):
        trainer().fit(*parts(), resume=True)
    with pytest.raises(ConfigError, match="loggers need a run folder"):
        trainer(loggers=[Kept()]).fit(*parts())
    with pytest.raises(ConfigError, match="has its own"):
        trainer(record=print).fit(*parts(), out="runs/never")
    assert not Path("runs/never").exists()


def test_the_trainer_evaluates_and_predicts(folder: Path) -> None:
    model, stream = parts()
    made = trainer()
    assert made.evaluate == "test"
    with pytest.raises(UsageError):
        made.predict(torch.zeros(1, 64))
    made.fit(model, stream)
    last = holdfast.open(folder).matrix[-1]
    measured = made.evaluate()
    assert [one["correct"] / one["samples"] for one in measured["experiences"]] == pytest.approx(last.tolist())
    assert measured["average_accuracy"] == pytest.approx(last.mean())
    with pytest.raises(DataError, match="no validation data"):
        made.evaluate(split="validation")
    batch = stream[1].test.gather(torch.arange(20))
    outputs = made.predict(batch.inputs)
    assert (outputs.shape[0], outputs.device.type, model.training) == (20, "cpu", model.training)
    assert outputs.argmax(1).tolist() == made.engine.predict(batch.inputs, None).argmax(1).tolist()


class Kept:
    """A logger of a user's own."""

    def __init__(self) -> None:
        self.values: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def write(self, values: dict[str, float], step: int) -> None:
        self.values.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


def test_loggers_are_names_or_objects_and_get_the_numbers(tmp_path: Path) -> None:
    mine = Kept()
    trainer(loggers=[mine]).fit(*parts(), out=tmp_path / "x")
    run = holdfast.open(tmp_path / "x")
    told = [values["test/experience_1/accuracy"] for _, values in mine.values if "test/experience_1/accuracy" in values]
    assert told[1:] == run.matrix[:, 1].tolist()
    assert mine.closed == 1
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        trainer(loggers=["tensorbord"])
    with pytest.raises(ConfigError, match="objects with write"):
        trainer(loggers=[3])


def test_a_missing_logger_is_told_before_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.runs.loggers.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'holdfast\[loggers\]'"):
        trainer(loggers=["comet"]).fit(*parts(), out=tmp_path / "x")
    result = CliRunner().invoke(cli.app, ["run", "loggers=[comet]", "--out", str(tmp_path / "y")])
    assert result.exit_code == 1
    assert not list(tmp_path.iterdir())


# Opened ------------------------------------------------------------------------------------------------------


def test_an_opened_run_gives_its_log_as_arrays_and_tables(folder: Path) -> None:
    run = holdfast.open(str(folder))
    losses = run.log.arrays("train")["loss"]
    assert losses.dtype == np.float64
    assert losses.tolist() == [event["loss"] for event in run.log.of("train")]
    pandas = pytest.importorskip("pandas")
    table = run.log.frame("evaluate")
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 6
    assert run.config["seed"] == run.seed == 0
    assert run.metrics["average_accuracy"] == pytest.approx(run.matrix[-1].mean())


def test_the_confusions_of_the_log_are_those_of_the_model(folder: Path) -> None:
    run = holdfast.open(folder)
    model, stream = parts()
    model.load_state_dict(torch.load(folder / "checkpoints" / "model.pt", weights_only=True))
    expected = np.zeros((10, 10), dtype=int)
    for experience in stream:
        batch = experience.test.gather(torch.arange(len(experience.test)))
        inputs = batch.inputs if stream.prepare is None else stream.prepare(batch.inputs, False, None)
        for target, answer in zip(batch.targets.tolist(), model.eval()(inputs).argmax(1).tolist()):
            expected[target, answer] += 1
    classes, counts = run.confusion()
    assert classes == list(range(10))
    np.testing.assert_array_equal(counts, expected)
    recalls = {row["class"]: row["recall"] for row in per_class(run.log)}
    assert recalls == pytest.approx(dict(enumerate(np.diag(counts) / counts.sum(1))))
    assert run.confusion(after=0)[1].sum() == run.log.of("evaluate")[0]["samples"]


def test_a_folder_of_runs_is_a_sequence_of_them(folder: Path) -> None:
    runs = holdfast.open(folder.parent)
    assert isinstance(runs, Runs)
    assert [run.path for run in runs] == [folder]
    assert runs[:1][0].state == "finished"
    with pytest.raises(DataError, match="holds no run"):
        holdfast.open(folder / "plots")


def test_star_imports_leave_open_alone() -> None:
    names: dict[str, Any] = {}
    exec("from holdfast import *", names)
    assert "open" not in names
    assert "open" in dir(holdfast)


def test_processes_that_train_together_leave_one_folder(tmp_path: Path) -> None:
    trainer(devices=2).fit(*parts(), out=tmp_path / "x")
    run = holdfast.open(tmp_path / "x")
    assert (run.state, run.config["trainer"]["devices"]) == ("finished", 2)
    assert len(run.log.of("evaluate")) == 6


def test_a_run_of_the_command_line_gives_its_model_and_predictions(tmp_path: Path) -> None:
    words = ["trainer.epochs=1", "stream.experiences=2", "model.hidden=[8]", "references=[]", "-q"]
    assert CliRunner().invoke(cli.app, ["run", *words, "--out", str(tmp_path / "x")]).exit_code == 0
    run = holdfast.open(tmp_path / "x")
    assert isinstance(run, Run)
    weights = torch.load(tmp_path / "x" / "checkpoints" / "model.pt", weights_only=True)
    model = run.model()
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    inputs = split(digits(), experiences=2)[0].test.gather(torch.arange(3)).inputs
    assert run.predict(inputs).shape == (3, 10)
    (tmp_path / "x" / "report.html").unlink()
    assert run.report() == tmp_path / "x" / "report.html"
    assert (tmp_path / "x" / "report.html").is_file()


def test_references_in_python_are_those_of_the_command_line(tmp_path: Path) -> None:
    names = ["finetune", "joint", "independent"]
    job: dict[str, Any] = {
        "stream": {"name": "split", "dataset": {"name": "synthetic", "classes": 4, "samples": 20}, "experiences": 2},
        "model": {"name": "mlp", "hidden": [8]},
        "optimizer": {"name": "SGD", "lr": 0.1},
        "references": names,
        "trainer": {"epochs": 2},
        "method": "er",
    }
    told = run_job(job, tmp_path / "told", quiet=True)
    stream = split(synthetic(classes=4, samples=20), experiences=2)
    model = mlp(input_shape=stream.input_shape, classes=4, hidden=[8], seed=0)
    trainer = Trainer(er(), optimizer={"name": "SGD", "lr": 0.1}, epochs=2)
    trainer.fit(model, stream, out=tmp_path / "made", references=names)
    for name in names:
        files = [folder / "references" / name / "accuracy_matrix.csv" for folder in (told, tmp_path / "made")]
        assert files[0].read_text() == files[1].read_text()
    told_against = read_json(told / "metrics.json")["references"]
    assert set(told_against) == {"forward_transfer_independent"}
    assert read_json(tmp_path / "made/metrics.json")["references"] == told_against
    alone = tmp_path / "made" / "references" / "independent"
    assert read_json(alone / "run.json")["state"] == "finished"
    log = (alone / "log.jsonl").read_bytes()
    (alone / "log.jsonl").write_bytes(b"\n".join(log.split(b"\n")[:-6]))  # as if it had been broken off
    write_json(alone / "run.json", {**read_json(alone / "run.json"), "state": "interrupted"})
    again = mlp(input_shape=stream.input_shape, classes=4, hidden=[8], seed=0)
    trainer = Trainer(er(), optimizer={"name": "SGD", "lr": 0.1}, epochs=2)
    trainer.fit(again, stream, out=tmp_path / "made", references=["independent"], resume=True)
    assert read_json(tmp_path / "made/metrics.json")["references"] == told_against
