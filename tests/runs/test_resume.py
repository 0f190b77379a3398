"""A run that is killed, stopped or out of disk at any moment goes on to equal weights; nothing half-written is read."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.config import kinds
from holdfast.config.build import resolve
from holdfast.config.check import validated
from holdfast.core.errors import ConfigError, DataError, HoldfastError, Interrupted
from holdfast.metrics import compute, read_log
from holdfast.metrics import log as files
from holdfast.runs import folder as checkpoints
from holdfast.runs import folder as folders
from holdfast.runs import run as runs
from holdfast.runs.folder import CheckpointFolder, load_tensors, save_tensors
from holdfast.runs.recording import Journal

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are sent as on Linux and macOS")


def config(**changes: Any) -> dict[str, Any]:
    """A run of a blink: three experiences of nine steps, a checkpoint every second step."""
    job = {
        "stream": {
            "name": "split",
            "dataset": {"name": "synthetic", "classes": 6, "samples": 18, "features": 4},
            "experiences": 3,
        },
        "model": {"name": "mlp", "hidden": [5], "head": "growing", "dropout": 0.2},
        "method": {"name": "der_plus_plus", "capacity": 15, "size": 4},
        "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
        "scheduler": {"name": "StepLR", "step_size": 2, "gamma": 0.5, "every": "step"},
        "trainer": {"epochs": 2, "batch_size": 8, "log_every": 3},
        "references": [],
        "checkpoint": {"every_steps": 2, "every_seconds": None},
    }
    return {**job, **changes}


def written(job: dict[str, Any], folder: Path) -> str:
    """The job as a file."""
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return str(path)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out plots and report, which take longer than such a run; forked processes inherit it."""
    monkeypatch.setattr(runs, "write_report", lambda folder: None)


def end_of(folder: Path) -> tuple[dict[str, torch.Tensor], str, list[Any]]:
    """What must not depend on interruptions: final weights, accuracy matrix, and what was evaluated."""
    weights = torch.load(folder / "checkpoints" / "model.pt", weights_only=True)
    evaluated = [event for event in read_log(folder) if event["event"] == "evaluate"]
    return weights, (folder / "accuracy_matrix.csv").read_text(), evaluated


def assert_same_end(one: Path, other: Path) -> None:
    (weights, matrix, evaluated), (weights_2, matrix_2, evaluated_2) = end_of(one), end_of(other)
    assert weights.keys() == weights_2.keys()
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert matrix == matrix_2
    assert evaluated == evaluated_2


def assert_consistent(folder: Path) -> None:
    """The live events tell one story: one start, one end, each thing once and in order."""
    events = read_log(folder)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert (kinds.count("start"), kinds.count("end")) == (1, 1)
    experiences = events[0]["stream"]["experiences"]
    assert [event["experience"] for event in events if event["event"] == "experience"] == list(range(experiences))
    evaluated = [(event["after"], event["experience"]) for event in events if event["event"] == "evaluate"]
    assert evaluated == [(i, j) for i in range(-1, experiences) for j in range(experiences)]
    steps = [event["step"] for event in events if event["event"] == "train"]
    assert steps == sorted(set(steps))
    assert [event["experience"] for event in events if event["event"] == "train"] == sorted(
        event["experience"] for event in events if event["event"] == "train"
    )
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    assert not [path for path in folder.rglob("*") if path.suffix in (".part", ".tmp")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    return runs.run(config(), tmp_path_factory.mktemp("whole") / "run", quiet=True, command="holdfast run")


# Killed ----------------------------------------------------------------------------------------------------


def _die_at(job: dict[str, Any], folder: Path, call: int, how: str) -> None:
    """In a process of its own: work on the run, and die by SIGKILL around the n-th time something is written."""
    counted = {"calls": 0}

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            counted["calls"] += 1
            now = counted["calls"] == call
            if now and how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if now and how == "half" and function is write:
                write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **named)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    write = os.write
    os.write, os.replace, os.fsync = deadly(os.write), deadly(os.replace), deadly(os.fsync)
    _work(job, folder)


