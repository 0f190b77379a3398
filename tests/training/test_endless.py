"""The endless loop is the trainer's session: checkpoints, schedulers, accumulation, limits, and what it measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast import Continual, Every, methods
from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError, Interrupted, UsageError
from holdfast.core.source import Arrays
from holdfast.core.step import Step
from holdfast.training.endless import StreamTrainer

SGD = {"name": "SGD", "lr": 0.1, "momentum": 0.9}


def data(rows: int = 240) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def source(batch_size: int = 8) -> Arrays:
    return Arrays(*data(), batch_size=batch_size)


def net(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Dropout(dropout), nn.Linear(9, 4))


class Keep:
    """Checkpoints that keep the state after so many looks, as it would come back from disk."""

    def __init__(self, toy: Any, at: int) -> None:
        self.toy, self.at, self.looks, self.kept = toy, at, 0, None

    def due(self, seconds: float, steps: int) -> bool:
        self.looks += 1
        return self.looks == self.at

    def save(self, state: dict[str, Any]) -> None:
        self.kept = self.toy.through_disk(state)


class Surprise(Boundary):
    """A detector: an experience begins where the loss jumps."""

    keeps = ("average",)

    def __init__(self, factor: float = 1.05) -> None:
        self.factor = factor
        self.average: float | None = None

    def crossed(self, step: Step) -> bool:
        loss = float(step.loss.detach())
        crossed = self.average is not None and loss > self.factor * self.average
        self.average = loss if crossed or self.average is None else 0.9 * self.average + 0.1 * loss
        return crossed


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 3},
    "scheduled": {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)},
    "clipped": {"clip_norm": 0.1},
    "with boundaries": {"boundary": lambda: Every(steps=7, window=20), "method": lambda: methods.ewc(strength=1.0)},
    "with a detector": {"boundary": Surprise, "method": methods.si},
    "with dropout": {"dropout": 0.5},
    "in double precision": {"precision": "64-true"},
}


def trainer(way: dict[str, Any], **other: Any) -> StreamTrainer:
    way = dict(way)
    make, boundary, dropout = way.pop("method", methods.er), way.pop("boundary", lambda: None), way.pop("dropout", 0.0)
    return StreamTrainer(net(dropout), make(), optimizer=SGD, boundary=boundary(), seed=5, **way, **other)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("at", [1, 6])
def test_resumed_from_a_checkpoint_it_ends_with_equal_weights_and_the_same_log(toy: Any, way: Any, at: int) -> None:
    events: tuple[list[Any], list[Any]] = ([], [])
    keep = Keep(toy, at)
    whole = trainer(way, checkpoints=keep, record=events[0].append, log_every=1)
    assert whole.train(source()) == 30
    rest = trainer(way, record=events[1].append, log_every=1)
    assert rest.train(source(), resume=keep.kept) == 30 - keep.kept["position"]["step"]
    assert equal(whole.model, rest.model)
    assert whole.accuracy == rest.accuracy
    assert events[0][-len(events[1]) :] == events[1]
    assert {"lr", "experience", "accuracy", "loss"} <= set(
        next(event for event in events[1] if event["event"] == "train")
    )


def test_a_source_that_cannot_go_back_goes_on_with_what_arrives_and_the_gap_is_recorded(toy: Any) -> None:
    keep, events = Keep(toy, 5), []

    def arriving() -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((batch.inputs, batch.targets) for batch in source().batches())  # type: ignore[misc]

    trainer({}, checkpoints=keep).train(arriving())
    rest = trainer({}, record=events.append)
    with pytest.warns(UserWarning, match="cannot go back .*5 batches on"):
        assert rest.train(arriving(), resume=keep.kept) == 30
    assert [event["batches"] for event in events if event["event"] == "gap"] == [5]
    assert rest.steps == 35


def test_accumulated_batches_are_one_step_as_in_a_loop_of_ones_own() -> None:
    way = trainer({"accumulate": 3, "method": methods.er})
    assert way.train(source(), steps=8) == 8
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cl = Continual(model, methods.er(), optimizer, accumulate=3, seed=5)
    for number, batch in enumerate(source().batches()):
        if number == 8:
            break
        cl.backward(nn.functional.cross_entropy(model(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
        if number % 3 == 2 or number == 7:
            optimizer.step()
            optimizer.zero_grad()
    assert equal(way.model, model)
    assert way.engine.index == cl.engine.index == 3
    assert way.steps == 8


def test_steps_one_at_a_time_are_those_of_one_call() -> None:
    for way in ({}, {"accumulate": 2}, {"dropout": 0.5}):
        one, other = trainer(way), trainer(way)
        one.train(source(), steps=10)
        for number, batch in enumerate(source().batches()):
            if number < 10:
                assert other.step(batch).shape == (8, 4)
        assert equal(one.model, other.model)
        assert one.samples == other.samples == 80
        assert one.accuracy == other.accuracy


def test_two_calls_go_on_where_the_first_ended(toy: Any) -> None:
    one, other = trainer({"dropout": 0.5}), trainer({"dropout": 0.5})
    one.train(source())
    half = source()
    assert other.train(half, steps=13) + other.train(half) == 30
    assert equal(one.model, other.model)


def test_random_numbers_are_the_trainings_own_and_leave_the_global_ones_alone() -> None:
    before = torch.get_rng_state()
    nets = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            way = trainer({"dropout": 0.5})
            way.train(source())
            nets.append(way.model)
    assert equal(*nets)
    assert torch.equal(before, torch.get_rng_state())


def test_out_of_time_no_further_step_is_made_and_a_later_call_may_go_on() -> None:
    way = trainer({}, max_seconds=1e-9)
    assert way.train(source()) == 1
    way.session.settings.max_seconds = None
    assert way.train(source()) == 30


def test_told_to_stop_it_saves_and_stops(toy: Any) -> None:
    keep = Keep(toy, 10**9)
    way = trainer({}, checkpoints=keep, log_every=1)
    way.session.records.record = lambda event: setattr(way, "stop", event["step"] == 4)
    with pytest.raises(Interrupted, match="saved"):
        way.train(source())
    assert keep.kept["position"]["step"] == 4
    assert keep.kept["position"]["source"] == {"batches": 4}


def test_a_scheduler_moves_at_every_step_and_its_rate_is_in_the_log() -> None:
    events: list[dict[str, Any]] = []
    halving = WAYS["scheduled"]["scheduler"]
    trainer({"scheduler": halving}, record=events.append, log_every=2).train(source(), steps=8)
    assert [event["lr"] for event in events] == pytest.approx([0.1, 0.05, 0.05, 0.025])


def test_a_detector_says_where_experiences_begin_and_the_log_counts_them() -> None:
    events: list[dict[str, Any]] = []
    way = trainer({"method": methods.si, "boundary": Surprise}, record=events.append, log_every=1)
    way.train(source())
    assert way.learner.experience > 0
    assert [event["experience"] for event in events][-1] == way.learner.experience


def test_a_detector_that_a_checkpoint_would_forget_is_refused_before_the_first_step(toy: Any) -> None:
    class Forgetful(Surprise):
        keeps = ()

    with pytest.raises(ConfigError, match=r"'average' that a checkpoint would lose. Write keeps = \('average',\)"):
        trainer({"method": methods.si, "boundary": Forgetful}, checkpoints=Keep(toy, 1))


def test_accuracy_counts_every_sample_before_it_is_trained_on() -> None:
    way, right, seen = trainer({"method": methods.finetune}, log_every=7), 0, 0
    for number, batch in enumerate(source().batches()):
        if number < 12:
            right += int((way.step(batch).argmax(1) == batch.targets).sum())
            seen += len(batch.targets)
    assert way.accuracy == right / seen


def test_errors_of_a_source_pass_through_and_what_was_learned_stays() -> None:
    def broken() -> Iterator[Any]:
        yield from ((batch.inputs, batch.targets) for batch in source().batches())
        raise OSError("the line is dead")

    way = trainer({})
    with pytest.raises(OSError, match="dead"):
        way.train(broken())
    assert way.steps == 30


def test_batches_that_cannot_be_right_are_refused() -> None:
    x, y = data(8)
    for pair, says in [((x, y[:3]), "for 8 inputs"), ((x, y.int()), "int64")]:
        with pytest.raises(UsageError, match=says):
            trainer({}).train([pair])


def test_a_state_of_the_first_release_is_loaded(toy: Any) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cl = Continual(model, methods.er(), optimizer, seed=5)
    batches = [(batch.inputs, batch.targets) for batch in source().batches()]
    for x, y in batches[:10]:
        optimizer.zero_grad()
        cl.backward(nn.functional.cross_entropy(model(x), y), y, inputs=x)
        optimizer.step()
    old = {
        "continual": cl.state_dict(),
        "optimizer": optimizer.state_dict(),
        "steps": 10,
        "samples": 80,
        "right": torch.tensor(40),
    }
    way = trainer({})
    way.load_state_dict(toy.through_disk(old))
    assert (way.steps, way.samples, way.accuracy) == (10, 80, 0.5)
    way.train(batches[10:])
    whole = trainer({})
    whole.train(batches)
    assert equal(way.model, whole.model)


def test_the_name_of_before_says_what_to_write() -> None:
    way = trainer({})
    with pytest.warns(DeprecationWarning, match=r"trainer\.predict"):
        assert way.cl.learner is way.learner
