"""What may differ from one experience to the next: lengths, batches, optimisers, schedulers, augmentation."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
import torch

from holdfast.core.errors import ConfigError, Interrupted
from holdfast.methods import er, finetune
from holdfast.models import mlp
from holdfast.streams import split
from holdfast.streams.datasets import digits
from holdfast.training import Trainer
from holdfast.training.loop import Loop
from holdfast.training.settings import by_experience
from holdfast.training.state import Saver
from holdfast.training.trainer import open_experience

SGD = {"name": "SGD", "lr": 0.1, "momentum": 0.5}
ADAM = {"name": "Adam", "lr": 0.02}


def halving(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.StepLR:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def fitted(toy: Any, per_experience: Any, **other: Any) -> Trainer:
    stream = toy.stream()
    return toy.train(er(capacity=10, size=4), toy.model(stream), stream, per_experience=per_experience, **other)


def steps(trainer: Trainer) -> list[int]:
    return [event["steps"] for event in trainer.events if event["event"] == "experience"]


def rates(trainer: Trainer, experience: int) -> list[float]:
    return [e["lr"] for e in trainer.events if e["event"] == "train" and e["experience"] == experience]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({0: {"epochs": 3}}, [15, 5, 5]),
        ({"0": {"epochs": 3}, "1-": {"batch_size": 6}}, [15, 3, 3]),
        ([None, {"iterations": 7}, {"limit_train_batches": 2}], [5, 7, 2]),
        ({"1-2": {"drop_last": True}, 2: {"epochs": 2}}, [5, 4, 8]),
    ],
)
def test_an_experience_has_the_length_that_is_said_for_it(changes: Any, expected: list[int], toy: Any) -> None:
    assert steps(fitted(toy, changes)) == expected  # 18 samples each, batches of 4


def test_epochs_of_one_experience_win_over_iterations_of_all(toy: Any) -> None:
    assert steps(fitted(toy, {1: {"epochs": 2}}, iterations=3)) == [3, 10, 3]


def test_each_experience_has_its_own_optimiser_and_learning_rate(toy: Any) -> None:
    seen: list[Any] = []
    changes = {1: {"optimizer": ADAM}, 2: {"optimizer": {"name": "SGD", "lr": 0.3}}}

    def record(event: dict[str, Any]) -> None:
        if event["event"] == "train":
            optimizer = trainer.optimization.optimizer
            seen.append((type(optimizer), event["lr"], optimizer))

    stream = toy.stream()
    trainer = Trainer(finetune(), optimizer=SGD, per_experience=changes, evaluate="none", record=record)
    trainer.fit(toy.model(stream), stream)
    assert [kind.__name__ for kind, *_ in seen] == ["SGD", "Adam", "SGD"]
    assert [lr for _, lr, _ in seen] == [0.1, 0.02, 0.3]


def test_where_the_optimiser_stays_the_same_so_does_its_momentum(toy: Any) -> None:
    def momentum(changes: Any, **other: Any) -> bool:
        stream, kept = toy.stream(), []
        trainer = Trainer(finetune(), optimizer=SGD, per_experience=changes, evaluate="none", **other)
        trainer.bind(toy.model(stream), stream)
        loop = Loop(trainer.session, Saver(trainer.session))
        for index in range(2):
            loop.train(open_experience(trainer.session, index))
            kept.append(trainer.optimization.optimizer)
        return kept[0] is kept[1]

    assert momentum({1: {"epochs": 2}})
    assert not momentum({1: {"optimizer": SGD}})
    assert not momentum({1: {"reset_optimizer": True}})
    assert not momentum(None, reset_optimizer=True)


def test_a_scheduler_of_one_experience_is_gone_in_the_next(toy: Any) -> None:
    trainer = fitted(toy, {1: {"scheduler": halving, "epochs": 3}}, optimizer=SGD, log_every=5)
    assert [rates(trainer, index) for index in range(3)] == [[0.1], [0.1, 0.05, 0.025], [0.1]]
    trainer = fitted(toy, {1: {"scheduler": None}}, optimizer=SGD, scheduler=halving, epochs=2, log_every=5)
    assert [rates(trainer, index) for index in range(3)] == [[0.1, 0.05], [0.1, 0.1], [0.1, 0.05]]


def test_images_are_flipped_only_in_the_experience_that_says_so() -> None:
    stream = split(digits(), experiences=3)
    flips: list[bool] = []
    model = mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[4], seed=0)
    changes = {1: {"augment": {"flip": True}}}
    trainer = Trainer(finetune(), per_experience=changes, iterations=1, evaluate="none")
    trainer.bind(model, stream)
    for index in range(3):
        experience = open_experience(trainer.session, index)
        images = experience.train.gather(torch.arange(20)).inputs
        prepare, generator = trainer.learner.prepare, torch.Generator().manual_seed(0)
        assert prepare is not None
        flips.append(not torch.equal(prepare(images, True, generator), prepare(images, False, None)))
    assert flips == [False, True, False]


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_resumed_run_has_the_settings_of_the_experience_it_stopped_in(every: int, toy: Any) -> None:
    changes = {
        0: {"batch_size": 6},
        1: {"optimizer": ADAM, "scheduler": halving, "epochs": 3},
        2: {"accumulate": 2, "clip_norm": 0.2, "epochs": 2},
    }
    whole = fitted(toy, changes, optimizer=SGD, scheduler=functools.partial(halving))
    for stop_after in range(1, 5):
        resumed = _resumed(toy, changes, every, stop_after)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value)


def _resumed(toy: Any, changes: Any, every: int, count: int) -> Trainer:
    class Keep:
        def __init__(self) -> None:
            self.saved: list[io.BytesIO] = []

        def due(self, seconds: float, steps: int) -> bool:
            return steps >= every

        def save(self, state: dict[str, Any]) -> None:
            self.saved.append(io.BytesIO())
            torch.save(state, self.saved[-1])
            trainer.stop = len(self.saved) == count

    keep = Keep()
    stream = toy.stream()
    settings = {"optimizer": SGD, "scheduler": functools.partial(halving), "batch_size": 4, "evaluate": "none"}
    trainer = Trainer(er(capacity=10, size=4), per_experience=changes, seed=3, checkpoints=keep, **settings)
    with pytest.raises(Interrupted):
        trainer.fit(toy.model(stream), stream)
    state = torch.load(io.BytesIO(keep.saved[-1].getvalue()), weights_only=True)
    return fitted(toy, changes, optimizer=SGD, scheduler=functools.partial(halving), resume=state)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({3: {"epochs": 2}}, "there is no experience 3. The stream has 3, counted from 0 to 2"),
        ({"1-5": {"epochs": 2}}, "no experience 5"),
        ([{"epochs": 2}], "lists 1 experiences, and the stream has 3"),
        ({"first": {"epochs": 2}}, "names no experiences"),
        ({"2-1": {"epochs": 2}}, "names no experiences"),
        ({0: {"epoch": 2}}, "did you mean 'epochs'"),
        ({0: {"epochs": 0}}, "epochs=0"),
        ({0: {"optimizer": "Adamm"}}, "did you mean 'Adam'"),
        ({0: {"augment": {"flap": True}}}, "did you mean 'flip'"),
        ({0: {"clip_by": "size"}}, "Choose norm or value"),
    ],
)
def test_changes_that_cannot_be_are_refused_before_training(changes: Any, says: str, toy: Any) -> None:
    with pytest.raises(ConfigError, match=says):
        fitted(toy, changes)


def test_the_later_of_two_keys_wins_for_what_both_say() -> None:
    given = {"0-": {"epochs": 2, "batch_size": 8}, "1": {"epochs": 5}}
    assert by_experience(given, 2) == {0: {"epochs": 2, "batch_size": 8}, 1: {"epochs": 5, "batch_size": 8}}


@pytest.mark.parametrize("schedule", [None, halving])
def test_groups_of_an_optimisers_own_keep_their_rates_and_what_grows_makes_one_more(toy: Any, schedule: Any) -> None:
    rates: list[list[float]] = []
    made: list[torch.optim.Optimizer] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        biases = {"params": [p for p in parameters if p.ndim == 1], "lr": 0.3, "momentum": 0.0}
        made.append(torch.optim.SGD([{"params": [p for p in parameters if p.ndim > 1]}, biases], lr=0.02, momentum=0.9))
        return made[-1]

    def note(event: Any) -> None:
        rates.append([group["lr"] for group in made[-1].param_groups])

    keep, nets = toy.KeepAt(23), []
    for other in ({"checkpoints": keep, "record": note}, {"resume": lambda: keep.kept}):
        of = toy.stream("class")
        nets.append(toy.model(of, "growing"))
        given = {key: value() if key == "resume" else value for key, value in other.items()}
        toy.train(er(20, 4), nets[-1], of, optimizer=make, scheduler=schedule, epochs=2, **given)
    assert len(toy.stream("class")) > 2
    assert len(made[0].param_groups) == len(made[-1].param_groups) == 3
    assert {tuple(now[:2]) for now in rates} == ({(0.02, 0.3)} if schedule is None else {(0.02, 0.3), (0.005, 0.075)})
    assert toy.equal(*nets)


GROUPED = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adamax", "ASGD")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "foreach") for name in GROUPED] + [(name, "fused") for name in ("SGD", "Adam", "AdamW", "Adagrad")],
)
def test_every_optimiser_moves_a_head_that_grows_at_each_experience(toy: Any, name: str, kind: str) -> None:
    spec = {"name": name, "lr": 0.01, kind: True, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})}
    stream = toy.stream("class")
    net = toy.model(stream, "growing")
    toy.train(er(20, 4), net, stream, optimizer=spec)
    assert len(net.head.weights) == len(stream) > 2
