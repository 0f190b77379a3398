"""A sample of the random configurations and data of `benchmarks/fuzz.py`: a sentence or a result, never a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import fuzz  # type: ignore[import-not-found]
import fuzz_commands  # type: ignore[import-not-found]  # noqa: F401  (adds its sorts)

GOOD = ("ran", "refused", "diverged", "failed:")
FAST = {
    "configurations": (277, 0, 1, 2),
    "tables": range(5),
    "archives": range(8),
    "images": (3, 9, 30, 1),
    "dirty_tables": range(8),
    "dirty_archives": range(8),
    "dirty_images": range(4),
    "pairs": range(12),
    "overrides": range(7),
    "sources": range(4),
    "spaces": (0, 4, 36, 53),
    "damaged": range(4),
}
SLOW = {"configurations": 1000, "damaged": 100, "sources": 100, "spaces": 100}


def bad(sort: str, seeds: range | tuple[int, ...]) -> list[str]:
    told = {seed: fuzz.outcome(sort, seed) for seed in seeds}
    return [f"{seed}: {text}" for seed, text in told.items() if text.split(" ")[0] not in GOOD]


@pytest.mark.parametrize("sort", list(FAST))
def test_what_is_random_runs_or_is_refused_in_a_sentence(sort: str) -> None:
    if "images" in sort:
        pytest.importorskip("PIL")
    assert bad(sort, FAST[sort]) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sort", list(FAST))
def test_hundreds_of_them_do(sort: str) -> None:
    if "images" in sort:
        pytest.importorskip("PIL")
    assert bad(sort, range(SLOW.get(sort, 200))) == []


def test_a_result_that_is_no_number_is_found_out(tmp_path: Path) -> None:
    made = fuzz.running.run({"references": [], "trainer": {"limit_experiences": 1}}, tmp_path / "run", quiet=True)
    assert fuzz.judged(made) == "ran"
    log = made / "log.jsonl"
    log.write_text(log.read_text().replace('"event": "end"', '"event": "ended"'))
    assert fuzz.judged(made).startswith("WRONG")
