"""How models are described: the head that makes the outputs, and what runs below and above a cut."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, methods, models
from holdfast.core.body import Body, makers_of_outputs
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.learner import Learner
from holdfast.operations import FeatureDistillation

X = torch.linspace(-1, 1, 15).view(3, 5)


class Auxiliary(nn.Module):
    """Its last linear layer is one of a second task, which the outputs are not made of."""

    def __init__(self, calls: bool = True) -> None:
        super().__init__()
        self.calls = calls
        self.first = nn.Linear(5, 7)
        self.out = nn.Linear(7, 3)
        self.aux = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        self.side = self.aux(hidden) if self.calls else None
        return self.out(hidden)


class DefinedLast(nn.Module):
    """The layer that was defined last is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(7, 3)
        self.embed = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.classify(self.embed(x).relu()), dim=1)


class Summed(nn.Module):
    """Outputs are the sum of what two layers give: no one layer is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


class HeadIsNone(nn.Module):
    """What is called `head` is the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 7)
        self.tail = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(x).relu())


class Right(nn.Module):
    """The last linear layer makes the outputs, which are scaled and normalised afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 7), nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax((self.out(self.first(x).relu()) * self.scale).squeeze(-1), dim=1)


class Frozen(Right):
    """The same, of which nothing learns."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


WRONG = {
    "an auxiliary layer that is called": (Auxiliary, "'out'", "out"),
    "an auxiliary layer that is not called": (lambda: Auxiliary(calls=False), "'out'", "out"),
    "a layer defined last and called first": (DefinedLast, "'classify'", "classify"),
    "a sum of two layers": (Summed, "'one' and 'other'", "one"),
    "a first layer called head": (HeadIsNone, "'tail'", "tail"),
}


@pytest.mark.parametrize("case", WRONG)
def test_features_of_a_layer_that_does_not_make_the_outputs_are_refused(case: str) -> None:
    make, makers, path = WRONG[case]
    learner = Learner(make())
    with pytest.raises(UsageError, match=f"outputs are made by {makers}"):
        learner.services.features(X)
    named = Learner(make(), head=path)
    assert named.services.features(X).shape[0] == 3


@pytest.mark.parametrize("case", ["an auxiliary layer that is called", "a first layer called head"])
def test_an_operation_on_the_wrong_layer_is_refused_before_the_first_step(case: str, toy: Any) -> None:
    make, makers, path = WRONG[case]
    stream = toy.stream(experiences=1, classes=3)
    with pytest.raises(UsageError, match=makers):
        toy.train(methods.wa(capacity=10), make(), stream)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cl = Continual(net, methods.wa(capacity=10), optimizer)
    cl.begin(stream[0])
    inputs = torch.randn(4, 5)
    loss = F.cross_entropy(net(inputs), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(UsageError, match=makers):
        cl.backward(loss, torch.tensor([0, 1, 2, 0]), inputs=inputs)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net = make()
    cl = Continual(net, methods.wa(capacity=10), torch.optim.SGD(net.parameters(), lr=0.1), head=path)
    cl.begin(stream[0])
    cl.backward(F.cross_entropy(net(inputs), torch.tensor([0, 1, 2, 0])), torch.tensor([0, 1, 2, 0]), inputs=inputs)


@pytest.mark.parametrize("case", WRONG)
def test_a_method_that_does_not_ask_for_the_head_takes_any_model(case: str, toy: Any) -> None:
    toy.train(methods.er(capacity=10), WRONG[case][0](), toy.stream(experiences=1, classes=3))


@pytest.mark.parametrize("make", [Right, Frozen])
def test_a_guess_that_is_right_is_taken_and_features_are_what_enters_it(make: Any) -> None:
    learner = Learner(make())
    expected = learner.model.first(X).relu()
    assert torch.equal(learner.services.features(X), expected)


def test_the_guess_is_shown_once_where_something_relies_on_it(caplog: Any, toy: Any) -> None:
    stream = toy.stream(experiences=1, classes=3)
    with caplog.at_level(logging.INFO, "holdfast"):
        toy.train(methods.er(capacity=10), Right(), stream)
        assert not caplog.records
        toy.train(methods.wa(capacity=10), Right(), stream)
    assert [record.getMessage() for record in caplog.records] == [
        "the head of Right is taken to be its last linear layer, 'out'; model.head = 'path' names another"
    ]
    assert repr(Body(Right())) == "Body(Right, head='out' (guessed: the last linear layer))"
    assert "declared" in repr(Body(toy.model(stream)))


def test_trying_the_head_changes_nothing() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.dropout(self.norm(x), 0.5, training=True))

    model = Draws()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert makers_of_outputs(model, X) == ["out"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


DECLARED = {
    "mlp": lambda: models.mlp(input_shape=(5,), classes=4, hidden=[6, 7], batch_norm=True, seed=0),
    "cnn": lambda: models.cnn(input_shape=(1, 8, 8), classes=4, channels=[2, 3], hidden=[5], seed=0),
    "resnet18": lambda: models.resnet18(input_shape=(3, 8, 8), classes=4, width=2, seed=0),
    "vit": lambda: models.vit(input_shape=(1, 8, 8), classes=4, depth=2, seed=0),
    "sequential": lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)),
}


