"""Unit attention (HAT, AdaHAT): its formulas by explicit loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience, Stream
from holdfast.core.method import Method
from holdfast.methods import adahat
from holdfast.models import cnn, mlp
from holdfast.operations import UnitAttention
from holdfast.streams.data import TensorData
from holdfast.training import Continual, Trainer


def experience(task: int, shape: tuple[int, ...] = (4,), rows: int = 12) -> Experience:
    generator = torch.Generator().manual_seed(task)
    labels = torch.arange(rows) % 2 + 2 * task
    data = TensorData(torch.randn(rows, *shape, generator=generator), labels)
    return Experience(task, data, data, classes=(2 * task, 2 * task + 1), task=task)


def bound(operation: UnitAttention, net: nn.Module | None = None, lr: float = 0.1) -> Continual:
    net = net or mlp(input_shape=(4,), classes=4, hidden=[5, 3], head="task", seed=0)
    return Continual(net, Method(operation), torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=0.1))


def step(cl: Continual, data: Any, optimizer: bool = True) -> None:
    batch = data.gather(torch.arange(6))
    assert cl.optimizer is not None
    cl.optimizer.zero_grad()
    cl.backward(nn.functional.cross_entropy(cl(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
    if optimizer:
        cl.optimizer.step()


def test_s_rises_from_one_over_s_max_to_s_max_within_each_epoch() -> None:
    seen: list[float] = []

    class Watched(UnitAttention):
        def gradient(self, step: Any, learner: Any) -> None:
            seen.append(self.sharpness)
            super().gradient(step, learner)

    stream = Stream([experience(0), experience(1)], (4,), 4, paradigm="task")
    net = mlp(input_shape=(4,), classes=4, hidden=[5], head="task", seed=0)
    Trainer(Method(Watched(s_max=50.0)), batch_size=3, epochs=2, evaluate="none").fit(net, stream)
    steps = 4  # 12 rows in batches of 3
    expected = [1 / 50 + (50 - 1 / 50) * b / (steps - 1) for b in range(steps)]
    assert seen == pytest.approx(expected * 4)


def test_the_forward_gates_each_hidden_unit_behind_its_activation() -> None:
    net = mlp(input_shape=(4,), classes=4, hidden=[5, 3], head="task", activation="sigmoid", seed=0)
    cl = bound(operation := UnitAttention(s_max=20.0), net)
    data = cl.begin(experience(0), epochs=2, batch_size=6)
    step(cl, data)
    inputs = torch.randn(2, 4)
    e = [operation.embeddings[f"backbone/{i}"].detach() for i in (0, 2)]
    h = torch.sigmoid(nn.functional.linear(inputs, net.backbone[0].weight, net.backbone[0].bias)) * torch.sigmoid(
        20 * e[0]
    )
    h = torch.sigmoid(nn.functional.linear(h, net.backbone[2].weight, net.backbone[2].bias)) * torch.sigmoid(20 * e[1])
    assert torch.allclose(cl.predict(inputs)[:, :2], h @ net.head.weights[0].T + net.head.biases[0], atol=1e-6)
    cl.end()
    h = torch.sigmoid(nn.functional.linear(inputs, net.backbone[0].weight, net.backbone[0].bias)) * (e[0] > 0)
    h = torch.sigmoid(nn.functional.linear(h, net.backbone[2].weight, net.backbone[2].bias)) * (e[1] > 0)
    assert torch.allclose(cl.predict(inputs)[:, :2], h @ net.head.weights[0].T + net.head.biases[0], atol=1e-6)


def test_rates_are_one_minus_the_smaller_of_the_two_units_masks() -> None:
    net = cnn(input_shape=(1, 4, 4), classes=4, channels=[3], hidden=[4], head="task", seed=0)
    cl = bound(operation := UnitAttention(), net)
    step(cl, cl.begin(experience(0, (1, 4, 4)), epochs=2, batch_size=6))
    cl.end()
    channels, units = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    operation.masks = {"backbone.0": {0: channels}, "backbone.4": {0: units}}
    cl.begin(experience(1, (1, 4, 4)), epochs=2, batch_size=6)
    for i in range(3):
        assert operation.rates["backbone.0.bias"][i] == 1 - channels[i]
        assert (operation.rates["backbone.0.weight"][i] == 1 - channels[i]).all()
    assert operation.rates["backbone.4.weight"].shape == (4, 3 * 2 * 2)
    for i in range(4):
        for j in range(12):
            expected = 1 - min(float(units[i]), float(channels[j // 4]))
            assert operation.rates["backbone.4.weight"][i, j] == expected


def test_the_gradient_of_embeddings_is_compensated_and_clamped() -> None:
    cl = bound(operation := UnitAttention(strength=0.0, s_max=300.0))
    cl.begin(experience(0), epochs=2, batch_size=6)
    cl.model.train()
    cl.learner.epoch_progress = 2 / 3
    e = operation.embeddings["backbone/0"]
    e.data = torch.tensor([0.0, 0.5, -0.2, 5.0, 1e-3])
    e.grad = torch.tensor([1.0, 2.0, -1.0, 1.0, 3.0])
    s = 1 / 300 + (300 - 1 / 300) * 2 / 3
    expected = []
    for value, q in zip(e.tolist(), e.grad.tolist()):
        inner = max(-50.0, min(50.0, s * value))
        expected.append(300.0 * (math.cosh(inner) + 1) / (s * (math.cosh(value) + 1)) * q)
    operation.gradient(None, cl.learner)  # type: ignore[arg-type]
    assert torch.allclose(e.grad, torch.tensor(expected), rtol=1e-5)
    e.data = torch.tensor([7.0, -9.0, 1.0, 0.0, 6.0])
    operation.update(None, cl.learner)  # type: ignore[arg-type]
    assert e.tolist() == [6.0, -6.0, 1.0, 0.0, 6.0]


def test_the_sparsity_term_counts_only_units_that_no_task_uses() -> None:
    cl = bound(operation := UnitAttention(strength=0.4, s_max=10.0))
    step(cl, cl.begin(experience(0), epochs=2, batch_size=6))
    cl.end()
    used = {"backbone.0": [1.0, 0.0, 1.0, 0.0, 0.0], "backbone.2": [0.0, 1.0, 0.0]}
    operation.masks = {name: {0: torch.tensor(mask)} for name, mask in used.items()}
    cl.begin(experience(1), epochs=2, batch_size=6)
    cl.model.train()
    above = below = 0.0
    for name, mask in used.items():
        embedding = operation.embeddings[name.replace(".", "/")].tolist()
        for value, m in zip(embedding, mask):
            above += (1 - m) / (1 + math.exp(-operation.sharpness * value))
            below += 1 - m
    found = operation.loss(None, cl.learner)  # type: ignore[arg-type]
    assert isinstance(found, tuple)
    assert float(found[0].detach()) == pytest.approx(above / below)
    assert found[1] == 0.4


def test_a_used_unit_does_not_move_under_momentum_and_weight_decay() -> None:
    cl = bound(operation := UnitAttention())
    data = cl.begin(experience(0), epochs=2, batch_size=6)
    for _ in range(5):
        step(cl, data)
    cl.end()
    operation.masks["backbone.0"][0] = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    layer = cl.model.get_submodule("backbone.0")
    before = layer.weight.detach().clone()
    data = cl.begin(experience(1), epochs=2, batch_size=6)
    for _ in range(5):
        step(cl, data)
    moved = (layer.weight.detach() != before).any(1)
    assert moved.tolist() == [False, True, False, True, True]


def test_adahat_lets_used_weights_move_by_its_rate_of_the_optimisers_step() -> None:
    cl = bound(operation := UnitAttention(mode="adapt", intensity=0.2, epsilon=0.1, s_max=10.0, strength=0.0))
    step(cl, cl.begin(experience(0), epochs=2, batch_size=6))
    cl.end()
    step(cl, cl.begin(experience(1), epochs=2, batch_size=6))
    cl.end()
    m = {"backbone.0": [[1.0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0]], "backbone.2": [[0.0, 1, 0], [1.0, 1, 0]]}
    operation.masks = {name: dict(enumerate(map(torch.tensor, masks))) for name, masks in m.items()}
    data = cl.begin(experience(2), epochs=2, batch_size=6)
    cl.model.train()
    uses = {name: [a + b for a, b in zip(*masks)] for name, masks in m.items()}
    rate = {}
    for name in uses:
        soft = torch.sigmoid(operation.sharpness * operation.embeddings[name.replace(".", "/")]).tolist()
        free = [1.0 if use == 0 else 0.0 for use in uses[name]]
        rate[name] = 0.2 / (0.1 + sum(a * f for a, f in zip(soft, free)) / max(1.0, sum(free)))
    step(cl, data, optimizer=False)
    r = rate["backbone.2"]
    for i in range(3):
        for j in range(5):
            expected = r / (min(uses["backbone.2"][i], uses["backbone.0"][j]) + r)
            assert float(operation.rates["backbone.2.weight"][i, j]) == pytest.approx(expected, rel=1e-5)
    layer = cl.model.get_submodule("backbone.0")
    before, r = layer.weight.detach().clone(), rate["backbone.0"]
    with torch.no_grad():
        layer.weight.add_(1.0)  # whatever the optimiser did
    operation.update(None, cl.learner)  # type: ignore[arg-type]
    for i in range(5):
        expected = r / (uses["backbone.0"][i] + r)
        assert torch.allclose(layer.weight.detach()[i] - before[i], torch.tensor(expected), atol=1e-6)


def test_wrong_arguments_are_refused() -> None:
    for wrong in ({"strength": -1.0}, {"s_max": 1.0}, {"mode": "blok"}, {"intensity": 0.0}):
        with pytest.raises(ConfigError, match="unit_attention"):
            UnitAttention(**wrong)  # type: ignore[arg-type]
    assert adahat(intensity=0.5).operations[0].intensity == 0.5


# Baselines and ablations of AdaHAT ------------------------------------------------------------------------


def third_task(**arguments: Any) -> tuple[UnitAttention, Any]:
    """The third task of three, after one step at the least s: units of the first two are in use."""
    cl = bound(operation := UnitAttention(s_max=10.0, strength=0.0, **arguments))
    for task in range(2):
        step(cl, cl.begin(experience(task), epochs=2, batch_size=6))
        cl.end()
    operation.masks = {
        "backbone.0": {0: torch.tensor([1.0, 0, 1, 0, 0]), 1: torch.tensor([1.0, 0, 0, 0, 1])},
        "backbone.2": {0: torch.tensor([0.0, 1, 0]), 1: torch.tensor([1.0, 1, 0])},
    }
    data = cl.begin(experience(2), epochs=2, batch_size=6)
    cl.model.train()
    step(cl, data, optimizer=False)
    return operation, cl


USED = torch.tensor([[1.0, 0, 1, 0, 1], [1.0, 0, 1, 0, 1], [0.0] * 5])
"""Weights of the second layer that join two units in use."""
COUNTS = torch.tensor([[1.0, 0, 1, 0, 1], [2.0, 0, 1, 0, 1], [0.0] * 5])


def test_weights_in_use_can_move_at_one_rate_or_at_rates_drawn_in_each_step() -> None:
    operation, _ = third_task(mode="constant", constant=0.25)
    assert torch.equal(operation.rates["backbone.2.weight"], 1 - 0.75 * USED)
    assert operation.rates["backbone.2.bias"].tolist() == [0.25, 0.25, 1.0]
    operation, cl = third_task(mode="random")
    first = operation.rates["backbone.2.weight"].clone()
    assert bool((first[USED == 0] == 1).all())
    assert bool((first[USED == 1] < 1).all())
    step(cl, experience(2).train, optimizer=False)
    assert bool((operation.rates["backbone.2.weight"] != first)[USED == 1].all())


@pytest.mark.parametrize("without", ["counts", "sparsity"])
def test_adahat_can_leave_out_the_counts_or_the_sparsity(without: str) -> None:
    operation, _ = third_task(mode=f"adapt_without_{without}", intensity=0.2, epsilon=0.1)
    soft = torch.sigmoid(operation.embeddings["backbone/2"] / 10).tolist()
    sparsity = soft[2] if without == "counts" else 0.0  # the third unit alone is free
    rate = 0.2 / (0.1 + sparsity)
    count = torch.full((3, 5), 2.0) if without == "counts" else COUNTS
    assert torch.allclose(operation.rates["backbone.2.weight"], rate / (count + rate), rtol=1e-4)


def test_cross_sparsity_also_rewards_units_in_use() -> None:
    operation, _ = third_task(sparsity="cross")
    soft = torch.cat([torch.sigmoid(operation.sharpness * operation.embeddings[f"backbone/{i}"]) for i in (0, 2)])
    used = torch.tensor([1.0, 0, 1, 0, 1, 1, 1, 0])
    free, kept = (soft * (1 - used)).sum() / 3, (soft * used).sum() / 5
    term = operation._sparsity(["backbone.0", "backbone.2"])
    assert float(term) == pytest.approx(float((free + 1 - kept) / 2), rel=1e-5)
    begun = bound(fresh := UnitAttention(sparsity="cross"))
    begun.begin(experience(0), epochs=2, batch_size=6)
    assert 0 < float(fresh._sparsity(["backbone.0"])) <= 0.5


@pytest.mark.parametrize(("initial", "low", "high"), [("uniform", -1, 1), ("positive", 0, 1), ("negative", -1, 0)])
def test_embeddings_start_where_they_are_told(initial: Any, low: float, high: float) -> None:
    net = mlp(input_shape=(4,), classes=4, hidden=[400], head="task", seed=0)
    cl = bound(operation := UnitAttention(initial=initial), net)
    cl.begin(experience(0), epochs=2, batch_size=6)
    found = operation.embeddings["backbone/0"]
    assert low <= float(found.min()) < low + 0.1
    assert high - 0.1 < float(found.max()) <= high


def test_embeddings_can_start_where_those_of_the_last_task_ended() -> None:
    cl = bound(operation := UnitAttention(initial="last"))
    step(cl, cl.begin(experience(0), epochs=2, batch_size=6))
    cl.end()
    before = operation.embeddings["backbone/0"].detach().clone()
    cl.begin(experience(1), epochs=2, batch_size=6)
    assert bool(before.any())
    assert torch.equal(operation.embeddings["backbone/0"], before)


def test_capacity_is_the_mean_rate_over_weights_and_biases() -> None:
    operation, cl = third_task(mode="constant", constant=0.25)
    rates = {name: rate for name, rate in operation.rates.items() if name.startswith("backbone")}
    cl.end()
    assert float(operation.capacity[0]) == 1.0
    mean = sum(float(rate.sum()) for rate in rates.values()) / sum(rate.numel() for rate in rates.values())
    assert float(operation.capacity[2]) == pytest.approx(mean)
    assert torch.allclose(operation.mean_rates["backbone.2"][2], rates["backbone.2.weight"].mean(1))
