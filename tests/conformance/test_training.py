"""What every operation and every method must do while it is trained with, on a stream that takes a blink.

The slow ones say at length what the checks of `holdfast.testing` say of every method in the fast suite.
"""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import holdfast.methods
from holdfast.core.boundary import Every
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, NeedError
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import LOOP, LOOP_WITH_BOUNDARY, NEEDS, TRAINER
from holdfast.core.operation import Operation
from holdfast.core.step import Step
from holdfast.testing import toys
from holdfast.training import Continual, Trainer
from holdfast.training.wrapper import ADVICE

Make = Callable[[], Method]
IN_A_LOOP = LOOP.offers
"""What a loop of one's own offers."""

OPTIMIZERS = {
    "sgd": {"name": "SGD", "lr": 0.05},
    "momentum": {"name": "SGD", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-2},
    "adam": {"name": "Adam", "lr": 0.01},
}


def _bound(method: Method, model: nn.Module, stream: Any) -> Engine:
    engine = Engine(method, Learner(model, prepare=stream.prepare, seed=5), TRAINER.offers)
    engine.learner.optimizer = lambda: torch.optim.SGD(engine.learner.parameters(), lr=0.05)  # see `_step`
    return engine


def _step(engine: Engine, batch: Any, progress: float = 0.5, lr: float = 0.05) -> None:
    """One step of plain gradient descent, written out."""
    batch = engine.batch(batch)
    outputs, extras = engine.forward(batch)
    loss = engine.criterion(outputs, batch.targets, batch.inputs)
    step = Step(batch.inputs, batch.targets, loss, outputs, batch.task, engine.index, progress, extras)
    optimizer = torch.optim.SGD(engine.learner.parameters(), lr=lr)
    optimizer.zero_grad()
    if not engine.take_step(step, optimizer):
        engine.backward(step)
        optimizer.step()
    engine.update(step)
    engine.learner.logged.clear()


def _open(engine: Engine, experience: Any) -> Any:
    opened, _ = engine.begin(experience)
    return opened if len(opened.train) else experience  # who trains on nothing now still has to stand a step


@pytest.mark.basic
def test_saved_in_mid_stream_and_loaded_it_goes_on_as_if_nothing_had_happened(make: Make, toy: Any) -> None:
    method = make()
    stream = toy.stream_for(method)
    for head in ["task"] if "task" in method.needs else ["fixed", "growing"]:
        one = make()
        engine = _bound(one, toy.model(stream, head), stream)
        first = engine.begin(stream[0])[0]
        for batch in toy.batches(stream, 0, 9):
            _step(engine, batch)
        engine.end(first)
        second = engine.begin(stream[1])[0]
        for batch in toy.batches(stream, 1, 5):
            _step(engine, batch)
        state = toy.through_disk(engine.state())

        fresh = _bound(make(), toy.model(stream, head), stream)
        fresh.load(state)
        for going in (engine, fresh):
            for batch in toy.batches(stream, 1, 6, seed=1):
                _step(going, batch)
            going.end(second)
            opened = _open(going, stream[2])
            for batch in toy.batches(stream, 2, 6):
                _step(going, batch)
            going.end(opened)
        assert toy.equal(engine.learner.model, fresh.learner.model)
        assert engine.index == fresh.index == 26
        if engine.learner.memory is not None:
            one_memory, other = engine.learner.memory.all(), fresh.learner.memory.all()
            assert all(torch.equal(one_memory[key].nan_to_num(7), other[key].nan_to_num(7)) for key in one_memory)


@pytest.mark.basic
def test_loading_a_state_twice_gives_two_learners_that_share_nothing(make: Make, toy: Any) -> None:
    method = make()
    stream = toy.stream_for(method)
    engine = _bound(method, toy.model(stream), stream)
    first = engine.begin(stream[0])[0]
    for batch in toy.batches(stream, 0, 6):
        _step(engine, batch)
    engine.end(first)
    second = engine.begin(stream[1])[0]
    for batch in toy.batches(stream, 1, 4):
        _step(engine, batch)
    state = engine.state()
    twins = [_bound(make(), toy.model(stream), stream) for _ in range(2)]
    for twin in twins:
        twin.load(state)
    for twin in twins:
        for batch in toy.batches(stream, 1, 5, seed=1):
            _step(twin, batch)
        twin.end(second)
        opened = _open(twin, stream[2])
        for batch in toy.batches(stream, 2, 4):
            _step(twin, batch)
        twin.end(opened)
    assert toy.equal(twins[0].learner.model, twins[1].learner.model)


