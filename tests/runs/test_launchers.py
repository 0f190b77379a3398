"""Sweeps on Ray, by a module that stands in for it, and by Ray itself where it is installed; the best setting."""

import csv
import json
import sys
import types

import pytest
from typer.testing import CliRunner

from holdfast import cli
from holdfast.core.errors import ConfigError
from holdfast.runs import sweep as sweeps
from holdfast.runs.pool import Job, Pool, RayPool
from holdfast.runs.sweep import sweep
from holdfast.runs.worker import work

SMALL = ["experiment=digits", "trainer.epochs=1", "stream.experiences=2", "model.hidden=[8]"]


class FakeRay(types.ModuleType):
    """What the launcher uses of Ray: tasks run when they are waited for, the last submitted first."""

    def __init__(self, broken=()):
        super().__init__("ray")
        self.said, self.tasks, self.broken, self.most = [], {}, set(broken), 0

    def is_initialized(self):
        return False

    def init(self, **options):
        self.said.append("init")

    def shutdown(self):
        self.said.append("shutdown")

    def remote(self, **options):
        self.options = options

        def decorate(function):
            def submit(content):
                place = f"task {len(self.tasks)}"
                self.tasks[place] = (function, content)
                return place

            return types.SimpleNamespace(remote=submit)

        return decorate

    def wait(self, places, num_returns=1, timeout=None):
        self.most = max(self.most, len(places))
        return places[-1:], places[:-1]

    def get(self, place):
        if place in self.broken:
            raise RuntimeError("the machine is gone\nand more")
        function, content = self.tasks[place]
        return function(json.loads(json.dumps(content)))

    def cancel(self, place):
        self.said.append(f"cancel {place}")


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def jobs(tmp_path, count):
    return [
        Job(number, str(number), [f"seed={number}"], {"n": number}, tmp_path / str(number)) for number in range(count)
    ]


DONE = {"state": "finished", "error": "", "seconds": 1.5, "peak": 1}


