"""Unit importance (FG-AdaHAT): its formulas by explicit loops."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience, Stream
from holdfast.core.method import Method
from holdfast.methods import fg_adahat
from holdfast.models import cnn, mlp, resnet18
from holdfast.operations import UnitImportance
from holdfast.operations._parts.attributions import ATTRIBUTIONS
from holdfast.operations.unit_importance import IMPORTANCES
from holdfast.streams.data import TensorData
from holdfast.training import Continual, Trainer


def experience(task: int, shape: tuple[int, ...] = (4,), rows: int = 12) -> Experience:
    generator = torch.Generator().manual_seed(task)
    labels = torch.arange(rows) % 2 + 2 * task
    data = TensorData(torch.randn(rows, *shape, generator=generator), labels)
    return Experience(task, data, data, classes=(2 * task, 2 * task + 1), task=task)


def bound(operation: UnitImportance, net: nn.Module | None = None) -> Continual:
    net = net or mlp(input_shape=(4,), classes=6, hidden=[5, 3], head="task", seed=0, activation="sigmoid")
    return Continual(net, Method(operation), torch.optim.SGD(net.parameters(), lr=0.1))


def step(cl: Continual, data: Any, move: bool = True) -> torch.Tensor:
    batch = data.gather(torch.arange(6))
    assert cl.optimizer is not None
    cl.optimizer.zero_grad()
    cl.backward(nn.functional.cross_entropy(cl(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
    if move:
        cl.optimizer.step()
    return batch.inputs


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def by_hand(rows: list[list[float]], weight: list[list[float]], bias: list[float], gates: list[float]) -> Any:
    """Gated sigmoid units of each row."""
    sums = [[sum(w * x for w, x in zip(unit, row)) + b for unit, b in zip(weight, bias)] for row in rows]
    return [[sigmoid(value) * gate for value, gate in zip(row, gates)] for row in sums]


@pytest.mark.parametrize("kind", [kind for kind in IMPORTANCES if kind not in ATTRIBUTIONS])
def test_what_a_unit_is_worth_is_what_its_name_says(kind: str) -> None:
    cl = bound(operation := UnitImportance(importance=kind, strength=0.0, s_max=10.0))  # type: ignore[arg-type]
    data = cl.begin(experience(0), epochs=2, batch_size=6)
    worths: dict[str, list[float]] = {}
    inner = operation.worth

    def spied(name: str) -> torch.Tensor:
        worths[name] = inner(name).tolist()
        return torch.tensor(worths[name])

    operation.worth = spied  # type: ignore[method-assign]
    sharpness = []
    loss = operation.gradient

    def watched(*arguments: Any) -> None:
        sharpness.append(operation.sharpness)
        loss(*arguments)

    cl.engine._gradient = (watched,)
    first, second = cl.model.get_submodule("backbone.0"), cl.model.get_submodule("backbone.2")
    weights = {"a": first.weight.detach().clone(), "b": second.weight.detach().clone()}
    inputs = step(cl, data, move=False)
    s = sharpness[0]
    gates = {n: [sigmoid(s * e) for e in operation.embeddings[f"backbone/{n}"].tolist()] for n in (0, 2)}
    # The forward by hand: 4 inputs, 5 gated sigmoid units, 3 gated sigmoid units, and the head.
    h1 = by_hand(inputs.tolist(), weights["a"].tolist(), first.bias.tolist(), gates[0])
    h2 = by_hand(h1, weights["b"].tolist(), second.bias.tolist(), gates[2])
    head = cl.model.head.weights[0]
    for name, layer, after, hidden, units in (
        ("backbone.0", first, second.weight, h1, 5),
        ("backbone.2", second, head, h2, 3),
    ):
        for u in range(units):
            h = sum(abs(row[u]) for row in hidden) / len(hidden)
            w_in = sum(abs(float(w)) for w in layer.weight[u])
            g_in = sum(abs(float(g)) for g in layer.weight.grad[u])
            squares = sum(float(g) ** 2 for g in layer.weight.grad[u])
            w_out = sum(abs(float(after[k, u])) for k in range(after.shape[0]))
            g_out = sum(abs(float(after.grad[k, u])) for k in range(after.shape[0]))
            out_squares = sum(float(after.grad[k, u]) ** 2 for k in range(after.shape[0]))
            expected = {
                "input_gradient": g_in,
                "output_gradient": g_out,
                "input_weight": w_in,
                "output_weight": w_out,
                "activation": h,
                "input_contribution": h * w_in,
                "contribution": h * w_out,
                "activation_fisher": h * squares,
                "input_fisher": squares,
                "output_fisher": out_squares,
                "output_activation_fisher": h * out_squares,
                "adaptation": 1 / w_in,
                "adaptive_contribution": h * w_out / w_in,
            }[kind]
            assert worths[name][u] == pytest.approx(expected, rel=1e-4, abs=1e-9)
        low, high = min(worths[name]), max(worths[name])
        gate = gates[0] if name == "backbone.0" else gates[2]
        for u in range(units):
            expected = (worths[name][u] - low) / (high - low) * gate[u]
            assert float(operation.running[name][u]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", ATTRIBUTIONS)
def test_attributions_of_one_hidden_layer_are_those_by_hand(kind: str) -> None:
    net = mlp(input_shape=(4,), classes=2, hidden=[6], head="task", seed=0, activation="relu")
    points = 400
    cl = bound(operation := UnitImportance(importance=kind, strength=0.0, s_max=10.0, points=points), net)  # type: ignore[arg-type]
    data = cl.begin(experience(0), epochs=2, batch_size=6)
    found: list[Any] = []
    inner, state = operation.worth, []

    def spied(name: str) -> torch.Tensor:
        found.append(inner(name))
        state.append(operation.sharpness)
        return found[-1]

    operation.worth = spied  # type: ignore[method-assign]
    layer, head = net.get_submodule("backbone.0"), net.head.weights[0].detach().clone()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    inputs = step(cl, data, move=False)
    labels = data.gather(torch.arange(6)).targets
    gates = torch.sigmoid(state[0] * operation.embeddings["backbone/0"].detach())
    h, zero = inputs @ weight.T + bias, bias.expand(6, 6)
    slope = head[labels] * gates  # of the right output by each unit behind its activation, [rows, units]
    path = torch.linspace(0.5 / points, 1 - 0.5 / points, points).view(-1, 1, 1)
    share = ((path * inputs) @ weight.T + bias > 0).float().mean(0)
    rescaled = slope * (h.relu() - zero.relu())
    by_hand = {
        "gradient_activation": slope * h.relu(),
        "gradcam": slope * h.relu(),
        "lrp": slope * h.relu(),
        "feature_ablation": slope * h.relu(),
        "internal_influence": slope * share,
        "gradient_shap": slope * share * (h - zero),
        "conductance": rescaled,
        "integrated_gradients": rescaled,
        "deeplift": rescaled,
    }
    assert len(found) == 1
    assert not any(parameter.requires_grad is False for parameter in net.parameters())
    if kind == "deeplift_shap":  # which other row is the baseline is drawn
        assert found[0].shape == (6,)
        assert bool((found[0] >= 0).all())
        assert bool(found[0].any())
        return
    wide = {"gradient_shap": 0.15, "conductance": 0.02, "integrated_gradients": 0.02, "internal_influence": 0.02}
    assert torch.allclose(found[0], by_hand[kind].abs().mean(0), rtol=wide.get(kind, 1e-4), atol=1e-5)


@pytest.mark.parametrize("kind", ATTRIBUTIONS)
def test_attributions_leave_gradients_statistics_and_flags_alone(kind: str) -> None:
    net = resnet18(input_shape=(1, 8, 8), classes=2, width=2, head="task", seed=0)
    plain, asked = (bound(UnitImportance(importance=of, points=2), copy.deepcopy(net)) for of in ("input_weight", kind))  # type: ignore[arg-type]
    for cl in (plain, asked):
        step(cl, cl.begin(experience(0, (1, 8, 8)), epochs=2, batch_size=6))
    one, other = plain.model.state_dict(), asked.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(module.training for module in asked.model.modules())
    worth = asked.method.operations[0]._attributed
    assert set(worth) == set(asked.method.operations[0].layers)
    assert all(bool(v.isfinite().all()) for v in worth.values())


SUMMINGS = {
    "latest": [1.0, 1.0, 1.0],
    "all": [3.0, 2.0, 1.0],
    "average": [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3],
    "linear": [2 * 3.0 + 1, 3.0 + 1, 1.0],
    "quadratic": [9.0, 4.0, 1.0],
    "cubic": [27.0, 8.0, 1.0],
    "exponential": [27.0, 9.0, 3.0],
    "logarithmic": [2.0, math.log(2, 3) + 1, 1.0],
    "factorial": [6.0, 2.0, 1.0],
}
"""What each of three tasks counts at the end, the oldest first, with rate 3."""


@pytest.mark.parametrize("summing", SUMMINGS)
def test_older_tasks_count_as_the_name_of_the_summing_says(summing: str) -> None:
    cl = bound(operation := UnitImportance(summing=summing, rate=3.0, masked=False))  # type: ignore[arg-type]
    for task in range(3):
        step(cl, cl.begin(experience(task), epochs=2, batch_size=6))
        cl.end()
    worths = operation.worths["backbone.0"]
    expected = sum(weight * worths[task] for task, weight in enumerate(SUMMINGS[summing]))
    assert torch.allclose(operation.summed["backbone.0"], expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["sparsity", "counts"])
def test_the_factor_of_importance_can_leave_the_task_out_or_count_those_that_use_both_units(schedule: Any) -> None:
    cl = bound(operation := UnitImportance(schedule=schedule, used_only=True, intensity=0.2, s_max=10.0))
    for task in range(2):
        step(cl, cl.begin(experience(task), epochs=2, batch_size=6))
        cl.end()
    uses = operation.uses("backbone.2").tolist(), operation.uses("backbone.0").tolist()
    worth = operation.summed["backbone.2"].tolist(), operation.summed["backbone.0"].tolist()
    data = cl.begin(experience(2), epochs=2, batch_size=6)
    cl.model.train()
    soft = torch.sigmoid(operation.sharpness * operation.embeddings["backbone/2"]).tolist()
    free = [count == 0 for count in uses[0]]
    share = sum(a for a, unused in zip(soft, free) if unused) / max(1, sum(free)) + 0.1
    step(cl, data, move=False)
    for i in range(3):
        for j in range(5):
            both = min(uses[0][i], uses[1][j])
            factor = share * (both + 10.0 if schedule == "counts" else 1.0)
            joined = min(worth[0][i], worth[1][j]) * (both > 0)
            assert float(operation.rates["backbone.2.weight"][i, j]) == pytest.approx(0.2 / (factor * joined + 0.2))


def test_importance_is_the_mean_over_steps_and_the_base_within_the_mask_summed_over_tasks() -> None:
    cl = bound(operation := UnitImportance(base_importance=0.01, s_max=10.0))
    total = [0.0] * 5
    for task in range(2):
        data = cl.begin(experience(task), epochs=2, batch_size=6)
        for _ in range(3):
            step(cl, data)
        running = operation.running["backbone.0"].tolist()
        cl.end()
        mask = operation.masks["backbone.0"][task].tolist()
        total = [t + (r / 3 + 0.01) * m for t, r, m in zip(total, running, mask)]
        assert operation.summed["backbone.0"].tolist() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("aggregate", ["min", "max", "mean"])
def test_rates_fall_with_importance_with_tasks_and_with_the_sparsity_of_the_layer(aggregate: str) -> None:
    operation = UnitImportance(
        aggregate=aggregate,  # type: ignore[arg-type]
        intensity=0.2,
        base_sparsity=0.1,
        base_task=10.0,
        s_max=10.0,
        strength=0.0,
    )
    cl = bound(operation)
    for task in range(2):
        step(cl, cl.begin(experience(task), epochs=2, batch_size=6))
        cl.end()
    m = {"backbone.0": [[1.0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0]], "backbone.2": [[0.0, 1, 0], [1.0, 1, 0]]}
    worth = {"backbone.0": [0.7, 0.0, 0.3, 0.0, 0.0], "backbone.2": [0.2, 0.9, 0.0]}
    operation.masks = {name: dict(enumerate(map(torch.tensor, masks))) for name, masks in m.items()}
    operation.summed = {name: torch.tensor(values) for name, values in worth.items()}
    data = cl.begin(experience(2), epochs=2, batch_size=6)
    cl.model.train()
    factor = {}
    for name, masks in m.items():
        soft = torch.sigmoid(operation.sharpness * operation.embeddings[name.replace(".", "/")]).tolist()
        free = [1.0 if a + b == 0 else 0.0 for a, b in zip(*masks)]
        sparsity = sum(a * f for a, f in zip(soft, free)) / max(1.0, sum(free))
        factor[name] = (3 + 10.0) * (sparsity + 0.1)
    step(cl, data, move=False)
    join = {"min": min, "max": max, "mean": lambda a, b: (a + b) / 2}[aggregate]
    for i in range(3):
        for j in range(5):
            both = join(worth["backbone.2"][i], worth["backbone.0"][j])
            expected = 0.2 / (factor["backbone.2"] * both + 0.2)
            assert float(operation.rates["backbone.2.weight"][i, j]) == pytest.approx(expected, rel=1e-5)
    for i in range(5):
        expected = 0.2 / (factor["backbone.0"] * worth["backbone.0"][i] + 0.2)
        assert float(operation.rates["backbone.0.bias"][i]) == pytest.approx(expected, rel=1e-5)
        assert float(operation.rates["backbone.0.weight"][i, 2]) == pytest.approx(expected, rel=1e-5)


def test_channels_and_residual_networks_are_measured_by_their_input_gradients() -> None:
    nets = [
        cnn(input_shape=(1, 4, 4), classes=4, channels=[3], hidden=[4], head="task", seed=0),
        resnet18(input_shape=(1, 8, 8), classes=4, width=2, head="task", seed=0),
    ]
    for net, shape in zip(nets, ((1, 4, 4), (1, 8, 8))):
        stream = Stream([experience(task, shape) for task in range(2)], shape, 4, paradigm="task")
        trainer = Trainer(fg_adahat(), batch_size=6, evaluate="none")
        trainer.fit(net, stream)
        assert all(bool((value >= 0).all()) for value in trainer.method.operations[0].summed.values())


def test_importance_that_needs_a_chain_is_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match="input_gradient"):
        bound(UnitImportance(importance="contribution"), resnet18(input_shape=(1, 8, 8), classes=4, head="task"))


def test_the_smaller_the_intensity_the_less_an_earlier_task_is_moved() -> None:
    moved = []
    for intensity in (1e-8, 1e-3, 10.0):
        cl = bound(
            UnitImportance(intensity=intensity, s_max=10.0), mlp(input_shape=(4,), classes=6, head="task", seed=0)
        )
        inputs, outputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(9)), []
        for task in range(2):
            data = cl.begin(experience(task), epochs=2, batch_size=6)
            for _ in range(20):
                step(cl, data)
            cl.end()
            outputs.append(cl.predict(inputs, task=0)[:, :2])
        moved.append(float((outputs[1] - outputs[0]).abs().max()))
    assert moved[0] < moved[1] < moved[2]
    assert moved[0] < 0.01 * moved[2]


def test_wrong_arguments_are_refused() -> None:
    for wrong in ({"importance": "gradient"}, {"aggregate": "sum"}, {"base_importance": -1.0}, {"base_task": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            UnitImportance(**wrong)  # type: ignore[arg-type]
    assert fg_adahat(importance="contribution").operations[0].importance == "contribution"
