"""Gradient based sample selection: scores by one gradient at a time, replacement by its probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast.core.errors import ConfigError
from holdfast.operations import FeatureDistillation, PooledDistillation, Remember, RememberDiverse
from holdfast.operations._parts.per_sample import PerSample
from holdfast.operations.remember_diverse import DiverseInsertion


def _gradients(model: Any, inputs: Any, targets: Any) -> list[torch.Tensor]:
    found = []
    for x, y in zip(inputs, targets, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        found.append(torch.cat([grad.flatten() for grad in grads]))
    return found


@pytest.mark.parametrize("head", ["fixed", "task"])
def test_the_gradient_of_each_row_is_that_of_its_own_loss(few: Any, head: str) -> None:
    model = few.net(head=head)
    engine = few.bind(RememberDiverse(capacity=4), model=model)
    inputs, targets = few.points(5)
    engine.begin(few.experience(inputs, targets, task=0 if head == "task" else None))
    found = PerSample(engine.learner).matrix(inputs, targets, engine.learner.task, F.cross_entropy)
    if head == "task":
        model.head.task = 0
    torch.testing.assert_close(found, torch.stack(_gradients(model, inputs, targets)))


def test_a_row_scores_one_more_than_its_greatest_cosine_with_the_samples_held(few: Any) -> None:
    engine = few.bind(RememberDiverse(capacity=9, compare=3))
    first, second = few.points(3, seed=1), few.points(4, seed=2)
    few.step(engine, *first)
    held = _gradients(engine.learner.model, *first)
    new = _gradients(engine.learner.model, *second)
    few.step(engine, *second)
    scores = engine.learner.memory.insertion.scores
    assert scores[:3] == [1.0, 1.0, 1.0]  # there was nothing to compare with
    for score, gradient in zip(scores[3:], new, strict=True):
        cosines = [float(gradient @ other / (gradient.norm() * other.norm())) for other in held]
        assert score == pytest.approx(1 + max(cosines), abs=1e-9)


def _replaced(score: float, held: list[float], trials: int = 4000) -> list[int]:
    """How often each slot is replaced by a row of this score."""
    generator = torch.Generator().manual_seed(0)
    counts = [0] * len(held)
    insertion = DiverseInsertion(generator)
    for _ in range(trials):
        insertion.scores = list(held)
        insertion.incoming = torch.tensor([score])
        placed = insertion.plan(1, len(held), len(held))
        if placed is not None:
            counts[placed.slots[0]] += 1
            assert insertion.scores[placed.slots[0]] == pytest.approx(score)
    return counts


def test_a_full_memory_gives_way_with_the_probabilities_of_the_paper() -> None:
    held, score, trials = [0.2, 0.5, 1.3], 0.4, 4000
    for slot, count in enumerate(_replaced(score, held, trials)):
        expected = held[slot] / sum(held) * held[slot] / (held[slot] + score)
        assert count / trials == pytest.approx(expected, abs=4 * (expected / trials) ** 0.5)


def test_a_row_like_those_held_never_replaces_one() -> None:
    assert _replaced(1.2, [0.2, 0.5, 1.3], 50) == [0, 0, 0]


def test_the_memory_fills_first_and_then_stays_at_its_size(few: Any) -> None:
    engine = few.bind(RememberDiverse(capacity=5, compare=1))
    for seed in range(12):
        few.step(engine, *few.points(3, seed=seed), lr=0.1)
    memory = engine.learner.memory
    assert len(memory) == 5
    assert memory.seen == 36
    assert len(memory.insertion.scores) == 5
    assert memory.arrivals.max() > 5  # something was replaced


def test_a_second_memory_and_senseless_numbers_are_refused(few: Any) -> None:
    with pytest.raises(ConfigError, match="both fill the memory"):
        few.bind(Remember(capacity=3), RememberDiverse(capacity=3))
    with pytest.raises(ConfigError, match="capacity=0"):
        RememberDiverse(capacity=0)
    with pytest.raises(ConfigError, match="compare=0"):
        RememberDiverse(capacity=3, compare=0)


@pytest.mark.parametrize("kind", ["frozen layer", "norm without statistics"])
def test_a_model_without_closed_form_scores_by_gradients_of_single_rows(few: Any, kind: str) -> None:
    """A layer that is partly frozen, or has no closed form, gets the same scores from `vmap`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = torch.nn.LayerNorm(5) if kind != "frozen layer" else torch.nn.Identity()
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), middle, torch.nn.ReLU(), torch.nn.Linear(5, 3))
    if kind == "frozen layer":
        model[0].bias.requires_grad_(False)
    engine = few.bind(RememberDiverse(capacity=9, compare=3), model=model)
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(3, 4, generator=generator), torch.tensor([0, 1, 2])
    second = torch.randn(4, 4, generator=generator), torch.tensor([0, 0, 1, 2])
    few.step(engine, *first)
    found = [[], []]
    for which, (inputs, targets) in enumerate((first, second)):
        for x, y in zip(inputs, targets, strict=True):
            trained = [p for p in model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), trained)
            found[which].append(torch.cat([grad.flatten() for grad in grads]))
    few.step(engine, *second)
    for score, gradient in zip(engine.learner.memory.insertion.scores[3:], found[1], strict=True):
        cosines = [float(gradient @ other / (gradient.norm() * other.norm())) for other in found[0]]
        assert score == pytest.approx(1 + max(cosines), abs=1e-5)


def test_scores_that_are_all_tiny_are_still_drawn_by_their_proportions() -> None:
    """Where proposals are hardly ever taken, the slot is drawn by adding up the scores."""
    held, trials = [1e-7, 3e-7], 2000
    counts = _replaced(1e-8, held, trials)
    for slot, count in enumerate(counts):
        expected = held[slot] / sum(held) * held[slot] / (held[slot] + 1e-8)
        assert count / trials == pytest.approx(expected, abs=4 * (expected / trials) ** 0.5)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("distillation", [PooledDistillation, FeatureDistillation])
def test_losses_on_features_look_past_the_forwards_of_gradients_per_sample(
    few: Any, distillation: Any, over: Any
) -> None:
    """Under vmap the model's hooks see tensors that have no storage, which are not those of a step."""
    engine = few.bind(distillation(), RememberDiverse(capacity=9, compare=3, over=over))
    for number in range(2):
        inputs, targets = few.points(6, seed=number)
        experience = few.experience(inputs, targets, index=number)
        engine.begin(experience)
        few.step(engine, inputs, targets)
        few.step(engine, inputs, targets)
        engine.end(experience)
    assert len(engine.learner.memory) == 9
