"""What every method must do while it is trained with: go on from a checkpoint, be repeatable, leave nothing behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, HoldfastError, NeedError
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.testing import toys
from holdfast.testing.checking import DoesNotApply, expect
from holdfast.testing.construction import MethodSubject
from holdfast.training import Trainer

MOMENTUM = {"name": "SGD", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-2}
ADAM = {"name": "Adam", "lr": 0.01}


def refused(sentence: object) -> bool:
    """Whether an error is one of ours that ends as a sentence does."""
    return isinstance(sentence, HoldfastError) and str(sentence).rstrip().endswith((".", "?", "`"))


def first_step(subject: MethodSubject) -> None:
    """The first step finds an empty memory, and moves the weights to finite ones."""
    method = subject.make()
    stream = subject.stream_for(method)
    net = subject.model(stream)
    before = toys.weights(net)
    start = Trainer(method, evaluate="none", seed=toys.SEED)
    start.bind(net, stream)
    memory = start.learner.memory
    expect(memory is None or len(memory) == 0, f"`{subject.name}` has {memory and len(memory)} samples before a step.")
    method = subject.make()
    trainer = toys.train(method, net, stream, iterations=1)
    check_finite(net, subject.name)
    if not trainer.engine.index:
        raise DoesNotApply("it takes no step")
    after = net.state_dict()
    moved = any(name not in after or not torch.equal(value, after[name]) for name, value in before.items())
    expect(
        moved or trainer.engine.acts_at("predict"),
        f"`{subject.name}` moves no weight in a first step, and acts at no prediction: nothing is learnt. Look at what"
        " its loss and gradient do when nothing is remembered yet.",
    )


def check_finite(net: nn.Module, name: str) -> None:
    """Fail where a weight is infinite or no number."""
    wrong = [key for key, value in net.state_dict().items() if not value.isfinite().all()]
    expect(not wrong, f"`{name}` leaves values that are not finite in {', '.join(wrong)}.")


# Checkpoints -----------------------------------------------------------------------------------------------


def resumed(subject: MethodSubject) -> None:
    """Resumed from a checkpoint in the middle of an experience it ends with equal weights and the same memory."""
    taken = 0
    for head, wanted in {"growing": 2, "fixed": 1}.items():
        try:
            taken += resumed_with(subject, head, wanted)
        except (ConfigError, NeedError) as error:  # this kind of head is refused
            expect(refused(error), f"`{subject.name}` is refused with a {head} head, but in no sentence: {error}")
    if not taken:
        raise DoesNotApply("it takes fewer than three steps on the toy stream")


def resumed_with(subject: MethodSubject, head: str, wanted: int) -> int:
    """The check of `resumed` with one kind of head, from so many checkpoints. Returns how many steps were trained."""
    plain, trainer = trained(subject, head)
    steps = trainer.engine.index
    if steps < 3:
        return 0
    chosen = random.Random(f"{subject.name}{head}").sample(range(1, steps), wanted)
    keep = toys.KeepAt(*chosen)
    whole, trainer = trained(subject, head, checkpoints=keep)
    expect(
        toys.equal(plain, whole),
        f"`{subject.name}` ends with other weights if checkpoints are saved: to save must not change it.",
    )
    again = chosen[:1] if wanted > 1 else []  # once more from the same state: what was loaded shares nothing with it
    for step in (*chosen, *again):
        where = f"`{subject.name}` resumed after step {step} of {steps} with a {head} head"
        net, other = trained(subject, head, resume=keep.states[step])
        expect(
            toys.equal(whole, net),
            f"{where} ends with other weights than in one go. Name what it learns in `state`, take random numbers from"
            " `learner.rng`, and call nothing `scratch` that is not worked out anew.",
        )
        expect(other.engine.index == steps, f"{where} makes {other.engine.index} steps.")
        check_equal_memories(trainer, other, where)
    return steps


def trained(subject: MethodSubject, head: str, **settings: Any) -> tuple[nn.Module, Trainer]:
    """A model trained for two epochs an experience, and its trainer."""
    method = subject.make()
    stream = subject.stream_for(method)
    net = subject.model(stream, head)
    return net, toys.train(method, net, stream, **{"optimizer": MOMENTUM, "epochs": 2, **settings})


def check_equal_memories(one: Trainer, other: Trainer, who: str) -> None:
    """Fail where two trainers remember different samples."""
    kept, others = one.learner.memory, other.learner.memory
    if kept is None or others is None:
        expect(kept is others, f"{who} has a memory, and the other none.")
        return
    a, b = kept.all(), others.all()
    expect(a.keys() == b.keys(), f"{who} remembers {sorted(b)} instead of {sorted(a)}.")
    for key, value in tensors_of(a, ""):
        match = dict(tensors_of(b, ""))[key]
        expect(torch.equal(value.nan_to_num(7), match.nan_to_num(7)), f"{who} remembers other {key}.")


# Devices, leaks, randomness --------------------------------------------------------------------------------


def tensors_of(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor within `value`, with where it stands."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{name}[{index}]")


def state_tensors(operation: Operation) -> dict[str, Tensor]:
    """Every tensor of an operation's declared state, by name."""
    return dict(tensors_of({name: getattr(operation, name) for name in operation.state}, ""))


