"""Inner products of single samples' gradients: equal to those of gradients taken one at a time, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.core.inspect import eval_mode
from holdfast.core.learner import Learner
from holdfast.operations._parts.layer_gradients import inner_products, layer_outputs, recorded, supported_layers

MODELS: dict[str, Any] = {
    "perceptron": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Linear(4, 3)),
    "convolutions": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(36, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    ),
    "sequences": lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 4), nn.Flatten(), nn.Linear(12, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_inner_products_are_those_of_gradients_taken_one_at_a_time(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().double()
        inputs, targets = torch.randn(21, 6, dtype=torch.float64), torch.arange(21) % 3
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
    layers = supported_layers(model)
    assert layers is not None
    with eval_mode(model), recorded(layers) as seen:
        loss = F.cross_entropy(Learner(model)(inputs), targets, reduction="sum")
        deltas = torch.autograd.grad(loss, layer_outputs(seen))
    cross, norms = inner_products(layers, seen, deltas, 18)
    model.eval()
    grads = []
    for x, y in zip(inputs, targets, strict=True):
        parts = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        grads.append(torch.cat([part.flatten() for part in parts]))
    for i in range(18):
        for j in range(3):
            assert float(cross[i, j]) == pytest.approx(float(grads[i] @ grads[18 + j]), rel=1e-9, abs=1e-12)
    assert norms.tolist() == pytest.approx([float(grad @ grad) for grad in grads], rel=1e-9)
