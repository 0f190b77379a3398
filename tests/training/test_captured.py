"""Captured steps: equal weights with all that can be around a step, and operations that try to fool a recording."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.core.boundary import Every
from holdfast.core.decide import note_on_host, noted_on_host, on_host
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Batch
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.memory import balanced
from holdfast.methods import agem, duplicate_backbone, er, ewc, gdumb, mir, progressive, si
from holdfast.operations import Remember, Replay, train_on_memory
from holdfast.streams.data import TensorData
from holdfast.testing import toys
from holdfast.testing.capture import gap
from holdfast.training import Continual, Trainer, fit_stacked, programs, recordings
from holdfast.training.endless import StreamTrainer

SGD = {"name": "SGD", "lr": 0.05}
MOMENTUM = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True}
aten = torch.ops.aten
Made = tuple[Trainer, nn.Module]


def trained(capture: str, make: Callable[[], Method] = lambda: er(capacity=20, size=4), **settings: Any) -> Made:
    stream = toys.stream(settings.pop("paradigm", "class"), samples=13, **settings.pop("of", {}))
    net = settings.pop("net", None) or toys.model(stream, "growing", **settings.pop("model", {}))
    return toys.train(make(), net, stream, **{"epochs": 2, "log_every": 4, "capture": capture, **settings}), net


def told(trainer: Trainer) -> list[dict[str, Any]]:
    return [event for event in trainer.events if event["event"] == "capture"]


def both(make: Callable[[], Method] = lambda: er(capacity=20, size=4), **settings: Any) -> list[dict[str, Any]]:
    """What is told of captured steps, which give the weights of steps as written."""
    (_, plain), (trainer, net) = trained("none", make, **settings), trained("tape", make, **settings)
    assert toys.differing(plain, net) == []
    return told(trainer)


def captured_steps(events: list[dict[str, Any]]) -> int:
    return sum(event["captured"] for event in events)


# Around a step ---------------------------------------------------------------------------------------------


def exponential(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": SGD, "scheduler": exponential, "scheduler_every": "step"},
        {"optimizer": MOMENTUM, "scheduler": exponential, "scheduler_every": "step"},
        {"optimizer": {"name": "Adam", "lr": 0.01, "fused": True}, "scheduler": exponential, "scheduler_every": "step"},
        {"optimizer": {"name": "AdamW", "fused": True}, "scheduler": exponential, "scheduler_every": "step"},
        {
            "optimizer": {"name": "Adam", "lr": 0.01, "amsgrad": True},
            "scheduler": exponential,
            "scheduler_every": "step",
        },
        {"optimizer": {"name": "Adam", "weight_decay": 0.1, "foreach": True, "maximize": True}, "epochs": 3},
        {"optimizer": {"name": "AdamW", "lr": 0.01}, "scheduler": exponential, "scheduler_every": "step"},
        {"optimizer": {"name": "AdamW", "foreach": True}, "scheduler": exponential, "scheduler_every": "step"},
        {"optimizer": {"name": "RMSprop", "lr": 0.01}, "scheduler": exponential, "scheduler_every": "step"},
        {"optimizer": {"name": "Adadelta", "foreach": False}, "scheduler": exponential, "scheduler_every": "step"},
        {"optimizer": {"name": "Rprop", "lr": 0.01}, "scheduler": exponential, "scheduler_every": "epoch"},
        {"optimizer": MOMENTUM, "clip_norm": 0.5},
        {"optimizer": SGD, "clip_norm": 0.05, "clip_by": "value"},
        {"optimizer": SGD, "precision": "bf16-mixed"},
        {"optimizer": SGD, "precision": "64-true"},
        {"optimizer": SGD, "evaluate": "test", "epochs": 3},
        {"optimizer": SGD, "per_experience": {1: {"batch_size": 6}, 2: {"optimizer": {"name": "SGD", "lr": 0.2}}}},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_captured_steps_give_equal_weights(settings: dict[str, Any]) -> None:
    assert captured_steps(both(**settings)) > 10


class Still(Operation):
    """Leaves one weight where it is at some steps, drawn anew at each."""

    role = "representation learning"

    def gradient(self, step: Step, learner: Services) -> None:
        if learner.decide(lambda: bool(torch.rand((), generator=learner.rng("still")) < 0.5)):
            learner.trainable.parameters()[0].grad = None


@pytest.mark.parametrize("make", [progressive, duplicate_backbone])
def test_an_operation_that_keeps_the_batch_of_a_step_as_written_is_captured(make: Callable[[], Method]) -> None:
    paradigm = "task" if "task" in make().needs else "class"
    assert captured_steps(both(make, paradigm=paradigm)) > 4


@pytest.mark.parametrize("foreach", [False, True])
def test_weights_that_move_at_some_steps_only_have_counts_of_their_own(foreach: bool) -> None:
    adam = {"name": "Adam", "lr": 0.01, "foreach": foreach}
    assert captured_steps(both(lambda: Method(Still()), optimizer=adam, epochs=4)) > 4


@pytest.mark.parametrize("capture", ["none", "tape", "stacked"])
@pytest.mark.parametrize(
    "make", [lambda: er(capacity=8, size=4, policy="balanced_reservoir"), lambda: gdumb(capacity=8, epochs=1)]
)
def test_a_memory_that_goes_by_labels_never_waits_for_the_device(
    capture: str, make: Callable[[], Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here data lies on a CPU; it is made to tell its labels as data on a GPU does, and whoever asks is noted."""
    noted: list[bool] = []

    def asked(tensor: Tensor) -> Tensor:
        noted.append(noted_on_host(tensor) is not None)
        return on_host(tensor)

    def known(data: TensorData, order: Tensor) -> Tensor:
        return data.targets.index_select(0, order)

    def train(how: str, seeds: Sequence[int] = (0,)) -> list[nn.Module]:
        stream = toys.stream(samples=13)
        nets = [toys.model(stream, "growing", seed=0) for _ in seeds]
        settings: dict[str, Any] = {"batch_size": 4, "epochs": 3, "evaluate": "none", "capture": how}
        trainers = [Trainer(make(), optimizer=SGD, seed=seed, **settings) for seed in seeds]
        if len(seeds) == 1:
            trainers[0].fit(nets[0], stream)
        else:
            fit_stacked(trainers, nets, [stream] * len(seeds))
        return nets

    (before,) = train("none")
    monkeypatch.setattr(TensorData, "_known", known)
    for module in (balanced, train_on_memory):
        monkeypatch.setattr(module, "on_host", asked)
    after = train("tape", (0, 1))[0] if capture == "stacked" else train(capture)[0]
    gaps = [gap(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values())]
    assert max(gaps) <= (1e-6 if capture == "stacked" else 0.0)
    assert len(noted) > 2
    assert all(noted)


