"""A search at work: it goes on from checkpoints, never sees what it must not, and what it leaves runs again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import holdfast
from holdfast.config import kinds
from holdfast.config.check import validated
from holdfast.core.errors import ConfigError, Interrupted
from holdfast.discovery import Outcome, knowledge, search, sweep
from holdfast.discovery.command import estimate, planned
from holdfast.discovery.driver import Driver
from holdfast.discovery.finals import Clock, final_jobs, run_finals, state_of
from holdfast.discovery.plan import Plan
from holdfast.discovery.protocols import Protocol, meta_features, tuning_stream
from holdfast.discovery.study import Book, check_database
from holdfast.discovery.trial import Entry, learned, measures, prefix, reach
from holdfast.discovery.worker import Worker
from holdfast.metrics.log import Log
from holdfast.metrics.summary import compute
from holdfast.runs.run import run

pytest.importorskip("optuna")

SMALL = ["trainer.epochs=1", "stream.experiences=4", "model.hidden=[8]", "checkpoint.every_seconds=null"]
NARROW = {
    "operations": {"retention": ["replay", "distillation", "logit_replay"]},
    "slots": {"incorporation": 0, "bias": 0, "representation": 0, "uncertainty": 0},
    "methods": ["finetune", "er_exemplars"],
}
SOURCE = str(Path(holdfast.__file__).parents[1])


@pytest.fixture(autouse=True)
def own_knowledge(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_KNOWLEDGE", str(tmp_path_factory.mktemp("known") / "searches.jsonl"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("search") / "one"
    return search(NARROW, *SMALL, out=out, trials=4, finals=1, final_seeds=2, warm_start=False)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A sweep that is over."""
    words = [*SMALL, "method=er", "budget=10m", "trials=3", "finals=1", "final_seeds=2", "protocol=validation"]
    driver = Driver(planned(None, words, sweep=True), tmp_path_factory.mktemp("sweep") / "s")
    driver.run()
    return driver


def matrix(folder: Path, length: int | None = None) -> Any:
    log = Log.read(folder)
    return compute(log if length is None else prefix(log, length), "validation")["accuracy_matrix"]


# Going on ------------------------------------------------------------------------------------------------


def test_a_promoted_trial_has_the_accuracy_matrix_of_one_in_one_piece(tmp_path: Path) -> None:
    plan = Plan.of(None, [*SMALL, "method=er", "protocol=validation", "parameters.optimizer.lr=[0.1]"], sweep=True)
    config = plan.trial_job(plan.space.usual())
    for length in (1, 2, 4):
        reach(tmp_path / "promoted", config, length)
        assert learned(tmp_path / "promoted") == length
    reach(tmp_path / "whole", config, 4)
    assert matrix(tmp_path / "promoted") == matrix(tmp_path / "whole")
    assert np.isfinite(np.array(matrix(tmp_path / "whole"), dtype=float)).all()


def test_a_prefix_of_the_log_measures_what_was_measured_when_it_ended(tmp_path: Path) -> None:
    plan = Plan.of(None, [*SMALL, "method=er", "protocol=validation", "parameters.optimizer.lr=[0.1]"], sweep=True)
    config = plan.trial_job(plan.space.usual())
    first = reach(tmp_path / "a", config, 2)
    reach(tmp_path / "a", config, 4)
    again = measures(Log.read(tmp_path / "a"), 2)
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in first.values.items() if "seconds" not in k
    }


def test_a_search_that_was_left_goes_on_to_the_same_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(None, [*SMALL, "k=2", "trials=4", "finals=0", "warm_start=false"], sweep=True)
    calls = []
    work = Worker.work

    def stopped(self: Worker) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        work(self)

    monkeypatch.setattr(Worker, "work", stopped)
    with pytest.raises(Interrupted, match="The same command goes on"):
        Driver(plan, tmp_path / "s").run()
    assert json.loads((tmp_path / "s" / "search.json").read_text())["state"] == "interrupted"
    monkeypatch.setattr(Worker, "work", work)
    said: list[str] = []
    driver = Driver(plan, tmp_path / "s", say=said.append)
    driver.run()
    assert any("going on with" in line for line in said)
    entries = driver.book.entries()
    assert len({one.key for one in entries}) == 4
    assert all(one.state in ("done", "diverged") for one in entries)


