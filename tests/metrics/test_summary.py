import json
import math
import subprocess
import sys

import numpy as np
import pytest
from fake_run import MATRIX, evaluation, events

from holdfast.metrics import METRICS, compute, costs, curves, per_class, wamica, worst_class
from holdfast.metrics.statistics import mean_share_interval


def toy(after=0):
    """Ten samples of class 0, seven of them answered right, and two of class 1, one of them right."""
    return evaluation(
        after, 0, 8, 12, class_samples={"0": 10, "1": 2}, class_correct={"0": 7, "1": 1}
    )  # fmt: skip


def test_class_accuracy_is_recall_and_not_precision():
    predictions = [(0, 0)] * 7 + [(0, 1)] * 3 + [(1, 1)] + [(1, 0)]
    for row in per_class([toy()]):
        of_class = [predicted for target, predicted in predictions if target == row["class"]]
        recall = of_class.count(row["class"]) / len(of_class)
        everywhere = [target for target, predicted in predictions if predicted == row["class"]]
        precision = everywhere.count(row["class"]) / len(everywhere)
        assert row["recall"] == recall != precision


def test_accuracy_weights_every_sample_alike_whatever_the_batches():
    found = compute([toy()])
    assert found["average_accuracy"] == found["sample_accuracy"] == 8 / 12
    assert found["average_accuracy"] != (7 / 10 + 1 / 2) / 2


def test_the_worst_class_is_the_one_with_the_least_recall():
    assert worst_class([toy()]) == 0.5
    assert math.isnan(worst_class([evaluation(0, 0, 5)]))


def test_class_counts_of_several_experiences_are_summed():
    shared = [evaluation(1, j, 5, 10, class_samples={"0": 10}, class_correct={"0": 4 + j}) for j in (0, 1)]
    assert per_class(shared) == [{"class": 0, "name": "0", "samples": 20, "correct": 9, "recall": 9 / 20}]


