"""What lies below a cut: frozen to the bit after the first experience, in eval mode, in whatever model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.body import Body
from holdfast.core.errors import ConfigError
from holdfast.core.method import Method
from holdfast.core.services import Services
from holdfast.models import cnn, mlp
from holdfast.models.hypernetwork import hypernetwork
from holdfast.operations.freeze_below import FreezeBelow
from holdfast.streams import split
from holdfast.streams.datasets import synthetic
from holdfast.training import Trainer

STREAM = {"experiences": 3, "paradigm": "task"}


def stream():
    return split(synthetic(classes=6, features=5, samples=20, test_samples=5, seed=1), **STREAM)


def conv(**more: Any) -> nn.Module:
    layers = {"input_shape": (1, 8, 8), "classes": 6, "channels": [3, 4], "hidden": [6], "batch_norm": True, "seed": 0}
    return cnn(**layers, **more)


def watched(method: Method, model: nn.Module, of: Any, part: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """The state of `part` after each experience."""
    states: list[dict[str, Any]] = []

    def record(event: dict[str, Any]) -> None:
        if event["event"] == "experience":
            states.append({name: value.clone() for name, value in part.state_dict().items()})

    Trainer(method, **{"batch_size": 5, "optimizer": "Adam", "record": record, "evaluate": "none", **settings}).fit(
        model, of
    )
    return states


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_stages_below_learn_from_so_many_experiences_and_are_bit_identical_after(after):
    model = mlp(input_shape=(5,), classes=6, hidden=[8, 7], batch_norm=True, head="task", seed=0)
    below, above = model.backbone[:3], model.backbone[3:]
    start = {name: value.clone() for name, value in below.state_dict().items()}
    states = [start, *watched(Method(FreezeBelow(cut=1, after=after)), model, stream(), below)]
    for number in range(3):
        assert same(states[number], states[number + 1]) == (number >= after), f"experience {number}"
    assert above[0].weight.requires_grad


def test_the_stem_of_a_hypernetwork_is_frozen_with_its_statistics_and_the_generator_learns_on():
    data = synthetic(classes=6, features=5, samples=20, seed=1)
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6))
    model = hypernetwork(input_shape=(5,), classes=6, backbone=net, cut=1, tasks=3, norm="none", seed=0)
    before = {name: value.clone() for name, value in model.generator.state_dict().items()}
    of = split(data, **STREAM)
    states = watched(Method(FreezeBelow()), model, of, model.below)
    assert same(states[0], states[1])
    assert same(states[1], states[2])
    assert not torch.equal(
        model.generator.layers[0].weight if False else model.generator.embeddings[2], before["embeddings.2"]
    )
    assert not model.below.training, "so that dropout below the cut drops nothing"


def test_frozen_stages_run_in_eval_mode_also_after_the_loop_says_train():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 6))
    inputs = torch.randn(40, 5)  # so many that two draws of a dropout cannot be alike
    operation = FreezeBelow(cut=1)
    Trainer(Method(operation), evaluate="none").fit(
        model, split(synthetic(classes=6, features=5, samples=9), experiences=2)
    )
    model.train()
    assert torch.equal(model(inputs), model(inputs))
    operation.begun = 1
    model.train()
    assert not torch.equal(model(inputs), model(inputs))


def test_a_resumed_run_goes_on_with_the_stages_frozen(toy: Any):
    of = stream()

    def net():
        return mlp(input_shape=(5,), classes=6, hidden=[8, 7], batch_norm=True, head="task", seed=0)

    keep = toy.KeepAt(20)
    whole, resumed = net(), net()
    toy.train(Method(FreezeBelow(cut=1)), whole, of, checkpoints=keep)
    toy.train(Method(FreezeBelow(cut=1)), resumed, of, resume=keep.kept)
    assert toy.equal(whole, resumed)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, "1", None])
def test_both_parts_one_after_the_other_are_the_model(cut):
    model = conv().eval()
    images = torch.rand(2, 1, 8, 8)
    body = Body(model)
    assert torch.equal(body.above(body.below(images, cut), cut), model(images))
    below = {id(p) for p in body.parameters_below(cut)}
    assert len(below) == {0: 0, 1: 4, 2: 8, 3: 10, "1": 4, None: 10}[cut]


def test_a_cut_that_a_model_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"cut is 4.*0 .*to 3 "):
        FreezeBelow(cut=4).setup(Services(conv()))
    with pytest.raises(ConfigError, match="a cut of its own"):
        FreezeBelow(cut=1).setup(Services(hypernetwork(input_shape=(5,), classes=2)))
    with pytest.raises(ConfigError, match="in which stages"):
        FreezeBelow().setup(Services(nn.Bilinear(2, 2, 2)))
    with pytest.raises(ConfigError, match="after=-1"):
        FreezeBelow(after=-1)
