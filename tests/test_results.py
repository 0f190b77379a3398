"""The committed results hold against the published values, and the page of results says what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.config.build import resolve
from holdfast.config.compose import load

ROOT = Path(__file__).parent.parent
ACCURACY = ROOT / "benchmarks" / "accuracy.py"
EXPECTED = json.loads((ROOT / "benchmarks" / "expected.json").read_text())


def test_committed_results_are_within_the_tolerance_of_the_published_values():
    done = subprocess.run([sys.executable, str(ACCURACY), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "split_mnist_online/er/500" in done.stdout
    failing = [line.split()[0] for line in done.stdout.splitlines() if "FAILS" in line]
    assert failing == [row for row, entry in EXPECTED.items() if "open" in entry]


def test_the_page_of_results_is_generated_from_the_committed_results(tmp_path):
    page = tmp_path / "results.md"
    subprocess.run([sys.executable, str(ACCURACY), "--page", str(page)], check=True)
    assert page.read_text() == (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize("row", EXPECTED)
def test_every_row_has_a_configuration_that_is_valid(row):
    config = resolve(load(ROOT / "benchmarks" / "configs" / f"{row}.json"))
    assert config["references"] == []
    assert EXPECTED[row]["control"] in EXPECTED


def test_every_configuration_belongs_to_a_row():
    folder = ROOT / "benchmarks" / "configs"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json")}
    assert found == set(EXPECTED)
