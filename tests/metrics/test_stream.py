import math

import numpy as np
import pytest
from fake_run import events

from holdfast.metrics import anytime_accuracy, compute, prequential_accuracy, windowed_accuracy
from holdfast.metrics.stream import accuracy_so_far, passed

WINDOWS = [(100, 0.2), (100, 0.4), (50, 0.9), (100, 0.7)]


def one_pass(windows=WINDOWS, **more):
    """The log of an endless stream: samples are counted from its start."""
    total, log = 0, []
    for samples, accuracy in windows:
        total += samples
        log.append({"event": "train", "step": total, "samples": total, "accuracy": accuracy, "loss": 1.0, **more})
    return log


def test_every_sample_counts_alike_however_the_windows_lie():
    right = sum(samples * accuracy for samples, accuracy in WINDOWS)
    assert prequential_accuracy(one_pass()) == pytest.approx(right / 350)
    halves = [(samples / 2, accuracy) for samples, accuracy in WINDOWS for _ in range(2)]
    assert prequential_accuracy(one_pass(halves)) == pytest.approx(right / 350)


def test_the_accuracy_so_far_is_that_of_all_windows_by_then():
    so_far, right, seen = [], 0.0, 0
    for samples, accuracy in WINDOWS:
        right, seen = right + samples * accuracy, seen + samples
        so_far.append(right / seen)
    assert accuracy_so_far(one_pass()).tolist() == pytest.approx(so_far)
    weighted = sum(value * samples for value, (samples, _) in zip(so_far, WINDOWS)) / 350
    assert anytime_accuracy(one_pass()) == pytest.approx(weighted)


@pytest.mark.parametrize(("window", "last"), [(1, 1), (100, 1), (101, 2), (150, 2), (151, 3), (10_000, 4)])
def test_the_recent_accuracy_covers_the_fewest_windows_that_hold_so_many_samples(window, last):
    recent = WINDOWS[-last:]
    expected = sum(samples * accuracy for samples, accuracy in recent) / sum(samples for samples, _ in recent)
    assert windowed_accuracy(one_pass(), window) == pytest.approx(expected)


def test_samples_are_counted_anew_in_each_experience_of_a_stream():
    log = [*one_pass(WINDOWS[:2], experience=0), *one_pass(WINDOWS[2:], experience=1)]
    assert passed(log).samples.tolist() == [100, 100, 50, 100]
    assert prequential_accuracy(log) == pytest.approx(prequential_accuracy(one_pass()))


def test_data_seen_twice_is_no_test():
    log = one_pass()
    log[-1]["epoch"] = 1
    assert math.isnan(prequential_accuracy(log))
    assert math.isnan(windowed_accuracy(log))
    assert math.isnan(anytime_accuracy(log))


def test_they_stand_beside_the_measures_of_the_matrix():
    found = compute(one_pass())
    assert found["prequential_accuracy"] == pytest.approx(prequential_accuracy(one_pass()))
    assert found["average_accuracy"] is None
    both = compute(events())
    assert both["average_accuracy"] is not None
    assert both["prequential_accuracy"] == 0.5
    assert compute([])["prequential_accuracy"] is None


@pytest.mark.filterwarnings("error")
def test_windows_without_accuracy_are_left_out():
    log = one_pass()
    log[1]["accuracy"] = None
    assert passed(log).samples.tolist() == [100, 50, 100]
    assert np.isfinite(prequential_accuracy(log))