def test_a_write_makes_void_what_was_noted_of_a_tensor() -> None:
    labels = torch.tensor([0, 1, 2])
    note_on_host(labels, torch.tensor([0, 1, 2]))
    part = labels[1:]
    assert noted_on_host(labels) is not None
    assert noted_on_host(part) is None
    part.add_(1)
    assert noted_on_host(labels) is None
    assert on_host(labels).tolist() == [0, 2, 3]


def halving(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


class Scales(Operation):
    """Gradients by the learning rate, read where no decision is made."""

    role = "representation learning"

    def gradient(self, step: Step, learner: Services) -> None:
        for gradient in learner.gradients():
            gradient.mul_(10 * (learner.trainable.rate or 0.0))


@pytest.mark.parametrize("make", [lambda: mir(capacity=20, size=4), ewc, lambda: Method(Scales())])
def test_a_rate_that_an_operation_reads_may_change_from_epoch_to_epoch(make: Callable[[], Method]) -> None:
    assert captured_steps(both(make, optimizer=SGD, scheduler=halving, scheduler_every="epoch", epochs=4)) > 10


def test_an_operation_that_reads_the_optimiser_is_not_captured_with_steps_that_are_counted_on_the_host() -> None:
    events = both(lambda: Method(Scales()), optimizer={"name": "Adam", "lr": 0.01})
    assert captured_steps(events) == 0
    assert "whose steps are counted on the host; optimizer.fused=true" in events[0]["reasons"][0]


def test_the_log_has_the_same_losses_and_accuracies() -> None:
    logs = [[e for e in trained(how, log_every=3)[0].events if e["event"] == "train"] for how in ("none", "tape")]
    assert len(logs[0]) == len(logs[1]) > 9
    for plain, captured in zip(*logs):
        assert captured["accuracy"] == plain["accuracy"]
        assert captured["terms"] == pytest.approx(plain["terms"], abs=1e-7)
        assert (captured["step"], captured["lr"], captured["epoch"]) == (plain["step"], plain["lr"], plain["epoch"])


@pytest.mark.parametrize("spec", [MOMENTUM, {"name": "AdamW", "lr": 0.01}], ids=lambda spec: spec["name"])
@pytest.mark.parametrize(("step", "again"), [(1, "tape"), (6, "none"), (9, "tape"), (20, "none")])
def test_a_run_goes_on_from_any_step_with_captured_steps_or_without(
    step: int, again: str, spec: dict[str, Any]
) -> None:
    _, plain = trained("none", optimizer=spec)
    keep = toys.KeepAt(step)
    trained("tape", optimizer=spec, checkpoints=keep)
    _, net = trained(again, optimizer=spec, resume=keep.states[step])
    assert toys.equal(plain, net)


def test_a_dropout_draws_the_same_numbers() -> None:
    stream = toys.stream(samples=13)
    nets = []
    for how in ("none", "tape"):
        net = toys.model(stream, "growing")
        net.backbone.append(nn.Dropout(0.3))  # type: ignore[operator, union-attr]
        nets.append(trained(how, net=net)[1])
    assert toys.equal(*nets)


def test_batch_norm_moves_its_statistics() -> None:
    assert captured_steps(both(model={"batch_norm": True})) > 10


def test_a_head_for_each_task_is_captured() -> None:
    assert captured_steps(both(paradigm="task")) > 10


# Where they are asked for ----------------------------------------------------------------------------------


def test_a_cpu_makes_steps_as_written_unless_it_is_asked_for() -> None:
    trainer, _ = trained("auto")
    assert told(trainer) == []
    assert programs.chosen("auto", torch.device("cuda")) == "graph"


def test_a_graph_without_a_gpu_and_a_program_without_a_compiler_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"is for NVIDIA GPUs, and the device is cpu\. Write capture='compile'"):
        trained("graph")
    monkeypatch.setattr(programs.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler, and there is none on this machine"):
        trained("compile")


def test_the_old_name_of_compiled_steps_says_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match='`compile=True` is called `capture="compile"`'):
        trainer = Trainer(er(), compile=True)
    assert trainer.capture == "compile"


