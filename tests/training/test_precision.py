"""Number formats of the trainer, and a compiled model that grows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.learner import Learner
from holdfast.core.operation import Operation
from holdfast.methods import er, ewc, finetune
from holdfast.training import Trainer
from holdfast.training import session as module
from holdfast.training.loop import Loop
from holdfast.training.state import Saver
from holdfast.training.trainer import open_experience


class Look(nn.Module):
    """Notes the type of what enters and leaves a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, model.head
        self.seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.model(inputs)
        self.seen.add((inputs.dtype, outputs.dtype))
        return outputs


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("32-true", (torch.float32, torch.float32)),
        ("bf16-mixed", (torch.float32, torch.bfloat16)),
        ("64-true", (torch.float64, torch.float64)),
    ],
)
def test_a_precision_is_that_of_every_forward_in_training(precision: str, expected: Any, toy: Any) -> None:
    stream = toy.stream()
    net = Look(toy.model(stream))
    toy.train(er(capacity=10, size=4), net, stream, precision=precision)
    assert net.seen == {expected}
    assert {p.dtype for p in net.parameters()} == {torch.float64 if precision == "64-true" else torch.float32}


def test_doubles_are_the_same_training_with_less_rounding(toy: Any) -> None:
    stream = toy.stream()
    nets = [toy.model(stream, "growing") for _ in range(2)]
    for net, precision in zip(nets, ("32-true", "64-true")):
        toy.train(ewc(strength=5.0, fisher="exact"), net, stream, precision=precision, evaluate="test")
    for one, two in zip(*(net.parameters() for net in nets)):
        assert two.dtype == torch.float64
        torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=1e-5)
        assert not torch.equal(one.double(), two)


@pytest.mark.parametrize(("precision", "says"), [("16-mixed", "Write precision=bf16-mixed"), ("float8", "Choose one")])
def test_a_precision_that_a_cpu_has_not_is_refused(precision: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Trainer(finetune(), precision=precision)


class Overflow(Operation):
    """Makes one step's loss infinite."""

    def loss(self, step: Any, learner: Learner) -> Any:
        calls.append(step.index)
        return step.loss * float("inf") if len(calls) == 3 else None


calls: list[int] = []


def test_a_scaled_step_that_overflows_leaves_no_trace_but_a_smaller_scale(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler on the CPU, which has no use for it but the same arithmetic."""
    from holdfast.core.method import Method

    monkeypatch.setattr(module, "make_scaler", lambda precision, device: torch.amp.GradScaler("cpu", init_scale=1024.0))
    calls.clear()
    stream = toy.stream(experiences=2, classes=4)
    scaled, plain = toy.model(stream), toy.model(stream)
    trainer = toy.train(Method(Overflow()), scaled, stream, on_divergence="go_on")
    assert len(calls) == 10
    assert trainer.engine.index == 9
    assert trainer.session.scaler is not None
    assert trainer.session.scaler.get_scale() == 512.0
    assert all(p.isfinite().all() for p in scaled.parameters())
    monkeypatch.undo()

    other = Trainer(finetune(), optimizer={"name": "SGD", "lr": 0.05}, batch_size=4, evaluate="none", seed=3)
    other.bind(plain, stream)
    session, made = other.session, []

    def skipping(step: Any, weight: float, last: bool) -> bool:
        made.append(1)
        return len(made) != 3 and session.update(step, weight, last)

    loop = Loop(session, Saver(session))
    steps = loop.steps
    loop.steps = lambda batches, total: steps(batches, total, skipping)  # type: ignore[method-assign]
    for index in range(2):
        loop.train(open_experience(session, index))
    for one, two in zip(scaled.parameters(), plain.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_steps_give_the_weights_of_steps_as_written_within_rounding(toy: Any) -> None:
    stream = toy.stream(samples=21)
    nets = [toy.model(stream, "growing") for _ in range(2)]
    for net, capture in zip(nets, ("none", "compile")):
        trainer = toy.train(
            er(capacity=20, size=4), net, stream, optimizer={"name": "SGD", "lr": 0.05}, capture=capture
        )
    assert sum(event["captured"] for event in trainer.events if event["event"] == "capture") > 10
    for one, two in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
