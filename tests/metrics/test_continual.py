import math
import warnings

import numpy as np
import pytest
from fake_run import MATRIX

from holdfast import metrics

A = np.array(MATRIX)
SAMPLES = np.array([10, 30, 60])
T = 3
OF_A_MATRIX = [
    metrics.average_accuracy,
    metrics.average_incremental_accuracy,
    metrics.forgetting_max,
    metrics.forgetting_first,
    metrics.backward_transfer,
    metrics.plasticity,
    metrics.waacc,
    lambda matrix: metrics.sample_accuracy(matrix, np.full(len(matrix), 10)),
    lambda matrix: metrics.sample_incremental_accuracy(matrix, np.full(len(matrix), 10)),
    lambda matrix: metrics.forward_transfer(matrix, np.zeros(len(matrix))),
]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_average_accuracy_counts_experiences_alike():
    total = 0.0
    for j in range(T):
        total += MATRIX[2][j]
    assert metrics.average_accuracy(A) == pytest.approx(total / T)


def test_sample_accuracy_counts_samples_alike():
    right = sum(MATRIX[2][j] * int(SAMPLES[j]) for j in range(T))
    assert metrics.sample_accuracy(A, SAMPLES) == pytest.approx(right / 100)
    assert metrics.sample_accuracy(A, SAMPLES) != pytest.approx(metrics.average_accuracy(A))


def test_average_incremental_accuracy_averages_over_time_what_was_seen():
    moments = []
    for i in range(T):
        seen = [MATRIX[i][j] for j in range(i + 1)]
        moments.append(sum(seen) / len(seen))
    assert metrics.average_incremental_accuracy(A) == pytest.approx(sum(moments) / T)
    assert metrics.accuracy_so_far(A).tolist() == pytest.approx(moments)


def test_sample_incremental_accuracy_weights_by_samples():
    moments = []
    for i in range(T):
        right = sum(MATRIX[i][j] * int(SAMPLES[j]) for j in range(i + 1))
        moments.append(right / sum(int(SAMPLES[j]) for j in range(i + 1)))
    assert metrics.sample_incremental_accuracy(A, SAMPLES) == pytest.approx(sum(moments) / T)


def test_forgetting_from_the_best_moment_and_from_the_first_are_two_numbers():
    matrix = [[0.8, 0.0, 0.0], [0.9, 0.7, 0.0], [0.5, 0.6, 1.0]]
    best, first = [], []
    for j in range(T - 1):
        best.append(max(matrix[i][j] for i in range(T - 1)) - matrix[T - 1][j])
        first.append(matrix[j][j] - matrix[T - 1][j])
    assert metrics.forgetting_max(np.array(matrix)) == pytest.approx(sum(best) / 2)
    assert metrics.forgetting_first(np.array(matrix)) == pytest.approx(sum(first) / 2)
    assert metrics.forgetting_max(np.array(matrix)) > metrics.forgetting_first(np.array(matrix))


def test_the_best_moment_may_lie_before_the_experience_was_learned():
    matrix = np.array([[1.0, 0.9, 0.0], [1.0, 0.5, 0.0], [1.0, 0.4, 1.0]])
    assert metrics.forgetting_max(matrix) == pytest.approx((0.0 + 0.5) / 2)


def test_the_last_row_is_no_best_moment():
    matrix = np.array([[0.5, 0.0], [0.9, 1.0]])
    assert metrics.forgetting_max(matrix) == pytest.approx(-0.4)


def test_backward_transfer_is_the_mean_change_of_earlier_experiences():
    total = 0.0
    for j in range(T - 1):
        total += MATRIX[T - 1][j] - MATRIX[j][j]
    assert metrics.backward_transfer(A) == pytest.approx(total / (T - 1))


def test_forward_transfer_compares_with_the_untrained_model():
    matrix, before = [[0.9, 0.3, 0.2], [0.8, 0.9, 0.6], [0.7, 0.8, 0.9]], [0.1, 0.2, 0.15]
    total = 0.0
    for j in range(1, T):
        total += matrix[j - 1][j] - before[j]
    assert metrics.forward_transfer(np.array(matrix), np.array(before)) == pytest.approx(total / (T - 1))


def test_plasticity_is_the_mean_of_the_diagonal():
    assert metrics.plasticity(A) == pytest.approx((0.9 + 0.8 + 1.0) / 3)


def test_the_stability_weighted_mean_shrinks_with_the_swing():
    values = [0.9, 0.6, 0.75]
    assert metrics.stability_weighted(values) == pytest.approx((2.25 / 3) * (1 - (0.9 - 0.6)))
    moments = [0.9, (0.6 + 0.8) / 2, (0.7 + 0.5 + 1.0) / 3]
    assert metrics.waacc(A) == pytest.approx(sum(moments) / 3 * (1 - (max(moments) - min(moments))))


def test_share_of_gap_tells_where_a_method_stands_between_two_references():
    assert metrics.share_of_gap(0.8, 0.2, 1.0) == pytest.approx(0.75)
    assert metrics.share_of_gap(0.1, 0.2, 1.0) < 0
    assert math.isnan(metrics.share_of_gap(0.5, 0.5, 0.5))
    assert math.isnan(metrics.share_of_gap(0.6, 0.7, 0.6))  # fine-tuning is the better one: nothing to close
    assert math.isnan(metrics.share_of_gap(0.5, float("nan"), 1.0))


@pytest.mark.parametrize("measure", OF_A_MATRIX)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_nothing_evaluated_gives_nan_without_a_warning(measure, size):
    assert math.isnan(measure(np.full((size, size), np.nan)))


def test_one_experience_has_accuracy_and_neither_forgetting_nor_transfer():
    one = np.array([[0.9]])
    assert metrics.average_accuracy(one) == metrics.plasticity(one) == metrics.waacc(one) == 0.9
    assert metrics.average_incremental_accuracy(one) == 0.9
    for measure in (metrics.forgetting_max, metrics.forgetting_first, metrics.backward_transfer):
        assert math.isnan(measure(one))
    assert math.isnan(metrics.forward_transfer(one, np.array([0.1])))


def test_joint_training_is_measured_by_its_only_row():
    joint = np.full((3, 3), np.nan)
    joint[2] = [0.9, 0.8, 0.7]
    assert metrics.average_accuracy(joint) == pytest.approx(0.8)
    assert math.isnan(metrics.forgetting_max(joint))
    assert math.isnan(metrics.forgetting_first(joint))


def test_an_experience_that_was_not_evaluated_is_left_out():
    matrix = A.copy()
    matrix[:, 1] = np.nan
    assert metrics.average_accuracy(matrix) == pytest.approx((0.7 + 1.0) / 2)
    assert metrics.forgetting_first(matrix) == pytest.approx(0.9 - 0.7)
    assert metrics.sample_accuracy(matrix, SAMPLES) == pytest.approx((0.7 * 10 + 1.0 * 60) / 70)


def test_an_unfinished_run_is_measured_on_what_it_learned():
    matrix = A.copy()
    matrix[2] = np.nan
    assert metrics.average_accuracy(matrix) == pytest.approx((0.6 + 0.8) / 2)
    assert metrics.average_accuracy(matrix, seen=3) == pytest.approx((0.6 + 0.8 + 0.0) / 3)
    assert metrics.forgetting_max(matrix) == pytest.approx(0.9 - 0.6)
