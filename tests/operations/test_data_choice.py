"""Joint and cumulative training: which samples an experience is trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.operations import CumulativeData, JointData


def _seen(engine: Engine, experience: Any) -> list[tuple[float, ...]]:
    opened, _ = engine.begin(experience)
    engine.end(opened)
    return sorted(tuple(row) for batch in opened.train for row in batch.inputs.tolist())


def _rows(experience: Any) -> list[tuple[float, ...]]:
    return [tuple(row) for batch in experience.train for row in batch.inputs.tolist()]


@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_joint_training_sees_every_sample_of_the_stream_at_first_and_none_later(toy: Any, head: str) -> None:
    stream = toy.stream()
    engine = Engine(Method(JointData()), Learner(toy.model(stream, head)), NEEDS)
    assert _seen(engine, stream[0]) == sorted(row for experience in stream for row in _rows(experience))
    assert engine.learner.classes.all()
    assert _seen(engine, stream[1]) == []
    assert _seen(engine, stream[2]) == []


def test_cumulative_training_sees_all_so_far(toy: Any) -> None:
    stream = toy.stream()
    engine = Engine(Method(CumulativeData()), Learner(toy.model(stream)), NEEDS)
    for index in range(3):
        expected = sorted(row for experience in stream[: index + 1] for row in _rows(experience))
        assert _seen(engine, stream[index]) == expected


def test_the_streams_own_experiences_stay_as_they_are(toy: Any) -> None:
    stream = toy.stream()
    before = [len(experience.train) for experience in stream]
    toy.train(Method(CumulativeData()), toy.model(stream), stream)
    assert [len(experience.train) for experience in stream] == before
    assert [experience.classes for experience in stream] == [(0, 1), (2, 3), (4, 5)]


def test_the_number_of_steps_follows_the_data(toy: Any) -> None:
    stream = toy.stream(samples=8)  # 16 samples an experience, 4 steps
    steps = [
        toy.train(Method(*some), toy.model(stream), stream).engine.index
        for some in ([], [JointData()], [CumulativeData()])
    ]
    assert steps == [12, 12, 4 + 8 + 12]


@pytest.mark.parametrize("kind", [JointData, CumulativeData])
def test_an_experience_of_no_stream_is_refused(toy: Any, kind: Any) -> None:
    stream = toy.stream()
    alone = stream[0]
    alone.stream = None
    with pytest.raises(UsageError, match="no stream"):
        Engine(Method(kind()), Learner(toy.model(stream)), NEEDS).begin(alone)


def test_tasks_keep_their_labels_when_their_data_are_joined(toy: Any) -> None:
    stream = toy.stream("task")
    engine = Engine(Method(JointData()), Learner(toy.model(stream, "task")), NEEDS)
    opened, _ = engine.begin(stream[0])
    batch = opened.train.gather(torch.arange(len(opened.train)))
    assert torch.equal(batch.task, batch.targets // 2)
