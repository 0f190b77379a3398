"""Output regularisation against NumPy: which loss it is, along which lookahead, and what its gradient goes through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.config.build import build_stream
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Batch
from holdfast.core.forward import forward_task
from holdfast.methods import hypernetwork_regularised
from holdfast.models import mlp
from holdfast.models.hypernetwork import hypernetwork
from holdfast.operations.lookahead import planned_moves
from holdfast.operations.output_regularisation import OutputRegularisation
from holdfast.training import Trainer

CHUNK, HIDDEN = 11, 6


def model(task_classes: int | None = None, cut: int = 0, **more: Any) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3 if task_classes else 12))
    return hypernetwork(
        input_shape=(4,),
        classes=12,
        task_classes=task_classes,
        backbone=net,
        cut=cut,
        generator="chunks",
        chunk=CHUNK,
        hidden=(HIDDEN,),
        embedding=3,
        chunk_embedding=2,
        activation="tanh",
        tasks=4,
        seed=0,
        **more,
    ).double()


def learnt(few: Any, operation: OutputRegularisation, tasks: int = 2, net: nn.Module | None = None, lr: float = 0.1):
    """An engine that has learned `tasks` tasks and begun with the next; its optimiser has that rate."""
    net = model() if net is None else net
    engine = few.bind(operation, model=net)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    engine.learner.optimizer = lambda: optimizer
    for task in range(tasks + 1):
        inputs, targets = few.points(6, seed=task, first=3 * task)
        experience = few.experience(inputs, targets, index=task, task=task)
        engine.begin(experience)
        if task < tasks:
            few.step(engine, inputs, targets, lr=0.3, task=task)
            engine.end(experience)
    return engine, (inputs, targets, tasks)


def generated(theta: dict[str, np.ndarray], task: int, chunks: int, values: int) -> np.ndarray:
    """What the generator makes for a task, by NumPy alone."""
    flat = []
    for chunk in range(chunks):
        joined = np.concatenate([theta[f"embeddings.{task}"], theta["chunk_embeddings.0"][chunk]])
        hidden = np.tanh(theta["layers.0.weight"] @ joined + theta["layers.0.bias"])
        flat.append(theta["layers.1.weight"] @ hidden + theta["layers.1.bias"])
    return np.concatenate(flat)[:values]


def numbers(generator: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in generator.named_parameters()}


def by_numpy(generator: Any, before: dict[str, np.ndarray], theta: dict[str, np.ndarray], tasks: list[int]) -> float:
    sizes = generator.chunks, generator.generated
    differences = [generated(before, task, *sizes) - generated(theta, task, *sizes) for task in tasks]
    return sum(float((one**2).sum()) for one in differences) / len(tasks)


def task_loss(net: nn.Module, inputs: Tensor, targets: Tensor, task: int, theta: dict[str, Tensor]) -> Tensor:
    named = {f"generator.{name}": value for name, value in theta.items()}
    with forward_task(task):
        return F.cross_entropy(functional_call(net, named, (inputs,)), targets)


@pytest.mark.parametrize("targets", ["recomputed", "cached"])
def test_the_term_is_the_mean_over_earlier_tasks_of_the_squared_distance_between_what_is_generated(few, targets):
    operation = OutputRegularisation(strength=2.5, targets=targets)
    engine, (x, y, task) = learnt(few, operation)
    before = numbers(engine.learner.model.generator)
    for _ in range(3):
        few.step(engine, x, y, lr=0.2, task=task)
    term, factor = operation.loss(few.step(engine, x, y, task=task), engine.services)
    generator = engine.learner.model.generator
    assert float(term.detach()) == pytest.approx(by_numpy(generator, before, numbers(generator), [0, 1]), rel=1e-10)
    assert float(term.detach()) > 0
    assert factor == 2.5


@pytest.mark.parametrize(("lookahead", "second_order"), [("none", False), ("sgd", False), ("sgd", True)])
def test_with_lookahead_it_is_measured_after_a_step_of_the_learning_rate_along_the_task_s_gradient(
    few, lookahead, second_order
):
    operation = OutputRegularisation(strength=1.0, lookahead=lookahead, second_order=second_order)
    engine, (x, y, task) = learnt(few, operation, lr=0.7)
    before = numbers(engine.learner.model.generator)
    few.step(engine, x, y, lr=0.2, task=task)
    made = few.step(engine, x, y, task=task)
    net = engine.learner.model
    outputs, _ = engine.forward(Batch(x, y, task))
    made.loss = F.cross_entropy(outputs, y)  # the step's own graph is gone after its backward
    term, _ = operation.loss(made, engine.services)
    theta = {name: value.detach().clone().requires_grad_() for name, value in net.generator.named_parameters()}
    grads = torch.autograd.grad(task_loss(net, x, y, task, theta), list(theta.values()), allow_unused=True)
    rate = 0.7 if lookahead == "sgd" else 0.0
    moved = {
        name: value.detach().numpy() - rate * (0 if grad is None else grad.numpy())
        for (name, value), grad in zip(theta.items(), grads, strict=True)
    }
    assert float(term.detach()) == pytest.approx(by_numpy(net.generator, before, moved, [0, 1]), rel=1e-10)


@pytest.mark.parametrize("second_order", [False, True])
def test_the_gradient_is_that_of_the_whole_loss_with_the_move_as_a_constant_or_as_a_function(few, second_order):
    strength, rate = 3.0, 0.7
    operation = OutputRegularisation(strength=strength, lookahead="sgd", second_order=second_order)
    net = model(cut=1)
    engine, (x, y, task) = learnt(few, operation, net=net, lr=rate)
    before = {name: value.detach().clone() for name, value in net.generator.named_parameters()}
    few.step(engine, x, y, lr=0.2, task=task)

    def whole() -> Tensor:
        theta = dict(net.generator.named_parameters())
        loss = task_loss(net, x, y, task, theta)
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True, allow_unused=True)
        moved = {
            name: value if grad is None else value - rate * (grad if second_order else grad.detach())
            for (name, value), grad in zip(theta.items(), grads, strict=True)
        }
        total = loss
        for k in (0, 1):
            was = functional_call(net.generator, before, ([k],))
            now = functional_call(net.generator, moved, ([k],))
            total = total + strength / 2 * sum((was[name].detach() - now[name]).square().sum() for name in was)
        return total

    expected = few.gradient_of(engine.learner, whole)
    few.step(engine, x, y, task=task)
    few.assert_gradient(engine.learner, expected)


def test_first_and_second_order_have_the_same_value_and_another_gradient(few):
    operation = OutputRegularisation(strength=5.0, lookahead="sgd")
    engine, (x, y, task) = learnt(few, operation, lr=0.5)
    values, gradients = [], []
    for operation.second_order in (False, True):
        engine.learner.logged.clear()
        few.step(engine, x, y, task=task)
        values.append(float(engine.learner.logged["output_regularisation"][0][0]))
        gradients.append(torch.cat([p.grad.flatten() for p in engine.learner.parameters() if p.grad is not None]))
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[0] > 0
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)


@pytest.mark.parametrize("targets", ["recomputed", "cached"])
def test_right_after_the_experience_began_nothing_has_moved_and_the_term_is_zero(few, targets):
    operation = OutputRegularisation(targets=targets)
    engine, (x, y, task) = learnt(few, operation, tasks=3)
    term, _ = operation.loss(few.step(engine, x, y, task=task), engine.services)
    assert float(term.detach()) == 0.0


def test_the_first_experience_and_a_strength_of_zero_have_no_term(few):
    operation = OutputRegularisation(strength=1.0)
    engine, (x, y, task) = learnt(few, operation, tasks=0)
    assert operation.loss(few.step(engine, x, y, task=task), engine.services) is None
    operation = OutputRegularisation(strength=0.0)
    engine, (x, y, task) = learnt(few, operation, tasks=2)
    assert operation.loss(few.step(engine, x, y, task=task), engine.services) is None


def test_a_subset_of_the_earlier_tasks_is_drawn_anew_at_each_step_and_every_task_is_drawn_as_often(few):
    operation = OutputRegularisation(tasks=2)
    engine, _ = learnt(few, operation, tasks=3)
    drawn = [tuple(operation._places(engine.services)) for _ in range(600)]
    assert {len(set(places)) for places in drawn} == {2}
    counts = {places: drawn.count(places) for places in ((0, 1), (0, 2), (1, 2))}
    assert sum(counts.values()) == 600
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 13.8  # 2 degrees of freedom, 0.001


def test_a_task_that_comes_back_is_no_earlier_one_while_it_is_learnt(few):
    operation = OutputRegularisation()
    engine, _ = learnt(few, operation, tasks=3)
    inputs, targets = few.points(6, first=3)
    engine.begin(few.experience(inputs, targets, index=4, task=1))
    assert [operation.finished[place] for place in operation._places(engine.services)] == [0, 2]


@pytest.mark.parametrize("task_classes", [None, 3])
def test_outputs_that_a_task_does_not_use_are_left_out(few, task_classes):
    operation = OutputRegularisation(strength=1.0, used_outputs=True)
    net = model(task_classes)
    engine, (x, y, task) = learnt(few, operation, net=net)
    before = numbers(net.generator)
    few.step(engine, x, y, lr=0.5, task=task)
    term, _ = operation.loss(few.step(engine, x, y, task=task), engine.services)
    now, sizes = numbers(net.generator), (net.generator.chunks, net.generator.generated)
    outputs = task_classes or 12
    total = 0.0
    for k in (0, 1):
        square = (generated(before, k, *sizes) - generated(now, k, *sizes)) ** 2
        body, weight, bias = np.split(square, [25, 25 + 5 * outputs])
        used = range(3) if task_classes else range(3 * k, 3 * k + 3)
        total += body.sum() + sum(weight.reshape(outputs, 5)[row].sum() + bias[row] for row in used)
    assert float(term.detach()) == pytest.approx(total / 2, rel=1e-10)


def test_likelihood_as_a_sum_divides_the_strength_by_the_samples_of_the_experience(few):
    operation = OutputRegularisation(strength=10.0, likelihood="sum")
    engine, (x, y, task) = learnt(few, operation)
    _, factor = operation.loss(few.step(engine, x, y, task=task), engine.services)
    assert factor == pytest.approx(10 / 6)


def test_with_a_large_strength_earlier_tasks_outputs_stay_and_with_none_they_change(few):
    changes = []
    for strength in (0.0, 1e4):
        operation = OutputRegularisation(strength=strength)
        engine, (x, y, task) = learnt(few, operation)
        with forward_task(0):
            before = engine.learner.model(x)[:, :3].detach()
        rate = 0.3 if strength == 0 else 1e-6  # a stiff penalty asks for small steps
        for _ in range(200):
            few.step(engine, x, y, lr=rate, task=task)
        with forward_task(0):
            changes.append(float((engine.learner.model(x)[:, :3] - before).abs().max()))
    assert changes[0] > 0.5
    assert changes[1] < 1e-3


def test_embeddings_of_earlier_tasks_can_be_frozen(few):
    operation = OutputRegularisation(freeze_embeddings=True)
    engine, (x, y, task) = learnt(few, operation)
    few.step(engine, x, y, task=task)
    trained = {name: p.requires_grad for name, p in engine.learner.model.generator.named_parameters()}
    assert not trained["embeddings.0"]
    assert not trained["embeddings.1"]
    assert trained["embeddings.2"]


def test_the_cosine_between_both_gradients_is_logged(few):
    operation = OutputRegularisation(strength=1.0, log_conflict=True)
    engine, (x, y, task) = learnt(few, operation)
    net = engine.learner.model
    before = {name: value.detach().clone() for name, value in net.generator.named_parameters()}
    few.step(engine, x, y, lr=0.2, task=task)
    theta = dict(net.generator.named_parameters())
    pair = [task_loss(net, x, y, task, theta)]
    was, now = functional_call(net.generator, before, ([0, 1],)), net.generator([0, 1])
    pair.append(sum((was[name].detach() - now[name]).square().sum() for name in was) / 2)
    grads = []
    for loss in pair:
        parts = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(theta.values(), parts, strict=True)]
        grads.append(torch.cat([one.flatten() for one in flat]))
    wanted = float(grads[0] @ grads[1] / grads[0].norm() / grads[1].norm())
    engine.learner.logged.clear()
    few.step(engine, x, y, task=task)
    (logged,) = engine.learner.logged["output_regularisation/cosine"]
    assert float(logged[0]) == pytest.approx(wanted, rel=1e-8)


# Lookahead as the optimiser would move -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.05, betas=(0.5, 0.8)),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.05),
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
    ],
)
def test_planned_moves_are_those_that_the_optimiser_then_makes(make):
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in ((3, 2), (4,))]
    optimizer = make(parameters)
    for _ in range(4):
        grads = [torch.randn(p.shape, generator=generator).double() for p in parameters]
        before = [p.detach().clone() for p in parameters]
        state = {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in optimizer.state.get(parameters[0], {}).items()
        }
        moves = planned_moves(optimizer, parameters, grads)
        for key, value in state.items():
            now = optimizer.state[parameters[0]][key]
            assert torch.equal(now, value) if isinstance(value, Tensor) else now == value, (
                "nothing is changed by a plan"
            )
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        optimizer.step()
        for p, was, move in zip(parameters, before, moves, strict=True):
            torch.testing.assert_close(p.detach(), was + move, rtol=1e-9, atol=1e-12)


def test_an_optimiser_that_cannot_be_planned_is_refused():
    weight = nn.Parameter(torch.ones(2))
    gradient = (2 * weight).square()
    for optimizer in (torch.optim.RMSprop([weight]), torch.optim.Adam([weight], amsgrad=True)):
        with pytest.raises(UsageError, match="cannot go through a step of"):
            planned_moves(optimizer, [weight], [gradient])
    with pytest.raises(UsageError, match="does not move"):
        planned_moves(torch.optim.Adam([nn.Parameter(torch.ones(2))]), [weight], [torch.ones(2)])


def test_the_term_can_look_ahead_as_adam_would_move(few):
    operation = OutputRegularisation(strength=1.0, lookahead="optimizer")
    engine, (x, y, task) = learnt(few, operation)
    net = engine.learner.model
    before = numbers(net.generator)
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    engine.learner.optimizer = lambda: adam
    few.step(engine, x, y, task=task)
    adam.step()
    theta = dict(net.generator.named_parameters())
    grads = torch.autograd.grad(task_loss(net, x, y, task, theta), list(theta.values()), allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(theta.values(), grads, strict=True)]
    moves = planned_moves(adam, list(theta.values()), grads)
    moved = {name: (p + move).detach().numpy() for (name, p), move in zip(theta.items(), moves, strict=True)}
    engine.learner.logged.clear()
    few.step(engine, x, y, task=task)
    found = float(engine.learner.logged["output_regularisation"][0][0])
    assert found == pytest.approx(by_numpy(net.generator, before, moved, [0, 1]), rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strength=-1"),
        ({"tasks": 0}, "tasks=0"),
        ({"lookahead": "adam"}, "lookahead='adam'"),
        ({"second_order": True}, "nothing to differentiate"),
        ({"targets": "kept"}, "targets='kept'"),
        ({"likelihood": "max"}, "likelihood='max'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        OutputRegularisation(**arguments)


def test_a_model_with_weights_of_its_own_is_refused(few):
    with pytest.raises(ConfigError, match="weights are generated, and Classifier has its own"):
        few.bind(OutputRegularisation(), model=mlp(input_shape=(4,), classes=3))


def by_hand(batches: list[tuple[int, Tensor, Tensor]], start: dict[str, Tensor], sizes: list[tuple[int, ...]]) -> Any:
    """Embeddings and weights of a generator of heads after von Oswald et al.'s toy training (beta 0.005)."""
    theta = [value.clone().requires_grad_() for name, value in start.items() if not name.startswith("embeddings")]
    embeddings = [value.clone().requires_grad_() for name, value in start.items() if name.startswith("embeddings")]

    def generated(task: int, w: list[Tensor]) -> list[Tensor]:
        h = torch.sigmoid(F.linear(torch.sigmoid(F.linear(embeddings[task], w[0], w[1])), w[2], w[3]))
        return [F.linear(h, w[4 + 2 * i], w[5 + 2 * i]).view(size) for i, size in enumerate(sizes)]

    task, finished, theta_moves, embedding_moves = -1, list[Tensor](), None, None
    for of, x, y in batches:
        if of != task:
            task = of
            with torch.no_grad():
                finished = [torch.cat([v.flatten() for v in generated(old, theta)]) for old in range(task)]
            theta_moves = torch.optim.Adam(theta, lr=0.01)
            embedding_moves = torch.optim.Adam([embeddings[task]], lr=0.01)
        assert theta_moves is not None
        assert embedding_moves is not None
        w = generated(task, theta)
        hidden = torch.sigmoid(F.linear(torch.sigmoid(F.linear(x, w[0], w[1])), w[2], w[3]))
        theta_moves.zero_grad()
        embedding_moves.zero_grad()
        F.mse_loss(F.linear(hidden, w[4], w[5]), y).backward()
        embedding_moves.step()
        if task:
            moves = planned_moves(theta_moves, theta, [p.grad for p in theta])  # type: ignore[misc]
            ahead = [p + move for p, move in zip(theta, moves)]
            gaps = [torch.cat([v.flatten() for v in generated(old, ahead)]) - finished[old] for old in range(task)]
            grads = torch.autograd.grad(0.005 / task * torch.stack([gap.square().sum() for gap in gaps]).sum(), theta)
            for p, grad in zip(theta, grads):
                p.grad = p.grad + grad  # type: ignore[operator]
        theta_moves.step()
    return [*embeddings, *theta]


