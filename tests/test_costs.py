"""The page of step costs says what was measured, and what was measured is what each method's formula implies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast.methods

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "benchmarks" / "step_cost.py"
KEPT = json.loads((ROOT / "benchmarks" / "results" / "step_cost.json").read_text())
ROWS = {row["method"]: row for row in KEPT["rows"]}


@pytest.fixture(scope="module")
def formulas():
    code = "import json, step_cost; print(json.dumps(step_cost.FORMULA))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARK.parent, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_page_of_costs_is_generated_from_the_committed_figures(tmp_path):
    page = tmp_path / "costs.md"
    subprocess.run([sys.executable, str(BENCHMARK), "--page", str(page)], check=True)
    assert page.read_text() == (ROOT / "docs" / "costs.md").read_text()


def test_every_method_was_measured_and_says_what_its_formula_adds(formulas):
    assert set(ROWS) == set(holdfast.methods.__all__) == set(formulas)


@pytest.mark.parametrize("after", ["after_1", "after_10"])
def test_no_method_costs_more_than_its_formula_implies(formulas, after):
    """EWC, SI and MAS at most 1.3, A-GEM at most 2.3, replay about the doubled batch; after ten tasks as after one."""
    bounds = {name: bound for name, (_, bound) in formulas.items() if bound is not None}
    assert {"ewc": 1.3, "si": 1.3, "mas": 1.3, "agem": 2.3}.items() <= bounds.items()
    ratios = {name: ROWS[name][after]["ratio"] for name in bounds}
    assert None not in ratios.values()
    assert {name: ratio for name, ratio in ratios.items() if ratio > bounds[name]} == {}