def test_the_first_step_finds_an_empty_memory_and_moves_the_weights(make: Make, toy: Any) -> None:
    method = make()
    stream = toy.stream_for(method)
    model = toy.model(stream)
    engine = _bound(method, model, stream)
    memory = engine.learner.memory
    assert memory is None or len(memory) == 0
    engine.begin(stream[0])
    before = toy.weights(model)
    _step(engine, toy.batches(stream, 0, 1)[0])
    assert all(value.isfinite().all() for value in model.state_dict().values())
    moved = any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert moved or engine.acts_at("predict"), "it neither learns by its weights nor predicts by something else"


QUICK = [("fixed", "momentum"), ("growing", "adam"), ("task", "sgd")]
REST = [(head, name) for head in ("fixed", "growing", "task") for name in OPTIMIZERS if (head, name) not in QUICK]


@pytest.mark.parametrize(
    ("head", "optimizer"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]
)
@pytest.mark.slow
def test_the_trainer_and_a_loop_of_ones_own_give_equal_weights(make: Make, toy: Any, head: str, optimizer: str) -> None:
    method = make()
    if not set(method.needs) <= IN_A_LOOP:
        pytest.skip("the drop-in refuses it, which another test checks")
    if "task" in method.needs and head != "task":
        pytest.skip("it needs task labels")
    stream = toy.stream("task" if head == "task" else "class")
    spec = dict(OPTIMIZERS[optimizer])
    trained, looped = toy.model(stream, head), toy.model(stream, head)
    try:
        trainer = toy.train(method, trained, stream, optimizer=spec)
    except ConfigError as refused:
        with pytest.raises(ConfigError):
            toy.wrap(make(), looped, stream, lambda p: torch.optim.SGD(p, lr=0.1))
        pytest.skip(f"refused: {refused}")
    kind = getattr(torch.optim, spec.pop("name"))
    toy.wrap(make(), looped, stream, lambda parameters: kind(parameters, **spec))
    assert toy.equal(trained, looped)
    if trainer.engine.index and not trainer.engine.acts_at("predict"):
        assert not toy.equal(trained, toy.model(stream, head))


@pytest.mark.basic
def test_a_model_called_directly_gives_the_same_weights_as_one_called_through_the_wrapper(make: Make, toy: Any) -> None:
    method = make()
    if not set(method.needs) <= IN_A_LOOP:
        pytest.skip("the drop-in refuses it, which another test checks")
    stream = toy.stream_for(method)
    nets = [toy.model(stream), toy.model(stream)]
    for net, prepare in zip(nets, (True, False), strict=True):
        toy.wrap(method if prepare else make(), net, stream, lambda p: torch.optim.SGD(p, lr=0.05), prepare=prepare)
    assert toy.equal(*nets)


@pytest.mark.parametrize("head", ["fixed", "growing"])
@pytest.mark.slow
def test_resumed_in_the_middle_of_an_experience_it_ends_with_equal_weights(make: Make, toy: Any, head: str) -> None:
    method = make()
    stream = toy.stream_for(method)
    settings: dict[str, Any] = {"optimizer": OPTIMIZERS["momentum"], "epochs": 2}
    whole = toy.model(stream, head)
    steps = toy.train(method, whole, stream, **settings).engine.index
    if steps < 3:
        pytest.skip("it takes no steps")
    for step in random.Random(method.name + head).sample(range(1, steps), 2):
        keep = toy.KeepAt(step)
        toy.train(make(), toy.model(stream, head), stream, checkpoints=keep, **settings)
        resumed = toy.model(stream, head)
        trainer = toy.train(make(), resumed, stream, resume=keep.kept, **settings)
        assert toy.equal(whole, resumed), f"resumed after step {step} of {steps}"
        assert trainer.engine.index == steps


@pytest.mark.slow
def test_the_output_layer_grows_to_every_class_of_the_stream(make: Make, toy: Any) -> None:
    method = make()
    stream = toy.stream_for(method)
    model = toy.model(stream, "growing")
    trainer = toy.train(method, model, stream)
    assert getattr(model.head, "width", stream.classes) == stream.classes
    assert trainer.learner.classes.all()
    held = {id(p) for group in trainer.optimization.optimizer.param_groups for p in group["params"]}
    assert held >= {id(p) for p in trainer.learner.parameters()}


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("name", ["der_plus_plus", "ewc_online", "si", "lwf", "agem"])
@pytest.mark.slow
def test_a_thousand_steps_of_the_basic_methods_keep_no_tensor_each(name: str, toy: Any) -> None:
    _thousand_steps(getattr(holdfast.methods, name)(), toy)


@pytest.mark.slow
def test_a_thousand_steps_keep_no_tensor_each(make: Make, toy: Any) -> None:
    _thousand_steps(make(), toy)


def test_a_method_that_keeps_a_tensor_or_a_graph_each_step_is_found(toy: Any) -> None:
    class Hoarder(Operation):
        def loss(self, step: Step, learner: Learner) -> None:
            self.__dict__.setdefault("kept", []).append(step.loss)

    with pytest.raises(AssertionError, match="live tensors"):
        _thousand_steps(Method(Hoarder()), toy, iterations=250)


