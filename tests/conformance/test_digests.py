"""Weights and logged numbers are those of the record, for every method and operation in every way to train."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PATH = Path(__file__).parent / "digests.py"
spec = importlib.util.spec_from_file_location("digests", PATH)
digests: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(digests)

RECORD = digests.read()
HINT = "Where numbers change on purpose: python tests/conformance/digests.py --write --only"


def different(subject: str, ways: list[str]) -> str:
    """What differs from the record, a line for each way; that a subject isn't in it is another test's to say."""
    if subject not in RECORD["portable"]:
        pytest.skip("not in the record")
    where = digests.environment()
    found = [digests.fault(subject, way, digests.result(subject, way), RECORD, where) for way in ways]
    return "\n".join([line for line in found if line] + ([f"{HINT} {subject}"] if any(found) else []))


@pytest.mark.parametrize("subject", digests.SUBJECTS)
def test_it_ends_with_the_recorded_weights_and_logged_numbers(subject: str) -> None:
    assert not (found := different(subject, digests.fast(subject))), found


@pytest.mark.slow
@pytest.mark.parametrize("subject", digests.SUBJECTS)
def test_it_ends_so_in_the_other_ways_to_train_too(subject: str) -> None:
    apart = {*digests.fast(subject), *digests.LIGHTNING}
    others = [way for way in digests.ways(subject) if way not in apart]
    assert not (found := different(subject, others)), found


@pytest.mark.slow
@pytest.mark.parametrize("subject", digests.SUBJECTS)
def test_it_ends_so_in_lightning(subject: str) -> None:
    pytest.importorskip("lightning")
    assert not (found := different(subject, list(digests.LIGHTNING))), found


@pytest.mark.slow
@pytest.mark.parametrize("row", digests.ROWS)
def test_a_row_of_published_results_ends_with_the_recorded_weights_and_accuracies(row: str) -> None:
    if not digests.data_for_rows():
        pytest.skip("mnist is not in the folder that HOLDFAST_DATA says")
    assert not (found := different(row, [digests.ROW])), found


def test_every_method_and_operation_is_in_the_record_in_every_way_and_none_that_is_gone() -> None:
    expected = {subject: set(digests.ways(subject)) for subject in (*digests.SUBJECTS, *digests.ROWS)}
    recorded = {subject: set(kept) for subject, kept in RECORD["portable"].items()}
    missing = [subject for subject in expected if recorded.get(subject, set()) < expected[subject]]
    record_them = " ".join(f"--only {subject}" for subject in missing)
    assert not missing, f"python tests/conformance/digests.py --write {record_them}"
    assert recorded == expected, HINT
    for kept in RECORD["environments"].values():
        for subject, entries in kept.items():
            trained = {way for way, now in RECORD["portable"][subject].items() if not isinstance(now, str)}
            assert set(entries) <= trained
    assert PATH.with_suffix(".json").read_text() == digests.written(RECORD)


def test_resumed_in_the_middle_the_recorded_weights_are_those_of_the_whole_run() -> None:
    whole, resumed = "trainer, growing head, momentum", "trainer, growing head, momentum, resumed"
    for kept in RECORD["environments"].values():
        for subject, entries in kept.items():
            if whole in entries and resumed in entries:
                assert entries[whole].split()[0] == entries[resumed].split()[0], subject


def test_most_subjects_train_in_every_way_that_is_offered() -> None:
    """A record of refusals alone would prove nothing."""
    subjects = set(digests.SUBJECTS) & set(RECORD["portable"])
    results = [now for subject in subjects for now in RECORD["portable"][subject].values()]
    assert sum(isinstance(now, str) for now in results) < 0.25 * len(results)
    for subject in subjects:
        assert sum(not isinstance(now, str) for now in RECORD["portable"][subject].values()) >= 5, subject


# What the comparison finds ---------------------------------------------------------------------------------


WAY = "trainer, fixed head, momentum"


@pytest.fixture
def now() -> Any:
    return digests.result("er", WAY)


@pytest.fixture
def record(now: Any) -> dict[str, Any]:
    """A record of this environment alone."""
    fresh: dict[str, Any] = {"environments": {}, "portable": {}}
    digests.note("er", WAY, now, fresh, "here")
    return fresh


def test_one_bit_of_one_weight_is_found_and_named(now: Any, record: dict[str, Any]) -> None:
    assert digests.fault("er", WAY, now, record, "here") == ""
    weight = next(iter(now.weights.values()))
    with torch.no_grad():
        weight.view(torch.int32).view(-1)[0] ^= 1
    found = digests.fault("er", WAY, now, record, "here")
    assert found == "er, trainer, fixed head, momentum: other weights, by rounding."
    assert digests.fault("er", WAY, now, record, "elsewhere") == ""


def test_another_logged_number_is_found(now: Any, record: dict[str, Any]) -> None:
    next(event for event in now.log if event["event"] == "train")["terms"]["loss"] += 1e-12
    assert "other logged numbers, by rounding" in digests.fault("er", WAY, now, record, "here")


def test_another_name_or_shape_of_a_buffer_is_found(now: Any, record: dict[str, Any]) -> None:
    name = next(iter(now.weights))
    renamed = copy.copy(now)
    renamed.weights = {("other" if key == name else key): value for key, value in now.weights.items()}
    assert "other weights" in digests.fault("er", WAY, renamed, record, "here")
    now.weights[name] = now.weights[name].detach().flatten()
    assert "other weights" in digests.fault("er", WAY, now, record, "here")


def test_more_than_rounding_is_found_where_nothing_was_recorded(now: Any, record: dict[str, Any]) -> None:
    moved = copy.deepcopy(now)
    with torch.no_grad():
        for value in moved.weights.values():
            value.mul_(1.01)
    assert "more than rounding: weights" in digests.fault("er", WAY, moved, record, "elsewhere")
    now.right += 0.1
    assert "more than rounding: right" in digests.fault("er", WAY, now, record, "elsewhere")


def test_a_refusal_where_there_was_none_is_found_and_the_other_way_round(now: Any, record: dict[str, Any]) -> None:
    assert "was trained, is now refused NeedError" in digests.fault("er", WAY, "refused NeedError", record, "here")
    record["portable"]["er"][WAY] = "refused NeedError"
    assert "was refused NeedError, is now trained" in digests.fault("er", WAY, now, record, "here")
    assert digests.fault("er", WAY, "refused NeedError", record, "here") == ""
    assert "is now refused ConfigError" in digests.fault("er", WAY, "refused ConfigError", record, "here")


def test_numbers_recorded_anew_void_what_other_environments_had(now: Any, record: dict[str, Any]) -> None:
    digests.note("er", WAY, now, record, "elsewhere")
    assert set(record["environments"]) == {"here", "elsewhere"}
    with torch.no_grad():
        next(iter(now.weights.values())).mul_(2)
    digests.note("er", WAY, now, record, "here")
    assert digests.fault("er", WAY, now, record, "here") == ""
    assert WAY not in record["environments"]["elsewhere"]["er"]


@pytest.mark.slow  # every process that runs the tests has other hashes, and holds the same record
def test_another_process_with_other_hashes_gives_the_same_digests() -> None:
    ways = ["trainer, growing head, momentum, resumed", "loop with Every, fixed head, momentum"]
    script = (
        f"import sys; sys.path.insert(0, {str(PATH.parent)!r}); import digests\n"
        f"for way in {ways!r}: print(digests.result('der_plus_plus', way).digest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert found.stdout.splitlines() == [digests.result("der_plus_plus", way).digest() for way in ways]
