"""Several batches to one step of the optimiser: the same through the trainer and the user's own loop."""

import copy

import pytest
import torch
import torch.nn.functional as F

from holdfast import Continual, Trainer, methods
from holdfast.models import mlp
from holdfast.streams import split
from holdfast.streams.datasets import synthetic


@pytest.mark.parametrize("make", [lambda: methods.agem(20, 8), lambda: methods.der_plus_plus(20, 8), methods.si])
def test_accumulated_batches_make_one_step_with_one_edit_of_its_gradient(make):
    stream = split(synthetic(classes=4, features=6, samples=96), experiences=2)
    first = mlp(input_shape=stream.input_shape, classes=4, hidden=[8], seed=0)
    second = copy.deepcopy(first)
    trainer = Trainer(make(), optimizer={"name": "SGD", "lr": 0.1}, batch_size=8, accumulate=2, evaluate="none")
    trainer.fit(first, stream)
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    cl = Continual(second, make(), optimizer, accumulate=2, prepare=stream.prepare)
    order_rng = cl.learner.rng("order")
    second.train()
    for experience in stream:
        data = cl.begin(experience)
        assert len(data) % 16 == 0
        order = torch.randperm(len(data), generator=order_rng)
        for number, batch in enumerate(data.batches(order, 8)):
            loss = F.cross_entropy(cl(batch.inputs), batch.targets)
            if number % 2 == 0:
                optimizer.zero_grad()
            cl.backward(loss, batch.targets, inputs=batch.inputs)
            if number % 2 == 1:
                optimizer.step()
        cl.end()
    assert trainer.engine.index == cl.engine.index
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