def device_moves(subject: MethodSubject) -> None:
    """Its declared state moves to another dtype and to another device, and keeps its values."""
    method = subject.make()
    stream = subject.stream_for(method)
    toys.train(method, subject.model(stream), stream)
    for operation in method:
        before = state_tensors(operation)
        operation.to(torch.float64)
        moved = state_tensors(operation)
        who = f"the state of `{operation.name}`"
        expect(
            moved.keys() == before.keys(), f"{who} is {sorted(moved)} after .to(torch.float64), not {sorted(before)}."
        )
        for name, old in before.items():
            dtype = torch.float64 if old.is_floating_point() else old.dtype
            expect(moved[name].dtype == dtype, f"{who}: {name} is {moved[name].dtype} after .to(torch.float64).")
            expect(torch.equal(moved[name].double(), old.double()), f"{who}: {name} has other values after a move.")
        operation.to("meta")
        for name, tensor in state_tensors(operation).items():
            expect(
                tensor.device.type == "meta",
                f"{who}: {name} stays on {tensor.device} when the operation moves. Keep it as a tensor, or in a list or"
                " mapping of tensors, under the name in `state`.",
            )


def no_graph_kept(subject: MethodSubject) -> None:
    """It keeps no graph, and no tensor for each step."""
    method = subject.make()
    stream = subject.stream_for(method)
    toys.train(method, subject.model(stream), stream)
    for operation in method:
        graphs = [name for name, tensor in state_tensors(operation).items() if tensor.grad_fn is not None]
        expect(
            not graphs,
            f"`{operation.name}` keeps {', '.join(graphs)} with the graph they were computed by. Write .detach().",
        )
    check_live_tensors(subject.make, subject.stream, subject.model, subject.name)


def check_live_tensors(
    make: Callable[[], Method],
    stream: Callable[..., Stream] = toys.small,
    model: Callable[..., nn.Module] = toys.model,
    name: str = "method",
    steps: int = 40,
) -> None:
    """Fail if the number of tensors that are alive grows with the number of steps.

    Args:
        make: makes the method.
        stream: makes a stream of a paradigm.
        model: makes a model of a stream.
        name: of the method, for messages.
        steps: between two counts, of which there are five: a memory that fills up, or random numbers that are drawn
            ahead, make more tensors in some of these windows, and a leak in most.

    Raises:
        CheckError: if in most windows more live tensors come than four for every five steps.
    """
    method, counts = make(), []

    def count(event: Mapping[str, Any]) -> None:
        if event["event"] == "train":
            gc.collect()
            counts.append(sum(issubclass(type(value), Tensor) for value in gc.get_objects()))

    settings: dict[str, Any] = {"iterations": 5 * steps, "batch_size": 2, "log_every": steps, "evaluate_before": False}
    of = stream(toys.paradigm_for(method))
    of = Stream(of.experiences[:1], of.input_shape, of.classes, of.paradigm, of.prepare)
    net = model(of)
    gc.collect()
    gc.freeze()  # what is there already need not be counted, which takes most of the time otherwise
    try:
        trainer = toys.train(method, net, of, record=count, **settings)
    finally:
        gc.unfreeze()
    if trainer.engine.index < 5 * steps:
        return  # it takes no steps, or not as many
    growth = statistics.median(later - earlier for earlier, later in itertools.pairwise(counts))
    expect(
        growth < 0.8 * steps,
        f"`{name}` keeps tensors of each step: after every {steps} steps live tensors are {counts}. Look for a list"
        " that grows, and for a loss that is kept with its graph.",
    )


def global_random_state(subject: MethodSubject) -> None:
    """It neither uses nor changes the global random state, and a seed gives equal weights."""
    nets = []
    for seed in (1, 2):
        method = subject.make()
        stream = subject.stream_for(method)
        nets.append(subject.model(stream))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = toys.global_random_state()
            toys.train(method, nets[-1], stream)
            _in_a_loop(subject, stream)  # the trainer seeds torch's numbers for dropout, and sets them back afterwards
            after = toys.global_random_state()
        changed = [library for library in before if before[library] != after[library]]
        expect(
            not changed,
            f"`{subject.name}` draws from the global random numbers of {', '.join(changed)}. Use `learner.rng(name)`.",
        )
    expect(
        toys.equal(*nets),
        f"`{subject.name}` gives other weights for the same seed where the global random state differs. Use"
        " `learner.rng(name)` for every random choice.",
    )


def _in_a_loop(subject: MethodSubject, stream: Stream) -> None:
    """Train by a loop of one's own, if it offers what the method needs."""
    with contextlib.suppress(NeedError, ConfigError):
        toys.wrap(subject.make(), subject.model(stream), stream, lambda p: torch.optim.SGD(p, lr=0.05))


def heads_grow(subject: MethodSubject) -> None:
    """The output layer grows to every class, the optimiser moves all of it, and one head per task is trained too."""
    method = subject.make()
    stream = subject.stream_for(method)
    net = subject.model(stream, "growing")
    trainer = toys.train(method, net, stream)
    width = getattr(getattr(net, "head", None), "width", stream.classes)
    expect(width == stream.classes, f"with `{subject.name}` the head has {width} outputs for {stream.classes} classes.")
    expect(
        bool(trainer.learner.classes.all()), f"`{subject.name}` hides classes from the learner that were trained on."
    )
    optimizer = trainer.optimization.optimizer
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer is not None else set()
    missing = [key for key, p in trainer.learner.named_parameters().items() if id(p) not in moved]
    expect(not missing, f"with `{subject.name}` the optimiser does not move {', '.join(missing)}.")
    tasks = subject.stream("task")
    net = subject.model(tasks, "task")
    try:
        toys.train(subject.make(), net, tasks)
    except HoldfastError as error:
        expect(refused(error), f"`{subject.name}` is refused with a head per task, but in no sentence: {error}")
        return
    check_finite(net, subject.name)


TRAINING_CHECKS: dict[str, Callable[[MethodSubject], None]] = {
    "first_step": first_step,
    "resume": resumed,
    "device": device_moves,
    "graph": no_graph_kept,
    "random": global_random_state,
    "heads": heads_grow,
}
