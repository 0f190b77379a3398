"""Runs that are trained at once: each ends as if it had run alone, whatever the others do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.config.build import resolve
from holdfast.config.compose import load
from holdfast.core.errors import UsageError
from holdfast.core.experience import Experience, Stream
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.methods import der_plus_plus, er, ewc, finetune
from holdfast.runs.run import resume, run
from holdfast.runs.sweep import sweep
from holdfast.testing import toys
from holdfast.testing.capture import APART, gap
from holdfast.training import Trainer, fit_stacked, inductor, stacked_blocks
from holdfast.training.stacked import Member, Stack

Run = tuple[Trainer, nn.Module, Stream]


def runs(
    make: Callable[[int], Method], count: int = 2, samples: Sequence[int] = (13, 13, 13), **more: Any
) -> list[Run]:
    """Runs that differ in seed, learning rate, and what `make` makes of their number."""
    found = []
    for number in range(count):
        stream = toys.stream(samples=samples[number])
        net = toys.model(stream, "growing", seed=number)
        net = more.get("net", lambda one: one)(net)
        optimizer = {**more.get("optimizer", {"name": "SGD", "momentum": 0.9}), "lr": 0.03 + 0.02 * number}
        settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "log_every": 5, "evaluate": "none", "capture": "tape"}
        settings |= {key: value for key, value in more.items() if key not in ("net", "optimizer")}
        trainer = Trainer(make(number), optimizer=optimizer, precision="64-true", seed=number, **settings)
        found.append((trainer, net, stream))
    return found


def both(make: Callable[[int], Method], **more: Any) -> list[dict[str, Any]]:
    """What the first run's log tells of its steps, where all runs end as if each had run alone."""
    alone, together = runs(make, **{**more, "capture": "none"}), runs(make, **more)
    for trainer, net, stream in alone:
        trainer.fit(net, stream)
    fit_stacked(*zip(*together))
    for (one, net, _), (other, twin, _) in zip(alone, together):
        assert far(net, twin) == {}
        told = [[e for e in t.events if e["event"] in ("train", "evaluate")] for t in (one, other)]
        assert len(told[0]) == len(told[1])
        for a, b in zip(*told):
            assert alike(a, b)
    return captures(together[0][0])


def alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two events tell the same, losses up to rounding."""
    rest = [{key: value for key, value in one.items() if key not in ("terms", "loss")} for one in (a, b)]
    losses = [{**one.get("terms", {}), "loss": -1.0 if one["loss"] is None else one["loss"]} for one in (a, b)]
    return rest[0] == rest[1] and losses[0] == pytest.approx(losses[1], rel=1e-6)


def far(one: nn.Module, other: nn.Module) -> dict[str, float]:
    a, b = one.state_dict(), other.state_dict()
    return {key: apart for key in a if (apart := gap(a[key], b[key])) > APART}


def captures(trainer: Trainer) -> list[dict[str, Any]]:
    return [event for event in trainer.events if event["event"] == "capture"]


def stacked(events: list[dict[str, Any]]) -> int:
    return sum(event["stacked"] for event in events)


METHODS: dict[str, Callable[[int], Method]] = {
    "finetune": lambda number: finetune(),
    "er": lambda number: er(capacity=20, size=4),
    "der_plus_plus": lambda number: der_plus_plus(capacity=20, size=4, alpha=0.1 + 0.2 * number),
    "ewc": lambda number: ewc(strength=5.0 + 20 * number),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("finetune", "er") else ()) for name in METHODS]
)
def test_runs_that_differ_in_seeds_and_numbers_end_as_if_each_had_run_alone(name: str) -> None:
    assert stacked(both(METHODS[name])) > 10


def step_wise(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)


@pytest.mark.parametrize(
    "more",
    [
        {"scheduler": step_wise, "scheduler_every": "step", "clip_norm": 0.5},
        {"optimizer": {"name": "AdamW", "fused": True, "weight_decay": 0.1}},
        {"optimizer": {"name": "Adam", "lr": 0.01}, "scheduler": step_wise, "scheduler_every": "step"},
        {"optimizer": {"name": "AdamW", "lr": 0.01, "foreach": True}},
        pytest.param(
            {"optimizer": {"name": "SGD", "momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "fused": True}},
            marks=pytest.mark.slow,
        ),
        {"samples": (13, 9, 13), "count": 3, "evaluate": "test"},
    ],
    ids=["scheduler", "fused adam", "adam", "foreach", "fused", "lengths"],
)
def test_what_is_around_a_step_is_that_of_each_run(more: dict[str, Any]) -> None:
    assert stacked(both(METHODS["er"], **more)) > 5


def test_evaluation_is_stacked_too() -> None:
    together = runs(METHODS["er"], evaluate="test", epochs=1)
    works = [lambda t=t, n=n, s=s: t.fit(n, s) for t, n, s in together]
    stack = Stack(works, torch.device("cpu"))
    assert [one.error for one in stack.run()] == [None, None]
    batches = sum(event["event"] == "evaluate" for event in together[0][0].events)
    assert stack.answers.count == batches > 9


class Odd(Operation):
    """Halves the gradient at some steps, which differ from run to run."""

    role = "representation learning"

    def gradient(self, step: Step, learner: Services) -> None:
        if learner.decide(lambda: bool(torch.rand((), generator=learner.rng("odd")) < 0.5)):
            for gradient in learner.gradients():
                gradient.mul_(0.5)


class Still(Operation):
    """Leaves one weight where it is in the first steps; in how many is another number in every run."""

    role = "representation learning"

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def gradient(self, step: Step, learner: Services) -> None:
        if learner.decide(lambda: learner.now.index < self.first):
            learner.trainable.parameters()[0].grad = None


def test_runs_whose_weights_moved_unlike_often_each_count_their_own_steps() -> None:
    adam: dict[str, Any] = {"name": "Adam", "lr": 0.01}
    assert stacked(both(lambda number: Method(Still(2 + 3 * number)), optimizer=adam, epochs=4)) > 5
    alone = both(lambda number: Method(Still(2 * number)), optimizer=adam, epochs=4)
    assert stacked(alone) == 0  # one run takes one step size, the other two


def test_runs_that_decide_otherwise_at_a_step_make_it_by_themselves() -> None:
    told = both(lambda number: Method(Odd()))
    assert 0 < stacked(told) < sum(event["captured"] for event in told)


def test_one_run_of_a_stack_after_the_other_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_blocks, "AUDIT", 1)
    told = both(METHODS["er"], epochs=4)
    assert sum(event["recorded"] for event in told) > 2 * len(told), "more than were recorded to begin with"
    assert stacked(told) > 0


def test_what_cannot_be_stacked_runs_alone_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def with_dropout(net: nn.Module) -> nn.Module:
        net.backbone.append(nn.Dropout(0.3))  # type: ignore[operator, union-attr]
        return net

    told = both(METHODS["er"], net=with_dropout)
    assert stacked(told) == 0
    assert all("draws random numbers on the device (dropout)" in event["reasons"][0] for event in told)
    assert "steps are made run by run, and not stacked" in caplog.text


def test_a_run_goes_on_alone_from_a_state_that_it_saved_among_others() -> None:
    keep = toys.KeepAt(9)
    (alone, net, stream), _ = runs(METHODS["er"])
    alone.fit(net, stream)
    together = runs(METHODS["er"], checkpoints=keep)
    fit_stacked(*zip(*together))
    (again, twin, stream), _ = runs(METHODS["er"])
    states = [state for step, state in keep.states.items() if step == 9]
    again.fit(twin, stream, resume=states[0])
    assert far(net, twin) == {} or far(together[1][1], twin) == {}


@pytest.mark.parametrize(("rate", "threads"), [(0.0, 1), (0.3, 3)], ids=["stacked", "alone"])
def test_a_run_computes_with_one_thread_while_its_steps_are_stacked(rate: float, threads: int) -> None:
    seen: list[int] = []

    class Seen(Operation):
        def end(self, experience: Experience, learner: Services) -> None:
            seen.append(torch.get_num_threads())

    def net(one: nn.Module) -> nn.Module:
        if rate:
            one.backbone.append(nn.Dropout(rate))  # type: ignore[operator, union-attr]
        return one

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fit_stacked(*zip(*runs(lambda _: Method(Seen()), net=net)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {threads}


def test_torchs_checks_are_those_of_each_run() -> None:
    together = runs(METHODS["finetune"], samples=(13, 5), deterministic=True, epochs=1)
    seen: list[bool] = []
    together[0][0].record = lambda event: seen.append(torch.are_deterministic_algorithms_enabled())
    fit_stacked(*zip(*together))
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_as_many_models_as_trainers_are_asked_for() -> None:
    with pytest.raises(UsageError, match="1 trainers got 0 models and 1 streams"):
        fit_stacked([object()], [], [toys.stream()])


# Run folders -------------------------------------------------------------------------------------------------

JOB = ["experiment=digits", "method=er", "stream.experiences=2", "trainer.epochs=1", "references=[]"]
AT_ONCE = ["trainer.stack=auto", "trainer.capture=tape", "trainer.precision=64-true"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "model.pt", weights_only=True)
    return loaded


def close(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(gap(value, b[key]) <= APART for key, value in a.items())


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a compiler on a busy machine
@pytest.mark.parametrize(("name", "optimizer"), [("er", {"name": "SGD"}), ("ewc", {"name": "AdamW"})])
def test_a_compiled_stack_gives_the_weights_of_compiled_runs_alone(
    name: str, optimizer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "LARGE", 64)  # plain SGD adds gradients where they are computed
    settings: dict[str, Any] = {"optimizer": optimizer, "epochs": 4}
    alone, together = (runs(METHODS[name], capture="compile", **settings) for _ in range(2))
    for trainer, net, stream in alone:
        trainer.fit(net, stream)
    fit_stacked(*zip(*together))
    assert [far(net, twin) for (_, net, _), (_, twin, _) in zip(alone, together)] == [{}, {}]
    assert stacked(captures(together[0][0])) > 10
    assert sum(event["captured"] for event in captures(alone[0][0])) > 10


@pytest.mark.slow
def test_seeds_of_a_job_are_trained_at_once_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    alone = run(resolve(load(None, [*JOB, "seed=1", "trainer.precision=64-true"])), tmp_path / "alone", quiet=True)
    folder = run(resolve(load(None, [*JOB, *AT_ONCE, "seeds=2"])), tmp_path / "both", quiet=True)
    assert close(alone, folder / "seed-1")
    for seed in (0, 1):
        place = folder / f"seed-{seed}"
        assert json.loads((place / "run.json").read_text())["state"] == "finished"
        assert (place / "report.html").is_file()
        events = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
        assert sum(event["stacked"] for event in events if event["event"] == "capture") > 5
        assert events[-1]["event"] == "end"
    assert "in one program with 1 other runs" in (folder / "report.html").read_text()
    assert resume(folder, quiet=True) == folder


@pytest.mark.slow
def test_runs_of_a_sweep_that_differ_in_numbers_alone_are_trained_at_once(tmp_path: Path) -> None:
    words = [*JOB, *AT_ONCE, "optimizer.lr=0.01,0.05", "method.size=8"]
    folder, left = sweep(None, words, out=tmp_path / "sweep", quiet=True)
    assert left == []
    changes = ["optimizer.lr=0.05", "method.size=8", "trainer.precision=64-true"]
    alone = run(resolve(load(None, [*JOB, *changes])), tmp_path / "alone", quiet=True)
    assert close(alone, folder / "1")
    events = [json.loads(line) for line in (folder / "1" / "log.jsonl").read_text().splitlines()]
    assert sum(event["stacked"] for event in events if event["event"] == "capture") > 5


@pytest.mark.slow
def test_runs_that_are_stopped_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, go = [0], Member.go

    def stopping(self: Member) -> None:
        turns[0] += 1
        if turns[0] == 6:
            self.stack.stop = True
        go(self)

    monkeypatch.setattr(Member, "go", stopping)
    job = resolve(load(None, [*JOB, *AT_ONCE, "seeds=2"]))
    with pytest.raises(Exception, match="Go on with: holdfast resume"):
        run(job, tmp_path / "both", quiet=True)
    monkeypatch.undo()
    assert json.loads((tmp_path / "both" / "seed-0" / "run.json").read_text())["state"] == "interrupted"
    resume(tmp_path / "both", quiet=True)
    whole = run(resolve(load(None, [*JOB, "seeds=2", "trainer.precision=64-true"])), tmp_path / "alone", quiet=True)
    assert all(close(whole / f"seed-{seed}", tmp_path / "both" / f"seed-{seed}") for seed in (0, 1))
