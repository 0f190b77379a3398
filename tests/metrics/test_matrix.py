import numpy as np
import pytest
from fake_run import MATRIX, evaluation, events

from holdfast.core.errors import DataError
from holdfast.metrics import accuracy_matrix, before, loss_matrix, read_matrix, sample_counts, write_matrix


def test_the_matrix_holds_correct_over_samples():
    np.testing.assert_array_equal(accuracy_matrix(events()), MATRIX)


def test_task_aware_answers_are_counted_apart():
    aware = accuracy_matrix(events(), aware=True)
    for row, values in enumerate(MATRIX):
        for column, value in enumerate(values):
            assert aware[row, column] == min(10, round(value * 10) + 1) / 10


def test_what_was_not_evaluated_is_nan():
    found = accuracy_matrix([evaluation(0, 0, 5), evaluation(1, 2, 3)])
    assert found.shape == (3, 3)
    assert (found[0, 0], found[1, 2]) == (0.5, 0.3)
    assert np.isnan(found).sum() == 7


def test_regression_has_losses_and_no_accuracy():
    log = [evaluation(0, 0, None)]
    assert np.isnan(accuracy_matrix(log)).all()
    assert loss_matrix(log).tolist() == [[0.5]]


def test_validation_is_never_mixed_with_test():
    log = [evaluation(0, 0, 5), evaluation(0, 0, 9) | {"split": "validation"}]
    assert accuracy_matrix(log).tolist() == [[0.5]]
    assert accuracy_matrix(log, split="validation").tolist() == [[0.9]]


def test_accuracy_before_any_training_is_kept_out_of_the_matrix():
    log = events(before=[0.1, 0.2, 0.3])
    assert before(log).tolist() == [0.1, 0.2, 0.3]
    np.testing.assert_array_equal(accuracy_matrix(log), MATRIX)
    assert np.isnan(before(events())).all()


def test_a_superseded_evaluation_does_not_count():
    log = [*events()[:1], evaluation(0, 0, 1), {"event": "resume", "keep": 1}, evaluation(0, 0, 9)]
    assert accuracy_matrix(log)[0, 0] == 0.9
    assert np.isnan(accuracy_matrix([*log, {"event": "resume", "keep": 1}])).all()


def test_samples_are_counted_by_experience():
    assert sample_counts([evaluation(0, 0, 1, 7), evaluation(0, 1, 1, 3)]).tolist() == [7, 3]


def test_an_empty_log_gives_an_empty_matrix():
    assert accuracy_matrix([]).shape == (0, 0)


def test_a_matrix_reads_back_equal(tmp_path):
    matrix = np.random.default_rng(0).random((4, 4))
    matrix[0, 2:] = np.nan
    matrix[3, 3] = 1 / 3
    path = write_matrix(tmp_path / "accuracy_matrix.csv", matrix)
    np.testing.assert_array_equal(read_matrix(path), matrix)
    assert path.read_text().splitlines()[0] == "after,0,1,2,3"
    assert path.read_text().splitlines()[1].startswith("0,")
    assert [child.name for child in tmp_path.iterdir()] == ["accuracy_matrix.csv"]


def test_reading_a_matrix_never_changes_its_file(tmp_path):
    path = write_matrix(tmp_path / "m.csv", np.array(MATRIX))
    kept, moment = path.read_bytes(), path.stat().st_mtime_ns
    for _ in range(3):
        read_matrix(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (kept, moment)


def test_an_empty_cell_is_nan(tmp_path):
    (tmp_path / "m.csv").write_text("after,0,1\n0,0.5,\n1,0.25,1.0\n")
    found = read_matrix(tmp_path / "m.csv")
    assert np.isnan(found[0, 1])
    assert found[1].tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a,b\n0,1\n", 1), ("", 1), ("after,0\n0,x\n", 2), ("after,0\n0,1\n1\n", 3), ("after,0\n1,0.5\n", 2)],
)
def test_a_damaged_matrix_is_an_error_with_its_line(tmp_path, text, line):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=rf"m\.csv, line {line}"):
        read_matrix(tmp_path / "m.csv")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = write_matrix(tmp_path / "m.csv", np.eye(2))
    kept = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_matrix(path, np.zeros((3, 3)))
    assert path.read_bytes() == kept
    assert len(list(tmp_path.iterdir())) == 1
