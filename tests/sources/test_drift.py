"""Detectors of drift: they find what changed, not what is learned, and go on where a checkpoint left them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from holdfast.boundaries import MMD, OnDrift
from holdfast.core.errors import ConfigError
from holdfast.core.source import Arrays
from holdfast.core.step import Step
from holdfast.methods import er
from holdfast.training.endless import StreamTrainer

CASES: list[Any] = [
    *(("adwin", on) for on in ("error", "loss", "inputs")),
    *(("page_hinkley", on) for on in ("error", "inputs")),
    ("kswin", "loss"),
    pytest.param("kswin", "inputs", marks=pytest.mark.slow),
    ("ddm", "error"),
    *(("mmd", on) for on in ("inputs", "loss")),
]


def steps(count: int = 320, drift: int = 200, rows: int = 8, seed: int = 0) -> list[Step]:
    """Steps whose errors, losses and inputs change once."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        late = index >= drift
        inputs = torch.randn(rows, 3, generator=generator) + 2.0 * late
        targets = torch.zeros(rows, dtype=torch.int64)
        wrong = (torch.rand(rows, generator=generator) < (0.6 if late else 0.1)).float()
        outputs = torch.stack((1 - wrong, wrong), 1)
        loss = 0.3 + 0.1 * torch.rand((), generator=generator) + 1.0 * late
        made.append(Step(inputs, targets, loss, outputs, None, index))
    return made


def make(detector: str, on: str) -> OnDrift:
    if detector in ("adwin", "ddm", "page_hinkley", "kswin"):
        pytest.importorskip("river", reason="river is not installed (the extra `stream` brings it)")
    chosen: dict[str, dict[str, Any]] = {
        "page_hinkley": {"threshold": 10.0 if on == "error" else 200.0},
        "kswin": {"alpha": 1e-5},
        "ddm": {"drift_threshold": 4.0, "warm_start": 200},
        "mmd": {"permutations": 199, "level": 0.005},
    }
    parameters = chosen.get(detector, {})
    return OnDrift(detector, on, parameters=parameters, warm_up=30)  # type: ignore[arg-type]


@pytest.mark.parametrize(("detector", "on"), CASES)
def test_a_change_is_found_soon_and_nothing_before_it(detector: str, on: str) -> None:
    boundary = make(detector, on)
    found = [step.index for step in steps() if boundary.crossed(step)]
    assert found
    assert 200 <= found[0] < 320
    assert boundary.reason() == {"detector": detector, "on": on}


@pytest.mark.parametrize(("detector", "on"), CASES)
def test_a_detector_goes_on_where_its_state_was_taken(detector: str, on: str) -> None:
    whole, first, second = make(detector, on), make(detector, on), make(detector, on)
    every = steps(260)
    expected = [whole.crossed(step) for step in every]
    begun = [first.crossed(step) for step in every[:150]]
    second.load(first.state())
    assert begun + [second.crossed(step) for step in every[150:]] == expected
    assert any(expected)


def test_errors_that_fall_are_no_drift() -> None:
    boundary = make("adwin", "error")
    assert not any(boundary.crossed(step) for step in steps(400, drift=0)[:200])
    assert not any(boundary.crossed(step) for step in steps(200, drift=10**9, seed=1))


def test_rows_that_were_trained_on_before_are_left_out() -> None:
    boundary = make("mmd", "inputs")
    for step in steps():
        step.fresh = torch.zeros(8, dtype=torch.bool)
        assert not boundary.crossed(step)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"detector": "ddm", "on": "loss"}, "ddm counts errors"),
        ({"detector": "mmd", "parameters": {"windw": 3}}, "did you mean 'window'"),
        ({"detector": "mmd", "parameters": {"window": 1}}, "Give two or more rows"),
        ({"detector": "adwn"}, "adwin"),
    ],
)
def test_wrong_arguments_of_a_detector_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OnDrift(**wrong)


def test_numbers_as_targets_have_no_errors_to_watch() -> None:
    step = steps(1)[0]
    step.targets = torch.zeros(8, 1)
    with pytest.raises(ConfigError, match="Write on=loss"):
        make("mmd", "error").crossed(step)


def test_features_of_the_model_can_be_watched_and_dropout_and_running_means_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1600, 4, generator=generator)
    x[800:] += 3
    y = (x[:, 0] > x[:, 1]).long()

    def train(boundary: OnDrift | None) -> tuple[nn.Module, list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 2))
        trainer = StreamTrainer(model, er(capacity=50), boundary=boundary, record=events.append, seed=3)
        trainer.train(Arrays(x, y, batch_size=8))
        return trainer.model, events

    model, events = train(
        OnDrift("mmd", "features", parameters={"reference": 100, "window": 60, "level": 0.01, "permutations": 99})
    )
    alarms = [event for event in events if event["event"] == "boundary"]
    assert any(800 < event["samples"] <= 1000 for event in alarms)
    assert alarms[0]["detector"] == "mmd"
    plain, _ = train(None)
    values = zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


# The two-sample test ---------------------------------------------------------------------------------------


def test_the_score_is_the_formula_on_a_few_rows() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([[2.0], [5.0]], dtype=torch.float64)
    scale = 2.0  # the median of the distances 1, 2 and 3

    def kernel(a: float, b: float) -> float:
        return float(torch.exp(torch.tensor(-((a - b) ** 2) / (2 * scale**2), dtype=torch.float64)))

    xs, ys = [0.0, 1.0, 3.0], [2.0, 5.0]
    among_x = sum(kernel(a, b) for a in xs for b in xs if a != b) / 6
    among_y = sum(kernel(a, b) for a in ys for b in ys if a != b) / 2
    between = sum(kernel(a, b) for a in xs for b in ys) / 6
    test = MMD(level=0.5, permutations=9).fit(x)
    assert test.score(y) == pytest.approx(among_x + among_y - 2 * between)


def test_alarms_where_nothing_changed_are_as_rare_as_the_level() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for number in range(100):
        test = MMD(level=0.1, permutations=99, seed=number).fit(torch.randn(20, 2, generator=generator))
        test.score(torch.randn(20, 2, generator=generator))
        alarms += test.drifted
    assert 3 <= alarms <= 19


def test_too_few_permutations_for_a_level_are_refused() -> None:
    with pytest.raises(ConfigError, match="Give permutations=1000"):
        MMD(level=0.001, permutations=99)
    with pytest.raises(ConfigError, match="Call fit"):
        MMD().score(torch.zeros(3, 1))
