"""The examples of the ways in that are not ours run as a user would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

SOURCE = Path(holdfast.__file__).parents[1]
FOLDER = Path(__file__).parents[2] / "examples"


def run(name: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_both_pieces_keep_more_than_nothing(tmp_path: Path) -> None:
    found = re.findall(r"0\.\d+", run("building_blocks.py", tmp_path))
    plain, penalty, projection = map(float, found)
    assert penalty < 0.8 * plain
    assert projection < 0.95 * plain


@pytest.mark.slow
def test_a_lightning_module_keeps_what_fine_tuning_forgets(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    plain, *kept = (float(number) for number in re.findall(r"(\d+\.\d)%", run("lightning_callback.py", tmp_path)))
    assert plain < 30
    assert len(kept) == 2
    assert min(kept) > 60


@pytest.mark.parametrize("name", ["building_blocks.py", "lightning_callback.py"])
def test_an_example_is_short(name: str) -> None:
    assert len((FOLDER / name).read_text().splitlines()) < 60
