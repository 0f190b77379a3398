"""The progress of a training: whole share and time left, lines where there is no terminal, and what Ctrl-C leaves."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast import Trainer, methods
from holdfast.cli import app
from holdfast.cli.common import interrupted, reported
from holdfast.runs import recording
from holdfast.runs.run import run
from holdfast.training import progress as telling

SMALL = {"model": {"name": "mlp", "hidden": [4]}, "references": [], "trainer": {"limit_experiences": 2}}


def test_a_pipe_gets_a_line_for_each_experience_with_share_and_accuracy(toy, capsys) -> None:
    stream = toy.stream()
    Trainer(methods.finetune(), progress=True).fit(toy.model(stream), stream)
    lines = [line for line in capsys.readouterr().err.splitlines() if " learned in " in line]
    assert len(lines) == len(stream)
    assert lines[0].startswith(f"finetune: experience 1 of {len(stream)} learned in")
    assert "% right on what was learned" in lines[0]
    assert lines[-1].endswith("100 % done")


def test_half_a_minute_without_news_is_one_line_with_loss_and_time_left(monkeypatch) -> None:
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(telling.time, "perf_counter", lambda: now[0])
    lines = telling.Lines("er", out)
    for seconds, share in ((1.0, 0.0), (29.0, 0.2), (31.0, 0.25), (40.0, 0.3), (62.0, 0.5)):
        now[0] = seconds
        lines.show(telling.State(3, 10, share, 2, 4, loss=0.4321, accuracy=0.5))
    assert out.getvalue().splitlines() == [
        "er: experience 2 of 4, loss 0.432, accuracy 50 %; 25 % done, 93 s left",
        "er: experience 2 of 4, loss 0.432, accuracy 50 %; 50 % done, 62 s left",
    ]


def test_a_terminal_gets_a_bar_over_the_whole_training(toy, monkeypatch) -> None:
    stream, out = toy.stream(), io.StringIO()
    monkeypatch.setattr(telling.Bar, "interval", 1e6)
    Trainer(methods.finetune(), progress=out).fit(toy.model(stream), stream)
    assert out.getvalue() == "", "of what is over before the first news nothing is drawn"
    monkeypatch.setattr(telling.Bar, "interval", 0.0)
    Trainer(methods.finetune(), progress=out, log_every=1).fit(toy.model(stream), stream)
    assert f"experience 1 of {len(stream)}" in out.getvalue()
    assert "left" in out.getvalue()
    assert "%" in out.getvalue()


def test_a_bar_is_drawn_by_default_in_a_terminal_only(monkeypatch) -> None:
    assert type(telling.make_bar("er", None)) is telling.NoProgress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert type(telling.make_bar("er", None)) is telling.Bar
    assert Trainer(methods.finetune()).progress is None


def test_the_report_is_made_again_while_a_run_goes_on(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recording, "SOONEST", 0.0)
    made: list[int] = []

    def report(folder: Path) -> None:
        metrics = json.loads((folder / "metrics.json").read_text())
        made.append(metrics["learned"])
        assert metrics["finished"] is False

    monkeypatch.setattr("holdfast.runs.run.write_report", lambda runs: None)
    with recording.Recording(tmp_path, {}, report=report) as record:
        stream = {"name": "s", "experiences": 2, "paradigm": "class", "classes": 2}
        record.record({"event": "start", "seed": 0, "method": "er", "parameters": 1, "stream": stream})
        for index in range(2):
            about = {"after": index, "experience": 0, "split": "test", "samples": 4, "loss": 0.1}
            record.record({"event": "evaluate", "correct": 3, "correct_task": 3, **about})
            record._reported = float("-inf")
            monkeypatch.setattr(recording.Recording, "_rests_until", float("-inf"))
            record.record({"event": "experience", "experience": index, "steps": 1, "seconds": 1.0})
    assert made == [1, 2]


def test_reports_take_at_most_a_twentieth_of_the_time(monkeypatch, tmp_path: Path) -> None:
    now, made = [0.0], []
    monkeypatch.setattr(recording.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(recording, "derive", lambda folder: None)

    def report(folder: Path) -> None:
        made.append(now[0])
        now[0] += 3.0

    with recording.Recording(tmp_path, {}, report=report) as record:
        for moment in (5.0, 12.0, 40.0, 70.0, 80.0):
            now[0] = max(now[0], moment)
            record.record({"event": "experience", "experience": 0})
    assert made == [12.0, 80.0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_folder_exists_says_that_nothing_was_made(number, monkeypatch, capsys, tmp_path) -> None:
    def stopped(*where: object, **how: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("holdfast.config.check.validated", stopped)
    result = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "run")])
    assert result.exit_code == 130
    assert "nothing was made yet" in result.output
    assert "resume" not in result.output


def test_a_signal_while_the_data_are_loaded_names_the_folder_and_that_it_begins_anew(monkeypatch, tmp_path) -> None:
    from holdfast.config.job import Job

    def stopped(job: Job) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(Job, "make_stream", stopped)
    result = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "run")])
    assert result.exit_code == 130
    assert f"holdfast resume {tmp_path / 'run'} (from the start" in result.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"


def test_what_is_said_of_a_folder_is_what_goes_on_with_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["holdfast", "run", "-m", "seed=0,1"])
    assert "run the same command again" in interrupted(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    assert interrupted(tmp_path).endswith(f"holdfast run -m seed=0,1 --out {tmp_path}")
    run(SMALL, tmp_path / "run", quiet=True)
    assert interrupted(tmp_path / "run").endswith(f"holdfast resume {tmp_path / 'run'}")
    assert interrupted(None, makes_run=False) == "interrupted."


def test_signals_are_those_of_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with reported():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(target=lambda: reported().__enter__())
    thread.start()
    thread.join()
