import json

import numpy as np
import pytest
from fake_run import MATRIX, evaluation, events, write_run

from holdfast.core.errors import ConfigError
from holdfast.metrics import METRICS, Log, compute, metric, read_log, record


@pytest.fixture
def entered():
    """Takes out what a test enters."""
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


def test_a_metric_is_one_function(entered, tmp_path):
    @metric("down", "spread of the accuracies at the end")
    def unevenness(matrix: np.ndarray) -> float:
        return float(np.std(matrix[-1]))

    found = compute(events())
    assert found["unevenness"] == pytest.approx(np.std(MATRIX[-1]))
    assert found["task_aware_unevenness"] == pytest.approx(np.std([0.8, 0.6, 1.0]))
    assert METRICS["unevenness"].direction == "down"
    assert unevenness(np.array([[0.0, 1.0]])) == 0.5
    from holdfast.runs.compare import as_csv, sort, summarise

    rows = summarise([write_run(tmp_path / "a"), write_run(tmp_path / "b", method="ewc", matrix=[[0.9, 0, 0]] * 3)])
    assert "unevenness" in as_csv(rows).splitlines()[0]
    assert [row.name for row in sort(rows, "unevenness")] == ["er on toy", "ewc on toy"]


def test_it_says_what_its_docstring_says_where_nothing_else_is_said(entered):
    @metric("up")
    def finals(losses, seen, events, values, samples, split, threshold=0.5):
        """How many losses are below the threshold.

        More text.
        """
        assert isinstance(events, Log)
        assert (seen, samples.tolist(), split) == (3, [10, 10, 10], "test")
        assert values("correct").tolist() == [[9.0, 0.0, 0.0], [6.0, 8.0, 0.0], [7.0, 5.0, 10.0]]
        return float((losses <= threshold).sum())

    assert METRICS["finals"].description == "How many losses are below the threshold"
    assert compute(events())["finals"] == 9.0
    assert "task_aware_finals" not in METRICS


def test_what_a_record_has_not_is_refused_with_the_nearest_name(entered):
    with pytest.raises(ConfigError, match="did you mean 'matrix'"):

        @metric("up", "x")
        def wrong(matrx):
            return 0.0

    assert "wrong" not in METRICS


def test_nothing_to_measure_is_none_and_never_nan(entered):
    @metric("up", "nothing at all")
    def nothing(matrix):
        return float("nan")

    assert METRICS["nothing"].function(record(events())) is None
    json.dumps(compute(events()), allow_nan=False)


def test_a_log_is_parsed_once_for_all_measures(tmp_path, monkeypatch):
    made, init = [], Log.__init__
    monkeypatch.setattr(Log, "__init__", lambda log, *args: (made.append(1), init(log, *args))[1])
    log = read_log(write_run(tmp_path))
    compute(log)
    assert read_log(log) is log
    assert len(made) == 1


def test_a_log_gives_its_numbers_as_arrays():
    log = Log([*events(), evaluation(2, 0, None) | {"split": "validation", "note": "x"}])
    assert log.values("train", "step").tolist() == [50.0 * step for step in range(1, 13)]
    assert np.isnan(log.values("evaluate", "correct")[-1])
    assert log.values("evaluate", "correct", "validation").shape == (1,)
    assert set(log.arrays("experience")) == {
        "experience", "steps", "seconds", "evaluation_seconds", "parameters", "memory_items", "memory_bytes"
    }  # fmt: skip
    with pytest.raises(ValueError, match="read-only"):
        log.values("train", "step")[0] = 0.0
    log.of("train").clear()
    assert len(log.of("train")) == 12
    assert (log.experiences, log.finished, log.diverged) == (3, True, "")
    assert (len(log), log[0]["event"], [event["event"] for event in log[1:3]]) == (27, "start", ["train", "train"])
    assert repr(log) == "Log(1 start, 12 train, 10 evaluate, 3 experience, 1 end)"


def test_a_log_is_a_table_of_pandas():
    pandas = pytest.importorskip("pandas")
    table = Log(events()).frame("train")
    assert isinstance(table, pandas.DataFrame)
    assert table["terms.loss"].tolist() == [event["terms"]["loss"] for event in events() if event["event"] == "train"]
    assert len(Log(events()).frame()) == len(events())
