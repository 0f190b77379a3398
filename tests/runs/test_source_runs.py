"""A run that learns from a source: the same folder, log, report and resume as any other, and what only it has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import holdfast
from holdfast.cli import app
from holdfast.config.build import resolve
from holdfast.config.check import validated
from holdfast.core.errors import ConfigError, DataError, Interrupted
from holdfast.metrics.log import Log
from holdfast.runs import source_report
from holdfast.runs.on_source import Arriving, train_on_source
from holdfast.runs.predict import predict
from holdfast.runs.run import evaluate, resume, run

DRAWN_BY, PICTURES_OF = source_report.figures, source_report.pictures
"""Before reports are made without figures; they are called by hand below."""

JOB: dict[str, Any] = {
    "source": {"name": "toy8", "npoints": 64, "steps": 6},
    "model": {"name": "mlp", "hidden": [12]},
    "method": {"name": "er", "capacity": 50},
    "boundary": {"name": "every", "steps": 5},
    "arrival": {"hold_out": 0.1, "observe_every": 4},
    "trainer": {"batch_size": 16, "log_every": 2},
    "checkpoint": {"every_seconds": None, "every_steps": 3},
}


def job(**changes: Any) -> dict[str, Any]:
    return {**JOB, **changes}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "model.pt", weights_only=True)  # type: ignore[no-any-return]


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_on_a_source_leaves_the_folder_of_any_run(tmp_path: Path) -> None:
    folder = run(job(), tmp_path / "run", quiet=True)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "log.jsonl", "metrics.json", "report.html", "run.json", "model.txt"} <= names
    opened = holdfast.open(folder)
    assert opened.state == "finished"
    assert opened.title == "er on toy8"
    log = Log.read(folder)
    assert [event["experience"] for event in log.of("boundary")] == [1, 2, 3, 4]
    measured = opened.metrics
    assert 0.25 < measured["prequential_accuracy"] <= 1
    assert measured["share_seen"] == 1
    assert 0 < measured["old_accuracy"] <= 1
    assert measured["anytime_held_out_accuracy"] > 0.3
    assert 0 <= measured["share_idle"] <= 1
    held = log.of("held_out")[-1]
    assert held["rows"] == pytest.approx(0.1 * 6 * 64, abs=2)
    assert sum(part["rows"] for part in held["ages"]) == held["rows"]
    memory = log.of("memory")[-1]
    assert sum(memory["classes"].values()) == sum(memory["ages"]) == memory["items"] == 50
    page = (folder / "report.html").read_text()
    for words in ("er learned", "held out accuracy", "share idle", "experience 4 begins"):
        assert words in page
    drawn = DRAWN_BY(opened)
    assert [title for _, _, title, _ in drawn] == [
        "Predicted before trained on",
        "Rows held out",
        "Accuracy by stretch",
        "What the memory holds",
    ]
    assert "known changes" in drawn[0][3]
    shares, names = source_report.stretch_matrix(opened, "correct")
    assert names[-1] == f"to {log.of('train')[-1]['samples']:,}"
    assert np.isfinite(shares[np.tril_indices(len(names))]).all()
    last = log.of("stretches")[-1]["stretches"]
    assert sum(part["rows"] for part in last) == held["rows"]
    assert sum(part["correct"] for part in last) == held["correct"]


def test_command_line_json_and_python_give_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["source=toy8", "source.npoints=64", "source.steps=4", "method=er", "trainer.batch_size=16", "-q"]
    typed = CliRunner().invoke(app, ["run", *words, "--out", "typed"])
    assert typed.exit_code == 0, typed.output
    Path("job.json").write_text(
        json.dumps({"source": {"name": "toy8", "npoints": 64, "steps": 4}, "trainer": {"batch_size": 16}})
    )
    assert CliRunner().invoke(app, ["run", "job.json", "--out", "read", "-q"]).exit_code == 0
    config = json.loads(Path("typed/config.json").read_text())
    assert config["stream"] is None
    assert config == resolve(config) == json.loads(Path("read/config.json").read_text())
    run(config, Path("python"), quiet=True)
    assert equal(Path("typed"), Path("read"))
    assert equal(Path("typed"), Path("python"))
    shown = CliRunner().invoke(app, ["show", "typed"])
    assert "prequential accuracy" in shown.output
    assert "rows trained on" in shown.output
    valid = CliRunner().invoke(app, ["validate", "job.json"])
    assert "source     toy8(npoints=64, steps=4)" in valid.output
    for kind, names in (("sources", ("csv", "folder", "open_pmd", "toy8")), ("boundaries", ("every", "on_drift"))):
        listed = CliRunner().invoke(app, ["list", kind])
        assert all(name in listed.output for name in names)


class Stop(Exception):  # noqa: N818
    """What a test throws where a process would die."""


@pytest.mark.parametrize("after", [4, 11])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"arrival": {"window": 40, "min_steps": 2, "max_steps": 2, "hold_out": 0.1, "observe_every": 4}},
        {"arrival": {"policy": "block", "capacity": 2, "observe_every": 4}},
        {"boundary": {"name": "on_drift", "detector": "mmd", "on": "inputs", "parameters": {"window": 20}}},
    ],
    ids=["plain", "window", "queue", "drift"],
)
def test_killed_anywhere_a_resumed_run_ends_with_equal_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, changes: dict[str, Any]
) -> None:
    from holdfast.runs.recording import Recording

    def trained(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        train_on_source(folder, validated(job(**changes)), quiet=True)
        return folder

    whole = trained(tmp_path / "whole")
    record, written = Recording.record, []

    def dying(self: Recording, event: dict[str, Any]) -> None:
        written.append(event)
        if len(written) == after:
            raise Stop
        record(self, event)

    monkeypatch.setattr(Recording, "record", dying)
    with pytest.raises(Stop):
        trained(tmp_path / "killed")
    monkeypatch.setattr(Recording, "record", record)
    killed = trained(tmp_path / "killed")
    assert equal(whole, killed)
    kept = ("train", "boundary", "held_out", "stretches", "memory")
    one, other = ([e for e in Log.read(folder) if e["event"] in kept] for folder in (whole, killed))
    assert one == other


def test_fit_on_a_source_leaves_the_run_folder_of_the_command_line_and_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast import methods, models, sources
    from holdfast.boundaries import Every
    from holdfast.runs.recording import Recording

    record = Recording.record

    def trained(out: Path | None, stop: int = 0, resume: bool | None = None) -> Any:
        source = sources.HoldOut(sources.Toy8(npoints=64, steps=6, batch_size=16, seed=0), 0.1)
        trainer = holdfast.Trainer(
            methods.er(capacity=50), optimizer={"name": "SGD", "lr": 0.1}, log_every=2, progress=False
        )
        if stop:

            def counted(self: Recording, event: dict[str, Any]) -> None:
                record(self, event)
                trainer.stop = trainer.stop or (event["event"] == "train" and event["step"] >= stop)

            monkeypatch.setattr(Recording, "record", counted)
        net = models.mlp(input_shape=(2,), classes=8, hidden=[12], seed=0)
        trainer.fit(net, source, out=out, resume=resume, boundary=Every(steps=5), observe_every=4)
        return net.state_dict()

    whole = trained(tmp_path / "whole")
    with pytest.raises(Interrupted, match=r"resume=True"):
        trained(tmp_path / "cut", stop=8)
    monkeypatch.setattr(Recording, "record", record)
    for other in (trained(tmp_path / "cut", resume=True), trained(tmp_path / "cut", resume=True), trained(None)):
        assert all(torch.equal(value, other[name]) for name, value in whole.items())
    kept = ("train", "boundary", "held_out", "stretches", "memory")
    one, two = ([e for e in Log.read(tmp_path / name) if e["event"] in kept] for name in ("whole", "cut"))
    assert one == two
    opened = holdfast.open(tmp_path / "whole")
    assert opened.title == "er on toy8"
    assert opened.metrics["share_seen"] == 1
    by_command = run(job(), tmp_path / "command", quiet=True)
    assert {path.name for path in opened.path.iterdir()} == {path.name for path in by_command.iterdir()} | {
        "console.log"
    }
    assert "experience 3 begins" in (tmp_path / "whole" / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({"epochs": 3}, {}, "epochs is 3.*write iterations for a number of batches"),
        ({"patience": 2}, {}, "patience is 2 and means nothing for a source"),
        ({"batch_size": 8}, {}, "a source cuts its own"),
        ({"devices": 2}, {}, "InStep"),
        ({}, {"references": ["finetune"]}, "references are for a stream of experiences"),
    ],
)
def test_what_fit_cannot_do_with_a_source_is_refused_before_a_folder_is_made(
    settings: dict[str, Any], given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from holdfast import methods, models, sources

    trainer = holdfast.Trainer(methods.finetune(), **settings)
    with pytest.raises(ConfigError, match=words):
        trainer.fit(models.mlp(input_shape=(2,), classes=8), sources.Toy8(steps=1), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_what_is_given_back_of_each_stretch_is_kept_and_drawn_also_of_a_run_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 4 rows and a look at each second: some 60 stretches have become 8 or fewer by the end."""
    from holdfast import models
    from holdfast.runs.given_back import read_given_back
    from holdfast.runs.recording import Recording

    data = {"name": "synthetic", "classes": 5, "features": 6, "samples": 100}
    config = job(
        source={"name": "experiences", "stream": {"name": "reconstruction", "dataset": data}},
        model={"name": "autoencoder", "hidden": [8], "latent": 2},
        criterion="mse",
        boundary=None,
        arrival={"hold_out": 0.2, "observe_every": 2},
        trainer={"batch_size": 4},
    )

    def trained(folder: Path) -> tuple[Any, Any]:
        folder.mkdir(exist_ok=True)
        train_on_source(folder, validated(config), quiet=True)
        return read_given_back(folder), Log.read(folder).of("stretches")

    whole, looks = trained(tmp_path / "whole")
    record, written = Recording.record, []

    def dying(self: Recording, event: dict[str, Any]) -> None:
        written.append(event)
        if len([one for one in written if one["event"] == "stretches"]) == 9:  # two have just become one
            raise Stop
        record(self, event)

    monkeypatch.setattr(Recording, "record", dying)
    with pytest.raises(Stop):
        trained(tmp_path / "killed")
    monkeypatch.setattr(Recording, "record", record)
    killed, again = trained(tmp_path / "killed")
    assert looks == again
    for one, other in zip(whole, killed):
        np.testing.assert_array_equal(one, other)
    count = len(whole.chosen)
    assert 4 < count <= 9
    assert looks[-1]["looks"] >= 4
    net = models.autoencoder(input_shape=(6,), classes=6, hidden=[8], latent=2)
    net.load_state_dict(weights(tmp_path / "whole"))
    with torch.no_grad():
        answers = net.eval()(torch.from_numpy(whole.originals))
    np.testing.assert_allclose(whole.after[-1], answers.numpy(), atol=1e-6)
    learned = np.isfinite(whole.after).all((-2, -1))
    np.testing.assert_array_equal(learned, np.tri(count, dtype=bool))
    opened = holdfast.open(tmp_path / "whole")
    drawn = [name for name, *_ in [*DRAWN_BY(opened), *PICTURES_OF(opened)]]
    assert drawn == ["stream_loss", "held_out", "stretches", "memory", "errors_by_number", "latent_drift"]
    losses, _ = source_report.stretch_matrix(opened, "loss")
    last = [part["loss"] for part in looks[-1]["stretches"]]
    np.testing.assert_allclose(losses[-1], last)
    np.testing.assert_array_equal(np.isfinite(losses), learned)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_can_be_resumed_and_one_that_is_told_to_stop_says_how(
    tmp_path: Path, number: signal.Signals
) -> None:
    config = job(source={"name": "toy8", "npoints": 1024, "steps": 10}, checkpoint={"every_steps": 20})
    path = tmp_path / "job.json"
    path.write_text(json.dumps(config))
    whole = run(config, tmp_path / "whole", quiet=True)
    command = [sys.executable, "-m", "holdfast", "run", str(path), "-q", "--out", str(tmp_path / "other")]
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "other" / "log.jsonl"
    import threading

    pause = threading.Event()
    while process.poll() is None and (not log.is_file() or log.read_text().count('"train"') < 15):
        pause.wait(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert f"holdfast resume {tmp_path / 'other'}" in said
    assert equal(whole, resume(tmp_path / "other", quiet=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_ten_random_moments_a_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    import multiprocessing
    import random
    import threading

    config = job(
        source={"name": "toy8", "npoints": 512, "steps": 16}, checkpoint={"every_steps": 7, "every_seconds": None}
    )
    whole = run(config, tmp_path / "whole", quiet=True)
    lines = (whole / "log.jsonl").read_text().count("\n")
    log, other = tmp_path / "other" / "log.jsonl", tmp_path / "other"
    context = multiprocessing.get_context("fork")  # ten imports of torch would take longer than all the training
    pause, draw, kills = threading.Event(), random.Random(0), 0

    def go_on() -> None:
        resume(other, quiet=True) if other.is_dir() else run(config, other, quiet=True)

    for moment in sorted(draw.sample(range(5, lines - 20), 10)):
        process = context.Process(target=go_on)
        process.start()
        while process.is_alive() and (not log.is_file() or len(Log.read(log)) < moment):
            pause.wait(0.002)
        kills += process.is_alive()
        process.kill()
        process.join(timeout=60)
    assert kills == 10
    assert equal(whole, resume(other, quiet=True))
    one, two = ([e for e in Log.read(folder) if e["event"] == "train"] for folder in (whole, other))
    assert one == two


PASSING = '''
import torch
from holdfast.core.source import Iterated

class Passing(Iterated):
    """What passes by and never comes back.

    Args:
        count: of batches.
        fail: at half of them.
    """

    input_shape, classes = (2,), 2

    def __init__(self, count: int = 20, fail: bool = False):
        self.fail = fail
        super().__init__(self.given(count))

    def given(self, count):
        for number in range(count):
            if self.fail and number == count // 2:
                raise OSError("gone")
            yield torch.randn(8, 2, generator=torch.Generator().manual_seed(number)), torch.tensor([0, 1] * 4)
'''


def test_a_source_that_cannot_go_back_goes_on_and_the_gap_is_in_log_and_report(tmp_path: Path) -> None:
    from holdfast.config import plugins

    file = tmp_path / "mine.py"
    file.write_text(PASSING)
    plugins.use(file)
    try:
        config = {"source": {"name": "passing", "fail": True}, "checkpoint": {"every_steps": 1, "every_seconds": None}}
        with pytest.raises(OSError, match="gone"):
            run(config, tmp_path / "run", quiet=True)
        path = tmp_path / "run" / "config.json"
        path.write_text(path.read_text().replace('"fail": true', '"fail": false'))
        with pytest.warns(UserWarning, match="cannot go back"):
            folder = resume(tmp_path / "run", quiet=True)
    finally:
        plugins.drop(file) if hasattr(plugins, "drop") else None
    gap = Log.read(folder).of("gap")[0]
    assert gap["batches"] == 10
    assert "10 batches that Passing did not give again" in (folder / "report.html").read_text()


def test_a_source_that_gives_nothing_is_an_error_and_no_finished_run(tmp_path: Path) -> None:
    from holdfast import methods, models
    from holdfast.config import plugins
    from holdfast.core.source import Iterated

    file = tmp_path / "mine.py"
    file.write_text(PASSING)
    plugins.use(file)
    with pytest.raises(DataError, match="Passing gave no batch, so nothing was learned"):
        run({"source": {"name": "passing", "count": 0}}, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="Iterated gave no batch"):
        holdfast.Trainer(methods.finetune()).fit(models.mlp(input_shape=(2,), classes=2), Iterated([]))


def test_a_model_trained_on_a_source_predicts_and_has_no_test_data(tmp_path: Path) -> None:
    folder = run(job(), tmp_path / "run", quiet=True)
    np.save(tmp_path / "x.npy", np.zeros((3, 2), dtype=np.float32))
    table = predict(folder, [str(tmp_path / "x.npy")], tmp_path / "out").path.read_text().splitlines()
    assert len(table) == 4
    with pytest.raises(DataError, match="learned from a source, which has no test data"):
        evaluate(folder)


@pytest.mark.slow
def test_seeds_and_references_run_beside_each_other(tmp_path: Path) -> None:
    folder = run(job(seeds=[0, 1], references=["finetune"]), tmp_path / "run", quiet=True)
    page = (folder / "report.html").read_text()
    assert '<th scope="col">finetune</th>' in page
    assert not equal(folder / "seed-0", folder / "seed-1")


def test_a_number_of_batches_ends_a_run_and_a_resumed_one_at_the_same(tmp_path: Path) -> None:
    config = job(trainer={"batch_size": 16, "iterations": 7, "log_every": 1}, arrival={})
    folder = run(config, tmp_path / "run", quiet=True)
    assert [event["step"] for event in Log.read(folder).of("train")] == list(range(1, 8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stream": {"name": "split", "dataset": "digits"}}, "both a stream and a source"),
        ({"trainer": {"epochs": 3}}, r"trainer\.epochs: got 3.*trainer\.iterations"),
        ({"trainer": {"patience": 2}}, r"trainer\.patience.*means nothing for a source"),
        ({"references": ["joint"]}, "'joint' takes all data at once"),
        ({"protocol": "independent"}, "protocol"),
        ({"source": {"name": "toy9"}}, "did you mean 'toy8'"),
        ({"source": {"name": "toy8", "batch_size": 3}}, r"batch_size.*trainer\.batch_size"),
        ({"method": {"name": "ewc"}, "boundary": None}, r"boundary=every boundary\.steps"),
        ({"arrival": {"watermark": 3}}, r"arrival\.watermark: it is for the policy reservoir"),
        ({"arrival": {"policy": "reservoir", "window": 8}}, "Choose one of the two"),
        ({"arrival": {"min_steps": 4, "max_steps": 2}}, r"arrival\.max_steps"),
        ({"boundary": {"name": "on_drift", "detector": "ddm", "on": "loss"}}, "ddm counts errors"),
        ({"model": {"name": "mlp", "head": "growing"}}, r"model\.head"),
        ({"trainer": {"devices": 2}}, r"trainer\.devices: got 2.*sources\.InStep, docs/streams_from_outside\.md"),
    ],
)
def test_what_a_source_cannot_do_is_refused_before_anything_starts(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(job(**changes))


def test_under_torchrun_a_run_on_a_source_says_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"several were started here.*sources\.InStep.*torchrun"):
        resolve(job())


def test_a_boundary_or_an_arrival_of_a_stream_is_refused() -> None:
    for key, value in (("boundary", {"name": "on_new_class"}), ("arrival", {})):
        with pytest.raises(ConfigError, match=f"{key}: it is for a source"):
            resolve({"method": "er", key: value})


@pytest.mark.parametrize(
    ("criterion", "classes"),
    [(None, 2), ("cross_entropy", 2), (torch.nn.CrossEntropyLoss(), 2), ("mse", 0), (torch.nn.MSELoss(), 0)],
)
def test_a_criterion_says_whether_a_source_has_labels_by_name_too(criterion: Any, classes: int) -> None:
    source = holdfast.sources.Arrays(torch.rand(8, 3), torch.arange(8) % 2, batch_size=4)
    source.classes, source.input_shape = 2, (3,)
    trainer = holdfast.Trainer(holdfast.methods.er(capacity=4), criterion=criterion)
    assert Arriving.of(source, trainer, None, 200).classes == classes