@pytest.mark.slow
def test_another_search_in_the_same_folder_is_refused(finished: Outcome, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds another search \(settings.trials is \d there, and 6 here\)"):
        search(NARROW, *SMALL, out=finished.folder, trials=6, warm_start=False)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no search"):
        search(NARROW, *SMALL, out=tmp_path, trials=2, warm_start=False)


def test_a_damaged_study_is_refused_with_what_can_be_done(tmp_path: Path) -> None:
    words = ["method=er", "protocol=validation", "parameters.optimizer.lr=[0.1]"]
    plan = Plan.of(None, [*SMALL, *words], sweep=True)
    file = tmp_path / "study.db"
    Book(f"sqlite:///{file}", plan.settings, plan.space)
    whole = file.read_bytes()
    check_database(file)
    check_database(tmp_path / "absent.db")
    noise = whole[:-3000] + bytes(range(250)) * 12
    for content in (b"hello, not a database", whole[:2000], whole[: len(whole) // 2], whole[:-1], noise):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"study.db is damaged: .* Delete it, and type the same again"):
            check_database(file)
    for content in ("{}", '{"plan": 3}', '{"plan": {}, "seconds": "x"}'):
        (tmp_path / "search.json").write_text(content)
        with pytest.raises(ConfigError, match=r"holds no search|search.json does not say what is searched"):
            Driver(plan, tmp_path).run()


def test_a_trial_that_was_stopped_goes_on_to_what_it_would_have_been(tmp_path: Path) -> None:
    plan = Plan.of(None, [*SMALL, "method=er", "protocol=validation", "parameters.optimizer.lr=[0.1]"], sweep=True)
    config = plan.trial_job(plan.space.usual())
    reach(tmp_path / "stopped", config, 1)
    found = reach(tmp_path / "stopped", config, 4, until=0.0)
    assert (found.state, found.values) == ("stopped", {})
    reach(tmp_path / "stopped", config, 4)
    reach(tmp_path / "whole", config, 4)
    assert matrix(tmp_path / "stopped") == matrix(tmp_path / "whole")


def test_without_time_only_the_first_final_run_is_done_and_has_its_page(tmp_path: Path) -> None:
    plan = planned(None, [*SMALL, "method=er", "trials=1", "finals=1", "final_seeds=3"], sweep=True)
    one = Entry(0, "done", "abc", 2, plan.space.usual())
    jobs = final_jobs(plan, tmp_path, [one], "")
    run_finals(jobs, until=0.0)
    assert [state_of(job) for job in jobs] == ["finished", "", ""]
    assert (tmp_path / "final" / "abc-1000" / "report.html").is_file()


def test_a_budget_keeps_time_for_the_end_and_says_when_a_trial_has_to_stop(tuned: Driver) -> None:
    plan, entries, spent = tuned.plan, tuned.book.entries(), 0.0
    clock = Clock(plan, tuned.book, 1, lambda: spent)
    each = clock.each(entries)
    assert each is not None
    assert clock.finals(entries) > 1.25 * each * 2 * plan.experiences
    assert clock.room(entries)
    assert clock.until(entries) is not None
    assert clock.until([]) is None  # the first one is always tried to its end
    spent = 600.0
    assert not clock.room(entries)
    assert json.loads((tuned.folder / "search.json").read_text())["final_runs"] == {"wanted": 2, "done": 2}


@pytest.mark.slow
def test_final_runs_that_are_trained_at_once_have_the_matrices_of_those_one_by_one(tmp_path: Path) -> None:
    found = {}
    for stack in ("none", "auto"):
        words = [*SMALL, "method=er", "trials=1", "finals=1", "final_seeds=3", f"trainer.stack={stack}"]
        plan = planned(None, words, sweep=True)
        jobs = final_jobs(plan, tmp_path / stack, [Entry(0, "done", "abc", 2, plan.space.usual())], "")
        run_finals(jobs, None)
        logs = [Log.read(Path(job["folder"])) for job in jobs]
        assert all(any(event["stacked"] for event in log.of("capture")) for log in logs) == (stack == "auto")
        found[stack] = [compute(log)["accuracy_matrix"] for log in logs]
    assert found["none"] == found["auto"]


@pytest.mark.slow
def test_trials_that_are_trained_at_once_measure_what_they_would_one_by_one(tmp_path: Path) -> None:
    """Three settings at once, then the two best again with two more seeds each; numbers are drawn without a model."""
    words = ["trainer.epochs=1", "stream.experiences=3", "model.hidden=[8]", "method=er", "sampler=random", "k=2"]
    words += ["optimizer.lr=interval(0.05,0.2)", "trainer.precision=64-true", "trainer.capture=tape", "finals=2"]
    found = {}
    for stack in ("none", "auto"):
        plan = planned(None, [*words, f"trainer.stack={stack}", "final_seeds=1"], sweep=True, trials=3)
        driver = Driver(plan, tmp_path / stack)
        driver.run()
        entries = driver.book.entries()
        logs = [Log.read(folder) for folder in sorted((tmp_path / stack / "trials").iterdir())]
        stacked = [any(event.get("stacked") for event in log.of("capture")) for log in logs]
        assert all(stacked) if stack == "auto" else not any(stacked)
        found[stack] = {(one.key, one.length, one.seed): one for one in entries}
    alone, at_once = found["none"], found["auto"]
    assert len({key for key, _, _ in alone}) == 3
    assert len(alone) == 7
    told = {(str(one.params), one.length, one.seed): one.values for one in at_once.values()}
    assert len(told) == len(at_once)
    for one in alone.values():  # their keys differ, since `trainer.stack` is in the job
        other = told[str(one.params), one.length, one.seed]
        for name, value in one.values.items():
            assert "second" in name or other[name] == pytest.approx(value, abs=1e-8), name


@pytest.mark.parametrize("method", ["finetune", "er", "ewc_online", "lwf"])
def test_memory_is_all_that_a_method_keeps_beside_the_model(tmp_path: Path, method: str) -> None:
    plan = Plan.of(None, [*SMALL, f"method={method}", "protocol=validation", "trials=1"], sweep=True)
    values = reach(tmp_path, plan.trial_job(plan.space.usual()), 2).values
    model = 4 * values["parameters"]  # bytes
    others = {"finetune": 0.0, "er": 0.0, "ewc_online": 2 * model, "lwf": model}
    assert values["method_bytes_peak"] == pytest.approx(values["memory_bytes_peak"] + others[method])
    assert (values["memory_bytes_peak"] > 0) == (method == "er")


def test_the_leader_is_the_one_that_holds_with_several_seeds(tuned: Driver) -> None:
    entries = tuned.book.entries()
    [leader] = tuned.book.best(entries, 1)
    own = [one for one in entries if one.key == leader and one.length == 4]
    assert sorted(one.seed for one in own) == [0, 1, 2]
    level = tuned.book.levels(entries)[4]
    assert level[leader] == pytest.approx((-np.mean([one.values["average_accuracy"] for one in own]),))
    gone = [dataclasses.replace(one, state="diverged") if one.seed == 2 else one for one in entries]
    assert leader not in tuned.book.levels(gone)[4]
    assert (tuned.folder / "trials" / f"{leader}-2").is_dir()


# What it leaves ------------------------------------------------------------------------------------------


def test_the_best_runs_again_to_the_same_accuracy_matrix(finished: Outcome, tmp_path: Path) -> None:
    best = json.loads((finished.folder / "best.json").read_text())
    assert best == finished.best
    place = run(best, tmp_path / "again", quiet=True)
    first = next(
        one for one in (finished.folder / "final").iterdir() if json.loads((one / "config.json").read_text()) == best
    )
    assert compute(Log.read(place))["accuracy_matrix"] == compute(Log.read(first))["accuracy_matrix"]


def test_the_report_says_what_won_on_which_data_and_what_cannot_be_seen(finished: Outcome) -> None:
    text = (finished.folder / "report.html").read_text()
    assert finished.verdict
    assert finished.verdict.split(". ")[0].replace("+", "&#43;") in text or finished.verdict.split(". ")[0] in text
    assert "validation data of the first 3 of 4 experiences" in text
    assert "Final runs on test data" in text
    assert "Spearman" in text
    assert "optimizer.lr=" in text.split("Pictures")[0].split("Kept beside")[1]


def test_the_front_and_the_values_of_the_best_are_written_as_json(finished: Outcome) -> None:
    front = json.loads((finished.folder / "pareto.json").read_text())
    assert len(front["front"]) == 1
    validated(front["front"][0]["job"])
    told = json.loads((finished.folder / "optimization_results.json").read_text())
    assert told["name"] == "optuna"
    assert told["best_value"] == front["front"][0]["values"]["average_accuracy"]


def test_final_runs_have_fresh_seeds_and_fresh_orders_of_classes(finished: Outcome) -> None:
    configs = [json.loads((one / "config.json").read_text()) for one in (finished.folder / "final").iterdir()]
    assert {one["seed"] for one in configs} == {1000, 1001}
    assert all(one["stream"]["class_order"] == "random" for one in configs)
    assert all(one["stream"]["seed"] == one["seed"] for one in configs)


@pytest.mark.slow
def test_several_objectives_leave_a_front(tmp_path: Path, figures: None) -> None:
    found = search(
        NARROW, *SMALL, "objectives=accuracy,memory", "memory=[20,60]", out=tmp_path / "s", trials=4, finals=1,
        final_seeds=1, warm_start=False,
    )  # fmt: skip
    front = json.loads((found.folder / "pareto.json").read_text())
    values = [tuple(one["values"].values()) for one in front["front"]]
    assert not any(a != b and a[0] >= b[0] and a[1] <= b[1] for a in values for b in values)
    assert "Pareto front" in (found.folder / "report.html").read_text()
    assert "was the one with the best average_accuracy of those that no other one dominates" in found.verdict


def test_what_is_beyond_a_limit_is_never_the_best(tmp_path: Path) -> None:
    plan = planned(None, [*SMALL, "trials=2", "finals=1", "final_seeds=1", "at_most.memory=1kB"], sweep=True)
    Driver(plan, tmp_path / "s").run()
    assert not (tmp_path / "s" / "best.json").exists()
    assert "beyond a limit" in (tmp_path / "s" / "report.html").read_text()


def test_a_diverged_composition_stands_apart_and_does_not_end_the_search(tmp_path: Path) -> None:
    found = sweep(
        None, *SMALL, "method=finetune", "optimizer.lr=choice(0.1,1e12)", out=tmp_path / "s", trials=2, finals=1,
        final_seeds=1,
    )  # fmt: skip
    text = (found.folder / "report.html").read_text()
    assert "Diverged" in text
    assert found.best["optimizer"]["lr"] == 0.1


def test_a_sweep_varies_the_numbers_of_one_method_alone(tuned: Driver) -> None:
    assert json.loads((tuned.folder / "best.json").read_text())["method"]["name"] == "er"
    told = json.loads((tuned.folder / "optimization_results.json").read_text())
    declared = {f"method.{parameter.name}" for parameter in kinds.configurable("methods", kinds.find("methods", "er"))}
    assert set(told["best_params"]) == {*declared - {"method.capacity"}, "optimizer.lr"}


# Leakage -------------------------------------------------------------------------------------------------


def data(folder: Path, test_seed: int | None = None, later_seed: int | None = None) -> Path:
    """Digits as a file, its test labels shuffled, or the labels of samples of the classes from 6 on."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = inputs[:900].astype(np.float32) / 16, labels[:900].copy()
    train, test = slice(0, 700), slice(700, 900)
    train_labels, test_labels = labels[train].copy(), labels[test].copy()
    if test_seed is not None:
        test_labels = np.random.default_rng(test_seed).permutation(test_labels)
    if later_seed is not None:
        later = np.flatnonzero(train_labels >= 6)
        train_labels[later] = np.random.default_rng(later_seed).permutation(train_labels[later])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data.npz", x_train=inputs[train], y_train=train_labels, x_test=inputs[test], y_test=test_labels)
    return folder / "data.npz"


def trials_of(tmp_path: Path, protocol: str, **shuffled: int) -> tuple[Any, Any]:
    """Everything that a search measured in its trials, and in its final run, on data in the same folder."""
    place = data(tmp_path, **shuffled)
    tuning_stream.__globals__["_stream"].cache_clear()
    words = ["trainer.epochs=1", "stream.experiences=5", "model.hidden=[8]", f"stream.dataset.path={place}"]
    if protocol == "transfer":  # the other data set has test data as well: the same
        words.append(f"transfer={{name: npz, path: '{place}'}}")
    settings = [f"protocol={protocol.split('-from')[0]}", "trials=3", "finals=1", "final_seeds=1", "warm_start=false"]
    settings += ["transfer=digits"] if protocol == "transfer-from" else []
    name = f"{protocol}-{shuffled}"  # braces in the name of a folder mean nothing
    driver = Driver(planned(None, ["stream.dataset=npz", *words, *settings], sweep=True), tmp_path / name)
    driver.run()
    entries = driver.book.entries()
    matrices = [matrix(tmp_path / name / "trials" / one.key, one.length) for one in entries]
    [final] = (tmp_path / name / "final").iterdir()
    return [[(one.key, one.length, one.params) for one in entries], matrices], compute(Log.read(final))[
        "accuracy_matrix"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["first-k", "validation", "transfer"])
def test_shuffled_test_labels_change_nothing_in_a_search_and_its_final_runs(tmp_path: Path, protocol: str) -> None:
    trials, final = trials_of(tmp_path, protocol)
    shuffled, other = trials_of(tmp_path, protocol, test_seed=1)
    assert trials == shuffled
    assert final != other


@pytest.mark.slow
def test_under_transfer_no_label_of_the_stream_itself_changes_a_search(tmp_path: Path) -> None:
    trials, final = trials_of(tmp_path, "transfer-from")
    shuffled, other = trials_of(tmp_path, "transfer-from", later_seed=1)
    assert trials == shuffled
    assert final != other


@pytest.mark.slow
def test_shuffled_labels_beyond_k_change_nothing_under_first_k_and_something_under_validation(tmp_path: Path) -> None:
    assert trials_of(tmp_path, "first-k")[0] == trials_of(tmp_path, "first-k", later_seed=1)[0]
    assert trials_of(tmp_path, "validation")[0] != trials_of(tmp_path, "validation", later_seed=1)[0]


def test_the_stream_of_a_trial_has_no_test_data_and_no_experience_beyond_k() -> None:
    base = validated({"stream": {"name": "split", "dataset": "digits", "experiences": 5}}).config
    stream = tuning_stream(validated(Protocol("first-k", 3).tuned(base)))
    assert len(stream) == 3
    assert all(one.test is None and one.validation is not None for one in stream)


def test_transfer_tunes_on_the_other_data_set() -> None:
    plan = planned(
        None, [*SMALL, "protocol=transfer", "transfer={name: synthetic, classes: 8}", "trials=1"], sweep=True
    )
    assert plan.trial_job(plan.space.usual())["stream"]["dataset"]["name"] == "synthetic"
    assert plan.protocol.final(plan.space.job(plan.space.usual()), 1000)["stream"]["dataset"]["name"] == "digits"
    assert "synthetic" in plan.protocol.words(4)


# Before it starts, and afterwards ------------------------------------------------------------------------


def test_a_dry_run_says_what_it_will_cost_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = estimate(planned(None, [*SMALL, "method=er", "budget=10m"], sweep=True), 2)
    assert "settings fit, 2 at once" in text
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_is_over_before_the_start_still_tries_one(tmp_path: Path) -> None:
    plan = planned(None, [*SMALL, "method=er", "budget=0.001", "finals=1", "final_seeds=1"], sweep=True)
    driver = Driver(plan, tmp_path / "s")
    driver.run()
    assert len({one.key for one in driver.book.entries()}) == 1
    assert (tmp_path / "s" / "best.json").is_file()


@pytest.mark.slow
def test_what_a_search_found_is_proposed_first_on_the_next_data_set(tmp_path: Path) -> None:
    search(NARROW, *SMALL, out=tmp_path / "s", trials=3, finals=1, final_seeds=1)
    [kept] = list(knowledge.entries())
    assert kept["features"]["classes"] == 10
    plan = planned(None, [*SMALL, "trials=2"])
    points = knowledge.proposals(plan)
    assert points
    for point in points:
        plan.accepted(point, {})


def test_meta_features_tell_a_balanced_data_set_from_an_unbalanced_one() -> None:
    base = validated({"stream": {"name": "split", "dataset": "digits", "experiences": 5}}).config
    found = meta_features(tuning_stream(validated(Protocol("validation").tuned(base))))
    assert 0 <= found["c2"] < 0.01
    assert found["linear_discr"] > 0.85
    assert found["classes"] == 10


def test_the_dashboard_of_optuna_shows_the_trials(finished: Outcome) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    from wsgiref.util import setup_testing_defaults

    from holdfast.discovery.study import storage

    app = dashboard.wsgi(storage(f"sqlite:///{finished.folder / 'study.db'}"))
    environment: dict[str, Any] = {"PATH_INFO": "/api/studies/1"}
    setup_testing_defaults(environment)
    shown = json.loads(b"".join(app(environment, lambda status, headers: None)))
    assert shown["name"] == "holdfast"
    assert len({one["user_attrs"][0]["key"] for one in shown["trials"]}) >= 1
    assert len(shown["trials"]) >= 5


# Processes -----------------------------------------------------------------------------------------------


def started(folder: Path) -> subprocess.Popen[bytes]:
    words = ["trainer.epochs=1", "stream.experiences=4", "model.hidden=[8]", "method=er", "warm_start=false"]
    command = [sys.executable, "-m", "holdfast", "sweep", *words, "--trials", "60", "-j", "2", "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.Popen(
        [*command, "finals=1", "final_seeds=1"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_search_killed_three_times_loses_at_most_the_trials_in_flight(tmp_path: Path) -> None:
    plan = planned(
        None,
        ["trainer.epochs=1", "stream.experiences=4", "model.hidden=[8]", "method=er", "warm_start=false", "finals=1",
         "final_seeds=1"],
        sweep=True, trials=60,
    )  # fmt: skip
    folder, before = tmp_path / "s", 0
    for goal in (5, 20, 40):
        process = started(folder)
        try:
            while len(done(folder)) < goal:
                assert process.poll() is None
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(done(folder)) >= max(goal, before)
        before = len(done(folder))
    assert started(folder).wait(900) == 0
    entries = Book(f"sqlite:///{folder / 'study.db'}", plan.settings, plan.space).entries()
    assert len({one.key for one in entries if one.state in ("done", "diverged")}) == 60
    assert sum(one.state == "lost" for one in entries) <= 6


def done(folder: Path) -> set[str]:
    """The keys of what was measured, read without making anything in the database, which the search may be making."""
    query = (
        "SELECT DISTINCT named.value_json FROM trial_user_attributes named JOIN trial_user_attributes told"
        " ON named.trial_id = told.trial_id WHERE named.key = 'key' AND told.key = 'state'"
        " AND told.value_json = '\"done\"'"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True)) as base:
            return {key for (key,) in base.execute(query)}
    except sqlite3.OperationalError:  # there is no file yet, or its tables are being made
        return set()
