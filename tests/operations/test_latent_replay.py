"""Latent replay: what is kept, what runs how often, and that latents stay what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.method import Method
from holdfast.models import cnn, mlp
from holdfast.models.hypernetwork import hypernetwork
from holdfast.operations import Remember, Replay
from holdfast.operations.latent_replay import LatentReplay, LatentRows
from holdfast.streams import split
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset, Prepare
from holdfast.streams.datasets import synthetic
from holdfast.training import Trainer


def vectors(paradigm: str = "task") -> Any:
    data = synthetic(classes=6, features=5, samples=30, test_samples=5, seed=1)
    return split(data, experiences=3, paradigm=paradigm)


def net(head: str = "task", **more: Any) -> nn.Module:
    return mlp(**{"input_shape": (5,), "classes": 6, "hidden": [8, 7], "head": head, "seed": 0, **more})


def fit(method: Method, model: nn.Module, of: Any, **settings: Any) -> Trainer:
    trainer = Trainer(
        method, **{"batch_size": 6, "optimizer": {"name": "SGD", "lr": 0.05}, "evaluate": "none", **settings}
    )
    trainer.fit(model, of)
    return trainer


def test_latents_of_the_cut_are_kept_and_no_inputs():
    model = net()
    trainer = fit(Method(LatentReplay(capacity=40, cut=1)), model, vectors())
    memory = trainer.learner.memory
    assert len(memory) == 40
    rows = memory.all()
    assert set(rows) == {"latents", "targets", "task"}
    assert rows["latents"].shape == (40, 8)
    bytes_of_a_row = 8 * 4 + 8 + 8 + 8  # latent, target, task, number of arrival
    assert memory.nbytes == 40 * bytes_of_a_row


def test_what_is_kept_is_still_what_the_frozen_stages_make_of_some_training_sample():
    model, of = net(), vectors()
    trainer = fit(Method(LatentReplay(capacity=40, cut=1)), model, of, epochs=2)
    every = torch.cat([e.train.gather(torch.arange(len(e.train))).inputs for e in of])
    targets = torch.cat([e.train.targets for e in of])
    latents = model.backbone[:2](every).detach()
    rows = trainer.learner.memory.all()
    for latent, target in zip(rows["latents"], rows["targets"], strict=True):
        nearest = (latents - latent).abs().sum(1).argmin()
        assert torch.allclose(latents[nearest], latent, atol=1e-6)
        assert targets[nearest] == target
    assert rows["task"].unique().tolist() == [0, 1, 2], "every experience has some in a reservoir of 40 of 180"


def test_the_loss_is_that_of_the_current_samples_plus_the_weighted_one_of_replayed_latents_through_the_upper_part(few):
    model = net("fixed", input_shape=(4,), classes=6, activation="tanh").double()
    operation = LatentReplay(capacity=8, cut=1, size=8, weight=0.5)
    engine = few.bind(operation, model=model)
    first = few.points(8, classes=3)
    engine.begin(few.experience(*first))
    engine.end(few.experience(*first))
    x, y = few.points(5, classes=3, seed=4, first=3)
    engine.begin(few.experience(x, y, index=1))
    rows = engine.learner.memory.all()
    assert rows["latents"].shape == (8, 8)

    def loss() -> torch.Tensor:
        above = model.head(torch.tanh(model.backbone[2](rows["latents"])))
        return F.cross_entropy(model(x), y) + 0.5 * F.cross_entropy(above, rows["targets"])

    expected = few.gradient_of(engine.learner, loss)
    assert not any(name.startswith("backbone.0") for name in expected), "the stage below is frozen"
    few.step(engine, x, y)
    few.assert_gradient(engine.learner, expected)


def test_the_frozen_part_runs_once_for_a_current_sample_and_never_for_a_replayed_one():
    model, of = net(), vectors()
    counts: dict[str, int] = {"below": 0, "above": 0}
    model.backbone[0].register_forward_hook(
        lambda _, arguments, out: counts.__setitem__("below", counts["below"] + len(out))
    )
    model.head.register_forward_hook(lambda _, arguments, out: counts.__setitem__("above", counts["above"] + len(out)))
    rows_of_steps = []

    def record(event: dict[str, Any]) -> None:
        if event["event"] == "experience":
            rows_of_steps.append(dict(counts))
            counts.update(below=0, above=0)

    fit(Method(LatentReplay(capacity=40, cut=1, size=6)), model, of, record=record, epochs=3)
    for experience in (1, 2):
        # three passes in training, and one when the experience ends, over 60 samples
        assert rows_of_steps[experience] == {"below": 4 * 60, "above": 2 * 3 * 60}


def test_dropout_and_batch_norm_below_the_cut_are_in_eval_mode_when_latents_are_made():
    below = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU()]
    model = nn.Sequential(*below, nn.Linear(8, 6))
    of = vectors("class")
    trainer = fit(Method(LatentReplay(capacity=200, cut=1)), model, of)
    every = torch.cat([e.train.gather(torch.arange(len(e.train))).inputs for e in of])
    latents = model[:4].eval()(every).detach()
    for latent in trainer.learner.memory.all()["latents"]:
        assert float((latents - latent).abs().sum(1).min()) < 1e-5


def test_stored_latents_are_of_samples_as_they_are_evaluated_and_augmentation_stays_before_the_cut():
    images = torch.randint(0, 255, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 6
    prepare = Prepare(crop=2, flip=True)
    data = Dataset("images", TensorData(images, labels), None, 6, (1, 8, 8), prepare=prepare)
    of = split(data, experiences=2, paradigm="class")
    model = cnn(input_shape=(1, 8, 8), classes=6, channels=[3], hidden=[6], seed=0)
    operation = LatentReplay(capacity=60, cut=1)
    trainer = fit(Method(operation), model, of, epochs=2)
    plain = model.backbone[:4](prepare(images, False, None)).detach()
    for latent in trainer.learner.memory.all()["latents"]:
        assert float((plain - latent).abs().sum(1).min()) < 1e-5


@pytest.mark.parametrize("policy", ["reservoir", "balanced_reservoir"])
def test_a_resumed_run_goes_on_to_equal_weights(policy, toy: Any):
    of, keep = vectors(), toy.KeepAt(24)
    whole, resumed = net(), net()

    def method() -> Method:
        return Method(LatentReplay(capacity=20, cut=1, size=5, policy=policy))

    toy.train(method(), whole, of, checkpoints=keep)
    toy.train(method(), resumed, of, resume=keep.kept)
    assert toy.equal(whole, resumed)


def test_a_partial_hypernetwork_replays_latents_at_its_own_cut():
    def model():
        backbone = net("fixed")
        return hypernetwork(input_shape=(5,), classes=6, backbone=backbone, cut=1, tasks=3, seed=0)

    accuracy = {}
    for name, method in (("replay", Method(LatentReplay(capacity=60, size=12))), ("none", Method())):
        trainer = Trainer(
            method, optimizer={"name": "Adam", "lr": 0.01}, batch_size=6, epochs=12, evaluate_before=False, seed=1
        )
        events = trainer.fit(model(), vectors())
        last = [e for e in events if e["event"] == "evaluate" and e["after"] == 2]
        accuracy[name] = sum(e["correct"] / e["samples"] for e in last) / 3
    assert accuracy["replay"] >= accuracy["none"]
    assert accuracy["replay"] > 0.9


def test_another_operation_cannot_draw_inputs_from_a_memory_of_latents():
    with pytest.raises(ConfigError, match=r"without inputs, and Replay\(size=4.*draws whole rows"):
        Method(LatentReplay(capacity=20, cut=1), Replay(size=4))
    with pytest.raises(UsageError, match="memory holds latents"):
        LatentRows(latents=torch.zeros(1, 2))["inputs"]
    with pytest.raises(ConfigError, match="both fill the memory"):
        fit(Method(Remember(capacity=20), LatentReplay(capacity=20, cut=1)), net(), vectors())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"size": 0}, "size=0"),
        ({"policy": "ring"}, "policy='ring'"),
        ({"after": 2}, "after=2. Choose 0 or 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        LatentReplay(**{"capacity": 10, **arguments})
