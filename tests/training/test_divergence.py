"""A training that diverges is noticed, says so and stops; one that does not is left alone."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from holdfast import Trainer, cli
from holdfast.core.errors import ConfigError, Diverged
from holdfast.methods import er
from holdfast.models import mlp
from holdfast.streams import split
from holdfast.streams.datasets import digits
from holdfast.training.divergence import Watch, finite

JOB = ["trainer.epochs=2", "stream.experiences=2", "model.hidden=[8]", "references=[]", "trainer.log_every=5"]


def train(step: int, loss: float, **terms: float) -> dict:
    return {"event": "train", "experience": 0, "step": step, "loss": loss, "terms": {"loss": loss, **terms}}


def test_a_loss_a_thousand_times_its_start_is_noticed_once() -> None:
    watch = Watch(nn.Linear(2, 2))
    assert watch.notice(train(50, 2.0)) is None
    assert watch.notice(train(100, 1999.0)) is None
    noticed = watch.notice(train(150, 4200.0))
    assert noticed is not None
    assert "the loss is 4.2e+03 at step 150, 2.1e+03 times the loss at the start" in noticed["reason"]
    assert watch.notice(train(200, math.nan)) is None
    with pytest.raises(Diverged, match=r"clip gradients.*trainer\.on_divergence=go_on"):
        watch.stop(noticed)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_noticed_in_the_first_window(loss: float) -> None:
    noticed = Watch(nn.Linear(2, 2)).notice(train(50, loss))
    assert noticed is not None
    assert "the loss is not finite at step 50" in noticed["reason"]


def test_a_term_of_the_method_counts_like_the_loss() -> None:
    watch = Watch(nn.Linear(2, 2))
    watch.notice(train(50, 2.0, penalty=0.0))
    noticed = watch.notice(train(100, 2.0, penalty=1e29))
    assert noticed is not None
    assert "loss term penalty is 1e+29" in noticed["reason"]


def test_a_start_of_nearly_nothing_is_no_measure() -> None:
    watch = Watch(nn.Linear(2, 2))
    watch.notice(train(50, 1e-9))
    assert watch.notice(train(100, 5.0)) is None


def test_a_first_window_that_exploded_is_measured_by_its_first_step() -> None:
    assert Watch(nn.Linear(2, 2)).notice(train(50, 1e5), first=2.3) is not None
    assert Watch(nn.Linear(2, 2)).notice(train(50, 1e5)) is None
    watch = Watch(nn.Linear(2, 2))
    watch.notice({"event": "evaluate", "after": -1, "experience": 1, "loss": 200.0})
    assert watch.notice(train(50, 1e5), first=2.3) is None


def test_a_weight_that_is_not_finite_is_noticed() -> None:
    model = nn.Linear(2, 2)
    assert finite(model)
    watch = Watch(model)
    watch.notice(train(50, 2.0))
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    assert not finite(model)
    assert (
        "a weight is not finite"
        in next(filter(None, (watch.notice(train(50 * n, 2.0)) for n in range(2, 12))))["reason"]
    )


def test_a_weight_that_is_not_finite_is_noticed_at_the_end_of_its_experience() -> None:
    model = nn.Linear(2, 2)
    watch = Watch(model)
    watch.notice(train(50, 2.0))
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    noticed = watch.notice({"event": "experience", "experience": 0, "steps": 50})
    assert noticed is not None
    assert "a weight is not finite after experience 0" in noticed["reason"]


def test_an_evaluation_counts_on_the_experience_just_learned_only() -> None:
    watch = Watch(nn.Linear(2, 2))
    watch.notice(train(50, 2.0))
    masked = {"event": "evaluate", "after": 1, "experience": 0, "loss": math.inf}
    assert watch.notice(masked) is None
    noticed = watch.notice({**masked, "experience": 1, "loss": 1e29})
    assert noticed is not None
    assert "on the test data of experience 1, just learned" in noticed["reason"]


def test_answers_in_a_methods_own_way_are_no_sign_of_divergence() -> None:
    watch = Watch(nn.Linear(2, 2), answers=True)
    watch.notice(train(50, 2.0))
    assert watch.notice({"event": "evaluate", "after": 1, "experience": 1, "loss": 1.64e4}) is None
    assert watch.notice(train(100, 1e29)) is not None


def make(**settings: object) -> tuple[Trainer, nn.Module, object]:
    stream = split(digits(), experiences=2)
    model = mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[8], seed=0)
    trainer = Trainer(er(capacity=20, size=8), optimizer={"name": "SGD", "lr": 1e6}, log_every=5, **settings)
    return trainer, model, stream


def test_the_trainer_stops_with_a_sentence() -> None:
    trainer, model, stream = make()
    with pytest.raises(Diverged, match="at step"):
        trainer.fit(model, stream)


def test_it_goes_on_where_that_is_asked_for() -> None:
    trainer, model, stream = make(on_divergence="go_on")
    events = trainer.fit(model, stream)
    assert [event["event"] for event in events].count("diverged") == 1
    assert events[-1]["event"] == "experience"
    with pytest.raises(ConfigError, match="Choose stop or go_on"):
        make(on_divergence="carry on")[0].fit(model, stream)


def test_processes_that_train_together_stop_together() -> None:
    trainer, model, stream = make(devices=2)
    with pytest.raises(Diverged, match="at step"):
        trainer.fit(model, stream)
    assert not multiprocessing.active_children()


def call(*words: str):
    return CliRunner().invoke(cli.app, list(words))


def test_a_run_that_diverged_says_so_everywhere_and_exits_with_1(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = call("run", *JOB, "optimizer.lr=1e6", "--out", str(folder))
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == str(folder)
    assert "diverged:" in result.stderr
    assert json.loads((folder / "run.json").read_text())["state"] == "diverged"
    assert "<b>Diverged.</b>" in (folder / "report.html").read_text()
    assert "diverged:" in call("show", str(folder)).stdout
    lines = (folder / "log.jsonl").read_text()
    again = call("resume", str(folder))
    assert again.exit_code == 1
    assert (folder / "log.jsonl").read_text() == lines


def test_a_run_that_goes_on_finishes_with_a_red_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = call("run", *JOB, "optimizer.lr=1e6", "trainer.on_divergence=go_on", "--out", str(folder), "-q")
    assert result.exit_code == 0
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    assert "<b>Diverged.</b>" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_sweep_keeps_runs_that_diverged_apart_and_does_not_run_them_again(tmp_path: Path) -> None:
    words = ["run", "-m", *JOB, "optimizer.lr=0.1,1e6", "--out", str(tmp_path / "sweep"), "-q"]
    assert call(*words).exit_code == 1
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "<b>Diverged</b>, so in no mean" in page
    assert "times the loss at the start" in page or "not finite" in page
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["state"] for job in jobs] == ["finished", "diverged"]
    log = tmp_path / "sweep" / "1" / "log.jsonl"
    before = log.stat().st_mtime_ns
    assert call(*words).exit_code == 1
    assert log.stat().st_mtime_ns == before
    assert len((tmp_path / "sweep" / "table.csv").read_text().splitlines()) == 2
