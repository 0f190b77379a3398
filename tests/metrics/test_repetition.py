"""Accuracy on seen, present and missing classes, against counts by hand."""

import math

import pytest

from holdfast.core.errors import DataError
from holdfast.metrics import METRICS, class_group_accuracy, record

CLASSES = [[0, 1], [2], [0, 3]]


def event(after, experience, counts):
    return {
        "event": "evaluate",
        "after": after,
        "experience": experience,
        "split": "test",
        "samples": sum(total for _, total in counts.values()),
        "correct": sum(hits for hits, _ in counts.values()),
        "class_samples": {str(label): total for label, (_, total) in counts.items()},
        "class_correct": {str(label): hits for label, (hits, _) in counts.items()},
    }


LOG = [
    {"event": "start", "stream": {"experiences": 3, "experience_classes": CLASSES}},
    event(0, 0, {0: (4, 4), 1: (1, 2), 2: (0, 4), 3: (0, 2)}),
    event(1, 0, {0: (2, 4), 1: (2, 2)}),  # the test data may lie in several experiences
    event(1, 1, {0: (2, 4), 2: (3, 4), 3: (0, 2)}),
    event(2, 0, {0: (4, 4), 1: (1, 4), 2: (1, 2), 3: (2, 2)}),
]


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("seen", [(1 + 1 / 2) / 2, (4 / 8 + 1 + 3 / 4) / 3, (1 + 1 / 4 + 1 / 2 + 1) / 4]),
        ("missing", [math.nan, (4 / 8 + 1) / 2, (1 / 4 + 1 / 2) / 2]),
        ("present", [(1 + 1 / 2) / 2, 3 / 4, 1.0]),
    ],
)
def test_recall_is_averaged_over_the_classes_of_the_group(which, wanted):
    assert class_group_accuracy(LOG, which).tolist() == pytest.approx(wanted, nan_ok=True)


def test_the_metrics_of_a_run_have_the_last_values():
    data = record(LOG)
    assert METRICS["seen_class_accuracy"].function(data) == pytest.approx(2.75 / 4)
    assert METRICS["missing_class_accuracy"].function(data) == pytest.approx(0.375)
    assert METRICS["missing_class_accuracy"].function(record(LOG[1:])) is None


def test_a_log_that_does_not_say_which_classes_came_is_refused():
    with pytest.raises(DataError, match="which classes each experience has"):
        class_group_accuracy(LOG[1:], "seen")
