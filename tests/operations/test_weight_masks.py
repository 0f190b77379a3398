"""PackNet, Piggyback, WSN, XdG, separate networks and freezing: their formulas by explicit loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience, Stream
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.models import cnn, mlp
from holdfast.operations import (
    BinaryMasks,
    ContextGates,
    FreezeBackbone,
    PrunedWeights,
    SeparateNetworks,
    Subnetworks,
)
from holdfast.operations.subnetworks import smallest
from holdfast.streams.data import TensorData
from holdfast.training import Continual, Trainer


def experience(task: int, shape: tuple[int, ...] = (4,), rows: int = 8) -> Experience:
    generator = torch.Generator().manual_seed(task)
    data = TensorData(torch.randn(rows, *shape, generator=generator), torch.arange(rows) % 2 + 2 * task)
    return Experience(task, data, data, classes=(2 * task, 2 * task + 1), task=task)


def bound(operation: Operation, lr: float = 0.1, net: nn.Module | None = None) -> Continual:
    net = net or mlp(input_shape=(4,), classes=4, hidden=[5, 3], head="task", seed=0)
    return Continual(net, Method(operation), torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=0.1))


def step(cl: Continual, data: Any) -> None:
    batch = data.gather(torch.arange(8))
    assert cl.optimizer is not None
    cl.model.train()
    cl.optimizer.zero_grad()
    cl.backward(nn.functional.cross_entropy(cl(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
    cl.optimizer.step()


def plain(net: nn.Module, inputs: Tensor, masks: list[Tensor], biases: list[Tensor], head: int) -> Tensor:
    h = torch.relu(inputs @ (net.backbone[0].weight * masks[0]).T + biases[0])
    h = torch.relu(h @ (net.backbone[2].weight * masks[1]).T + biases[1])
    return h @ net.head.weights[head].T + net.head.biases[head]


def test_pruning_keeps_the_largest_free_weights_of_each_layer_for_good() -> None:
    cl = bound(operation := PrunedWeights(fraction=0.75, at=0.3))
    weight = cl.model.get_submodule("backbone.0").weight
    data = cl.begin(experience(0), epochs=3, batch_size=8)
    step(cl, data)
    assert not operation.pruned
    step(cl, data)
    assert operation.pruned
    kept = operation.owners["backbone.0"] == 0
    assert int(kept.sum()) == 5  # a quarter of 20
    assert bool((weight[~kept] == 0).all())
    step(cl, data)
    assert bool((weight[~kept] == 0).all())
    assert bool((weight[kept] != 0).all())
    cl.end()
    first, biases = (
        weight.detach().clone(),
        [cl.model.get_submodule(f"backbone.{i}").bias.detach().clone() for i in (0, 2)],
    )
    data = cl.begin(experience(1), epochs=3, batch_size=8)
    step(cl, data)
    assert torch.equal(weight[kept], first[kept])
    assert bool((weight[~kept] != 0).any())
    values = weight.detach()
    free = [(abs(float(values[i, j])), i, j) for i in range(5) for j in range(4) if not kept[i, j]]
    operation.prune(cl.learner)
    largest = sorted(free, reverse=True)[:4]  # a quarter of the 15 that were left, rounded
    assert {(i, j) for _, i, j in largest} == {
        tuple(p) for p in (operation.owners["backbone.0"] == 1).nonzero().tolist()
    }
    cl.end()
    masks = [(operation.owners[f"backbone.{i}"] == 0).float() for i in (0, 2)]
    inputs = torch.randn(3, 4)
    found = cl.predict(inputs, task=0)[:, :2]
    assert torch.allclose(found, plain(cl.model, inputs, masks, biases, 0), atol=1e-6)


def test_pruning_happens_at_the_given_part_of_the_experience() -> None:
    seen: list[bool] = []

    class Watched(PrunedWeights):
        def update(self, step: Any, learner: Any) -> None:
            super().update(step, learner)
            seen.append(self.pruned)

    net = mlp(input_shape=(4,), classes=4, hidden=[5], head="task", seed=0)
    stream = Stream([experience(0), experience(1)], (4,), 4, paradigm="task")
    Trainer(Method(Watched(at=0.5)), batch_size=2, epochs=1, evaluate="none").fit(net, stream)
    assert seen == [False, False, True, True] * 2


def test_pruned_weights_leave_no_momentum_behind() -> None:
    cl = bound(operation := PrunedWeights(fraction=0.5, at=0.3))
    data = cl.begin(experience(0), epochs=3, batch_size=8)
    for _ in range(3):
        step(cl, data)
    weight = cl.model.get_submodule("backbone.0").weight
    (momentum,) = cl.learner.trainable.moments(weight)
    gone = operation.owners["backbone.0"] < 0
    assert bool((momentum[gone] == 0).all())
    assert bool((momentum[~gone] != 0).any())


def test_binary_masks_never_move_the_backbone_and_pass_gradients_straight_through() -> None:
    cl = bound(operation := BinaryMasks(threshold=5e-3, initial=1e-2), lr=0.05)
    net = cl.model
    before = {name: p.detach().clone() for name, p in net.backbone.named_parameters()}
    data = cl.begin(experience(0))
    batch = data.gather(torch.arange(8))  # type: ignore[union-attr]
    biases = [net.backbone[i].bias.detach() for i in (0, 2)]
    masks = [torch.ones(5, 4, requires_grad=True), torch.ones(3, 5, requires_grad=True)]
    loss = nn.functional.cross_entropy(plain(net, batch.inputs, masks, biases, 0), batch.targets)
    expected = torch.autograd.grad(loss, masks)
    net.train()
    cl.backward(nn.functional.cross_entropy(cl(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
    for key, gradient in zip(("backbone/0", "backbone/2"), expected):
        assert torch.allclose(operation.scores[key].grad, gradient, atol=1e-6)
    assert cl.optimizer is not None
    cl.optimizer.step()
    for _ in range(20):
        step(cl, data)
    cl.end()
    assert all(torch.equal(p, before[name]) for name, p in net.backbone.named_parameters())
    chosen = operation.masks[0]["backbone.0"]
    assert torch.equal(chosen, operation.scores["backbone/0"] > 5e-3)
    assert 0 < int(chosen.sum()) < 20
    cl.begin(experience(1))
    assert bool((operation.scores["backbone/0"] == 1e-2).all())


def test_subnetworks_take_the_best_scores_and_hold_what_earlier_ones_used() -> None:
    cl = bound(operation := Subnetworks(fraction=0.3))
    weight = cl.model.get_submodule("backbone.0").weight
    data = cl.begin(experience(0))
    step(cl, data)
    scores = sorted((abs(v) for v in operation.scores["backbone/0"].flatten().tolist()), reverse=True)
    cl.end()
    used = operation.masks[0]["backbone.0"]
    for i in range(5):
        for j in range(4):
            assert bool(used[i, j]) == (
                abs(float(operation.scores["backbone/0"].detach()[i, j])) >= scores[5]
            )  # 6 of 20
    before = weight.detach().clone()
    data = cl.begin(experience(1))
    for _ in range(4):
        step(cl, data)
    assert torch.equal(weight[used], before[used])
    assert bool((weight[~used] != before[~used]).any())
    cl.end()
    biases = [operation.copies[0][f"backbone.{i}.bias"] for i in (0, 2)]
    masks = [operation.masks[0][f"backbone.{i}"].float() for i in (0, 2)]
    inputs = torch.randn(3, 4)
    assert torch.allclose(cl.predict(inputs, task=0)[:, :2], plain(cl.model, inputs, masks, biases, 0), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_value_of_a_rank_is_that_of_the_sorted_values(dtype: torch.dtype) -> None:
    values = torch.randn(101, generator=torch.Generator().manual_seed(0)).to(dtype)
    for rank in (1, 2, 50, 100, 101):
        found = smallest(values, rank)
        assert found.dtype == dtype
        assert float(found) == sorted(values.tolist())[rank - 1]


def test_the_scores_of_subnetworks_are_learnt() -> None:
    cl = bound(operation := Subnetworks())
    before = operation.scores["backbone/2"].detach().clone()
    step(cl, cl.begin(experience(0)))
    assert not torch.equal(operation.scores["backbone/2"], before)


def test_gates_switch_off_the_given_fraction_of_units_differently_for_each_task_and_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        net = cnn(input_shape=(1, 4, 4), classes=4, channels=[10], hidden=[20], head="task", seed=0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        cl = Continual(net, Method(operation := ContextGates(fraction=0.7)), optimizer, seed=seed)
        for task in range(2):
            cl.begin(experience(task, (1, 4, 4)))
            cl.end()
        drawn.append(operation.gates)
        assert [int(operation.gates["backbone.0"][task].sum()) for task in (0, 1)] == [3, 3]
        assert [int(operation.gates["backbone.4"][task].sum()) for task in (0, 1)] == [6, 6]
    one, same, other = drawn
    assert torch.equal(one["backbone.4"][1], same["backbone.4"][1])
    assert not torch.equal(one["backbone.4"][1], other["backbone.4"][1])
    assert not torch.equal(one["backbone.4"][0], one["backbone.4"][1])


def test_gated_units_say_nothing_and_learn_nothing() -> None:
    net = cnn(input_shape=(1, 4, 4), classes=4, channels=[3], hidden=[4], head="task", activation="sigmoid", seed=0)
    cl = bound(operation := ContextGates(fraction=0.5), net=net)
    data = cl.begin(experience(0, (1, 4, 4)))
    channels, units = operation.gates["backbone.0"][0], operation.gates["backbone.4"][0]
    inputs = torch.randn(2, 1, 4, 4)
    h = net.backbone[2](torch.sigmoid(net.backbone[0](inputs)))
    h = torch.sigmoid(
        nn.functional.linear((h * channels.view(1, 3, 1, 1)).flatten(1), net.backbone[4].weight, net.backbone[4].bias)
    )
    expected = (h * units) @ net.head.weights[0].T + net.head.biases[0]
    assert torch.allclose(cl.predict(inputs)[:, :2], expected, atol=1e-6)
    batch = data.gather(torch.arange(8))  # type: ignore[union-attr]
    net.train()
    cl.backward(nn.functional.cross_entropy(cl(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
    assert bool((net.backbone[0].weight.grad[channels == 0] == 0).all())
    assert bool((net.backbone[0].weight.grad[channels == 1] != 0).any())


def test_separate_networks_start_from_the_same_values_without_momentum() -> None:
    cl = bound(SeparateNetworks())
    net = cl.model
    initial = {name: p.detach().clone() for name, p in net.backbone.named_parameters()}
    data = cl.begin(experience(0))
    for _ in range(3):
        step(cl, data)
    learnt = {name: p.detach().clone() for name, p in net.backbone.named_parameters()}
    cl.end()
    cl.begin(experience(1))
    assert all(torch.equal(p, initial[name]) for name, p in net.backbone.named_parameters())
    assert all(cl.learner.trainable.moments(p) == [] for p in net.backbone.parameters())
    inputs = torch.randn(3, 4)
    h = torch.relu(inputs @ learnt["0.weight"].T + learnt["0.bias"])
    h = torch.relu(h @ learnt["2.weight"].T + learnt["2.bias"])
    expected = h @ net.head.weights[0].T + net.head.biases[0]
    assert torch.allclose(cl.predict(inputs, task=0)[:, :2], expected, atol=1e-6)


def test_freezing_stops_the_backbone_and_its_statistics_after_the_given_experiences() -> None:
    net = cnn(input_shape=(1, 4, 4), classes=4, channels=[3], hidden=[4], batch_norm=True, seed=0)
    cl = bound(FreezeBackbone(after=1), net=net)
    states = []
    for task in range(2):
        data = cl.begin(experience(task, (1, 4, 4)))
        for _ in range(2):
            step(cl, data)
        cl.end()
        states.append({name: value.clone() for name, value in net.state_dict().items()})
    moved = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert moved == ["head.weight", "head.bias"]
    assert all(p.grad is None for p in net.backbone.parameters())


def test_a_missing_task_label_is_refused() -> None:
    for operation in (ContextGates(), Subnetworks()):
        with pytest.raises(UsageError, match="task label"):
            bound(operation).begin(classes=(0, 1))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (PrunedWeights, {"fraction": 1.0}),
        (PrunedWeights, {"at": 0.0}),
        (BinaryMasks, {"initial": 0.001}),
        (Subnetworks, {"fraction": 0.0}),
        (ContextGates, {"fraction": 1.0}),
        (FreezeBackbone, {"after": -1}),
    ],
)
def test_wrong_arguments_are_refused(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make(**wrong)


def test_a_model_without_hidden_layers_is_refused() -> None:
    net = nn.Linear(4, 2)
    with pytest.raises(ConfigError, match="hidden layers"):
        bound(Subnetworks(), net=net)
