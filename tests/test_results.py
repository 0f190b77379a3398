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


def test_a_row_whose_error_is_above_its_allowance_is_not_known_yet_and_says_how_many_seeds_it_needs(monkeypatch):
    monkeypatch.syspath_prepend(str(ACCURACY.parent))
    import accuracy

    assert accuracy.seeds_needed(5, 0.75, 1.5) == 0
    assert accuracy.seeds_needed(5, 1.5, 1.5) == 20
    assert accuracy.seeds_needed(10, 1.5, 2 * 2.55) == 0, "the paper's own error is wider"
    assert accuracy.seeds_needed(1, float("nan"), 1.5) > 1
    checked = subprocess.run([sys.executable, str(ACCURACY), "--check"], capture_output=True, text=True).stdout
    rows = [row for row in EXPECTED if accuracy.result_file(row).is_file()]
    unknown = accuracy.unknown_rows(rows)
    for row in rows:
        wide = any(2 * one.error > allowed(row, one) for one in accuracy.judge(row))
        assert wide == (row in unknown), row
    for row, seeds in unknown.items():
        command = accuracy.more_seeds(row, seeds)
        assert command in checked
        assert command in (ROOT / "docs" / "results.md").read_text()


def allowed(row, one):
    """What two errors may be: 1.5 points, the paper's own two, the row's, or what a mean is above a lower bound."""
    entry = EXPECTED[row]
    theirs = max(2 * entry.get("published_error", {}).get(one.name, 0.0), entry.get("tolerance", {}).get(one.name, 0.0))
    return max(1.5, theirs, 0.0 if "published" in entry else one.mean - entry["at_least"][one.name])


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
