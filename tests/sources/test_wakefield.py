"""The laser wakefield: a recording learned as if the simulation ran, and the simulation where FBPIC is there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

FOLDER = Path(__file__).parents[2] / "examples" / "laser_wakefield"
SOURCE = Path(holdfast.__file__).parents[1]

pytest.importorskip("openpmd_api", reason="openPMD-api is not installed (the extra `stream` brings it)")


def learned(*words: str) -> dict[str, list[float]]:
    """What `learn.py` prints: the loss on each iteration's data after the last one, by name of the learner."""
    before = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SOURCE}{os.pathsep}{before}"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "learn.py"), *words], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^(with\w* replay)", done.stdout, re.MULTILINE)
    rows = re.findall(r"by iteration: (.*)", done.stdout)
    return {name: [float(one) for one in row.split()] for name, row in zip(names, rows)}


def beginning(row: list[float]) -> float:
    return sum(row[:3]) / 3


@pytest.mark.slow
def test_a_recording_replayed_by_openpmd_pipe_is_learned_over_sst_and_replay_keeps_the_beginning(
    tmp_path: Path,
) -> None:
    pipe = shutil.which("openpmd-pipe", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if pipe is None:
        pytest.skip("openpmd-pipe is not installed")
    series = str(tmp_path / "electrons.sst")
    told = '{"adios2": {"engine": {"parameters": {"OpenTimeoutSecs": "120", "RendezvousReaderCount": "1"}}}}'
    words = [pipe, "--infile", str(FOLDER / "recording.bp"), "--outfile", series, "--outconfig", told]
    writer = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        live = learned(series, "--timeout", "120")
        assert writer.wait(60) == 0
    finally:
        writer.kill()
    assert [len(row) for row in live.values()] == [16, 16]
    assert beginning(live["with replay"]) < beginning(live["without replay"]) - 0.03
    assert live == learned(str(FOLDER / "recording.bp"))  # the same data, whatever they come through


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("fbpic") is None, reason="FBPIC is not installed (the extra `sim` brings it)"
)
def test_the_simulation_is_learned_while_it_runs() -> None:
    live = learned()
    assert [len(row) for row in live.values()] == [16, 16]
    assert beginning(live["with replay"]) < beginning(live["without replay"])


def test_without_fbpic_the_simulation_says_what_to_install() -> None:
    if importlib.util.find_spec("fbpic") is not None:
        pytest.skip("FBPIC is installed")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "simulate.py"), "x.bp"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert 'pip install "holdfast[sim]"' in done.stderr
