"""Replay in its forms, against the formula written out sample by sample."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast.core.errors import ConfigError
from holdfast.core.step import Step
from holdfast.operations import JoinedReplay, LogitReplay, Remember, Replay
from holdfast.operations._parts.draws import mix


def _one_by_one(model: Any, inputs: Any, targets: Any) -> list[torch.Tensor]:
    return [F.cross_entropy(model(inputs[i : i + 1]), targets[i : i + 1]) for i in range(len(inputs))]


def _filled(few: Any, *operations: Any, rows: int = 5, size: int = 5) -> Any:
    """A bound method whose memory holds `rows` points, all of which every draw returns."""
    engine = few.bind(*operations, Remember(capacity=size))
    old = few.points(rows, seed=9)
    fields = {"inputs": old[0], "targets": old[1]}
    if "logits" in engine.learner.fields:
        fields["logits"] = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    engine.learner.memory.add(fields)
    return engine, fields


def test_joined_replay_is_one_mean_over_all_rows_each_counted_once(few: Any) -> None:
    engine, old = _filled(few, JoinedReplay(size=5))
    new = few.points(3)
    model = engine.learner.model

    def by_hand() -> torch.Tensor:
        losses = _one_by_one(model, *new) + _one_by_one(model, old["inputs"], old["targets"])
        return sum(losses) / 8

    few.step(engine, *new)
    few.assert_gradient(engine.learner, few.gradient_of(engine.learner, by_hand))


@pytest.mark.parametrize("kind", [Replay, JoinedReplay])
@pytest.mark.parametrize(("average", "expected"), [("none", (1.0, 0.7)), ("rows", (3 / 8, 5 / 8))])
def test_replay_weighs_old_against_new_as_it_says(few: Any, kind: Any, average: str, expected: Any) -> None:
    engine, old = _filled(few, kind(size=5, weight=0.7, average=average))
    new, model = few.points(3), engine.learner.model

    def by_hand() -> torch.Tensor:
        current = sum(_one_by_one(model, *new)) / 3
        replayed = sum(_one_by_one(model, old["inputs"], old["targets"])) / 5
        return expected[0] * current + expected[1] * replayed

    few.step(engine, *new)
    few.assert_gradient(engine.learner, few.gradient_of(engine.learner, by_hand))


@pytest.mark.parametrize("experiences", [1, 2, 4])
def test_averaged_over_experiences_the_current_one_counts_one_over_their_number(few: Any, experiences: int) -> None:
    engine, old = _filled(few, Replay(size=5, average="experiences"))
    new, model = few.points(3), engine.learner.model
    for index in range(experiences):
        engine.begin(few.experience(*new, index=index))

    def by_hand() -> torch.Tensor:
        share = 1 / experiences
        current = sum(_one_by_one(model, *new)) / 3
        replayed = sum(_one_by_one(model, old["inputs"], old["targets"])) / 5
        return share * current + (1 - share) * replayed

    few.step(engine, *new)
    few.assert_gradient(engine.learner, few.gradient_of(engine.learner, by_hand))


def test_two_averaging_operations_lower_the_current_loss_one_after_the_other(few: Any) -> None:
    engine = few.bind()
    x, y = few.points(2)
    step = Step(x, y, torch.zeros(()), weight=1.0)
    assert mix(torch.ones(()), step, engine.learner, "rows", 1.0, rows=2)[1] == 0.5
    assert step.weight == 0.5
    assert mix(torch.ones(()), step, engine.learner, "rows", 1.0, rows=6)[1] == 0.75
    assert step.weight == 0.125


def test_dark_replay_is_the_mean_squared_distance_to_stored_logits(few: Any) -> None:
    engine, old = _filled(few, LogitReplay(size=5, weight=0.3))
    new, model = few.points(3), engine.learner.model

    def by_hand() -> torch.Tensor:
        total = sum(_one_by_one(model, *new)) / 3
        for row in range(5):
            today = model(old["inputs"][row : row + 1])[0]
            for output in range(3):
                total = total + 0.3 * (today[output] - old["logits"][row, output]) ** 2 / 15
        return total

    few.step(engine, *new)
    few.assert_gradient(engine.learner, few.gradient_of(engine.learner, by_hand))


def test_dark_replay_leaves_out_outputs_that_did_not_exist_when_a_sample_came(few: Any) -> None:
    engine = few.bind(LogitReplay(size=4, weight=1.0), Remember(capacity=4), model=few.net("growing"))
    learner = engine.learner
    first, second = few.points(2, classes=2, seed=1), few.points(2, classes=2, seed=2, first=2)
    engine.begin(few.experience(*first))
    few.step(engine, *first, lr=0.1)
    engine.begin(few.experience(*second, index=1))
    few.step(engine, *second, lr=0.1)
    stored = learner.memory.all()
    assert stored["logits"].isnan().sum() == 2 * 2
    assert torch.equal(stored["logits"].isnan().any(1), torch.tensor([True, True, False, False]))
    third = few.points(3, classes=4, seed=3)

    def by_hand() -> torch.Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row in range(4):
            today = learner.model(stored["inputs"][row : row + 1])[0]
            for output in range(4):
                if not torch.isnan(stored["logits"][row, output]):
                    total, count = total + (today[output] - stored["logits"][row, output]) ** 2, count + 1
        return F.cross_entropy(learner.model(third[0]), third[1]) + total / count

    few.step(engine, *third)
    few.assert_gradient(learner, few.gradient_of(learner, by_hand))


def test_stored_logits_are_those_before_the_step_of_every_sample_of_the_batch(few: Any) -> None:
    engine = few.bind(LogitReplay(size=2), Remember(capacity=50))
    given = []
    for seed in range(4):
        x, y = few.points(6, seed=seed)
        given.append((x, y, engine.learner.model(x).detach().clone()))
        few.step(engine, x, y, lr=0.5)
    held = engine.learner.memory.all()
    assert torch.equal(held["inputs"], torch.cat([x for x, _, _ in given]))
    assert torch.equal(held["targets"], torch.cat([y for _, y, _ in given]))
    assert torch.equal(held["logits"], torch.cat([logits for _, _, logits in given]))


def test_nothing_is_replayed_in_the_step_it_arrives_in(few: Any) -> None:
    for operation in (Replay(size=4), JoinedReplay(size=4), LogitReplay(size=4)):
        engine, plain = few.bind(operation, Remember(capacity=8)), few.bind()
        x, y = few.points(4)
        few.step(engine, x, y)
        few.step(plain, x, y)
        for one, other in zip(engine.learner.parameters(), plain.learner.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
        assert len(engine.learner.memory) == 4


def test_a_draw_has_no_sample_twice_and_only_held_ones(few: Any) -> None:
    engine, old = _filled(few, Replay(size=3), rows=20, size=20)
    (replay, _) = engine.method.operations
    rows = {tuple(row.tolist()) for row in old["inputs"]}
    for _ in range(30):
        drawn = [tuple(row.tolist()) for row in engine.learner.memory.draw(3, replay.retrieval)["inputs"]]
        assert len(set(drawn)) == 3
        assert set(drawn) <= rows


def test_a_memory_smaller_than_the_draw_gives_all_it_has(few: Any) -> None:
    engine, old = _filled(few, Replay(size=50))
    (replay, _) = engine.method.operations
    drawn = engine.learner.memory.draw(50, replay.retrieval)
    assert sorted(drawn["inputs"][:, 0].tolist()) == sorted(old["inputs"][:, 0].tolist())


def test_replayed_rows_of_other_tasks_go_through_their_own_outputs(few: Any) -> None:
    engine = few.bind(Replay(size=4), Remember(capacity=4), model=few.net("task"))
    learner = engine.learner
    first, second = few.points(4, classes=2, seed=1), few.points(3, classes=2, seed=2, first=2)
    engine.begin(few.experience(*first, task=0))
    few.step(engine, *first, lr=0.1, task=0)
    engine.begin(few.experience(*second, index=1, task=1))

    def by_hand() -> torch.Tensor:
        def of_task(rows: Any, allowed: list[int]) -> torch.Tensor:
            learner.head.task = "all"
            losses = []
            for x, y in zip(*rows, strict=True):
                outputs = learner.model(x.unsqueeze(0))[0, allowed]
                losses.append(F.cross_entropy(outputs.unsqueeze(0), torch.tensor([allowed.index(int(y))])))
            return sum(losses) / len(losses)

        return of_task(second, [2, 3]) + of_task(first, [0, 1])

    expected = few.gradient_of(learner, by_hand)
    few.step(engine, *second, task=1)
    few.assert_gradient(learner, expected)


def test_joined_rows_share_batch_statistics_and_separate_ones_do_not(few: Any) -> None:
    start = few.net(batch_norm=True)
    old, new = few.points(5, seed=9), few.points(3)
    for kind, groups in ((Replay, [new[0], old[0]]), (JoinedReplay, [torch.cat([new[0], old[0]])])):
        engine = few.bind(kind(size=5), Remember(capacity=5), model=copy.deepcopy(start))
        engine.learner.memory.add({"inputs": old[0], "targets": old[1]})
        norm, layer = engine.learner.model.backbone[1], engine.learner.model.backbone[0]
        mean = norm.running_mean.clone()
        for rows in groups:
            mean = 0.9 * mean + 0.1 * layer(rows).mean(0)
        few.step(engine, *new)
        torch.testing.assert_close(norm.running_mean, mean.detach())


def test_inputs_are_remembered_raw(few: Any) -> None:
    model = few.net()
    engine = few.bind(Remember(capacity=9), model=model, prepare=lambda x, training, generator: x.double() / 255)
    x = torch.randint(256, (6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    few.step(engine, x, torch.zeros(6, dtype=torch.int64))
    held = engine.learner.memory.all()["inputs"]
    assert held.dtype == torch.uint8
    assert torch.equal(held, x)


@pytest.mark.parametrize("given", [{}, {"capacity": 3, "bytes": 4}, {"capacity": 0}, {"capacity": 2, "policy": "best"}])
def test_a_memory_of_no_clear_size_or_policy_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="`remember`"):
        Remember(**given)


@pytest.mark.parametrize("kind", [Replay, JoinedReplay, LogitReplay])
def test_a_draw_of_nothing_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="size=0"):
        kind(size=0)
