"""The page of step costs says what was measured, and no figure is above what the method's formula implies."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KEPT = json.loads((ROOT / "benchmarks" / "results" / "step_cost.json").read_text())


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(ROOT / "benchmarks" / "step_cost.py"))


def test_the_page_of_costs_is_generated_from_the_committed_figures(benchmark):
    assert benchmark["page"](KEPT) == (ROOT / "docs" / "costs.md").read_text()


@pytest.mark.parametrize("after", ["after_1", "after_10"])
def test_no_method_costs_more_than_its_formula_implies(benchmark, after):
    """EWC, SI and MAS at most 1.3, A-GEM at most 2.3, replay about the doubled batch; after ten tasks as after one."""
    bounds = {name: bound for name, (_, bound) in benchmark["FORMULA"].items() if bound is not None}
    assert {"ewc": 1.3, "si": 1.3, "mas": 1.3, "agem": 2.3}.items() <= bounds.items()
    ratios = {row["method"]: row[after]["ratio"] for row in KEPT["rows"] if row["method"] in bounds}
    assert None not in ratios.values()
    assert {name: ratio for name, ratio in ratios.items() if ratio > bounds[name]} == {}


def test_a_method_that_was_not_measured_has_no_row_and_one_without_words_is_sent_to_its_page(benchmark):
    page = benchmark["page"]({"torch": "2", "rows": [{**KEPT["rows"][0], "method": "of_a_stranger"}]})
    assert page.splitlines()[-1].endswith("| see its page |")
