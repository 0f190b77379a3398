"""Duplicated backbones: what is frozen, what is read, and what a teacher sees of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.operations import Distillation, DuplicateBackbone, PooledDistillation, UnitAttention


def begun(few: Any, *others: Any, experiences: int = 3, head: str = "fixed", copies: int = 4) -> Any:
    """An engine in its last experience, after a step in each."""
    engine = few.bind(DuplicateBackbone(copies=copies), *others, model=few.net(head))
    for index in range(experiences):
        x, y = few.points(6, seed=index)
        engine.begin(few.experience(x, y, index=index))
        few.step(engine, x, y, lr=0.3)
        with torch.no_grad():
            engine.method.operations[0].mix += 0.05  # as if the maps had learned more
        if index < experiences - 1:
            engine.end(few.experience(x, y, index=index))
    return engine


@pytest.mark.parametrize("head", ["fixed", "cosine"])
def test_the_head_reads_the_first_copy_and_the_others_through_their_maps(few: Any, head: str) -> None:
    engine = begun(few, head=head)
    model, (operation,) = engine.learner.model, engine.method.operations
    x, _ = few.points(5, seed=7)
    first, second = model.backbone.frozen
    h = first(x)
    for place, part in enumerate([second, model.backbone.live]):
        features = part(x)
        for row in range(5):
            for unit in range(5):
                h[row, unit] += sum(operation.mix[place, unit, j] * features[row, j] for j in range(5))
    torch.testing.assert_close(model(x), model.head(h))


def test_a_new_copy_changes_no_output_before_it_learned_something(few: Any) -> None:
    engine = few.bind(DuplicateBackbone())
    x, y = few.points(6)
    engine.begin(few.experience(x, y))
    few.step(engine, x, y, lr=0.3)
    before = engine.learner.model(x)
    engine.end(few.experience(x, y))
    engine.begin(few.experience(x, y, index=1))
    assert torch.equal(engine.learner.model(x), before)
    few.step(engine, x, y, lr=0.3)
    assert not torch.equal(engine.learner.model(x), before)


def test_frozen_copies_never_move_and_have_the_values_that_the_backbone_had(few: Any) -> None:
    engine = begun(few, experiences=2)
    model = engine.learner.model
    kept = [p.clone() for p in model.backbone.frozen.parameters()]
    x, y = few.points(6, seed=5)
    for _ in range(3):
        few.step(engine, x, y, lr=0.5)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.backbone.frozen.parameters(), strict=True))
    live = dict(model.backbone.live.named_parameters())
    assert any(not torch.equal(p, live[name]) for name, p in model.backbone.frozen[0].named_parameters())
    names = set(engine.learner.named_parameters())
    assert not any(name.startswith("backbone.frozen") for name in names)


def test_copies_stay_in_eval_mode(few: Any) -> None:
    model = begun(few).learner.model
    model.train()
    assert not any(part.training for part in model.backbone.frozen.modules())
    assert model.backbone.live.training


def test_a_teacher_from_before_a_copy_was_made_has_its_own_copies_and_maps(few: Any) -> None:
    engine = begun(few, Distillation(), PooledDistillation())
    x, y = few.points(6, seed=9)
    engine.end(few.experience(x, y, index=2))
    taught = engine.learner.model.eval()(x).detach()
    snapshot = engine.learner.snapshot()
    engine.begin(few.experience(x, y, index=3))
    engine.learner.model.train()
    few.step(engine, x, y, lr=0.5)
    with torch.no_grad():
        engine.method.operations[0].mix += 0.1
    torch.testing.assert_close(engine.learner.forward_as(snapshot, x), taught)
    snapshot = dict(snapshot)  # as after loading a checkpoint
    torch.testing.assert_close(engine.learner.forward_as(snapshot, x), taught)


def test_the_state_of_a_model_with_copies_loads_into_one_without(few: Any) -> None:
    engine = begun(few)
    fresh = few.bind(DuplicateBackbone(copies=4))
    fresh.load(engine.state())
    x, _ = few.points(4, seed=3)
    assert torch.equal(fresh.learner.model(x), engine.learner.model(x))


def test_more_experiences_than_copies_are_refused(few: Any) -> None:
    engine = begun(few, experiences=2, copies=2)
    with pytest.raises(UsageError, match="copies=2"):
        engine.begin(few.experience(*few.points(4), index=2))


def test_models_and_methods_that_it_cannot_copy_are_refused(few: Any) -> None:
    with pytest.raises(ConfigError, match="made otherwise"):
        few.bind(DuplicateBackbone(), model=nn.Sequential(nn.Linear(4, 3)))
    gated = few.bind(DuplicateBackbone(), UnitAttention(), model=few.net("task"))
    with pytest.raises(ConfigError, match="Keep one of the two"):
        gated.begin(few.experience(*few.points(4), task=0))
    with pytest.raises(ConfigError, match="copies=0"):
        DuplicateBackbone(copies=0)