def test_every_job_is_a_task_of_the_same_worker_function(ray, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("holdfast.runs.pool.answer", lambda content: seen.append(content) or DONE)
    todo, told = jobs(tmp_path, 3), []
    RayPool(todo, command="holdfast run", told=told.append).run()
    assert [job.state for job in todo] == ["finished"] * 3
    assert sorted(content["config"]["n"] for content in seen) == [0, 1, 2]
    assert {content["folder"] for content in seen} == {str(tmp_path / str(n)) for n in range(3)}
    assert all(content["command"] == "holdfast run" for content in seen)
    assert [job.seconds for job in told] == [1.5] * 3
    assert ray.said == ["init", "shutdown"]
    assert ray.most == 3


def test_no_more_tasks_are_at_work_than_was_asked_for(ray, tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.runs.pool.answer", lambda content: DONE)
    RayPool(jobs(tmp_path, 5), most=2).run()
    assert ray.most == 2


def test_a_task_that_is_lost_is_tried_once_more_and_then_reported(ray, tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.runs.pool.answer", lambda content: DONE)
    ray.broken = {"task 0", "task 1", "task 2"}
    todo = jobs(tmp_path, 2)
    RayPool(todo, most=1).run()
    assert sorted((job.state, job.tries) for job in todo) == [("failed", 2), ("finished", 2)]
    [failed] = [job for job in todo if job.state == "failed"]
    assert failed.error == "RuntimeError: the machine is gone"


def test_ctrl_c_asks_the_tasks_to_stop(ray, tmp_path, monkeypatch):
    def interrupted(places, num_returns=1, timeout=None):
        if not any(text.startswith("cancel") for text in ray.said):
            raise KeyboardInterrupt
        return places, []

    monkeypatch.setattr(ray, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RayPool(jobs(tmp_path, 2)).run()
    assert ray.said == ["init", "cancel task 0", "cancel task 1", "shutdown"]


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'holdfast\[cluster\]'"):
        RayPool(jobs(tmp_path, 1))


@pytest.mark.parametrize("words", [["--launcher", "ray"], ["hydra/launcher=ray"]])
def test_a_sweep_is_launched_on_ray(ray, tmp_path, words):
    given = ["run", "-m", *SMALL, "trainer.limit_train_batches=2", "seed=0", "-q", "-o", str(tmp_path / "s"), *words]
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 0, result.output
    assert len(ray.tasks) == 1
    assert (tmp_path / "s" / "0" / "metrics.json").is_file()
    assert (tmp_path / "s" / "table.csv").is_file()


def test_an_unknown_launcher_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'ray'"):
        sweep(None, ["seed=0,1"], out=tmp_path / "s", launcher="rai")
    result = CliRunner().invoke(cli.app, ["run", "--launcher", "ray"])
    assert (result.exit_code, "Write -m" in result.stderr) == (2, True)


def test_ray_itself_runs_a_sweep(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'holdfast[cluster]'")
    folder, failed = sweep(None, [*SMALL, "seed=0,1"], out=tmp_path / "s", quiet=True, launcher="ray")
    assert failed == []
    assert (folder / "1" / "metrics.json").is_file()


# A search -----------------------------------------------------------------------------------------------------


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """A search over two step sizes, of which one cannot learn, and two seeds; in this process."""

    def run(self):
        for job in self.waiting:
            work(job.config, job.folder)
            job.state = "finished"

    monkeypatch.setattr(Pool, "run", run)
    monkeypatch.setattr("holdfast.runs.run.write_report", lambda folder: folder)
    file = tmp_path / "job.yaml"
    file.write_text(
        "stream: {name: split, dataset: digits, experiences: 2, validation: 0.3}\n"
        "model: {name: mlp, hidden: [8]}\n"
        "method: finetune\noptimizer: {name: SGD, lr: 0.1}\ntrainer: {epochs: 1}\n"
        "sweep: {params: {optimizer.lr: [1e-9, 0.1]}, seeds: 2}\n"
    )
    return file, tmp_path / "s"


def test_the_best_setting_is_chosen_by_validation_data_over_seeds(searched, capsys):
    file, out = searched
    folder, failed = sweep(str(file), [], out=out)
    assert failed == []
    chosen = json.loads((folder / "best.json").read_text())
    assert chosen["name"] == "optimizer.lr=0.1"
    assert (chosen["seeds"], chosen["config"]["optimizer"]["lr"]) == ([0, 1], 0.1)
    means = []
    for number in (2, 3):
        log = [json.loads(line) for line in (folder / str(number) / "log.jsonl").read_text().splitlines()]
        last = [e for e in log if e["event"] == "evaluate" and e["split"] == "validation" and e["after"] == 1]
        means.append(sum(e["correct"] / e["samples"] for e in last) / 2)
    assert chosen["validation"]["mean"] == pytest.approx(sum(means) / 2)
    rows = list(csv.DictReader((folder / "table.csv").open()))
    tested = [float(row["average_accuracy"]) for row in rows if row["setting"] == chosen["name"]]
    assert chosen["test"]["mean"] == pytest.approx(sum(tested) / 2)
    assert "best on validation data: optimizer.lr=0.1" in capsys.readouterr().err
    assert "Best on validation data: optimizer.lr=0.1" in (folder / "report.html").read_text()


def test_test_data_have_no_part_in_the_choice(searched, monkeypatch):
    file, out = searched
    folder, _ = sweep(str(file), [], out=out, quiet=True)
    for log in folder.glob("*/log.jsonl"):  # the worse setting is given the better test accuracy
        worse = "1e-09" in (log.parent / "config.json").read_text()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for event in lines:
            if event["event"] == "evaluate" and event["split"] == "test":
                event["correct"] = event["samples"] if worse else 0
        log.write_text("".join(json.dumps(event) + "\n" for event in lines))
    sweeps.write_sweep_report(folder)
    assert json.loads((folder / "best.json").read_text())["name"] == "optimizer.lr=0.1"


def test_a_search_started_again_runs_only_what_is_missing(searched, monkeypatch):
    file, out = searched
    sweep(str(file), [], out=out, quiet=True)
    given = []
    monkeypatch.setattr(Pool, "run", lambda self: given.extend(self.waiting))
    sweep(str(file), ["optimizer.lr=0.1,0.2"], out=out, quiet=True)
    assert [job.config["optimizer"]["lr"] for job in given] == [0.2, 0.2]


def test_a_file_that_names_axes_is_several_runs_and_not_one(searched):
    result = CliRunner().invoke(cli.app, ["run", str(searched[0])])
    assert result.exit_code == 2
    assert "optimizer.lr shall vary" in result.stderr
    assert "Write -m" in result.stderr
