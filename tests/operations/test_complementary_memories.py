"""CLS-ER: averages, the choice between them and the loss, written out parameter by parameter and row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast.core.errors import ConfigError
from holdfast.operations import ComplementaryMemories, Remember


def _engine(few: Any, **arguments: Any) -> Any:
    model = arguments.pop("model", None)
    operation = ComplementaryMemories(**{"size": 6, "plastic_rate": 1.0, "stable_rate": 1.0, **arguments})
    return few.bind(operation, Remember(capacity=6), model=few.net() if model is None else model), operation


def test_each_average_follows_the_model_with_its_own_decay(few: Any) -> None:
    engine, operation = _engine(few, plastic_decay=0.3, stable_decay=0.8)
    expected: dict[str, dict[str, torch.Tensor]] = {}
    for number in range(7):
        few.step(engine, *few.points(4, seed=number), lr=0.3)
        now = {name: value.clone() for name, value in engine.learner.model.state_dict().items()}
        for which, limit in (("plastic", 0.3), ("stable", 0.8)):
            decay = min(1 - 1 / (number + 1), limit)
            held = expected.get(which)
            expected[which] = {
                name: value if held is None else decay * held[name] + (1 - decay) * value for name, value in now.items()
            }
    for which, values in expected.items():
        for name, value in values.items():
            torch.testing.assert_close(getattr(operation, which).values[name], value)
    assert not torch.allclose(operation.plastic.values["head.weight"], operation.stable.values["head.weight"])


def test_an_average_is_updated_as_often_as_its_rate_says(few: Any) -> None:
    engine, operation = _engine(few, plastic_decay=0.5, stable_decay=0.5, stable_rate=0.2)
    moved = 0
    for number in range(60):
        before = {name: value.clone() for name, value in operation.stable.state().items()}
        few.step(engine, *few.points(4, seed=number), lr=0.05)
        moved += bool(before) and not torch.equal(before["head.weight"], operation.stable.values["head.weight"])
    assert 4 <= moved <= 22  # 12 on average


def test_replay_is_held_to_the_average_that_gives_the_label_more(few: Any) -> None:
    engine, operation = _engine(few, plastic_decay=0.2, stable_decay=0.95, weight=0.7)
    learner = engine.learner
    old, new = few.points(6, seed=9), few.points(3, seed=1)
    for _ in range(8):
        few.step(engine, *old, lr=0.5)
    learner.memory.clear()
    learner.memory.add({"inputs": old[0], "targets": old[1]})
    plastic, stable = few.net(), few.net()
    plastic.load_state_dict(operation.plastic.values)
    stable.load_state_dict(operation.stable.values)
    chosen, which = [], []
    for x, y in zip(*old, strict=True):
        with torch.no_grad():
            fast, slow = plastic(x[None])[0], stable(x[None])[0]
        which.append(bool(fast.softmax(0)[y] > slow.softmax(0)[y]))
        chosen.append(fast if which[-1] else slow)
    assert any(which)

    def by_hand() -> torch.Tensor:
        model = learner.model
        labels = [F.cross_entropy(model(x[None]), y[None]) for pair in (new, old) for x, y in zip(*pair, strict=True)]
        squares = [(model(x[None])[0] - z).square().sum() / 3 for x, z in zip(old[0], chosen, strict=True)]
        return sum(labels) / 9 + 0.7 * sum(squares) / 6

    few.step(engine, *new)
    few.assert_gradient(learner, few.gradient_of(learner, by_hand))


def test_in_evaluation_the_stable_model_answers_unless_told_otherwise(few: Any) -> None:
    for stands in (True, False):
        engine, operation = _engine(few, stable_decay=0.9, predict_stable=stands)
        inputs, targets = few.points(5)
        with engine.evaluating(), torch.no_grad():
            assert torch.equal(engine.predict(inputs), engine.learner.model(inputs))  # nothing averaged yet
        for _ in range(5):
            few.step(engine, inputs, targets, lr=0.5)
        stable = few.net()
        stable.load_state_dict(operation.stable.values)
        with engine.evaluating(), torch.inference_mode():
            found = engine.predict(inputs)
        torch.testing.assert_close(found.clone(), (stable if stands else engine.learner.model)(inputs).detach())
        assert not torch.allclose(stable(inputs), engine.learner.model(inputs))
        few.step(engine, inputs, targets, lr=0.5)  # what was made in inference mode can still be written to


def test_when_the_head_grows_the_averages_keep_what_they_had_and_take_the_new_outputs(few: Any) -> None:
    engine, operation = _engine(few, model=few.net(head="growing", classes=4), stable_decay=0.9)
    first, second = few.points(6, classes=2), few.points(6, classes=2, first=2)
    opened, _ = engine.begin(few.experience(*first, 0))
    for _ in range(4):
        few.step(engine, *first, lr=0.3)
    engine.end(opened)
    before = operation.stable.values["head.weights.0"].clone()
    engine.begin(few.experience(*second, 1))
    few.step(engine, *second)
    torch.testing.assert_close(operation.stable.values["head.weights.0"], before)
    assert torch.equal(operation.stable.values["head.weights.1"], engine.learner.model.head.weights[1])


def test_senseless_numbers_are_refused() -> None:
    for wrong in ({"size": 0}, {"stable_decay": 1.0}, {"plastic_rate": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ComplementaryMemories(**wrong)
