"""A method brings a change of the model: another module in its place, or hooks and parameters of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, methods
from holdfast.core.engine import Engine
from holdfast.core.errors import NeedError
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.services import Services
from holdfast.operations import Remember, Replay, WeightAlign


class Prompted(nn.Module):
    """The model behind a learnt shift of its inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.shift = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.shift)


def prompted(model: nn.Module, services: Services) -> nn.Module:
    return Prompted(model)


class Masked:
    """Changes the model itself: a parameter on it, a hook that reads it, and something of its own to save."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, services: Services) -> None:
        model.register_parameter("gains", nn.Parameter(torch.ones(5, device=services.device)))
        self.calls = int(torch.randint(1, 99, (), generator=services.rng("mask")))
        model.register_forward_pre_hook(lambda module, args: (args[0] * module.gains, *args[1:]))

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]

    def clone(self) -> Masked:
        return Masked()


def test_the_trainer_trains_the_model_that_the_method_puts_in_its_place(toy: Any) -> None:
    stream = toy.stream(experiences=2, classes=4)
    net = toy.model(stream, "growing")
    trainer = toy.train(Method(Replay(size=3), Remember(capacity=8), WeightAlign(), wrap=prompted), net, stream)
    assert isinstance(trainer.model, Prompted)
    assert trainer.model.inner is net
    assert trainer.model.shift.abs().max() > 0
    assert trainer.learner.head is net.head
    assert net.head.width == 4


def test_a_resumed_run_goes_on_with_the_same_change(toy: Any) -> None:
    stream = toy.stream(experiences=2, classes=4)
    method = Method(Replay(size=3), Remember(capacity=8), wrap=Masked())
    trainer = toy.train(method, toy.model(stream, "growing"), stream)
    saved = toy.through_disk(trainer.engine.state())
    assert saved["wrap"] == {"calls": method.wrap.calls}
    other = method.clone()
    assert other.wrap is not method.wrap
    fresh = Engine(other, Learner(toy.model(stream, "growing", seed=8), seed=77), NEEDS)
    other.wrap.calls = 0
    fresh.load(saved)
    assert other.wrap.calls == method.wrap.calls
    inputs = stream[0].test.gather(torch.arange(4)).inputs
    with fresh.evaluating(), trainer.engine.evaluating():
        assert torch.equal(fresh.predict(inputs), trainer.engine.predict(inputs))


def _drop_in(method: Method, net: nn.Module, toy: Any) -> Continual:
    stream = toy.stream(experiences=2, classes=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    cl = Continual(net, method, optimizer)
    net.train()
    for experience in stream:
        data = cl.begin(experience, epochs=1, batch_size=4)
        for batch in data.batches(torch.arange(len(data)), 4):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(batch.inputs), batch.targets)
            cl.backward(loss, batch.targets, inputs=batch.inputs)
            optimizer.step()
        cl.end()
    return cl


def test_in_a_loop_of_ones_own_a_change_of_the_model_itself_is_trained_too(toy: Any) -> None:
    net = toy.model(toy.stream(experiences=2, classes=4))
    _drop_in(Method(Replay(size=3), Remember(capacity=8), wrap=Masked()), net, toy)
    assert (net.gains - 1).abs().max() > 1e-4


def test_another_model_is_refused_where_the_loop_calls_its_own(toy: Any) -> None:
    net = toy.model(toy.stream(experiences=2, classes=4))
    hooks = len(net._forward_hooks)
    with pytest.raises(NeedError, match="another model in the place of yours"):
        _drop_in(Method(wrap=prompted), net, toy)
    assert len(net._forward_hooks) == hooks


def test_a_wrap_is_called_once_before_operations_are_set_up(toy: Any) -> None:
    seen: list[type] = []

    class Looks(Replay):
        def setup(self, learner: Services) -> None:
            super().setup(learner)
            seen.append(type(learner.model))

    calls: list[nn.Module] = []

    def once(model: nn.Module, services: Services) -> nn.Module:
        calls.append(model)
        return Prompted(model)

    stream = toy.stream(experiences=2, classes=4)
    method = Method(Looks(size=3), Remember(capacity=8), wrap=once)
    toy.train(method, toy.model(stream), stream)
    assert seen == [Prompted]
    assert len(calls) == 1
    assert repr(method).endswith("wrap=once)")
    assert method.config()["wrap"] == "once"
    assert "wrap" not in methods.er().config()


@pytest.mark.slow
def test_under_lightning_a_change_of_the_model_itself_gives_the_weights_of_the_trainer(toy: Any) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from holdfast.lightning import ContinualCallback, StreamDataModule

    stream = toy.stream(experiences=2, classes=4)

    def fitted(wrap: Any) -> nn.Module:
        net = toy.model(stream)
        callback = ContinualCallback(Method(Replay(size=3), Remember(capacity=8), wrap=wrap), seed=3)

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: Any, index: int) -> Tensor:
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.05)

        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = lightning.Trainer(max_epochs=2, callbacks=[callback], accelerator="cpu", **off)
        trainer.fit(Module(), datamodule=StreamDataModule(stream, batch_size=4, epochs=1))
        return net

    ours = toy.model(stream)
    toy.train(Method(Replay(size=3), Remember(capacity=8), wrap=Masked()), ours, stream)
    theirs = fitted(Masked())
    assert (theirs.gains - 1).abs().max() > 1e-4
    assert toy.equal(ours, theirs)
    with pytest.raises(NeedError, match="another model in the place of yours"):
        fitted(prompted)