def _work(job: dict[str, Any], folder: Path) -> None:
    """Start the run, or go on with it if there is one."""
    torch.set_num_threads(1)
    if (folder / "config.json").is_file():
        runs.resume(folder, quiet=True)
    else:
        runs.run(job, folder, quiet=True)


def _until_done(job: dict[str, Any], folder: Path, generator: random.Random, reach: int, kills: int) -> int:
    context = multiprocessing.get_context("fork")
    died = 0
    for _ in range(kills):
        call, how = generator.randrange(1, reach), generator.choice(["before", "after", "half"])
        process = context.Process(target=_die_at, args=(job, folder, call, how))
        process.start()
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
        died += process.exitcode != 0
        if (folder / "log.jsonl").exists():
            read_log(folder)  # whatever is there can be read at any moment
    process = context.Process(target=_work, args=(job, folder))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return died


@pytest.mark.usefixtures("no_report")
def test_killed_while_writing_it_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    died = 0
    for seed in range(2):
        folder = tmp_path / f"run-{seed}"
        died += _until_done(config(), folder, random.Random(seed), reach=40, kills=5)
        assert_same_end(folder, whole)
        assert_consistent(folder)
    assert died >= 8


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "method",
    ["lwf", "agem", "joint", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ewc", "si", "cumulative"))],
)
def test_every_kind_of_method_survives_a_kill(method: str, tmp_path: Path) -> None:
    job = config(method=method, model={"name": "mlp", "hidden": [5]})
    expected = runs.run(job, tmp_path / "whole", quiet=True)
    folder = tmp_path / "killed"
    assert _until_done(job, folder, random.Random(method), reach=35, kills=2) >= 1
    assert_same_end(folder, expected)
    assert_consistent(folder)


@pytest.mark.slow
def test_killed_at_every_single_write_it_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    call, finished = 0, False
    while not finished:
        call += 1
        folder = tmp_path / f"run-{call}"
        process = context.Process(target=_die_at, args=(config(), folder, call, ["before", "after", "half"][call % 3]))
        process.start()
        process.join(120)
        finished = process.exitcode == 0
        again = context.Process(target=_work, args=(config(), folder))
        again.start()
        again.join(120)
        assert again.exitcode == 0, f"killed at write {call}"
        assert_same_end(folder, whole)
        assert_consistent(folder)
    assert call > 50


