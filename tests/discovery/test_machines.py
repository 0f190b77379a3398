"""Workers on a real PostgreSQL server, of which one is killed; tasks of Ray; what the dashboard shows."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.discovery import sweep
from holdfast.discovery.command import planned
from holdfast.discovery.study import Book
from holdfast.discovery.trial import Entry

pytest.importorskip("optuna")

SOURCE = str(Path(holdfast.__file__).parents[1])
WORDS = ["trainer.epochs=60", "stream.experiences=4", "model.hidden=[64]", "method=er", "warm_start=false"]
WORDS += ["finals=1", "final_seeds=1"]


def binary(name: str) -> str | None:
    found = shutil.which(name)
    return found or next((str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a new database on a server of its own, which ends with the test."""
    pytest.importorskip("psycopg")
    tools = {name: binary(name) for name in ("initdb", "postgres", "createdb")}
    if None in tools.values():
        pytest.skip("PostgreSQL is not installed")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    place = Path(f"/tmp/holdfast-postgres-{os.getpid()}")
    place.mkdir()
    if user:
        shutil.chown(place, user)
    name = user or os.environ.get("USER", "postgres")
    subprocess.run(
        [str(tools["initdb"]), "-D", str(place / "data"), "-U", name, "-A", "trust", "--no-sync"],
        user=user, check=True, stdout=subprocess.DEVNULL, cwd=place,
    )  # fmt: skip
    options = ["-k", str(place), "-c", "listen_addresses=", "-c", "fsync=off"]
    process = subprocess.Popen(
        [str(tools["postgres"]), "-D", str(place / "data"), *options], user=user, cwd=place,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            made = subprocess.run([str(tools["createdb"]), "-h", str(place), "-U", name, "search"], capture_output=True)
            if made.returncode == 0:
                break
            time.sleep(0.2)
        yield f"postgresql+psycopg://{name}@/search?host={place}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(place)


def begin(*command: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "holdfast", *command], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_a_killed_machine_had_is_done_by_another_one(server: str, tmp_path: Path) -> None:
    trials = 30  # so many that the second machine, however slowly it starts, comes to one of them
    plan = planned(None, WORDS, sweep=True, trials=trials)
    driver = begin("sweep", *WORDS, "--trials", str(trials), "--storage", server, "-o", str(tmp_path / "one"))
    book = None
    try:
        while book is None:
            assert driver.poll() is None
            time.sleep(1)
            if (tmp_path / "one" / "search.json").is_file():
                book = Book(server, plan.settings, plan.space)
        wait(lambda: any(one.state in ("waiting", "running") for one in book.entries()))
        other = begin("search", "--storage", server, "--worker", "-o", str(tmp_path / "two"))
        mine = f"-{other.pid}"
        wait(
            lambda: (
                driver.poll() is not None
                or any(one.state == "running" and one.worker.endswith(mine) for one in book.entries())
            )
        )
        assert driver.poll() is None, "the first machine did everything before the second had started"
        killed = next(one for one in book.entries() if one.state == "running" and one.worker.endswith(mine))
        other.kill()
        other.wait()
        assert driver.wait(600) == 0
    finally:
        driver.kill()
    entries = book.entries()
    assert {one.state for one in entries} <= {"done", "diverged", "lost"}
    again = [one for one in entries if (one.key, one.length) == (killed.key, killed.length)]
    assert [one.state for one in again] == ["lost", "done"]
    assert not again[1].worker.endswith(mine)
    assert len({one.key for one in ended(entries)}) == trials


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tasks_of_ray_do_what_processes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else the driver, which only waits, goes before its workers
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    words = ["trainer.epochs=1", "stream.experiences=3", "model.hidden=[8]", "method=er", "finals=1", "final_seeds=2"]
    found = sweep(None, *words, out=tmp_path / "s", trials=4, jobs=2, launcher="ray")
    plan = planned(None, words, sweep=True, trials=4)
    entries = Book(f"sqlite:///{tmp_path / 's' / 'study.db'}", plan.settings, plan.space).entries()
    assert len({one.key for one in ended(entries)}) == 4
    assert all(one.worker.rsplit("-", 1)[-1].startswith("ray") for one in entries)
    assert len(list((tmp_path / "s" / "final").glob("*/report.html"))) == 2
    assert found.best["method"]["name"] == "er"


def test_ray_that_is_not_installed_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["trainer.epochs=1", "stream.experiences=3", "model.hidden=[8]", "method=er"]
    with pytest.raises(ImportError, match=r"holdfast\[cluster\]"):
        sweep(None, *words, out=tmp_path / "s", trials=2, launcher="ray")
    assert not (tmp_path / "s").exists()


def ended(entries: list[Entry]) -> list[Entry]:
    return [one for one in entries if one.state in ("done", "diverged")]


def wait(condition: object, seconds: float = 600) -> None:
    limit = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.3)