@pytest.mark.parametrize("name", DECLARED)
def test_what_runs_below_a_cut_and_above_it_is_the_model_at_every_cut(name: str) -> None:
    model = DECLARED[name]().eval()
    images = {"cnn": (1, 8, 8), "vit": (1, 8, 8), "resnet18": (3, 8, 8)}
    x = torch.randn(3, *images.get(name, (5,)))
    learner = Learner(model)
    services, expected = learner.services, learner(x)
    from holdfast.core.body import chain_of

    chain = chain_of(model)
    cuts = [None, *range(len(chain.cuts)), *chain.stages]
    assert len(cuts) > 4
    for cut in cuts:
        latents = services.below(x, cut)
        assert torch.allclose(services.above(latents, cut), expected, atol=1e-6), cut
    assert torch.equal(services.below(x, 0), x)
    assert torch.allclose(services.below(x), services.features(x))
    below, above = services.body.parameters_below(1), services.body.parameters_below()
    assert 0 < len(below) <= len(above) < len(list(model.parameters()))


def test_a_foreign_model_is_cut_before_its_head_alone() -> None:
    learner = Learner(Auxiliary(), head="out")
    services = learner.services
    assert torch.allclose(services.above(services.below(X)), learner(X))
    with pytest.raises(ConfigError, match="does not say in which stages"):
        services.below(X, "first")
    with pytest.raises(ConfigError, match="unknown stage 'frist'"):
        Learner(_declared()).services.below(X, "frist")
    assert {id(p) for p in services.body.parameters_below()} == {
        id(p) for name, p in learner.model.named_parameters() if not name.startswith("out")
    }


def _declared() -> nn.Module:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

        @property
        def stages(self) -> dict[str, nn.Module]:
            return {"first": self.first, "second": self.second}

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)))

    return Mine()


def test_a_model_of_ones_own_that_names_its_stages_is_cut_at_them() -> None:
    learner = Learner(_declared())
    services = learner.services
    assert not services.body.guessed
    for cut, width in (("first", 6), ("second", 7), (None, 7)):
        latents = services.below(X, cut)
        assert latents.shape == (3, width)
        assert torch.allclose(services.above(latents, cut), learner(X))


def test_latents_of_a_task_are_answered_for_that_task() -> None:
    model = models.mlp(input_shape=(5,), classes=4, hidden=[6], head="task", seed=0)
    model.head.grow(4)
    model.head.assign(0, [0, 1])
    model.head.assign(1, [2, 3])
    services = Learner(model).services
    for task in (0, 1, "all", torch.tensor([0, 1, 1])):
        assert torch.equal(services.above(services.below(X), task=task), services(X, task))


def test_feature_distillation_takes_the_features_of_the_head_that_is_named(toy: Any) -> None:
    from holdfast.core.method import Method

    stream = toy.stream(experiences=2, classes=3)
    model = Auxiliary(calls=False)
    model.head = "out"
    toy.train(Method(FeatureDistillation(weight=1.0)), model, stream)
    assert Learner(model).services.body.path == "out"
