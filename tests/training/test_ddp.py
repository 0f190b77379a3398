"""Two processes: the same weights on both, equal to one process on the joined batch."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from holdfast import Continual, Learner, Method, Operation, Step, methods
from holdfast.models import mlp
from holdfast.streams.data import TensorData

ROWS, STEPS, TASKS = 8, 12, 2
"""Rows of a joined batch; every rank gets half of them."""


def make(name: str, ranks: int) -> Method:
    """A method whose draws are its whole memory, so that shards add up to the single process's memory."""
    whole = 2 * ROWS * STEPS * TASKS // ranks
    if name == "der_plus_plus":
        return methods.der_plus_plus(capacity=whole, size=whole)
    if name == "agem":
        return methods.agem(capacity=whole, size=whole)
    if name == "er":
        return methods.er(capacity=whole, size=whole)
    if name in ("mas", "lwf"):
        return getattr(methods, name)()
    return methods.si(strength=5.0) if name == "si" else methods.ewc(strength=50.0, fisher="exact")


def data(task: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(task)
    inputs = torch.randn(STEPS * ROWS, 6, generator=generator) + task
    return inputs, (inputs[:, :2].sum(1) > task * 2).long() + 2 * task


def learn(name: str, rank: int, ranks: int, head: str = "fixed") -> dict[str, torch.Tensor]:
    model: nn.Module = mlp(input_shape=(6,), classes=4, hidden=[9], head=head, seed=0)
    outer = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(outer.parameters(), lr=0.1, momentum=0.5)
    cl = Continual(outer, make(name, ranks), optimizer, seed=1)
    for task in range(TASKS):
        inputs, targets = data(task)
        if head == "growing":  # a rank may hold but one of the classes that the task has
            targets = targets.sort().values
            inputs = inputs[torch.randperm(len(targets), generator=torch.Generator().manual_seed(task))]
            own = torch.arange(len(targets)).view(ranks, STEPS, -1)[rank].flatten()
        else:
            own = torch.arange(len(targets)).view(STEPS, ranks, -1)[:, rank].flatten()
        shard = TensorData(inputs[own], targets[own])
        cl.begin(shard)
        for rows in own.view(STEPS, -1):
            loss = nn.functional.cross_entropy(outer(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            cl.backward(loss, targets[rows], inputs=inputs[rows])
            optimizer.step()
        cl.end()
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def importance(rows: torch.Tensor, ranks: int) -> dict[str, dict[str, torch.Tensor]]:
    """What EWC and MAS measure at the end of an experience whose data on this rank is `rows` of task 0."""
    found = {}
    inputs, targets = data(0)
    for name in ("ewc", "mas"):
        model: nn.Module = mlp(input_shape=(6,), classes=4, hidden=[9], head="fixed", seed=0)
        outer = DistributedDataParallel(model) if ranks > 1 else model
        cl = Continual(outer, make(name, ranks), torch.optim.SGD(outer.parameters(), lr=0.1))
        cl.begin(classes=(0, 1))
        cl.end(TensorData(inputs[rows], targets[rows]))
        found[name] = dict(cl.method.operations[0].importance)
    return found


class Scale(Operation):
    """An operation with a parameter of its own, which DDP does not know."""

    def setup(self, learner: Learner) -> None:
        self.factor = nn.Parameter(torch.ones(()))
        learner.learn({"factor": self.factor})

    def loss(self, step: Step, learner: Learner) -> torch.Tensor:
        return self.factor.square() * step.outputs.square().mean()


def own_parameters(rank: int) -> float:
    """The operation's parameter after steps on data that differs from rank to rank."""
    model = DistributedDataParallel(mlp(input_shape=(6,), classes=4, hidden=[9], head="fixed", seed=0))
    method = Method(Scale())
    cl = Continual(model, method, torch.optim.SGD(model.parameters(), lr=0.1))
    inputs, targets = data(rank)
    for rows in torch.arange(len(targets)).split(ROWS):
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        cl.optimizer.zero_grad()
        cl.backward(loss, targets[rows], inputs=inputs[rows])
        cl.optimizer.step()
    return float(method.operations[0].factor.detach())


def work(rank: int, port: int, names: list[str], folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found: dict[str, Any] = {name: learn(name, rank, 2) for name in names}
    found |= {f"growing {name}": learn(name, rank, 2, "growing") for name in GROWING}
    found["nothing on rank 1"] = importance(torch.arange(6) if rank == 0 else torch.arange(0), 2)
    found["own parameters"] = own_parameters(rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()  # gloo aborts a process whose peer hangs up while it still listens
    dist.destroy_process_group()


NAMES = ["der_plus_plus", "ewc", "agem", "er", "si", "mas"]
GROWING = ["er", "ewc", "agem", "lwf"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, NAMES, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_ranks_hold_the_weights_of_one_process_on_the_joined_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    for key, value in ranks[0][name].items():
        assert torch.equal(value, ranks[1][name][key]), f"ranks differ in {key}"
    single = learn(name, 0, 1)
    for key, value in single.items():
        torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-4, atol=2e-6)
    if name != "er":  # a control: the method did something
        plain = copy.deepcopy(single)
        assert any(not torch.equal(plain[key], value) for key, value in learn("er", 0, 1).items())


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWING)
def test_a_head_that_grows_is_averaged_and_has_the_classes_of_all_ranks(name: str, ranks: list[dict[str, Any]]) -> None:
    one, other = (found[f"growing {name}"] for found in ranks)
    assert sum(value.shape[0] for key, value in one.items() if "head" in key and value.dim() == 2) == 4
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_rank_without_data_at_the_end_of_an_experience_counts_as_nothing(ranks: list[dict[str, Any]]) -> None:
    alone = importance(torch.arange(6), 1)
    for found in ranks:
        for name, expected in alone.items():
            for key, value in expected.items():
                torch.testing.assert_close(found["nothing on rank 1"][name][key], value)


@pytest.mark.slow
def test_parameters_of_an_operation_are_the_same_on_both_ranks(ranks: list[dict[str, Any]]) -> None:
    one, other = (found["own parameters"] for found in ranks)
    assert one == other
    assert one < 0.99