@pytest.mark.parametrize(
    "spec",
    [
        SGD,
        MOMENTUM,
        {"name": "Adam", "lr": 0.01, "fused": True},
        {"name": "Adam", "lr": 0.01},
        {"name": "AdamW", "lr": 0.01, "foreach": True},
        {"name": "RMSprop", "lr": 0.01},
    ],
    ids=str,
)
def test_a_graph_gets_the_rate_as_a_tensor(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With graphs replaced by the tape."""

    def graphed(program: programs.Program, feed: Callable[[bool], None]) -> Callable[[], None]:
        feed(False)
        return lambda: (feed(True), program())[1]

    settings: dict[str, Any] = {"optimizer": spec, "scheduler": exponential, "scheduler_every": "step"}
    _, plain = trained("none", **settings)
    monkeypatch.setattr("holdfast.training.settings.chosen", lambda capture, device: "graph")
    monkeypatch.setattr("holdfast.training.trainer.chosen", lambda capture, device: "graph")
    monkeypatch.setattr(programs, "graphed", graphed)
    trainer, net = trained("graph", **settings)
    assert captured_steps(told(trainer)) > 10
    if spec["name"] == "SGD":
        assert toys.differing(plain, net) == []
    else:  # the fused optimiser takes a tensor of 32 bits for a rate, and others divide before they multiply
        for one, other in zip(plain.state_dict().values(), net.state_dict().values()):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"accumulate": 2}, "several batches add up to one step"),
        ({"detect_anomaly": True}, "detect_anomaly"),
        ({"optimizer": {"name": "Adagrad", "lr": 0.01}}, "with optimizer.fused=true it does so on the device"),
        ({"optimizer": {"name": "NAdam", "lr": 0.01}}, "NAdam reads its own values on the host"),
        (
            {"optimizer": {"name": "Rprop"}, "scheduler": exponential, "scheduler_every": "step"},
            "the step of Rprop has it as a constant",
        ),
    ],
)
def test_a_step_that_cannot_be_captured_runs_as_written_and_says_why(settings: dict[str, Any], reason: str) -> None:
    events = both(**settings)
    assert captured_steps(events) == 0
    assert all(any(reason in one for one in event["reasons"]) for event in events)
    assert sum(event["as_written"] for event in events) > 0


def test_a_step_that_torch_cannot_compile_runs_as_written_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of fused optimisers, whose calls with a rate that is a tensor Inductor does not know."""

    def refuse(*_: object) -> None:
        raise NotImplementedError("aten::some_call: attempted to run this operator with Meta tensors")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", refuse)
    (_, plain), (trainer, net) = trained("none"), trained("compile")
    assert toys.differing(plain, net) == []
    assert captured_steps(told(trainer)) == 0
    assert told(trainer)[0]["reasons"] == ["torch cannot compile the step: aten::some_call"]


def cyclic(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.05, step_size_up=1000)


def test_a_momentum_that_changes_at_every_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "UNLIKE", 4)
    events = both(optimizer=MOMENTUM, scheduler=cyclic, scheduler_every="step")
    assert captured_steps(events) == 0
    assert any("a number of the optimiser changes at every step (a momentum" in one for one in events[0]["reasons"])


