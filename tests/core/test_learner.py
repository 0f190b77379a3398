"""The services of the learner: teachers, classes, randomness, gradients, state, and the one backward pass."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience, tree_cat, tree_map, tree_rows
from holdfast.core.forward import backward, constant
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.methods import der_plus_plus, ewc, lwf
from holdfast.models import mlp
from holdfast.operations import Remember, Replay
from holdfast.streams.data import TensorData

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def _net(head: str = "fixed", **other: Any) -> nn.Module:
    return mlp(input_shape=(4,), classes=6, hidden=[5], head=head, seed=0, **other)


def _experience(*classes: int, task: int | None = None) -> Experience:
    return Experience(0, TensorData(X[: len(classes)], torch.tensor(classes)), classes=classes, task=task)


# One backward pass -----------------------------------------------------------------------------------------


def test_the_weighed_backward_pass_equals_torchs_own() -> None:
    gradients = []
    for way in ("ours", "torch", "sum"):
        net = _net()
        losses = [net(X).square().mean(), net(X).abs().sum(), net(X * 2).logsumexp(1).mean()]
        factors = [0.3, 1.0, -2.5]
        if way == "ours":
            backward(losses, [constant(factor, losses[0]) for factor in factors])
        elif way == "torch":
            torch.autograd.backward(losses, [torch.tensor(factor) for factor in factors])
        else:
            sum(loss * factor for loss, factor in zip(losses, factors, strict=True)).backward()
        gradients.append([p.grad for p in net.parameters()])
    ours, theirs, summed = gradients
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, summed, strict=True))


def test_the_weighed_backward_pass_adds_to_gradients_that_are_there() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    backward([x * 3], [constant(1.0, x)])
    backward([x * 4], [constant(0.5, x)])
    assert x.grad == 5.0


def test_constants_have_the_type_of_their_loss() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        one = constant(0.5, torch.zeros((), dtype=dtype))
        assert (one.dtype, float(one)) == (dtype, 0.5)


# Teachers --------------------------------------------------------------------------------------------------


def test_a_snapshot_stays_what_it_was_while_the_model_learns() -> None:
    learner = Learner(_net())
    expected = learner.model.eval()(X).detach().clone()
    learner.model.train()
    snapshot = learner.snapshot()
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(1.0)
    assert torch.equal(learner.forward_as(snapshot, X), expected)
    assert not torch.equal(learner.model(X), expected)


def test_a_teacher_has_no_graph_and_ignores_dropout_and_batch_statistics() -> None:
    learner = Learner(_net(dropout=0.5, batch_norm=True))
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    snapshot = learner.snapshot()
    outputs = [learner.forward_as(snapshot, X) for _ in range(3)]
    assert not outputs[0].requires_grad
    assert all(torch.equal(outputs[0], other) for other in outputs)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert learner.model.training


@pytest.mark.parametrize("head", ["growing", "task", "cosine"])
def test_a_teacher_keeps_its_outputs_when_the_head_grows_also_after_a_load(head: str, toy: Any) -> None:
    task = 0 if head == "task" else None
    learner = Learner(_net(head))
    learner.enter(_experience(0, 1, task=task))
    expected = learner(X).detach().clone()
    snapshot = learner.snapshot()
    learner.enter(_experience(2, 3, task=None if task is None else 1))
    taught = learner.forward_as(snapshot, X, task)
    assert taught.shape == (6, 2)
    assert torch.equal(taught, expected)
    assert learner(X).shape == (6, 4)

    fresh = Learner(_net(head))
    saved = toy.through_disk({"learner": learner.state(), "teacher": snapshot.state()})
    fresh.load(saved["learner"])
    assert torch.equal(fresh.forward_as(saved["teacher"], X, task), expected)
    assert torch.equal(fresh(X), learner(X))


def test_two_teachers_do_not_take_each_others_place() -> None:
    learner = Learner(_net())
    first = learner.snapshot()
    old = learner.model(X).detach().clone()
    with torch.no_grad():
        learner.model.head.bias.add_(1.0)
    second = learner.snapshot()
    new = learner.model(X).detach().clone()
    for _ in range(2):
        assert torch.equal(learner.forward_as(first, X), old)
        assert torch.equal(learner.forward_as(second, X), new)


def test_a_teacher_of_a_wrapped_model_has_none_of_its_hooks() -> None:
    learner = Learner(_net())
    calls: list[int] = []
    learner.model.register_forward_hook(lambda *_: calls.append(1))
    learner.forward_as(learner.snapshot(), X)
    assert calls == []
    learner(X)
    assert calls == [1]


# Classes ---------------------------------------------------------------------------------------------------


def test_the_mask_of_classes_holds_exactly_what_was_seen() -> None:
    learner = Learner(_net("growing"))
    assert learner.classes.tolist() == []
    learner.enter(_experience(0, 2))
    assert learner.classes.tolist() == [True, False, True]
    learner.enter(_experience(1, 4))
    assert learner.classes.tolist() == [True, True, True, False, True]
    assert learner.members == [(0, 2), (1, 4)]
    learner.see_targets(torch.tensor([3, 3]))
    assert learner.classes.all()


def test_growing_outputs_are_announced_to_whoever_owns_the_optimiser() -> None:
    learner = Learner(_net("growing"))
    heard: list[int] = []
    learner.on_growth.append(lambda new: heard.append(sum(p.numel() for p in new)))
    learner.enter(_experience(0, 1))
    assert learner.grown is False
    learner.enter(_experience(0, 1))
    learner.enter(_experience(2))
    assert heard == [2 * 5 + 2, 5 + 1]
    assert learner.grown is True


# Randomness ------------------------------------------------------------------------------------------------


def test_each_purpose_has_random_numbers_of_its_own() -> None:
    one, other = Learner(_net(), seed=4), Learner(_net(), seed=4)
    alone = torch.rand(5, generator=one.rng("b"))
    torch.rand(100, generator=other.rng("a"))
    assert torch.equal(torch.rand(5, generator=other.rng("b")), alone)
    assert not torch.equal(torch.rand(5, generator=Learner(_net(), seed=5).rng("b")), alone)
    assert one.rng("b") is one.rng("b")


def test_one_more_operation_leaves_the_draws_of_the_others_alone(toy: Any) -> None:
    stream = toy.stream()
    kept = []
    for more in ((), (Replay(size=2, weight=0.0),)):
        trainer = toy.train(Method(Remember(capacity=7), *more), toy.model(stream), stream)
        kept.append(trainer.learner.memory.all()["inputs"])
    assert torch.equal(*kept)


def test_a_generator_asked_for_only_after_a_load_goes_on_where_it_was(toy: Any) -> None:
    one, other = Learner(_net()), Learner(_net())
    torch.rand(7, generator=one.rng("late"))
    other.load(toy.through_disk(one.state()))
    assert torch.equal(torch.rand(3, generator=one.rng("late")), torch.rand(3, generator=other.rng("late")))


def test_nothing_here_touches_a_global_random_state(toy: Any) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    learner = Learner(_net("growing"))
    learner.enter(_experience(0, 1))
    snapshot = learner.snapshot()
    learner.forward_as(snapshot, X)
    learner.load(toy.through_disk(learner.state()))
    learner.features(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


# Gradients and features ------------------------------------------------------------------------------------


def test_grad_gives_zeros_where_a_parameter_had_no_part_and_leaves_p_grad_alone() -> None:
    net = _net()
    learner = Learner(net)
    net.head.bias.grad = torch.full_like(net.head.bias, 7.0)
    grads = learner.grad(net.backbone(X).sum())
    by_name = dict(zip(learner.named_parameters(), grads, strict=True))
    assert torch.equal(by_name["head.weight"], torch.zeros_like(net.head.weight))
    assert by_name["backbone.0.weight"].abs().sum() > 0
    assert (net.head.bias.grad == 7.0).all()
    assert net.head.weight.grad is None


def test_gradients_are_those_that_the_optimiser_will_use() -> None:
    net = _net()
    learner = Learner(net)
    net(X).sum().backward()
    for grad in learner.gradients():
        grad.zero_()
    assert all((p.grad == 0).all() for p in net.parameters())


def test_features_are_what_enters_the_head_and_raw_inputs_are_prepared_once() -> None:
    net = _net()
    learner = Learner(net, prepare=lambda inputs, training, generator: inputs.float() / 10)
    raw = (X * 10).to(torch.float64)
    assert torch.allclose(learner.features(raw), net.backbone(raw.float() / 10), atol=1e-6)
    assert torch.allclose(learner(raw), net(raw.float() / 10), atol=1e-6)


def test_features_of_a_model_without_a_linear_layer_are_refused() -> None:
    with pytest.raises(UsageError, match="head='path'"):
        Learner(nn.Sequential(nn.Conv2d(1, 1, 1))).features(torch.zeros(1, 1, 2, 2))


def test_trees_of_inputs_reach_the_model_as_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.head(left - right)

    learner = Learner(Two())
    by_position = learner((X, X * 2))
    assert torch.equal(by_position, learner({"right": X * 2, "left": X}))
    assert torch.equal(learner(tree_cat([(X[:2], X[:2]), (X[2:], X[2:])])), learner((X, X)))
    assert tree_rows({"a": X}) == 6
    assert torch.equal(tree_map(torch.neg, (X,))[0], -X)


# State -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [der_plus_plus, ewc, lwf])
def test_what_was_saved_and_loaded_is_not_changed_by_going_on(factory: Any, toy: Any) -> None:
    stream = toy.stream()
    trainer = toy.train(factory(), toy.model(stream, "growing"), stream)
    state = toy.through_disk(trainer.engine.state())
    untouched = toy.through_disk(state)
    twin = Engine(factory(), Learner(toy.model(stream, "growing"), seed=3), NEEDS)
    twin.load(state)
    twin.begin(stream[0])
    for batch in toy.batches(stream, 0, 5):
        outputs, extras = twin.forward(twin.batch(batch))
        from holdfast.core.step import Step

        loss = nn.functional.cross_entropy(outputs, batch.targets)
        twin.backward(Step(batch.inputs, batch.targets, loss, outputs, extras=extras))
        with torch.no_grad():
            for p in twin.learner.parameters():
                p -= 0.1 * p.grad
    twin.end(stream[0])
    _same(state, untouched)


def _same(one: Any, other: Any, path: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=path)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            _same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            _same(*pair, f"{path}.{index}")
    else:
        assert one == other, path


def test_the_state_counts_steps_and_names_operations(toy: Any) -> None:
    stream = toy.stream(experiences=1, classes=2, samples=8)
    trainer = toy.train(Method(Replay(size=2), Replay(size=3), Remember(capacity=5)), toy.model(stream), stream)
    state = trainer.engine.state()
    assert state["index"] == 4
    assert list(state["operations"]) == ["replay", "replay_2", "remember"]


def test_a_snapshot_is_one_copy_of_the_model_and_answers_without_another() -> None:
    model = nn.Linear(4, 3)
    learner = Learner(model)
    x = torch.randn(2, 4)
    snapshots = []
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(1)
        snapshots.append((learner.snapshot(), model(x).detach()))
    for snapshot, expected in snapshots:
        answering = snapshot.module
        assert torch.equal(learner.forward_as(snapshot, x), expected)
        assert snapshot.module is answering
        assert snapshot["weight"].data_ptr() == answering.weight.data_ptr()


def test_a_criterion_is_a_function_a_module_or_a_name() -> None:
    assert Learner(nn.Linear(2, 2), criterion="mse").criterion is F.mse_loss  # type: ignore[arg-type]
    assert Learner(nn.Linear(2, 2)).criterion is F.cross_entropy


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("mse_los", "did you mean 'mse_loss'"),
        ("chamfer", "unknown criterion 'chamfer'"),
        (nn.MSELoss, r"Write criterion=MSELoss\(\)"),
        (0.5, "cannot be called"),
    ],
)
def test_what_is_no_criterion_is_refused_before_the_first_step(given: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Learner(nn.Linear(2, 2), criterion=given)
