"""Unit replacement (continual backpropagation): its algorithm by explicit loops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience, Stream
from holdfast.core.method import Method
from holdfast.methods import continual_backprop
from holdfast.models import cnn, mlp
from holdfast.operations import UnitReplacement
from holdfast.streams.data import TensorData
from holdfast.training import Continual, Trainer


def bound(operation: UnitReplacement, net: nn.Module, **optimizer: Any) -> Continual:
    return Continual(net, Method(operation), torch.optim.SGD(net.parameters(), lr=0.1, **optimizer))


def step(cl: Continual, inputs: Tensor, labels: Tensor) -> None:
    cl.model.train()
    assert cl.optimizer is not None
    cl.optimizer.zero_grad()
    cl.backward(nn.functional.cross_entropy(cl.model(inputs), labels), labels, inputs=inputs)
    cl.optimizer.step()


def test_the_least_useful_mature_unit_is_replaced_once_the_quota_is_full() -> None:
    net = mlp(input_shape=(4,), classes=3, hidden=[6, 5], seed=0)
    first, second = net.backbone[0], net.backbone[2]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    moved: list[Tensor] = []
    optimizer.register_step_post_hook(lambda *_: moved.append(second.weight.detach().clone()))  # before the replacement
    cl = Continual(net, Method(operation := UnitReplacement(rate=0.1, maturity=2, decay=0.5)), optimizer)
    generator = torch.Generator().manual_seed(0)
    u, age, quota, replaced = [0.0] * 6, [0] * 6, 0.0, 0
    for _ in range(9):
        inputs, labels = torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)
        with torch.no_grad():
            h = torch.relu(nn.functional.linear(inputs, first.weight, first.bias))
        step(cl, inputs, labels)
        for i in range(6):
            reading = sum(abs(float(moved[-1][k, i])) for k in range(5))
            u[i] = 0.5 * u[i] + 0.5 * float(h[:, i].abs().mean()) * reading
            age[i] += 1
        mature = [i for i in range(6) if age[i] > 2]
        quota += 0.1 * len(mature)
        if quota >= 1 - 1e-6:
            gone = min(mature, key=lambda i: u[i])
            u[gone], age[gone], quota, replaced = 0.0, 0, quota - 1, replaced + 1
            assert float(first.bias.detach()[gone]) == 0
            assert bool((first.weight.detach()[gone].abs() <= 0.5).all())  # 1 / sqrt(4 inputs)
            kept = operation.age["backbone.2"] > 0  # the next layer's own replaced unit has new input weights
            assert bool((second.weight.detach()[kept, gone] == 0).all())
            for layer, index in ((first, (gone,)), (second, (kept, gone))):
                (momentum,) = cl.learner.trainable.moments(layer.weight)
                assert bool((momentum[index] == 0).all())
        assert torch.allclose(operation.utility["backbone.0"], torch.tensor(u), atol=1e-5)
        assert operation.age["backbone.0"].tolist() == age
        assert float(operation.quota["backbone.0"]) == pytest.approx(quota, abs=1e-5)
    assert replaced >= 2


def test_a_channel_behind_flattening_is_replaced_with_all_weights_that_read_it() -> None:
    net = cnn(input_shape=(1, 4, 4), classes=2, channels=[3], hidden=[4], seed=0)
    cl = bound(operation := UnitReplacement(rate=1.0, maturity=0), net)
    step(cl, torch.randn(6, 1, 4, 4), torch.tensor([0, 1] * 3))
    (gone,) = (operation.age["backbone.0"] == 0).nonzero().flatten().tolist()
    kept = operation.age["backbone.4"] > 0
    weight = net.backbone[4].weight.detach().view(4, 3, 4)[kept]
    assert bool((weight[:, gone] == 0).all())
    assert int((weight == 0).sum()) == 3 * 4


def test_the_fraction_of_dormant_units_is_logged() -> None:
    net = mlp(input_shape=(4,), classes=3, hidden=[4], seed=0)
    with torch.no_grad():
        net.backbone[0].weight.fill_(1.0)
        net.backbone[0].bias[:3] = -100.0
    cl = bound(UnitReplacement(rate=0.0), net)
    step(cl, torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))
    assert [float(value) for value, _ in cl.learner.logged["dormant_units"]] == [0.75]


def test_trainer_drop_in_and_a_resumed_run_give_equal_weights() -> None:
    data = TensorData(torch.randn(24, 4, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 2)
    stream = Stream([Experience(0, data, data, classes=(0, 1))], (4,), 2)

    class KeepAt:
        kept: Any = None
        count = 0

        def due(self, seconds: float, steps: int) -> bool:
            self.count += 1
            return self.count == 5

        def save(self, state: dict[str, Any]) -> None:
            self.kept = self.kept or copy.deepcopy(state)

    def method() -> Method:
        return continual_backprop(rate=0.05, maturity=1)

    nets = [mlp(input_shape=(4,), classes=2, hidden=[8], seed=0) for _ in range(3)]
    settings: dict[str, Any] = {"optimizer": {"name": "Adam", "lr": 0.01}, "batch_size": 4, "epochs": 2, "seed": 3}
    Trainer(method(), **settings, checkpoints=(keep := KeepAt())).fit(nets[0], stream)
    Trainer(method(), **settings).fit(nets[1], stream, resume=keep.kept)
    optimizer = torch.optim.Adam(nets[2].parameters(), lr=0.01)
    cl = Continual(nets[2], method(), optimizer, seed=3)
    order_rng = cl.learner.rng("order")
    for _ in range(2):
        for batch in data.batches(torch.randperm(24, generator=order_rng), 4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(nets[2](batch.inputs), batch.targets)
            cl.backward(loss, batch.targets, inputs=batch.inputs)
            optimizer.step()
    for other in nets[1:]:
        for p, q in zip(nets[0].parameters(), other.parameters()):
            assert torch.equal(p, q)


def test_wrong_arguments_and_models_are_refused() -> None:
    for wrong in ({"rate": -0.1}, {"maturity": -1}, {"decay": 1.0}, {"dormant": -1.0}):
        with pytest.raises(ConfigError, match="unit_replacement"):
            UnitReplacement(**wrong)  # type: ignore[arg-type]
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="reads directly"):
        bound(UnitReplacement(), net)