# Batches without end ---------------------------------------------------------------------------------------


def arriving(count: int, fresh: bool = False) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        x = torch.randn(8 if number % 17 else 5, 6, generator=generator)
        new = torch.arange(len(x)) % 2 == 0 if fresh else None
        yield Batch(x, (x[:, 0] > 0).long(), fresh=new)


def followed(capture: Any, parts: tuple[int, ...] = (40, 30), fresh: bool = False, **more: Any) -> tuple[Any, ...]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    events: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"optimizer": MOMENTUM, "log_every": 10, "record": events.append, **more}
    trainer = StreamTrainer(net, er(capacity=20, size=4), capture=capture, **settings)
    for count in parts:
        trainer.train(arriving(count, fresh))
    return net, trainer, events


def test_steps_on_batches_without_end_are_captured() -> None:
    (plain, one, logged), (net, two, events) = followed("none"), followed("tape")
    assert toys.differing(plain, net) == []
    assert (two.accuracy, two.samples, two.steps) == (one.accuracy, one.samples, 70)
    of = [[(e["accuracy"], pytest.approx(e["loss"])) for e in log if e["event"] == "train"] for log in (logged, events)]
    assert of[0] == of[1]
    counts = [(e["captured"], e["recorded"], e["as_written"]) for e in events if e["event"] == "capture"]
    assert [sum(one) for one in counts] == [40, 30]
    assert sum(one[0] for one in counts) > 50


def test_a_single_step_between_them_gives_its_outputs_and_the_same_weights() -> None:
    nets = []
    for capture in ("none", "tape"):
        net, trainer, _ = followed(capture, (40,))
        outputs = [trainer.step(batch) for batch in arriving(2)]
        trainer.train(arriving(30))
        nets.append((net, outputs))
    assert toys.differing(nets[0][0], nets[1][0]) == []
    assert all(torch.equal(a, b) for a, b in zip(nets[0][1], nets[1][1]))


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"boundary": Every(steps=20)}, "the boundary Every looks at every batch"), ({"fresh": True}, "rows are new")],
)
def test_batches_that_the_host_looks_at_are_trained_on_as_written(more: dict[str, Any], reason: str) -> None:
    (plain, *_), (net, _, events) = followed("none", **copy.deepcopy(more)), followed("tape", **copy.deepcopy(more))
    assert toys.differing(plain, net) == []
    told = [event for event in events if event["event"] == "capture"]
    assert [(event["captured"], event["as_written"]) for event in told] == [(0, 40), (0, 30)]
    assert all(any(reason in one for one in event["reasons"]) for event in told)


# Operations that try to fool a recording -------------------------------------------------------------------


class Fool(Operation):
    role = "representation learning"
    state = ("kept",)
    scratch = ("other", "steps", "history", "rng", "draws", "tick", "share")

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None
        self.other: Tensor | None = None
        self.steps = 0
        self.history: list[Any] = []

    def scale(self, learner: Services, factor: float | Tensor) -> None:
        for gradient in learner.gradients():
            gradient.mul_(factor)


class ReadsAValue(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, 1.0 if step.loss.item() > 1 else 0.5)


class ReadsByNumpy(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, float(step.loss.detach().numpy()))


class CountsInAnAttribute(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        self.steps += 1
        self.scale(learner, 1 / self.steps)


class CountsInAClosure(Fool):
    def __init__(self) -> None:
        super().__init__()
        count = 0

        def tick() -> bool:
            nonlocal count
            count += 1
            return count > 11  # after the recordings

        self.tick = tick

    def gradient(self, step: Step, learner: Services) -> None:
        if self.tick():
            self.scale(learner, 0.5)


class CountsInAGenerator(Fool):
    def __init__(self) -> None:
        super().__init__()

        def numbers() -> Iterator[float]:
            for number in range(1000):
                yield 1.0 if number < 11 else 0.5

        self.draws = numbers()

    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, next(self.draws))