def test_classes_not_learned_yet_do_not_count_and_names_come_from_the_start():
    rows = per_class(events(), after=1)
    assert [row["class"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["name"] == "class 2"
    assert len(per_class(events())) == 6


def test_wamica_weights_the_worst_recall_so_far_by_its_swing():
    log = events()
    worst = [min(row["recall"] for row in per_class(log, after=after)) for after in range(3)]
    assert wamica(log) == pytest.approx(sum(worst) / 3 * (1 - (max(worst) - min(worst))))


def test_waacc_counts_every_class_once_however_many_samples_and_experiences_it_has():
    log = [
        evaluation(0, 0, 9, 10, class_samples={"0": 9, "1": 1}, class_correct={"0": 9, "1": 0}),
        evaluation(1, 0, 9, 10, class_samples={"0": 9, "1": 1}, class_correct={"0": 9, "1": 0}),
        evaluation(1, 1, 1, 1, class_samples={"1": 1}, class_correct={"1": 1}),
    ]
    moments = [(1 + 0) / 2, (1 + 1 / 2) / 2]  # CLMixer's: the mean over classes, each over all samples seen so far
    assert compute([{"event": "start", "stream": {"experiences": 2}}, *log])["waacc"] == pytest.approx(
        sum(moments) / 2 * (1 - (max(moments) - min(moments)))
    )


def test_costs_add_up_over_experiences():
    found = costs(events())
    assert (found["steps"], found["train_seconds"], found["evaluation_seconds"]) == (600, 6.0, 1.5)
    assert (found["parameters_start"], found["parameters"]) == (1000, 1002)
    assert (found["memory_bytes"], found["memory_bytes_peak"], found["total_seconds"]) == (638, 640, 9.0)
    assert found["steps_per_second"] == 100.0
    assert set(costs([]).values()) == {None}


def test_curves_hold_every_term_and_none_where_an_event_has_it_not():
    found = curves(
        [{"event": "train", "step": 1, "terms": {"loss": 2.0}}, {"event": "train", "step": 2, "terms": {"kd": 1.0}}]
    )
    assert found["step"] == [1, 2]
    assert found["terms"] == {"loss": [2.0, None], "kd": [None, 1.0]}


def test_metrics_are_plain_json_with_every_measure():
    found = compute(events(before=[0.1, 0.1, 0.1]))
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert set(METRICS) <= set(found)
    assert found["accuracy_matrix"] == MATRIX
    assert (found["finished"], found["learned"], found["experiences"]) == (True, 3, 3)
    assert (found["method"], found["stream"], found["seed"], found["paradigm"]) == ("er", "toy", 0, "class")


def test_class_incremental_and_task_aware_measures_stand_side_by_side():
    found = compute(events())
    for name in METRICS:
        if name.startswith("task_aware_"):
            assert name.removeprefix("task_aware_") in METRICS
    assert found["task_aware_average_accuracy"] == pytest.approx((0.8 + 0.6 + 1.0) / 3)
    assert found["average_accuracy"] == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert compute(events(paradigm="task"))["headline"] == "task_aware_"


@pytest.mark.parametrize(
    ("log", "accuracy"),
    [
        ([], None),
        (events()[:1], None),
        (events(matrix=[[0.9]]), 0.9),
        (events(matrix=MATRIX[:1], finished=False), 0.9),
        ([evaluation(0, 0, None)], None),
    ],
    ids=["empty", "started", "one experience", "unfinished", "regression"],
)
@pytest.mark.filterwarnings("error")
def test_any_log_can_be_measured_and_nothing_is_forgotten_before_a_second_experience(log, accuracy):
    found = compute(log)
    json.dumps(found, allow_nan=False)
    assert found["average_accuracy"] == accuracy
    assert found["forgetting_max"] is found["forgetting_first"] is found["backward_transfer"] is None


def test_an_unfinished_run_counts_the_experiences_it_learned():
    found = compute(events(matrix=MATRIX[:2], finished=False))
    assert (found["finished"], found["learned"], found["experiences"]) == (False, 2, 3)
    assert found["average_accuracy"] == pytest.approx((0.6 + 0.8) / 2)


@pytest.mark.parametrize("row", [0, 2])
def test_joint_training_counts_every_experience_wherever_its_row_stands(row):
    log = [*events()[:1], *(evaluation(row, j, 7 + j) for j in range(3)), {"event": "end", "seconds": 1.0}]
    found = compute(log)
    assert found["average_accuracy"] == pytest.approx((0.7 + 0.8 + 0.9) / 3)
    assert found["plasticity"] is None
    assert found["forgetting_first"] is None


def test_validation_data_is_used_where_no_test_data_was_evaluated():
    log = [evaluation(0, 0, 9) | {"split": "validation"}]
    assert (compute(log)["split"], compute(log)["average_accuracy"]) == ("validation", 0.9)
    assert compute([*log, evaluation(0, 0, 5)])["average_accuracy"] == 0.5


def test_every_measure_says_its_direction_and_what_it_is():
    for metric in METRICS.values():
        assert metric.direction in ("up", "down")
        assert metric.description
        assert "\n" not in metric.description


def test_metrics_do_not_import_torch():
    code = "import sys, holdfast.metrics, holdfast.runs.result; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_interval_of_a_mean_of_shares_is_around_that_mean_and_covers_it() -> None:
    shares = [(101, 108), (6, 72), (17, 108), (21, 72)]
    low, high = mean_share_interval(shares)
    assert (low + high) / 2 == pytest.approx(sum(right / samples for right, samples in shares) / 4, abs=0.01)
    assert 145 / 360 - (low + high) / 2 > 0.02  # the share of all samples together is another number
    generator = np.random.default_rng(0)
    truth, hits = [0.9, 0.5, 0.2], 0
    for _ in range(1000):
        low, high = mean_share_interval([(int(generator.binomial(n, p)), n) for p, n in zip(truth, (40, 30, 60))])
        hits += low <= sum(truth) / 3 <= high
    assert 930 < hits < 980
