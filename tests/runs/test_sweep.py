"""Sweeps: what they plan, what they run, what they run again, and what they say of it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.core.errors import ConfigError
from holdfast.metrics.statistics import holm, paired, side_by_side, spread
from holdfast.runs import pool as pools
from holdfast.runs import worker
from holdfast.runs.assemble import job_key
from holdfast.runs.folder import read_info
from holdfast.runs.pool import Job, Pool
from holdfast.runs.sweep import planned, sweep

SMALL = ["trainer.epochs=1", "stream.experiences=2", "model.hidden=[8]"]
SOURCE = Path(holdfast.__file__).parents[1]


def test_a_job_for_each_combination_without_the_references_of_the_default_job():
    found = planned(None, ["method=er,finetune", "seed=range(0,3)"])
    assert [texts for texts, _ in found] == [[f"method={m}", f"seed={s}"] for m in ("er", "finetune") for s in range(3)]
    assert all(config["references"] == [] for _, config in found)


def test_references_that_were_asked_for_are_kept(tmp_path):
    file = tmp_path / "job.json"
    file.write_text('{"references": ["joint"]}')
    assert planned(str(file), ["seed=0,1"])[0][1]["references"] == ["joint"]
    assert planned(None, ["references=[joint]", "seed=0,1"])[0][1]["references"] == ["joint"]


def test_the_same_job_said_twice_is_run_once():
    assert len(planned(None, ["trainer.epochs=20,20", "trainer.batch_size=32,8"])) == 2


def test_every_job_is_checked_before_any_starts(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'ewc'"):
        sweep(None, ["method=er,ewcc"], out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_the_key_of_a_job_forgets_what_has_no_effect_and_nothing_else():
    config = planned(None, [])[0][1]
    assert job_key({**config, "tags": ["a"], "threads": 2, "references": ["joint"]}) == job_key(config)
    for key, value in (("seed", 1), ("device", "cuda"), ("criterion", "mse"), ("protocol", "random")):
        assert job_key({**config, key: value}) != job_key(config)


def in_this_process(pool):
    """In place of `Pool.run`: each job by the function that a worker process calls, without its seconds of starting."""
    for job in pool.waiting:
        answer = json.loads(json.dumps(worker.answer({"config": job.config, "folder": str(job.folder)})))
        job.state, job.error, job.seconds = answer["state"], answer["error"], answer["seconds"]
        pool.told(job)


TWO_BY_TWO = [*SMALL, "method=er,finetune", "seed=0,1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two settings and two seeds."""
    folder = tmp_path_factory.mktemp("sweeps") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "run", in_this_process)
        place, failed = sweep(None, TWO_BY_TWO, out=folder, quiet=True)
    assert (place, failed) == (folder, [])
    return folder


@pytest.mark.slow
def test_two_worker_processes_make_the_numbers_that_one_process_makes(finished, tmp_path):
    sweep(None, TWO_BY_TWO, out=tmp_path / "two", jobs=2, quiet=True)
    for number in "0123":
        assert state(tmp_path / "two" / number) == "finished"
        one, two = (folder / number / "accuracy_matrix.csv" for folder in (finished, tmp_path / "two"))
        assert one.read_text() == two.read_text()


def test_each_job_is_a_run_folder(finished):
    for number, (method, seed) in enumerate([("er", 0), ("er", 1), ("finetune", 0), ("finetune", 1)]):
        config = json.loads((finished / str(number) / "config.json").read_text())
        assert (config["method"]["name"], config["seed"]) == (method, seed)
        assert read_info(finished / str(number))["state"] == "finished"
        assert (finished / str(number) / "report.html").is_file()


def test_the_table_has_a_row_for_each_run(finished):
    rows = list(csv.DictReader((finished / "table.csv").open()))
    assert [(row["setting"], row["seed"]) for row in rows] == [
        ("method=er", "0"),
        ("method=er", "1"),
        ("method=finetune", "0"),
        ("method=finetune", "1"),
    ]
    for row in rows:
        metrics = json.loads((finished / row["folder"] / "metrics.json").read_text())
        assert float(row["average_accuracy"]) == metrics["average_accuracy"]


def test_the_comparison_is_that_of_the_numbers_in_the_table(finished):
    rows = list(csv.DictReader((finished / "table.csv").open()))
    values = {(row["setting"], int(row["seed"])): float(row["average_accuracy"]) for row in rows}
    content = json.loads((finished / "comparison.json").read_text())
    for setting in content["settings"]:
        mean = sum(values[setting["name"], seed] for seed in (0, 1)) / 2
        assert setting["average_accuracy"]["mean"] == pytest.approx(mean)
    [pair] = content["paired"]
    differences = [values[pair["better"], seed] - values[pair["other"], seed] for seed in (0, 1)]
    assert pair["difference"] == pytest.approx(sum(differences) / 2)
    assert pair["seeds"] == 2
    page = (finished / "report.html").read_text()
    assert "method=er" in page
    assert 'href="3/report.html"' in page


def test_runs_of_a_sweep_have_a_tag_and_can_be_found_by_it(finished):
    from holdfast.runs.result import found_runs

    assert read_info(finished / "0")["tags"] == ["one"]
    assert [run.name for run in found_runs([finished], ["one"])] == ["0", "1", "2", "3"]
    with pytest.raises(ConfigError, match=r"no run has the tag two\. There are one\."):
        found_runs([finished], ["two"])


