"""A sample of the random configurations and data of `benchmarks/fuzz.py`: a sentence or a result, never a traceback."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"
spec = importlib.util.spec_from_file_location("fuzz", FILE)
assert spec is not None
assert spec.loader is not None
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

GOOD = ("ran", "refused", "diverged", "failed:")
FAST = {"configurations": (277, 0, 1, 2, 3, 4), "tables": range(12), "archives": range(12), "images": (3, 9, 30, 1)}
SLOW = {"configurations": 1000, "tables": 200, "archives": 200, "images": 200}


def bad(sort: str, seeds: range | tuple[int, ...]) -> list[str]:
    told = {seed: fuzz.outcome(sort, seed) for seed in seeds}
    return [f"{seed}: {text}" for seed, text in told.items() if text.split(" ")[0] not in GOOD]


@pytest.mark.parametrize("sort", list(FAST))
def test_what_is_random_runs_or_is_refused_in_a_sentence(sort: str) -> None:
    if sort == "images":
        pytest.importorskip("PIL")
    assert bad(sort, FAST[sort]) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sort", list(SLOW))
def test_a_thousand_of_them_do(sort: str) -> None:
    if sort == "images":
        pytest.importorskip("PIL")
    assert bad(sort, range(SLOW[sort])) == []


def test_a_result_that_is_no_number_is_found_out(tmp_path: Path) -> None:
    made = fuzz.running.run({"references": [], "trainer": {"limit_experiences": 1}}, tmp_path / "run", quiet=True)
    assert fuzz.judged(made) == "ran"
    log = made / "log.jsonl"
    log.write_text(log.read_text().replace('"event": "end"', '"event": "ended"'))
    assert fuzz.judged(made).startswith("WRONG")