def _thousand_steps(method: Method, toy: Any, iterations: int = 500) -> None:
    stream = toy.stream_for(method, experiences=2, classes=4, samples=6)
    counts: list[int] = []
    trainer = Trainer(
        method,
        optimizer=OPTIMIZERS["sgd"],
        iterations=iterations,
        batch_size=2,
        evaluate="none",
        log_every=iterations // 2,
        record=lambda event: counts.append(_tensors()) if event["event"] == "train" else None,
    )
    trainer.fit(toy.model(stream), stream)
    if trainer.engine.index < iterations:
        pytest.skip("it takes no steps, or not as many")
    assert counts[-1] - counts[-2] < 0.4 * iterations, f"live tensors every {iterations // 2} steps: {counts}"


@pytest.mark.slow
def test_training_touches_no_global_random_state(make: Make, toy: Any) -> None:
    np = pytest.importorskip("numpy")
    method = make()
    stream = toy.stream_for(method)
    model = toy.model(stream)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    toy.train(method, model, stream)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


@pytest.mark.slow
def test_the_same_seed_gives_equal_weights_whatever_the_global_random_state(make: Make, toy: Any) -> None:
    method = make()
    stream = toy.stream_for(method)
    nets = [toy.model(stream), toy.model(stream)]
    for net, seed in zip(nets, (1, 2), strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            toy.train(make(), net, stream)
    assert toy.equal(*nets)


def test_what_a_loop_does_not_offer_is_refused_by_name_and_with_what_to_write(method_name: str) -> None:
    factory = getattr(holdfast.methods, method_name)
    for missing in factory().needs:
        with pytest.raises(NeedError) as refused:
            Engine(factory(), Learner(nn.Linear(2, 2)), set(NEEDS) - {missing}, ADVICE)
        what, advice = str(refused.value).split("\n")
        assert f"`{method_name}`" in what
        assert NEEDS[missing] in what
        assert re.match(r"\s+(Pass|Call|Use|Choose|Make|Leave|Give) .{15,}\.$", advice), advice


@pytest.mark.parametrize("boundary", [None, Every(steps=5)])
def test_the_drop_in_refuses_what_it_cannot_offer_before_the_first_step(
    method_name: str, boundary: Any, toy: Any
) -> None:
    factory = getattr(holdfast.methods, method_name)
    offered = (LOOP if boundary is None else LOOP_WITH_BOUNDARY).offers
    stream = toy.stream_for(factory())
    model = toy.model(stream, "task" if "task" in factory().needs else "fixed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if set(factory().needs) <= offered:
        Continual(model, factory(), optimizer, boundary=boundary).close()
    else:
        with pytest.raises(NeedError, match=f"`{method_name}`.*\n.*(Pass|Call|Use|Choose|Leave)"):
            Continual(model, factory(), optimizer, boundary=boundary)


def test_a_stream_without_task_labels_or_classes_is_refused_where_they_are_needed(method_name: str, toy: Any) -> None:
    factory = getattr(holdfast.methods, method_name)
    stream = toy.stream_for(factory())
    if "task" in factory().needs:
        with pytest.raises(NeedError, match=f"`{method_name}`"):
            Trainer(factory()).bind(toy.model(toy.stream("class")), toy.stream("class"))
    model = toy.model(stream)
    stream.classes = 0
    if "classes" in factory().needs:
        with pytest.raises(NeedError, match=f"`{method_name}`"):
            Trainer(factory()).bind(model, stream)
    else:
        Trainer(factory()).bind(model, stream)


STEEP = {"fg_adahat"}
"""Methods that make a thousand times more of a rounding in an epoch (gates as steep as 400): compared in doubles."""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a compiler on a busy machine
@pytest.mark.parametrize("name", holdfast.methods.__all__)
def test_compiled_steps_give_weights_within_rounding_of_steps_as_written(name: str) -> None:
    """Over three experiences with a head that grows and a smaller last batch; compiling takes most of a minute."""
    nets = []
    for capture in ("none", "compile"):
        method = getattr(holdfast.methods, name)()
        of = toys.stream_for(method)
        nets.append(toys.model_for(method)(of, "task" if "task" in method.needs else "growing"))
        precision = "64-true" if name in STEEP else "32-true"
        settings: dict[str, Any] = {"optimizer": OPTIMIZERS["momentum"], "epochs": 3, "precision": precision}
        trainer = toys.train(method, nets[-1], of, capture=capture, **settings)
    for key, value in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[key], value, rtol=0, atol=1e-6)
    told = [event for event in trainer.events if event["event"] == "capture"]
    steps = sum(event[key] for event in told for key in ("captured", "recorded", "as_written"))
    assert sum(event["captured"] for event in told) or any(event["reasons"] for event in told) or not steps
