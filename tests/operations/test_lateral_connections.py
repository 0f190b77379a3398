"""Lateral connections (progressive networks): their formula by explicit loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience
from holdfast.core.method import Method
from holdfast.methods import duplicate_backbone, progressive
from holdfast.models import mlp, resnet18
from holdfast.operations import LateralConnections
from holdfast.streams.data import TensorData
from holdfast.training import Continual


def experience(task: int) -> Experience:
    generator = torch.Generator().manual_seed(task)
    data = TensorData(torch.randn(8, 4, generator=generator), torch.arange(8) % 2 + 2 * task)
    return Experience(task, data, data, classes=(2 * task, 2 * task + 1), task=task)


def learnt(tasks: int, make: Callable[..., Method] = progressive) -> tuple[Continual, list[dict[str, Tensor]]]:
    """A drop-in after so many tasks, and each column's own weights."""
    net = mlp(input_shape=(4,), classes=8, hidden=[5, 3], head="task", seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05, weight_decay=0.1)
    cl = Continual(net, make(columns=4), optimizer)
    columns = []
    for task in range(tasks):
        net.train()
        data = cl.begin(experience(task))
        batch = data.gather(torch.arange(8))  # type: ignore[union-attr]
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(cl(batch.inputs), batch.targets)
            cl.backward(loss, batch.targets, inputs=batch.inputs)
            optimizer.step()
        cl.end()
        columns.append({name: p.detach().clone() for name, p in net.backbone.named_parameters()})
    return cl, columns


def test_each_layer_reads_the_layer_below_in_all_earlier_columns() -> None:
    cl, columns = learnt(3)
    lateral = cl.method.operations[1]
    assert isinstance(lateral, LateralConnections)
    inputs, head = torch.randn(6, 4), cl.model.get_submodule("head")
    for task in range(3):
        found = cl.predict(inputs, task=task)
        for row in range(6):
            first, second = [], []  # hidden layers of each column
            for k in range(task + 1):
                own = columns[k]
                first.append(torch.relu(own["0.weight"] @ inputs[row] + own["0.bias"]))
                below = own["2.weight"] @ first[k] + own["2.bias"]
                for j in range(k):
                    below = below + lateral.kept[k]["backbone/2"][j] @ first[j]
                second.append(torch.relu(below))
            features = second[task]
            for j in range(task):
                features = features + lateral.kept[task]["head"][j] @ second[j]
            expected = head.weights[task] @ features + head.biases[task]  # type: ignore[index, operator]
            assert torch.allclose(found[row, 2 * task : 2 * task + 2], expected, atol=1e-5)


def test_a_duplicated_backbone_starts_as_a_copy_and_the_head_reads_all_of_them() -> None:
    cl, columns = learnt(2, duplicate_backbone)
    lateral, net = cl.method.operations[1], cl.model
    assert isinstance(lateral, LateralConnections)
    inputs, head = torch.randn(6, 4), net.get_submodule("head")
    features = []
    for own in columns:
        hidden = torch.relu(inputs @ own["0.weight"].T + own["0.bias"])
        features.append(torch.relu(hidden @ own["2.weight"].T + own["2.bias"]))
    read = features[1] + features[0] @ lateral.kept[1]["head"][0].T
    expected = read @ head.weights[1].T + head.biases[1]  # type: ignore[index, operator]
    assert torch.allclose(cl.predict(inputs, task=1)[:, 2:4], expected, atol=1e-5)
    assert list(lateral.connections) == ["head"]
    cl.begin(experience(2))
    assert all(torch.equal(p, columns[1][name]) for name, p in net.get_submodule("backbone").named_parameters())


def test_connections_are_learnt_and_start_within_the_bound_of_a_layer_that_reads_all_columns() -> None:
    cl, _ = learnt(2)
    lateral = cl.method.operations[1]
    assert isinstance(lateral, LateralConnections)
    cl.begin(experience(2))
    connections = lateral.connections["backbone/2"].detach()
    assert float(connections[:2].abs().max()) <= (2 * 5) ** -0.5
    assert float(connections[:2].abs().min()) > 0
    assert bool((connections[2:] == 0).all())
    batch = experience(2).train.gather(torch.arange(8))
    cl.model.train()
    cl.backward(nn.functional.cross_entropy(cl(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)
    gradient = lateral.connections["backbone/2"].grad
    assert gradient is not None
    assert bool((gradient[:2] != 0).any())
    assert bool((gradient[2:] == 0).all())


def test_more_tasks_than_columns_and_models_that_are_no_chain_are_refused() -> None:
    cl, _ = learnt(4)
    with pytest.raises(UsageError, match="more columns"):
        cl.begin(experience(4))
    net = resnet18(input_shape=(3, 8, 8), classes=2, width=2, head="task")
    with pytest.raises(ConfigError, match="chain"):
        Continual(net, progressive(), torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="columns=0"):
        progressive(columns=0)