def test_three_polynomials_are_learned_as_the_published_loop_learns_them(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = build_stream(
        {
            "name": "domains",
            "datasets": [{"name": "polynomial", "degree": degree} for degree in (1, 2, 3)],
            "paradigm": "task",
        }
    )
    net = hypernetwork(
        input_shape=(1,),
        classes=1,
        backbone={"name": "mlp", "hidden": [10, 10], "activation": "sigmoid"},
        generator="heads",
        head_embedding=0,
        vectors="generated",
        hidden=(10, 10),
        activation="sigmoid",
        init="xavier",
        embedding=2,
        norm="none",
        tasks=3,
        seed=0,
    ).double()
    start = {name: value.detach().clone() for name, value in net.generator.named_parameters()}
    batches: list[tuple[int, Tensor, Tensor]] = []
    step = Engine.step

    def noted(self: Engine, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        batches.append((self.services.task, batch.inputs.double(), batch.targets.double()))  # type: ignore[arg-type, union-attr]
        return step(self, batch, *args, **kwargs)

    monkeypatch.setattr(Engine, "step", noted)
    method = hypernetwork_regularised(strength=0.005, freeze_embeddings=True)
    settings: dict[str, Any] = {"criterion": "mse", "iterations": 12, "batch_size": 32, "precision": "64-true"}
    Trainer(method, optimizer={"name": "Adam", "lr": 0.01}, reset_optimizer=True, **settings).fit(net, stream)
    assert [task for task, _, _ in batches] == [0] * 12 + [1] * 12 + [2] * 12
    wanted = by_hand(batches, start, [(10, 1), (10,), (10, 10), (10,), (1, 10), (1,)])
    for (name, value), other in zip(net.generator.named_parameters(), wanted):
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


def images_by_hand(batches: list[tuple[int, Tensor, Tensor]], start: dict[str, Tensor], rows: int) -> list[Tensor]:
    """The published loop of the Split MNIST rows (posterior replay, deterministic), of a perceptron 5, 7, 6."""
    w = {name: value.clone().requires_grad_() for name, value in start.items()}
    sizes, optimizer, task, kept = [(7, 5), (7,), (6, 7), (6,)], None, -1, list[Tensor]()

    def generated(of: int) -> list[Tensor]:
        chunks = w["chunk_embeddings.0"]
        h = torch.cat([w[f"embeddings.{of}"].expand(len(chunks), -1), chunks], dim=1)
        h = torch.sigmoid(h @ w["layers.0.weight"].T + w["layers.0.bias"])
        flat = (h @ w["layers.1.weight"].T + w["layers.1.bias"]).flatten()
        parts = flat[:90].split([35, 7, 42, 6])
        return [part.view(size) for part, size in zip(parts, sizes)]

    def used(of: int) -> Tensor:
        """The weights of a task's network, of the output layer those of its own two classes."""
        a, b, c, d = generated(of)
        return torch.cat([a.flatten(), b, c[2 * of : 2 * of + 2].flatten(), d[2 * of : 2 * of + 2]])

    for of, x, y in batches:
        if of != task:
            task, kept = of, [used(old).detach() for old in range(of)]
            optimizer = torch.optim.Adam(w.values(), lr=0.01)
        assert optimizer is not None
        a, b, c, d = generated(task)
        outputs = (torch.relu(x @ a.T + b) @ c.T + d)[:, 2 * task : 2 * task + 2]
        loss = rows * F.cross_entropy(outputs, y - 2 * task)
        if task:
            loss = loss + 2.0 * torch.stack([(used(old) - kept[old]).square().sum() for old in range(task)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return list(w.values())


def test_images_are_learned_as_the_published_loop_learns_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is a sum over the samples of a task, so that Adam's epsilon counts as many times less here."""
    rows = 18
    data = {"name": "synthetic", "classes": 6, "features": 5, "samples": rows // 2, "seed": 0}
    stream = build_stream({"name": "split", "dataset": data, "experiences": 3, "paradigm": "task"})
    sizes: dict[str, Any] = {"chunk": 8, "hidden": (10,), "embedding": 4, "chunk_embedding": 3, "activation": "sigmoid"}
    backbone = {"name": "mlp", "hidden": [7]}
    net = hypernetwork(
        input_shape=(5,), classes=6, backbone=backbone, generator="chunks", init="xavier", tasks=3, seed=0, **sizes
    ).double()
    start = {name: value.detach().clone() for name, value in net.generator.named_parameters()}
    batches, step = list[tuple[int, Tensor, Tensor]](), Engine.step

    def noted(self: Engine, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        batches.append((self.services.task, batch.inputs.double(), batch.targets))  # type: ignore[arg-type, union-attr]
        return step(self, batch, *args, **kwargs)

    monkeypatch.setattr(Engine, "step", noted)
    method = hypernetwork_regularised(strength=2.0, lookahead="none", likelihood="sum", targets="cached")
    optimizer = {"name": "Adam", "lr": 0.01, "eps": 1e-8 / rows}
    settings: dict[str, Any] = {"iterations": 12, "batch_size": 6, "precision": "64-true", "reset_optimizer": True}
    Trainer(method, optimizer=optimizer, **settings).fit(net, stream)
    assert [task for task, _, _ in batches] == [0] * 12 + [1] * 12 + [2] * 12
    wanted = images_by_hand(batches, start, rows)
    for (name, value), other in zip(net.generator.named_parameters(), wanted):
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(value, other, rtol=0, atol=1e-10)
