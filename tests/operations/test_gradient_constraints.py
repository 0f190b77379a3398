"""Gradient episodic memory: its quadratic program against every active set, its constraints against their text."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast.core.errors import ConfigError
from holdfast.operations import GradientConstraints, Remember
from holdfast.operations._parts.quadratic import nonnegative_minimum
from holdfast.operations.gradient_constraints import constrain


def _random(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size + 1, generator=generator, dtype=torch.float64)
    return root @ root.T, torch.randn(size, generator=generator, dtype=torch.float64)


def _every_active_set(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The best of all stationary points with some coordinates held at zero and the others non-negative."""
    best, value = torch.zeros_like(vector), 0.0
    for held in itertools.product((False, True), repeat=len(vector)):
        free = torch.tensor([not h for h in held])
        point = torch.zeros_like(vector)
        if free.any():
            point[free] = torch.linalg.solve(matrix[free][:, free], -vector[free])
        found = float(point @ matrix @ point / 2 + vector @ point)
        if (point >= 0).all() and found < value:
            best, value = point, found
    return best


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_the_quadratic_program_has_the_minimum_that_trying_every_active_set_finds(size: int) -> None:
    for seed in range(20):
        matrix, vector = _random(size, seed)
        torch.testing.assert_close(nonnegative_minimum(matrix, vector), _every_active_set(matrix, vector))


def test_the_quadratic_program_is_solved_where_gradients_are_almost_parallel() -> None:
    direction = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.stack([direction * (1 + 1e-9 * k) for k in range(6)])
    matrix = rows @ rows.T + 1e-3 * torch.eye(6, dtype=torch.float64)
    vector = -torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(
        nonnegative_minimum(matrix, vector), _every_active_set(matrix, vector), rtol=1e-5, atol=1e-8
    )


def _vectors(count: int, seed: int = 0) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (5,))
    made = [
        [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(count + 1)
    ]
    return made[0], made[1:]


def _flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("seed", range(8))
def test_the_new_gradient_points_against_no_reference_and_none_that_does_is_nearer(seed: int) -> None:
    gradients, references = _vectors(4, seed)
    before = _flat(gradients).clone()
    constrain(gradients, references, margin=0.0)
    after = _flat(gradients)
    assert all(
        float(after @ _flat(reference)) > -0.02 for reference in references
    )  # 1e-3 on the diagonal gives way a little
    moved = float((after - before).norm())
    for _ in range(200):  # random feasible points, none of which may be nearer
        candidate = before + 3 * torch.randn_like(before)
        if all(float(candidate @ _flat(reference)) >= 0 for reference in references):
            assert float((candidate - before).norm()) > moved - 0.05


def test_a_gradient_that_violates_nothing_stays_bit_for_bit_even_with_a_margin() -> None:
    gradients, references = _vectors(3)
    agreeing = [
        [part * torch.sign(_flat(gradients) @ _flat(reference)) for part in reference] for reference in references
    ]
    before = [gradient.clone() for gradient in gradients]
    constrain(gradients, agreeing, margin=0.5)
    assert all(torch.equal(a, b) for a, b in zip(gradients, before, strict=True))


def test_with_a_margin_every_reference_is_added_at_least_so_often() -> None:
    gradients, references = _vectors(1)
    if float(_flat(gradients) @ _flat(references[0])) > 0:
        references[0] = [-part for part in references[0]]
    before, reference = _flat(gradients).clone(), _flat(references[0])
    constrain(gradients, references, margin=5.0)
    torch.testing.assert_close(_flat(gradients), before + 5.0 * reference)


def test_the_step_uses_the_whole_memory_of_each_past_experience_and_none_of_the_present_one(few: Any) -> None:
    engine = few.bind(GradientConstraints(per_experience=3, margin=0.0))
    learner = engine.learner
    data = [few.points(5, seed=k) for k in range(2)]
    data.append((data[0][0], (data[0][1] + 1) % 3))  # the third contradicts the first
    for index, (inputs, targets) in enumerate(data[:2]):
        opened, _ = engine.begin(few.experience(inputs, targets, index))
        few.step(engine, inputs, targets, lr=0.1)
        engine.end(opened)
    engine.begin(few.experience(*data[2], 2))
    few.step(engine, *data[1])  # now the present experience has samples too, which constrain nothing
    kept = [(inputs[-3:], targets[-3:]) for inputs, targets in data[:2]]
    references = [
        list(few.gradient_of(learner, lambda rows=rows: F.cross_entropy(learner.model(rows[0]), rows[1])).values())
        for rows in kept
    ]
    plain = few.gradient_of(learner, lambda: F.cross_entropy(learner.model(data[2][0]), data[2][1]))
    expected = [gradient.clone() for gradient in plain.values()]
    constrain(expected, references, 0.0)
    assert not all(torch.equal(a, b) for a, b in zip(expected, plain.values(), strict=True))
    few.step(engine, *data[2])
    few.assert_gradient(learner, dict(zip(plain, expected, strict=True)))
    assert len(learner.memory) == 9
    assert learner.memory.nbytes > 0


def test_a_second_memory_and_senseless_numbers_are_refused(few: Any) -> None:
    with pytest.raises(ConfigError, match="both fill the memory"):
        few.bind(Remember(capacity=3), GradientConstraints())
    with pytest.raises(ConfigError, match="margin=-1"):
        GradientConstraints(margin=-1)
    with pytest.raises(ConfigError, match="per_experience=0"):
        GradientConstraints(per_experience=0)
