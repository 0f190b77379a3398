"""What replay methods are for: on a stream of blobs, each forgets clearly less than plain fine-tuning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import holdfast.methods as methods
from holdfast.core.method import Method
from holdfast.streams import split
from holdfast.streams.data import TensorData
from holdfast.streams.datasets import synthetic

MADE: dict[str, Any] = {
    "er_ace": lambda: methods.er_ace(capacity=60, size=8),
    "mir": lambda: methods.mir(capacity=60, size=8, candidates=20),
    "gss": lambda: methods.gss(capacity=60, size=8, compare=5),
    "gem": lambda: methods.gem(per_experience=30),
    "cls_er": lambda: methods.cls_er(capacity=60, size=8, stable_decay=0.95, plastic_decay=0.9),
    "icarl": lambda: methods.icarl(capacity=60),
    "gdumb": lambda: methods.gdumb(capacity=60, epochs=15, batch_size=8),
    "exemplar_replay": lambda: methods.exemplar_replay(per_class=10, repeat=3),
    "er_exemplars": lambda: methods.er_exemplars(per_class=10, size=16),
    "dgr": lambda: methods.dgr(size=16, units=32, latent=4, rate=3e-3),
    "generative_classifier": lambda: methods.generative_classifier(units=16, latent=2, rate=1e-2, samples=10),
}


def _scaled(data: Any) -> TensorData:
    everything = data.gather(torch.arange(len(data)))
    return TensorData(4 * everything.inputs, everything.targets)


def _accuracy(toy: Any, method: Method) -> float:
    stream = split(synthetic(classes=6, features=4, samples=50, test_samples=20, spread=0.3, seed=1), experiences=3)
    for one in stream:  # far apart against the variance of 1 that a Gaussian likelihood has
        one.train, one.test = (_scaled(data) for data in (one.train, one.test))
    net = toy.model(stream, hidden=(24,))
    trainer = toy.train(
        method, net, stream, optimizer={"name": "Adam", "lr": 0.03}, batch_size=8, epochs=4, evaluate="test",
        evaluate_before=False,
    )  # fmt: skip
    last = [e for e in trainer.events if e["event"] == "evaluate" and e["after"] == 2]
    return sum(e["correct"] for e in last) / sum(e["samples"] for e in last)


@pytest.fixture(scope="module")
def finetuned() -> dict[str, float]:
    return {}


FEW = ("er_exemplars", "gem", "icarl", "dgr", "generative_classifier")
"""One with exemplars, with gradients, with means, and the two that generate; the others in the slow tests."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in MADE])
def test_it_forgets_clearly_less_than_plain_fine_tuning(toy: Any, finetuned: dict[str, float], name: str) -> None:
    if not finetuned:
        finetuned["accuracy"] = _accuracy(toy, methods.finetune())
    assert finetuned["accuracy"] < 0.45
    found = _accuracy(toy, MADE[name]())
    assert found > finetuned["accuracy"] + (0.1 if "gem" in name else 0.25)
