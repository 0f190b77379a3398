"""What every method must do where its steps are recorded: run again alone, and together with those of other runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from holdfast.testing import toys
from holdfast.testing.checking import DoesNotApply, expect
from holdfast.testing.construction import MethodSubject
from holdfast.testing.training import MOMENTUM, check_equal_memories, tensors_of
from holdfast.training import Trainer
from holdfast.training.stacked import fit_stacked

APART = 1e-8
"""How far weights of doubles may be from those of a run alone, and a term of the loss, as a share of it."""


def captured(subject: MethodSubject) -> None:
    """Steps that are recorded and run again give the weights of steps as written; those that cannot be say why."""
    nets, trainers = [], []
    for capture in ("none", "tape"):
        method = subject.make()
        stream = subject.stream_for(method)
        nets.append(subject.model(stream, "task" if "task" in method.needs else "growing"))
        settings: dict[str, Any] = {"optimizer": MOMENTUM, "epochs": 4, "log_every": 3, "capture": capture}
        trainers.append(toys.train(method, nets[-1], stream, **settings))
    name, different = subject.name, toys.differing(*nets)
    expect(
        not different,
        f"`{name}` ends with other {', '.join(different)} where its steps are recorded and run again. What the host"
        " decides anew at a step (draws, counters, schedules, branches) goes through `learner.decide(...)`; what cannot"
        " be done so says why in `captured`.",
    )
    check_equal_memories(trainers[0], trainers[1], f"`{name}` with recorded steps")
    told = [event for event in trainers[1].events if event["event"] == "capture"]
    steps = sum(event["captured"] + event["recorded"] + event["as_written"] for event in told)
    expect(steps == trainers[0].engine.index, f"`{name}` made {trainers[0].engine.index} steps, and {steps} recorded.")
    if steps > 40 and not any(event["captured"] for event in told):
        expect(any(event["reasons"] for event in told), f"no step of `{name}` was captured, and nothing says why.")
    for one, other in zip(*([e for e in t.events if e["event"] == "train"] for t in trainers)):
        alike = one["terms"].keys() == other["terms"].keys() and all(
            abs(value - other["terms"][key]) <= 1e-6 * max(1.0, abs(value)) or value != value
            for key, value in one["terms"].items()
        )
        expect(alike, f"`{name}` logs {other['terms']} where its steps are run again, and {one['terms']} as written.")


def stacked(subject: MethodSubject) -> None:
    """Trained at once with another seed and another learning rate, in doubles, it ends as if each had run alone."""
    alone, together = _runs(subject, "none"), _runs(subject, "tape")
    for trainer, net, stream in alone:
        trainer.fit(net, stream)
    trainers, nets, streams = zip(*together)
    fit_stacked(trainers, nets, streams)
    name = subject.name
    for number, ((one, net, _), (other, twin, _)) in enumerate(zip(alone, together)):
        far = {key: gap for key, gap in _gaps(net, twin).items() if not gap <= APART}
        expect(
            not far,
            f"`{name}`, run {number} of two that are trained at once, ends with {', '.join(far)} up to"
            f" {max(far.values(), default=0.0):.1g} from what it learns alone. What the host decides anew at a step"
            " goes through `learner.decide(...)`; what cannot be done so says why in `captured`.",
        )
        check_close_memories(one, other, f"`{name}` trained at once with another run")
    told = [event for event in together[0][0].events if event["event"] == "capture"]
    steps = sum(event["captured"] + event["recorded"] + event["as_written"] for event in told)
    if not steps:
        raise DoesNotApply("it takes no step")
    if steps > 40 and not any(event["stacked"] for event in told):
        expect(any(event["reasons"] for event in told), f"no step of `{name}` was stacked, and nothing says why.")


def _runs(subject: MethodSubject, capture: str) -> list[tuple[Trainer, nn.Module, Any]]:
    """Two runs that differ in their seeds and learning rates."""
    runs = []
    for number in range(2):
        method = subject.make()
        stream = subject.stream_for(method)
        net = subject.model(stream, "task" if "task" in method.needs else "growing")
        settings: dict[str, Any] = {
            "epochs": 3,
            "batch_size": 4,
            "log_every": 7,
            "evaluate": "none",
            "capture": capture,
        }
        optimizer = {**MOMENTUM, "lr": 0.03 - 0.01 * number}
        runs.append(
            (
                Trainer(method, optimizer=optimizer, precision="64-true", seed=3 + number, **settings),
                net,
                stream,
            )
        )
    return runs


def _gaps(one: nn.Module, other: nn.Module) -> dict[str, float]:
    """How far the weights of two models are apart at most, by name."""
    a, b = one.state_dict(), other.state_dict()
    return {key: gap(value, b[key]) for key, value in a.items()}


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors; infinite where their shapes differ, or one is not a number."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    apart = float((one.double().nan_to_num(7.0) - other.double().nan_to_num(7.0)).abs().max())
    return apart if apart == apart else float("inf")


def check_close_memories(one: Trainer, other: Trainer, who: str) -> None:
    """Fail where two trainers remember different samples, or outputs that rounding does not explain."""
    kept, others = one.learner.memory, other.learner.memory
    if kept is None or others is None:
        expect(kept is others, f"{who} has a memory, and alone it has none, or the other way round.")
        return
    rows = dict(tensors_of(others.all(), ""))
    for key, value in tensors_of(kept.all(), ""):
        expect(key in rows and gap(value, rows[key]) <= APART, f"{who} remembers other {key} than alone.")


CAPTURE_CHECKS: dict[str, Callable[[MethodSubject], None]] = {"captured": captured, "stacked": stacked}