class DrawsOfItsOwn(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, torch.rand((), generator=learner.rng("own")))


class DrawsByNumpy(Fool):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, torch.from_numpy(self.rng.random(1)).float())


class KeepsEveryLoss(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        self.history = [*self.history, step.loss.detach()]
        self.scale(learner, torch.stack(self.history).mean())


class ReadsTheProgress(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, 1 - 0.5 * (step.progress or 0.0))


class DecidesByTheLoss(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, 1.0 if learner.decide(lambda: bool(step.loss > 1)) else 0.5)


class DecidesByWhatWas(Fool):
    def _number(self) -> int:
        self.steps += 1
        return 0

    def gradient(self, step: Step, learner: Services) -> None:
        learner.decide(self._number)
        steps = self.steps
        self.scale(learner, learner.decide(lambda: 1 / steps, learner.device))


class ReplacesItsState(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        loss = step.loss.detach()
        self.kept = loss if self.kept is None else 0.9 * self.kept + 0.1 * loss
        self.scale(learner, 1 + self.kept)


class TurnsItsStateAround(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        loss = step.loss.detach().clone()
        before = loss if self.kept is None else self.kept
        self.kept, self.other = (loss, before) if self.other is None else (self.other + loss, before)
        self.scale(learner, 1 + before)


class GivesOtherMemory(Fool):
    def update(self, step: Step, learner: Services) -> None:
        for parameter in learner.parameters():
            parameter.data = parameter.data * 0.99


class BranchesByDecision(Fool):
    def _odd(self) -> bool:
        self.steps += 1
        return self.steps % 3 == 1

    def gradient(self, step: Step, learner: Services) -> None:
        if learner.decide(self._odd):
            self.scale(learner, 0.5)
        self.scale(learner, learner.decide(lambda: 1 + 1 / self.steps, learner.device))


class WritesIntoAList(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        seen = torch.tensor([0.0, 1.0])
        seen[0] += step.loss.detach()
        self.scale(learner, seen.sum())


REFUSED = {
    ReadsAValue: "a value is read on the host (test_captured.py:",
    ReadsByNumpy: "a value is read on the host (test_captured.py:",
    CountsInAnAttribute: "steps changes from",
    CountsInAClosure: "tick.count changes from",
    CountsInAGenerator: "draws changes from",
    DrawsOfItsOwn: "numbers are drawn from a generator outside of a decision (test_captured.py:",
    DrawsByNumpy: "rng changes from",
    KeepsEveryLoss: "history",
    ReadsTheProgress: "step.progress is read outside of a decision (test_captured.py:",
    DecidesByTheLoss: "a decision looks at what the step computed (test_captured.py:",
    DecidesByWhatWas: "a decision works with what was so in the step it was first made in",
}
CAPTURED = [ReplacesItsState, TurnsItsStateAround, GivesOtherMemory, BranchesByDecision, WritesIntoAList]


class TurnsOverOnce(Fool):
    def __init__(self) -> None:
        super().__init__()
        self.share = 1.0

    def _due(self) -> bool:
        self.steps += 1
        return self.steps == 11  # steps before were recorded, with the share of before

    def gradient(self, step: Step, learner: Services) -> None:
        self.scale(learner, self.share)
        if learner.decide(self._due):
            self.share = 0.5


def test_what_a_step_as_written_changes_is_recorded_anew() -> None:
    events = both(with_memory(TurnsOverOnce), epochs=4)
    assert captured_steps(events) > 10
    assert any("share changes from 1.0 to 0.5" in one for one in events[0]["reasons"])


ONE = {"experiences": 1, "classes": 3}
"""A stream of one experience: what a recording says of a step, it says in the first."""


def with_memory(kind: type[Operation]) -> Callable[[], Method]:
    return lambda: Method(Replay(size=4), kind(), Remember(capacity=20))


@pytest.mark.parametrize(("kind", "reason"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_run_again_is_refused_with_its_line(kind: type[Operation], reason: str) -> None:
    events = both(with_memory(kind), epochs=3, of=ONE)
    assert captured_steps(events) == 0
    assert any(reason in one for event in events for one in event["reasons"]), events[0]["reasons"]


@pytest.mark.parametrize("kind", CAPTURED)
def test_what_can_be_run_again_is_captured_rightly(kind: type[Operation]) -> None:
    assert captured_steps(both(with_memory(kind), epochs=3, of=ONE)) > 10


def test_a_step_that_is_recorded_again_makes_each_decision_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "AUDIT", 3)
    events = both(epochs=3)
    assert captured_steps(events) > 8
    assert sum(event["recorded"] for event in events) > 12
    assert events[-1]["reasons"] == []


COUNTED = [0]


class CountsOutOfSight(Fool):
    def gradient(self, step: Step, learner: Services) -> None:
        COUNTED[0] += 1
        if COUNTED[0] > 11:
            self.scale(learner, 0.5)


def test_what_nobody_sees_at_first_is_noticed_when_a_step_is_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "AUDIT", 4)
    COUNTED[0] = 0
    trainer, _ = trained("tape", with_memory(CountsOutOfSight), epochs=5)
    first = told(trainer)[0]
    assert any("a step calls" in one or "calls, and the next" in one for one in first["reasons"])


class SaysWhyNot(Fool):
    captured = "asks an oracle at every step"


def test_an_operation_that_says_why_not_is_not_tried() -> None:
    events = both(with_memory(SaysWhyNot))
    assert [event["recorded"] for event in events] == [0, 0, 0]
    assert events[0]["reasons"] == ["`says_why_not`: asks an oracle at every step"]


# A loop of one's own --------------------------------------------------------------------------------------


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def looped(
    capture: Any,
    method: Callable[[], Method],
    step_of: Callable[..., Any] | None = None,
    moving: Callable[[Any], torch.optim.Optimizer] = momentum,
) -> tuple[Any, ...]:
    stream = toys.stream(samples=13)
    net = toys.model(stream, "growing")
    net.train()
    optimizer = moving(net.parameters())
    cl = Continual(net, method(), optimizer, seed=3, capture=capture, prepare=stream.prepare)
    scheduler = exponential(optimizer)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = cl.loss(cl(x), y, x)
        optimizer.zero_grad()
        cl.backward(loss, y, inputs=x)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss

    train, losses = cl.captured(step if step_of is None else step_of(cl, net, optimizer)), []
    given: list[tuple[Tensor, Tensor]] = []
    for experience in stream:
        data = cl.begin(experience, epochs=2, batch_size=4)
        assert data is not None
        for _ in range(2):
            for batch in data.batches(torch.randperm(len(data), generator=cl.learner.rng("order")), 4):
                mine = batch.inputs.clone()
                given.append((batch.inputs, mine))
                losses.append(train(batch.inputs, batch.targets))
                scheduler.step()
        cl.end()
    assert all(torch.equal(batch, mine) for batch, mine in given), "the user's data was written to"
    return net, torch.stack(losses), train, cl.losses()


class Keeps(Operation):
    """Holds the batch of the last step, which is the user's own."""

    role = "representation learning"
    scratch = ("last",)

    def gradient(self, step: Step, learner: Services) -> None:
        self.last = step.inputs


@pytest.mark.parametrize(
    ("make", "moving"),
    [
        (lambda: er(capacity=20, size=4), momentum),
        (lambda: agem(capacity=20, size=4), torch.optim.AdamW),
        (lambda: si(), momentum),
        (lambda: Method(Keeps()), momentum),
    ],
)
def test_the_step_of_a_loop_of_ones_own_is_captured(make: Callable[[], Method], moving: Any) -> None:
    plain, losses, _, logged = looped(False, make, moving=moving)
    net, again, train, sums = looped(True, make, moving=moving)
    assert toys.differing(plain, net) == []
    assert torch.equal(losses, again)
    assert train.counts["run"] > 4
    assert sums == pytest.approx(logged)


def test_a_function_that_makes_no_step_is_refused() -> None:
    with pytest.raises(UsageError, match="made 0 steps, and it must make one"):
        looped(True, lambda: er(capacity=20, size=4), lambda cl, net, optimizer: lambda x, y: cl(x).sum())


def test_a_loop_that_adds_up_batches_is_refused_before_it_begins() -> None:
    net = nn.Linear(4, 2)
    with pytest.raises(ConfigError, match="one batch a step"):
        Continual(net, er(), torch.optim.SGD(net.parameters(), lr=0.1), accumulate=2, capture=True)
    with pytest.raises(ConfigError, match="needs to know the optimizer"):
        Continual(net, er(), capture=True)
