"""Classifiers by statistics of features, sensitivity and cross-entropy: their formulas by explicit loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.operations import (
    CrossEntropy,
    Mahalanobis,
    NearestClassMean,
    RandomProjection,
    Remember,
    SensitivityPenalty,
)

Rows = list[list[float]]


def rows_of(seed: int, rows: int = 12, features: int = 3, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, features, generator=generator, dtype=torch.float64) * 2 - 0.3
    return x, torch.arange(rows) % classes


def mean_of(rows: Rows) -> list[float]:
    return [sum(row[j] for row in rows) / len(rows) for j in range(len(rows[0]))]


def covariance_of(rows: Rows) -> list[list[float]]:
    mean, size = mean_of(rows), len(rows[0])
    return [
        [sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / (len(rows) - 1) for j in range(size)]
        for i in range(size)
    ]


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def correlation(covariance: list[list[float]], diagonal: float, off: float) -> list[list[float]]:
    size = len(covariance)
    v1 = sum(covariance[i][i] for i in range(size)) / size
    v2 = sum(covariance[i][j] for i in range(size) for j in range(size) if i != j) / (size * (size - 1))
    shrunk = [[covariance[i][j] + (diagonal * v1 if i == j else off * v2) for j in range(size)] for i in range(size)]
    return [[shrunk[i][j] / math.sqrt(shrunk[i][i] * shrunk[j][j]) for j in range(size)] for i in range(size)]


# Mahalanobis (FeCAM) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_mahalanobis_scores_are_the_distances_under_each_classs_own_correlation(power: float, common: bool) -> None:
    operation = Mahalanobis(power=power, diagonal=0.7, off_diagonal=0.4, common=common)
    x, y = rows_of(0)
    for part in torch.arange(12).split(5):  # whatever the batches
        operation.absorb(x[part], y[part], 3)
    query, _ = rows_of(1, rows=4)
    found = operation.scores(query)
    assert found is not None
    assert found[1].tolist() == [True] * 3

    def ladder(row: list[float]) -> list[float]:
        return [math.copysign(abs(value) ** power, value) for value in row]

    groups = [[ladder(row) for row, label in zip(x.tolist(), y.tolist()) if label == k] for k in range(3)]
    covariances = [covariance_of(group) for group in groups]
    if common:  # weighted by samples: the scatter of all classes over all rows but one a class
        scatter = [
            [sum(covariances[k][i][j] * (len(groups[k]) - 1) for k in range(3)) / (12 - 3) for j in range(3)]
            for i in range(3)
        ]
        covariances = [scatter] * 3
    for number, row in enumerate(query.tolist()):
        for k in range(3):
            difference = [a - b for a, b in zip(unit(ladder(row)), unit(mean_of(groups[k])))]
            inverse = torch.tensor(correlation(covariances[k], 0.7, 0.4), dtype=torch.float64).inverse().tolist()
            distance = sum(difference[i] * inverse[i][j] * difference[j] for i in range(3) for j in range(3))
            assert float(found[0][number, k]) == pytest.approx(-distance, rel=1e-6)


def test_classes_that_come_back_add_to_their_mean_and_covariance() -> None:
    x, y = rows_of(2)
    once, twice = Mahalanobis(), Mahalanobis()
    once.absorb(x, y, 3)
    first = y < 2
    for part in (first, ~first):
        twice.absorb(x[part][:3], y[part][:3], 3)
        twice.absorb(x[part][3:], y[part][3:], 3)
    query, _ = rows_of(3, rows=4)
    torch.testing.assert_close(once.scores(query)[0], twice.scores(query)[0])  # type: ignore[index]


@pytest.mark.parametrize("common", [False, True])
def test_scores_between_the_parts_change_nothing_and_a_loaded_state_is_used(common: bool) -> None:
    x, y = rows_of(2)
    query, _ = rows_of(3, rows=4)
    once, asked = Mahalanobis(common=common), Mahalanobis(common=common)
    once.absorb(x, y, 3)
    for part in torch.arange(12).split(4):
        asked.absorb(x[part], y[part], 3)
        asked.scores(query)
    expected = once.scores(query)[0]  # type: ignore[index]
    torch.testing.assert_close(asked.scores(query)[0], expected)  # type: ignore[index]
    other = Mahalanobis(common=common)
    other.absorb(*rows_of(9), 3)
    other.scores(query)
    other.load(once.save())
    torch.testing.assert_close(other.scores(query)[0], expected)  # type: ignore[index]


def test_a_class_without_rows_is_not_known() -> None:
    operation = Mahalanobis()
    x, y = rows_of(0)
    operation.absorb(x[y != 1], y[y != 1], 3)
    assert operation.scores(x)[1].tolist() == [True, False, True]  # type: ignore[index]


# Nearest class mean over a memory ------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_means_of_the_memory_are_taken_anew_with_the_features_of_now(few: Any, metric: Any) -> None:
    operation = NearestClassMean(metric=metric, source="memory")
    engine = few.bind(operation, Remember(capacity=9), model=few.net(classes=4))
    learner = engine.learner
    for index, first in enumerate((0, 2)):
        x, y = few.points(10, classes=2, seed=index, first=first)
        experience = few.experience(x, y, index)
        engine.begin(experience)
        few.step(engine, x, y, lr=0.3)
        engine.end(experience)
    held = learner.memory.all()
    learner.model.eval()
    query, _ = few.points(5, seed=7)
    found = engine.predict(query)
    with torch.no_grad():
        kept, wanted = (learner.features(rows).tolist() for rows in (held["inputs"], query))
    labels = held["targets"].tolist()
    for number, row in enumerate(wanted):
        for label in sorted(set(labels)):
            mean = mean_of([feature for feature, own in zip(kept, labels) if own == label])
            if metric == "cosine":
                expected = sum(a * b for a, b in zip(unit(row), unit(mean)))
            else:
                expected = -sum((a - b) ** 2 for a, b in zip(row, mean))
            assert float(found[number, label]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_means_of_a_memory_follow_the_network(few: Any) -> None:
    operation = NearestClassMean(source="memory")
    engine = few.bind(operation, Remember(capacity=10), model=few.net(classes=2))
    x, y = few.points(10, classes=2)
    experience = few.experience(x, y)
    engine.begin(experience)
    few.step(engine, x, y, lr=0.1)
    engine.end(experience)
    before = (operation.total / operation.counts[:, None]).clone()  # type: ignore[operator, index]
    with torch.no_grad():
        for parameter in engine.learner.parameters():
            parameter.add_(0.5)
    operation.end(experience, engine.learner)
    assert not torch.allclose(before, operation.total / operation.counts[:, None])  # type: ignore[operator, index]
    assert operation.counts.sum() == 10  # type: ignore[union-attr]


def test_means_of_a_memory_need_one(few: Any) -> None:
    with pytest.raises(ConfigError, match=r"Remember\(capacity"):
        few.bind(NearestClassMean(source="memory"))
    with pytest.raises(ConfigError, match="adapt"):
        NearestClassMean(source="memory", adapt=1)


# Random projection ---------------------------------------------------------------------------------------


def test_random_features_are_rectified_and_solved_by_ridge_regression() -> None:
    operation = RandomProjection(width=5, ridge=0.3)
    operation._generator = torch.Generator().manual_seed(4)
    x, y = rows_of(5)
    x = x.float()
    for part in torch.arange(12).split(7):
        operation.absorb(x[part], y[part], 3)
    operation.solve(None)  # type: ignore[arg-type]
    drawn = torch.randn(3, 5, generator=torch.Generator().manual_seed(4)).tolist()

    def hidden(row: list[float]) -> list[float]:
        return [max(0.0, sum(row[i] * drawn[i][j] for i in range(3))) for j in range(5)]

    h = [hidden(row) for row in x.tolist()]
    gram = [[sum(row[i] * row[j] for row in h) + (0.3 if i == j else 0.0) for j in range(5)] for i in range(5)]
    cross = [[sum(row[i] for row, k in zip(h, y.tolist()) if k == c) for c in range(3)] for i in range(5)]
    weight = (torch.tensor(gram, dtype=torch.float64).inverse() @ torch.tensor(cross, dtype=torch.float64)).tolist()
    query, _ = rows_of(6, rows=3)
    found = operation.scores(query.float())
    assert found is not None
    for number, row in enumerate(query.float().tolist()):
        for c in range(3):
            expected = sum(hidden(row)[i] * weight[i][c] for i in range(5))
            assert float(found[0][number, c]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


# Sensitivity ---------------------------------------------------------------------------------------------


def test_the_sensitivity_penalty_adds_up_each_experiences_importance_around_the_last_parameters(few: Any) -> None:
    engine = few.bind(SensitivityPenalty(strength=0.7, decay=0.5), model=few.net(classes=3))
    learner = engine.learner
    importance: dict[str, torch.Tensor] = {}
    for index in range(2):
        x, y = few.points(5, seed=index)
        experience = few.experience(x, y, index)
        engine.begin(experience)
        few.step(engine, x, y, lr=0.2)
        measured = {name: torch.zeros_like(p) for name, p in learner.named_parameters().items()}
        for row in range(5):
            gradient = few.gradient_of(learner, lambda row=row, x=x: learner(x[row : row + 1]).square().sum())
            for name in measured:
                measured[name] += gradient[name].abs() / 5
        importance = {name: 0.5 * importance.get(name, torch.zeros_like(v)) + v for name, v in measured.items()}
        engine.end(experience)
    anchor = {name: p.detach().clone() for name, p in learner.named_parameters().items()}
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.add_(0.1 * (number + 1))
    x, y = few.points(4, seed=9)
    engine.begin(few.experience(x, y, 2))
    few.step(engine, x, y)

    def by_hand() -> torch.Tensor:
        loss = nn.functional.cross_entropy(learner(x), y)
        for name, parameter in learner.named_parameters().items():
            loss = loss + 0.7 * (importance[name] * (parameter - anchor[name]).square()).sum()
        return loss

    few.assert_gradient(learner, few.gradient_of(learner, by_hand))


# Cross-entropy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_minus_the_mean_logarithm_under_smoothed_targets(smoothing: float) -> None:
    z, y = rows_of(8, rows=5, features=4, classes=4)
    found = CrossEntropy(label_smoothing=smoothing).measure(z, y)
    total = 0.0
    for row, label in zip(z.tolist(), y.tolist()):
        partition = sum(math.exp(value) for value in row)
        for k, value in enumerate(row):
            q = (1 - smoothing) * (k == label) + smoothing / 4
            total -= q * (value - math.log(partition))
    assert float(found) == pytest.approx(total / 5, rel=1e-9)