def job_of(method: str) -> dict[str, Any]:
    """A run of a blink with a method, on whichever stream and model it works with."""
    task = {**config()["stream"], "paradigm": "task"}
    images = {**task, "dataset": {"name": "digits", "test_fraction": 0.9}}
    for stream in (config()["stream"], task, images):
        for name in ({"name": "mlp", "hidden": [5]}, {"name": "hypernetwork"}, {"name": "cnn", "channels": [4]}):
            for head in ({}, {"head": "growing"}, {"head": "task"}):
                slow = {"name": "SGD", "lr": 0.001, "momentum": 0.9}  # generated weights diverge at a higher rate
                changes = {"optimizer": slow} if name["name"] == "hypernetwork" else {}
                job = config(method=method, stream=stream, model={**name, **head}, scheduler=None, **changes)
                with contextlib.suppress(HoldfastError):
                    return validated(job, together=True).config
    raise AssertionError(f"no stream and model are known for {method}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("method", sorted(kinds.names("methods")))
def test_killed_at_random_moments_every_method_ends_with_equal_weights(method: str, tmp_path: Path) -> None:
    """Two SIGKILLs for each method, more than a hundred in all: `pytest -m slow -k random_moments tests/runs`."""
    job, generator = job_of(method), random.Random(method)
    context, folder = multiprocessing.get_context("fork"), tmp_path / "killed"
    begun = time.perf_counter()
    expected = runs.run(job, tmp_path / "whole", quiet=True)
    lasted, died = time.perf_counter() - begun, 0
    for _ in range(40):
        process = context.Process(target=_work, args=(job, folder))
        process.start()
        process.join(generator.random() * lasted)
        process.kill()
        process.join(60)
        died += 1
        if process.exitcode == 0:  # it came to its end before: kill another one, earlier
            shutil.rmtree(folder)
            died, lasted = 0, 0.7 * lasted
        elif died == 2:
            break
    assert died == 2
    process = context.Process(target=_work, args=(job, folder))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert_same_end(folder, expected)
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"


def _command(*arguments: str) -> subprocess.Popen[bytes]:
    source = str(Path(runs.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "holdfast", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _long(**changes: Any) -> dict[str, Any]:
    """A run of some seconds, so that there is a middle to kill it in."""
    trainer = {"epochs": 30, "batch_size": 8, "log_every": 10}
    return config(trainer=trainer, checkpoint={"every_steps": 3, "every_seconds": None}, **changes)


def _killed_from_outside(tmp_path: Path, kills: int) -> None:
    job = _long()
    expected = runs.run(job, tmp_path / "whole", quiet=True)
    folder, generator = tmp_path / "killed", random.Random(0)
    log = folder / "log.jsonl"
    died = 0
    while died < kills or folders.read_info(folder).get("state") != "finished":
        started = (folder / "config.json").is_file()
        size = log.stat().st_size if log.exists() else 0
        process = _command(
            *(["resume", str(folder), "-q"] if started else ["run", written(job, tmp_path), "--out", str(folder), "-q"])
        )
        if died < kills:
            while process.poll() is None and not (log.exists() and log.stat().st_size > size):
                time.sleep(0.002)
            time.sleep(generator.random() * 0.3)
            process.kill()
            process.wait(60)
            died += 1
        else:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    assert_same_end(folder, expected)
    assert_consistent(folder)


@pytest.mark.slow
def test_killed_twice_from_outside_the_command_ends_with_equal_weights(tmp_path: Path) -> None:
    _killed_from_outside(tmp_path, kills=2)


@pytest.mark.slow
def test_killed_ten_times_from_outside_the_command_ends_with_equal_weights(tmp_path: Path) -> None:
    _killed_from_outside(tmp_path, kills=10)


# Stopped ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_saves_exits_with_130_says_how_to_go_on_and_resumes(tmp_path: Path) -> None:
    job = _long()
    job["trainer"]["epochs"] = 400
    folder = tmp_path / "run"
    process = _command("run", written(job, tmp_path), "--out", str(folder), "-q")
    log = folder / "log.jsonl"
    while process.poll() is None and not (log.exists() and b'"train"' in log.read_bytes()):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors.decode()
    assert f"holdfast resume {folder}" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert load_tensors(folder / "checkpoints" / "last.pt")["state"]["engine"]["index"] > 0


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("step", [1, 5, 13])
def test_stopped_by_the_user_it_saves_at_once_and_resumes_to_equal_weights(
    whole: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    due = CheckpointFolder.due
    counted = {"steps": 0}

    def interrupting(self: CheckpointFolder, seconds: float, steps: int) -> bool:
        counted["steps"] += 1
        if counted["steps"] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return due(self, seconds, steps)

    monkeypatch.setattr(CheckpointFolder, "due", interrupting)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="holdfast resume"):
        runs.run(config(), folder, quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    kept = load_tensors(folder / "checkpoints" / "last.pt")["state"]["engine"]["index"]
    assert step <= kept <= step + 1
    runs.resume(folder, quiet=True)
    assert_same_end(folder, whole)
    assert_consistent(folder)


# Full disk -------------------------------------------------------------------------------------------------


def _no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("what", ["log", "checkpoint", "everything"])
@pytest.mark.parametrize("call", [3, 8])
def test_on_a_full_disk_it_says_so_keeps_the_last_checkpoint_and_resumes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, call: int
) -> None:
    folder = tmp_path / "run"
    counted = {"calls": 0}
    kept: dict[str, bytes] = {}

    def failing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            if name in ("log", "checkpoint"):
                counted["calls"] += what in (name, "everything")
            if counted["calls"] >= call and (what == "everything" or what == name):
                last = folder / "checkpoints" / "last.pt"
                if last.exists() and "last" not in kept:
                    kept["last"] = last.read_bytes()
                _no_space()
            return function(*arguments, **named)

        return called

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", failing(os.write, "log"))
        patched.setattr(torch, "save", failing(torch.save, "checkpoint"))
        patched.setattr(files, "replace_file", failing(files.replace_file, "file"))
        with pytest.raises(HoldfastError, match=r"(?s)could not write.*space.*resume"):
            runs.run(config(), folder, quiet=True)
    last = folder / "checkpoints" / "last.pt"
    if "last" in kept:
        assert last.read_bytes() == kept["last"]
        assert load_tensors(last)["format"] == checkpoints.FORMAT
    assert not list((folder / "checkpoints").glob("*.part"))
    runs.resume(folder, quiet=True)
    assert_same_end(folder, whole)
    assert_consistent(folder)


@pytest.mark.usefixtures("no_report")
def test_a_disk_that_is_full_when_results_are_written_is_reported_like_any_other(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("holdfast.runs.recording.write_matrix", _no_space)
        with pytest.raises(HoldfastError, match=r"(?s)could not write.*space.*resume"):
            runs.run(config(), folder, quiet=True)
    assert runs.resume(folder, quiet=True) == folder
    assert_same_end(folder, whole)


def test_a_log_line_for_which_there_is_half_the_room_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.write({"event": "start"})
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, line: write(file, line[: len(line) // 2]))
        with pytest.raises(HoldfastError, match="space"):
            journal.write({"event": "train", "loss": 0.5})
    journal.write({"event": "end"})
    assert [event["event"] for event in read_log(tmp_path)] == ["start", "end"]
    assert journal.lines == 2


# Half-written and damaged ----------------------------------------------------------------------------------


def test_a_half_written_log_line_is_dropped_when_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"event": "start"}\n{"event": "train", "lo')
    assert [event["event"] for event in read_log(path)] == ["start"]
    journal = Journal(path)
    assert journal.lines == 1
    journal.resume(1)
    journal.write({"event": "end"})
    assert path.read_bytes().splitlines() == [
        b'{"event": "start"}',
        b'{"event": "resume", "keep": 1}',
        b'{"event": "end"}',
    ]
    assert [event["event"] for event in read_log(path)] == ["start", "end"]


def test_numbers_that_json_lacks_are_written_as_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.write({"event": "train", "loss": float("nan"), "terms": {"replay": float("inf"), "loss": 1.5}})
    assert read_log(tmp_path)[0] == {"event": "train", "loss": None, "terms": {"replay": None, "loss": 1.5}}


def test_a_damaged_checkpoint_is_a_clear_error_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    content = (whole / "checkpoints" / "last.pt").read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"not a checkpoint"):
        last.write_bytes(damaged)
        with pytest.raises(DataError, match=r"last\.pt"):
            load_tensors(last)
        assert last.read_bytes() == damaged


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"state": Evil()}, tmp_path / "last.pt")
    with pytest.raises(DataError):
        load_tensors(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_a_later_format_is_refused_with_what_it_is(tmp_path: Path) -> None:
    save_tensors(tmp_path / "last.pt", {"format": checkpoints.FORMAT + 1})
    with pytest.raises(DataError, match=f"format {checkpoints.FORMAT + 1}"):
        load_tensors(tmp_path / "last.pt")


def test_a_checkpoint_loads_without_running_anything_of_the_file(whole: Path) -> None:
    found = torch.load(whole / "checkpoints" / "last.pt", weights_only=True)
    assert found["state"]["position"]["experience"] == 3
    assert found["lines"] <= len((whole / "log.jsonl").read_bytes().splitlines())


def test_what_a_crash_left_beside_a_checkpoint_is_cleared_and_the_checkpoint_stays(tmp_path: Path) -> None:
    save_tensors(tmp_path / "last.pt", {"format": checkpoints.FORMAT, "state": 1})
    (tmp_path / "last.pt.part").write_bytes(b"half")
    assert CheckpointFolder(tmp_path).load()["state"] == 1
    assert not (tmp_path / "last.pt.part").exists()


@pytest.mark.parametrize("given", [{"every_seconds": 0.0}, {"every_steps": 0}])
def test_checkpoints_at_no_distance_are_refused(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ConfigError, match="positive"):
        CheckpointFolder(tmp_path, **given)


# The folder ------------------------------------------------------------------------------------------------


def test_a_folder_is_never_overwritten(whole: Path, tmp_path: Path) -> None:
    before = _fingerprint(whole)
    with pytest.raises(ConfigError, match="never overwritten"):
        runs.run(config(), whole, quiet=True)
    assert _fingerprint(whole) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError):
        runs.run(config(), tmp_path / "file", quiet=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with folders.locked(tmp_path), pytest.raises(ConfigError, match="another process"), folders.locked(tmp_path):
        pass
    with folders.locked(tmp_path):
        pass


def test_resuming_a_run_that_another_process_works_on_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    files.write_json(folder / "config.json", resolve(config()))
    folders.write_info(folder, state="running")
    with folders.locked(folder):
        before = _fingerprint(folder)
        with pytest.raises(ConfigError, match="another process"):
            runs.resume(folder, quiet=True)
        assert _fingerprint(folder) == before


def test_a_run_leaves_every_file_that_it_promises(whole: Path) -> None:
    for name in ("config.json", "run.json", "log.jsonl", "accuracy_matrix.csv", "metrics.json", "report.html"):
        assert (whole / name).stat().st_size > 0, name
    assert {path.name for path in (whole / "checkpoints").iterdir()} >= {"last.pt", "model.pt"}
    info = json.loads((whole / "run.json").read_text())
    assert {"holdfast", "torch", "numpy", "python"} <= info["versions"].keys()
    assert info["command"] == "holdfast run"
    assert json.loads((whole / "config.json").read_text()) == resolve(config())
    with open(whole / "accuracy_matrix.csv") as file:
        header, *rows = csv.reader(file)
    assert header == ["after", "0", "1", "2"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert_consistent(whole)


def test_the_accuracy_matrix_is_that_of_the_log(whole: Path) -> None:
    with open(whole / "accuracy_matrix.csv") as file:
        rows = {int(row["after"]): row for row in csv.DictReader(file)}
    found = 0
    for event in read_log(whole):
        if event["event"] == "evaluate" and event["after"] >= 0:
            cell = rows[event["after"]][str(event["experience"])]
            assert float(cell) == pytest.approx(event["correct"] / event["samples"], abs=1e-6)
            found += 1
    assert found == 9


def test_the_metrics_are_those_of_the_log(whole: Path) -> None:
    expected = json.loads(json.dumps(compute(read_log(whole))))
    assert json.loads((whole / "metrics.json").read_text()) == expected


def _fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def test_evaluating_or_resuming_a_finished_run_leaves_every_file_as_it_was(whole: Path) -> None:
    before = _fingerprint(whole)
    found = runs.evaluate(whole)
    assert runs.resume(whole, quiet=True) == whole
    assert _fingerprint(whole) == before
    last = [event for event in read_log(whole) if event["event"] == "evaluate" and event["after"] == 2]
    assert [one["correct"] for one in found["experiences"]] == [event["correct"] for event in last]
    assert [one["loss"] for one in found["experiences"]] == pytest.approx([event["loss"] for event in last])


def test_evaluating_a_run_leaves_the_checkpoint_that_is_being_written_alone(whole: Path) -> None:
    part = whole / "checkpoints" / "last.pt.part"
    part.write_bytes(b"the first half")
    try:
        runs.evaluate(whole)
        assert part.read_bytes() == b"the first half"
    finally:
        part.unlink(missing_ok=True)


def test_validation_data_are_evaluated_only_where_there_are_some(whole: Path) -> None:
    with pytest.raises(DataError, match="validation"):
        runs.evaluate(whole, "validation")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run"):
        runs.resume(tmp_path, quiet=True)
    with pytest.raises(DataError, match="no run"):
        runs.evaluate(tmp_path)


@pytest.mark.usefixtures("no_report")
def test_several_seeds_and_references_each_get_a_folder_and_survive_a_kill(tmp_path: Path) -> None:
    job = config(seeds=[0, 1], references=["finetune"], method="er")
    expected = runs.run(job, tmp_path / "whole", quiet=True)
    folder = tmp_path / "killed"
    _until_done(job, folder, random.Random(5), reach=150, kills=2)
    for part in ("seed-0", "seed-1", "references/finetune/seed-0", "references/finetune/seed-1"):
        assert_same_end(folder / part, expected / part)
        assert_consistent(folder / part)
    one, other = (end_of(expected / part)[0] for part in ("seed-0", "seed-1"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
