"""The page of equal weights says what a run of every method in every way gives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import methods

DOCS = Path(__file__).parents[2] / "docs"
TABLE = re.findall(r"^\| \[`(\w+)`\]\([^)]*\) \| (.*) \|$", (DOCS / "conformance.md").read_text(), re.MULTILINE)
CELL = r"equal|equal to the loop|refused: (boundaries|replacement|task|progress|criterion|stream|moved weights)"


def test_every_method_has_a_row() -> None:
    assert [name for name, _ in TABLE] == list(methods.__all__), "run `python docs/conformance.py`"


@pytest.mark.parametrize(("name", "cells"), TABLE)
def test_every_way_gives_equal_weights_or_is_refused_for_a_reason_that_is_explained(name: str, cells: str) -> None:
    found = cells.split(" | ")
    assert len(found) == 5
    assert found[:2] == ["equal", "equal"]
    text = (DOCS / "conformance.md").read_text()
    for cell in found:
        assert re.fullmatch(CELL, cell), f"{name}: {cell}"
        assert not cell.startswith("refused") or f"* **{cell.removeprefix('refused: ')}**: the method " in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_is_what_a_run_gives() -> None:
    pytest.importorskip("lightning")
    script = [sys.executable, "-W", "ignore", str(DOCS / "conformance.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-1000:]}"