def test_started_again_a_sweep_runs_only_what_is_missing(finished, monkeypatch):
    before = {place: place.stat().st_mtime_ns for place in finished.glob("*/log.jsonl")}
    given = []
    monkeypatch.setattr(Pool, "run", lambda self: given.extend(self.waiting))
    sweep(None, [*SMALL, "method=er,finetune", "seed=0,1,2"], out=finished, quiet=True)
    assert [(job.number, job.config["method"]["name"], job.config["seed"]) for job in given] == [
        (4, "er", 2),
        (5, "finetune", 2),
    ]
    assert {place: place.stat().st_mtime_ns for place in finished.glob("*/log.jsonl")} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not a multirun"):
        sweep(None, ["seed=0,1"], out=tmp_path)


def jobs(tmp_path, count):
    return [Job(number, str(number), [f"seed={number}"], {}, tmp_path / str(number)) for number in range(count)]


def fake(monkeypatch, answer):
    monkeypatch.setattr(Pool, "_ask", lambda self, place, job: answer(self, job))


DONE = {"state": "finished", "error": "", "seconds": 0.0, "peak": 1}


def test_a_failed_job_is_tried_once_more_and_then_reported(tmp_path, monkeypatch):
    calls = []

    def answer(pool, job):
        calls.append(job.number)
        wrong = job.number == 1 or (job.number == 0 and calls.count(0) == 1)
        return {**DONE, "state": "failed", "error": "no luck"} if wrong else DONE

    fake(monkeypatch, answer)
    told = []
    todo = jobs(tmp_path, 3)
    Pool(todo, 1, tmp_path / "log", told=told.append).run()
    assert calls == [0, 1, 2, 0, 1]
    assert [(job.number, job.state) for job in todo] == [(0, "finished"), (1, "failed"), (2, "finished")]
    assert todo[1].error == "no luck"
    assert len(told) == 3


def test_no_more_jobs_run_at_once_than_memory_has_room_for(tmp_path, monkeypatch):
    fake(monkeypatch, lambda pool, job: (time.sleep(0.02), {**DONE, "peak": 10**9})[1])
    monkeypatch.setattr(pools, "available_memory", lambda: pools.RESERVE + pools.FIRST_GUESS)
    tight = Pool(jobs(tmp_path, 6), 4, tmp_path / "log")
    tight.run()
    assert tight.most_at_once == 1
    monkeypatch.setattr(pools, "available_memory", lambda: 10**12)
    free = Pool(jobs(tmp_path, 6), 3, tmp_path / "log")
    free.run()
    assert free.most_at_once == 3


def test_a_process_that_dies_fails_its_job_and_not_the_sweep(tmp_path, monkeypatch):
    def broken(self):
        return subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip

    monkeypatch.setattr(Pool, "_start", broken)
    [job] = jobs(tmp_path, 1)
    Pool([job], 1, tmp_path / "log").run()
    assert (job.state, job.tries) == ("failed", 2)
    assert "its process ended" in job.error


def test_available_memory_is_read_where_the_system_says_it():
    found = pools.available_memory()
    assert found is None or found > 0


def test_an_interval_is_students_from_three_seeds_on():
    one = spread([0.5, 0.7, 0.6])
    assert one.mean == pytest.approx(0.6)
    assert one.half == pytest.approx(4.302652729911275 * 0.1 / 3**0.5)
    assert spread([0.5, 0.7]).half is spread([0.5]).half is None
    assert spread([]) is spread([None, float("nan")]) is None


def test_several_comparisons_are_corrected_by_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    one = paired({0: 0.5, 1: 0.6, 2: 0.9}, {0: 0.4, 1: 0.4, 2: 0.6})
    two = paired({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.4})
    corrected = side_by_side([one, two, one])
    assert (two.p, two.half, corrected[1]) == (None, None, two)
    assert corrected[0].corrected == corrected[2].corrected == pytest.approx(2 * one.p)


def test_settings_are_compared_over_the_seeds_that_both_have():
    found = paired({0: 0.5, 1: 0.6, 2: 0.9, 7: 0.0}, {0: 0.4, 1: 0.4, 2: 0.6, 8: 1.0})
    assert found.seeds == 3
    assert found.difference == pytest.approx(0.2)
    error = 0.1 / 3**0.5
    assert found.half == pytest.approx(4.302652729911275 * error)
    assert found.p == pytest.approx(0.0741799, abs=1e-6)
    assert paired({0: 1.0}, {0: 0.5}) is None


@pytest.mark.slow
def test_a_sweep_that_was_killed_loses_nothing(tmp_path):
    words = ["run", "-m", "seed=range(0,4)", "trainer.epochs=20", "checkpoint.every_steps=25", "--jobs", "2", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}

    def command(folder):
        return [sys.executable, "-m", "holdfast", *words, "--out", str(folder)]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(command(killed), env=environment, stdout=subprocess.DEVNULL) as process:
        while not any(read_info(killed / str(number)).get("state") == "finished" for number in range(4)):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    finished = {n: (killed / n / "log.jsonl").stat().st_mtime_ns for n in "0123" if state(killed / n) == "finished"}
    assert 1 <= len(finished) < 4
    for _ in range(600):  # the workers notice, save and stop
        if not (killed / "0" / ".lock").exists() or all(unlocked(killed / n) for n in "0123"):
            break
        time.sleep(0.1)
    assert subprocess.run(command(killed), env=environment, check=False).returncode == 0
    assert subprocess.run(command(whole), env=environment, check=False).returncode == 0
    for number, changed in finished.items():
        assert (killed / number / "log.jsonl").stat().st_mtime_ns == changed
    for number in "0123":
        first, second = (
            torch.load(f / number / "checkpoints" / "model.pt", weights_only=True) for f in (killed, whole)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert (killed / number / "accuracy_matrix.csv").read_text() == (
            whole / number / "accuracy_matrix.csv"
        ).read_text()


def state(folder):
    return read_info(folder).get("state")


def unlocked(folder):
    import fcntl

    if not (folder / ".lock").exists():
        return True
    with (folder / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
