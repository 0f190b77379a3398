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

from holdfast import Continual, methods
from holdfast.core.errors import UsageError
from holdfast.core.method import Method
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
    if name == "mas":
        return methods.mas()
    return methods.si(strength=5.0) if name == "si" else methods.ewc(strength=50.0, fisher="exact")


def data(task: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(task)
    inputs = torch.randn(STEPS * ROWS, 6, generator=generator) + task
    return inputs, (inputs[:, :2].sum(1) > task * 2).long() + 2 * task


def learn(name: str, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    model: nn.Module = mlp(input_shape=(6,), classes=4, hidden=[9], head="fixed", seed=0)
    outer = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(outer.parameters(), lr=0.1, momentum=0.5)
    cl = Continual(outer, make(name, ranks), optimizer, seed=1)
    for task in range(TASKS):
        inputs, targets = data(task)
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


def work(rank: int, port: int, names: list[str], folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found: dict[str, Any] = {name: learn(name, rank, 2) for name in names}
    growing = mlp(input_shape=(6,), classes=4, hidden=[9], head="growing", seed=0)
    growing.head.grow(2)
    outer = DistributedDataParallel(growing)
    cl = Continual(outer, methods.er(capacity=5), torch.optim.SGD(outer.parameters(), lr=0.1))
    try:
        cl.begin(classes=(2, 3))
    except UsageError as error:
        found["growing"] = str(error)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


NAMES = ["der_plus_plus", "ewc", "agem", "er", "si", "mas"]


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
def test_a_head_that_grows_is_refused_where_new_outputs_would_not_be_averaged(ranks: list[dict[str, Any]]) -> None:
    assert all("all its outputs before wrapping" in found["growing"] for found in ranks)
