"""On a toy of a second each method forgets less than plain fine-tuning does, where it can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import holdfast.methods
from holdfast.methods import cumulative, finetune, joint
from holdfast.metrics import accuracy_matrix, average_accuracy, forgetting_first
from holdfast.models import mlp
from holdfast.streams import permuted, split
from holdfast.streams.datasets import synthetic
from holdfast.training import Trainer


def _matrix(method: Any, paradigm: str) -> np.ndarray:
    data = synthetic(classes=6, features=8, samples=60, test_samples=30, spread=0.9, seed=0)
    made = permuted(data, experiences=3, seed=1) if paradigm == "domain" else split(data, experiences=3)
    model = mlp(input_shape=made.input_shape, classes=made.classes, hidden=[32], seed=0)
    lr = 0.05 if paradigm == "domain" else 0.1
    trainer = Trainer(method, optimizer={"name": "SGD", "lr": lr}, batch_size=10, epochs=4, seed=0)
    return accuracy_matrix(trainer.fit(model, made))


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    return {paradigm: _matrix(finetune(), paradigm) for paradigm in ("class", "domain")}


@pytest.mark.parametrize(
    ("name", "paradigm", "settings"),
    [
        ("er", "class", {}),
        ("der", "class", {"alpha": 1.0}),
        ("der_plus_plus", "class", {}),
        ("agem", "class", {}),
        ("er", "domain", {}),
        ("ewc", "domain", {"strength": 5.0}),
        ("ewc", "domain", {"strength": 5.0, "fisher": "exact"}),
        ("ewc", "domain", {"strength": 20.0, "fisher": "empirical"}),
        ("ewc_online", "domain", {"strength": 5.0}),
        ("si", "domain", {"strength": 0.3}),
        ("lwf", "domain", {}),
    ],
)
def test_a_method_that_claims_retention_forgets_less_and_knows_more_in_the_end(
    plain: dict[str, np.ndarray], name: str, paradigm: str, settings: Any
) -> None:
    matrix = _matrix(getattr(holdfast.methods, name)(**settings), paradigm)
    assert forgetting_first(matrix) < 0.7 * forgetting_first(plain[paradigm])
    assert average_accuracy(matrix) > average_accuracy(plain[paradigm]) + 0.04


@pytest.mark.parametrize("paradigm", ["class", "domain"])
def test_fine_tuning_forgets_and_joint_training_is_the_upper_end(plain: dict[str, np.ndarray], paradigm: str) -> None:
    ends = {method.name: _matrix(method, paradigm) for method in (joint(), cumulative())}
    assert forgetting_first(plain[paradigm]) > 0.3
    assert forgetting_first(ends["joint"]) == 0.0
    for matrix in ends.values():
        assert average_accuracy(matrix) > average_accuracy(plain[paradigm]) + 0.1


def test_an_ewc_without_strength_is_plain_fine_tuning(plain: dict[str, np.ndarray]) -> None:
    matrix = _matrix(holdfast.methods.ewc(strength=0.0), "domain")
    np.testing.assert_array_equal(matrix, plain["domain"])
