"""Penalties, classifiers in closed form, bias mitigation and losses, each against its formula by explicit loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.models import mlp
from holdfast.operations import (
    AnchorPenalty,
    BalancedFinetune,
    BiasCorrection,
    Distillation,
    Evidential,
    FeatureDistillation,
    MaskedCrossEntropy,
    NearestClassMean,
    OneHotError,
    PooledDistillation,
    RandomProjection,
    Remember,
    StreamingLDA,
    TrainOnly,
    WalkPenalty,
    WeightAlign,
    WeightedCrossEntropy,
)
from holdfast.operations._parts.quadratic import sensitivity
from holdfast.operations.balanced_finetune import balanced
from holdfast.operations.bias_correction import fit_two
from holdfast.operations.evidential import divergence_from_uniform
from holdfast.operations.random_projection import RIDGES, best_ridge
from holdfast.operations.streaming_lda import oas
from holdfast.streams.data import TensorData

G = torch.Generator


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=G().manual_seed(seed))


@pytest.mark.parametrize("closed_form", [True, False])
def test_the_sensitivity_is_the_mean_magnitude_of_each_samples_gradient(closed_form: bool) -> None:
    model = mlp(input_shape=(4,), classes=3, hidden=[6], seed=0)
    x = rand(5, 4)
    found = sensitivity(Learner(model), TensorData(x, torch.zeros(5, dtype=torch.int64)), closed_form=closed_form)
    for name, parameter in model.named_parameters():
        want = torch.zeros_like(parameter)
        for row in x:
            (grad,) = torch.autograd.grad((model(row.unsqueeze(0)) ** 2).sum(), parameter)
            want += grad.abs() / 5
        assert torch.allclose(found[name], want, atol=1e-5), name


def test_outputs_of_classes_not_seen_yet_have_no_sensitivity() -> None:
    model = mlp(input_shape=(4,), classes=3, hidden=[6], seed=0)
    learner = Learner(model)
    learner.see_classes([0])
    found = sensitivity(learner, TensorData(rand(5, 4), torch.zeros(5, dtype=torch.int64)))
    assert found["head.weight"][1:].abs().sum() == 0
    assert found["head.weight"][0].abs().sum() > 0


def test_the_anchor_penalty_is_the_squared_distance_to_the_last_parameters(toy: Any) -> None:
    stream = toy.stream()
    net = toy.model(stream)
    penalty = AnchorPenalty(strength=0.3)
    trainer = toy.train(Method(penalty), net, stream)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p += 0.5
    term, factor = penalty.loss(None, trainer.learner)  # type: ignore[arg-type, misc]
    want = sum(float(((p - before[name]) ** 2).sum()) for name, p in net.named_parameters())
    assert float(term) * factor == pytest.approx(0.3 * want, rel=1e-5)


def test_the_walk_penalty_follows_its_formula_step_by_step(toy: Any) -> None:
    stream = toy.stream(experiences=1, classes=2, samples=10)
    walk = WalkPenalty(strength=2.0, decay=0.5, interval=2, damping=0.1)
    net, twin = toy.model(stream), toy.model(stream)
    toy.train(Method(walk), net, stream, batch_size=4)
    order = torch.randperm(len(stream[0].train), generator=Learner(twin, seed=3).rng("order"))
    names = dict(twin.named_parameters())
    fisher, fall, path = ({n: torch.zeros_like(p) for n, p in names.items()} for _ in range(3))
    start = {n: p.detach().clone() for n, p in names.items()}
    for count, batch in enumerate(stream[0].train.batches(order, 4), 1):
        inputs = batch.inputs if stream.prepare is None else stream.prepare(batch.inputs, True, None)
        grads = torch.autograd.grad(nn.functional.cross_entropy(twin(inputs), batch.targets), list(names.values()))
        for (n, p), g in zip(names.items(), grads, strict=True):
            fisher[n] = 0.5 * fisher[n] + 0.5 * len(batch.targets) * g**2
            with torch.no_grad():
                p -= 0.05 * g
            fall[n] -= g * (-0.05 * g)
        if count % 2 == 0:
            _score(names, fisher, fall, path, start)
    _score(names, fisher, fall, path, start)
    top_f = max(float(v.max()) for v in fisher.values())
    top_s = max(float(v.max()) for v in path.values())
    for n in names:
        assert torch.allclose(walk.importance[n], fisher[n] / top_f + path[n] / top_s, atol=1e-4), n


def _score(names: Any, fisher: Any, fall: Any, path: Any, start: Any) -> None:
    for n, p in names.items():
        moved = p.detach() - start[n]
        path[n] += (fall[n] / (0.5 * fisher[n] * moved**2 + 0.1)).clamp(min=0)
        start[n], fall[n] = p.detach().clone(), torch.zeros_like(p)


def _two_experiences(toy: Any, operation: Any, head: str = "fixed", **model: Any) -> Any:
    """Bound, trained on one experience, with the second begun and one step of it at hand."""
    from holdfast.core.engine import Engine
    from holdfast.core.needs import TRAINER
    from holdfast.core.step import Step

    stream = toy.stream()
    net = toy.model(stream, head, **model)
    engine = Engine(Method(operation), Learner(net, prepare=stream.prepare), TRAINER.offers)
    engine.end(engine.begin(stream[0])[0])
    engine.begin(stream[1])
    old = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p += 0.1 * rand(*p.shape, seed=index + 1)
    batch = toy.batches(stream, 1, 1)[0]
    outputs, extras = engine.forward(batch)
    loss = nn.functional.cross_entropy(outputs, batch.targets)
    step = Step(batch.inputs, batch.targets, loss, outputs, batch.task, 0, 0.5, extras)
    inputs = batch.inputs if stream.prepare is None else stream.prepare(batch.inputs, False, None)
    return engine, step, inputs, old, net


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("captured", [True, False])
def test_feature_distillation_is_the_mean_distance_to_the_old_features(toy: Any, metric: Any, captured: bool) -> None:
    operation = FeatureDistillation(metric=metric)
    engine, step, inputs, old, net = _two_experiences(toy, operation)
    if not captured:
        step.outputs = None
    term, _ = operation.loss(step, engine.learner)  # type: ignore[misc]
    today = net.backbone(inputs)
    before = nn.functional.relu(inputs.flatten(1) @ old["backbone.0.weight"].T + old["backbone.0.bias"])
    want = 0.0
    for a, b in zip(before, today, strict=True):
        if metric == "euclidean":
            want += float(((a - b) ** 2).sum()) / len(today)
        else:
            want += (1 - float(a @ b / (a.norm() * b.norm()))) / len(today)
    assert float(term) == pytest.approx(want, rel=1e-4)
    assert term.requires_grad


def test_pooled_distillation_sums_squared_maps_along_both_sides_before_it_compares() -> None:
    maps = rand(2, 3, 4, 5)
    found = PooledDistillation()._pooled(maps)
    for row, vector in zip(maps, found, strict=True):
        squares, parts = row**2, []
        for c in range(3):
            parts += [float(sum(squares[c, h, w] for w in range(5))) for h in range(4)]
        for c in range(3):
            parts += [float(sum(squares[c, h, w] for h in range(4))) for w in range(5)]
        norm = math.sqrt(sum(v * v for v in parts))
        assert torch.allclose(vector, torch.tensor(parts) / norm, atol=1e-5)


def test_pooled_distillation_acts_on_features_of_a_perceptron(toy: Any) -> None:
    operation = PooledDistillation(weight=2.0)
    engine, step, inputs, old, net = _two_experiences(toy, operation)
    term, factor = operation.loss(step, engine.learner)  # type: ignore[misc]
    today = net.backbone(inputs) ** 2
    before = nn.functional.relu(inputs.flatten(1) @ old["backbone.0.weight"].T + old["backbone.0.bias"]) ** 2
    distances = [float((a / a.norm() - b / b.norm()).norm()) for a, b in zip(before, today, strict=True)]
    assert float(term) == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert factor == pytest.approx(2.0 * math.sqrt(4 / 2))


def test_streaming_lda_holds_the_means_and_covariance_of_all_samples_whatever_the_batches() -> None:
    x, y = rand(40, 4), torch.arange(40) % 3
    for sizes in ([40], [1] * 40, [7, 13, 20]):
        lda, at = StreamingLDA(), 0
        for size in sizes:
            lda.learn(x[at : at + size], y[at : at + size], 3)
            at += size
        scatter = torch.zeros(4, 4)
        for k in range(3):
            mean = x[y == k].mean(0)
            assert torch.allclose(lda.means[k].float(), mean, atol=1e-5)  # type: ignore[index]
            for row in x[y == k]:
                scatter += torch.outer(row - mean, row - mean)
        assert torch.allclose(lda.scatter.float(), scatter, atol=1e-4)  # type: ignore[union-attr]


def test_streaming_lda_predicts_by_its_discriminant(toy: Any) -> None:
    x, y = rand(30, 4), torch.arange(30) % 3
    lda = StreamingLDA(shrinkage=0.1)
    lda.learn(x, y, 3)
    found = lda.predict(torch.zeros(30, 5), x, Learner(nn.Linear(4, 5)))
    sigma = 0.9 * lda.scatter / 30 + 0.1 * torch.eye(4)  # type: ignore[operator]
    precision = torch.linalg.inv(sigma).float()
    for row, scores in zip(x, found, strict=True):
        for k in range(3):
            mean = x[y == k].mean(0)
            want = float(row @ precision @ mean - mean @ precision @ mean / 2)
            assert float(scores[k]) == pytest.approx(want, abs=1e-3)
        assert scores[3:].max() < scores[:3].min(), "classes nobody saw rank last"


def test_the_oracle_shrinkage_agrees_with_an_independent_one() -> None:
    from sklearn.covariance import OAS

    x = rand(200, 5, seed=3)
    x = x - x.mean(0)
    want = torch.tensor(OAS(assume_centered=True).fit(x.numpy()).covariance_, dtype=torch.float32)
    assert torch.allclose(oas(x.T @ x / 200, 200.0), want, atol=1e-2)


def test_streaming_lda_moves_no_weight_by_either_way_to_train(toy: Any) -> None:
    stream = toy.stream()
    nets = [toy.model(stream), toy.model(stream)]
    adam = {"name": "Adam", "lr": 0.1, "weight_decay": 0.1}
    trained = toy.train(Method(StreamingLDA()), nets[0], stream, optimizer=adam)
    cl = toy.wrap(Method(StreamingLDA()), nets[1], stream, lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1))
    assert toy.equal(nets[0], toy.model(stream))
    assert toy.equal(nets[1], toy.model(stream))
    (one,), (other,) = trained.method, cl.method
    assert torch.equal(one.means, other.means)
    assert torch.equal(one.scatter, other.scatter)


def test_weight_alignment_scales_new_classes_only_and_changes_the_winner() -> None:
    model = mlp(input_shape=(4,), classes=4, hidden=[6], seed=0)
    learner = Learner(model)
    learner.members = [(0, 1), (2, 3)]
    with torch.no_grad():
        model.head.weight[2:] *= 50  # type: ignore[index, operator]
    before = model.head.weight.detach().clone()  # type: ignore[union-attr, operator]
    x = rand(64, 4)
    winners = model(x).argmax(1)
    WeightAlign().end(None, learner)  # type: ignore[arg-type]
    old, new = (sum(float(before[k].norm()) for k in ks) / 2 for ks in ((0, 1), (2, 3)))
    assert torch.equal(model.head.weight[:2], before[:2])  # type: ignore[index]
    assert torch.allclose(model.head.weight[2:], before[2:] * old / new)  # type: ignore[index]
    assert not torch.equal(model(x).argmax(1), winners)


def test_the_two_numbers_of_bias_correction_minimise_the_loss_on_held_out_data() -> None:
    outputs, targets = rand(60, 4).double(), torch.arange(60) % 4
    outputs[:, 2:] += 3
    new = torch.tensor([False, False, True, True])
    alpha, beta = fit_two(outputs, targets, new, ridge=1e-6).tolist()

    def loss(a: float, b: float) -> float:
        corrected = torch.where(new, a * outputs + b, outputs)
        return -sum(float(corrected[i].log_softmax(0)[targets[i]]) for i in range(60)) / 60

    best = loss(alpha, beta)
    assert best < loss(1.0, 0.0)
    assert all(best <= loss(alpha + da, beta + db) + 1e-7 for da in (-0.02, 0, 0.02) for db in (-0.02, 0, 0.02))


def test_bias_correction_trains_without_its_held_out_rows_and_leaves_old_outputs_alone(toy: Any) -> None:
    stream = toy.stream()
    operation = BiasCorrection(held_out=3)
    sizes: list[int] = []
    inner = operation.begin
    operation.begin = lambda e, learner: (d := inner(e, learner), sizes.append(len(d)))[0]  # type: ignore
    trainer = toy.train(Method(operation), toy.model(stream), stream, epochs=3)
    assert sizes == [len(e.train) - 6 for e in stream]
    assert len(operation.targets) == 18  # type: ignore[arg-type]
    assert operation.scale[:2].tolist() == [1.0, 1.0]  # type: ignore[index]
    outputs = rand(20, 6)
    corrected = operation.predict(outputs, outputs, trainer.learner)
    assert torch.equal(corrected[:, :2], outputs[:, :2])
    assert not torch.equal(corrected.argmax(1), outputs.argmax(1))


def test_balanced_fine_tuning_moves_the_head_alone_and_draws_every_class_alike(toy: Any) -> None:
    targets = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    rows = balanced(targets, None, G().manual_seed(0))
    assert targets[rows].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(rows.tolist())) == 6
    stream = toy.stream()
    plain, tuned = toy.model(stream), toy.model(stream)
    toy.train(Method(Remember(capacity=20)), plain, stream)
    toy.train(Method(Remember(capacity=20), TrainOnly(1), BalancedFinetune(epochs=2)), tuned, stream)
    first = toy.model(stream)
    toy.train(Method(TrainOnly(1)), first, stream)
    assert all(torch.equal(a, b) for a, b in zip(first.backbone.parameters(), tuned.backbone.parameters(), strict=True))
    assert not torch.equal(first.head.weight, tuned.head.weight)


@pytest.mark.parametrize(("over", "allowed"), [("experience", (2, 3)), ("batch", (2,)), ("seen", (0, 1, 2, 3))])
def test_masked_cross_entropy_lets_only_some_classes_compete(over: Any, allowed: tuple[int, ...]) -> None:
    learner = Learner(nn.Linear(4, 6))
    learner.experience, learner.members = 1, [(0, 1), (2, 3)]
    learner.see_classes([0, 1, 2, 3])
    z = rand(3, 6).requires_grad_()
    targets = torch.tensor([2, 2, 2])
    found = MaskedCrossEntropy(over).criterion(z, targets, z, learner)
    want = 0.0
    for row in z.tolist():
        want -= math.log(math.exp(row[2]) / sum(math.exp(row[k]) for k in allowed)) / 3
    assert float(found) == pytest.approx(want, abs=1e-5)
    (grad,) = torch.autograd.grad(found, z)
    assert grad[:, [k for k in range(6) if k not in allowed]].abs().sum() == 0


def test_weighted_cross_entropy_weighs_by_inverse_frequency(toy: Any) -> None:
    from holdfast.core.experience import Experience

    operation = WeightedCrossEntropy()
    data = TensorData(rand(8, 4), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]))
    operation.begin(Experience(0, data, classes=(0, 1)), Learner(nn.Linear(4, 2)))
    w = [8 / (2 * 6), 8 / (2 * 2)]
    z, targets = rand(4, 2), [0, 1, 1, 0]
    losses = [-float(z[i].log_softmax(0)[t]) for i, t in enumerate(targets)]
    want = sum(w[t] * v for t, v in zip(targets, losses, strict=True)) / sum(w[t] for t in targets)
    assert float(operation.measure(z, torch.tensor(targets))) == pytest.approx(want, rel=1e-5)


def test_one_hot_error_is_the_mean_squared_distance_over_all_classes() -> None:
    z, targets = rand(3, 4), [1, 0, 3]
    want = sum((float(z[i, k]) - (k == t)) ** 2 for i, t in enumerate(targets) for k in range(4)) / 12
    assert float(OneHotError().measure(z, torch.tensor(targets))) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("form", ["mse", "log", "digamma"])
def test_evidential_losses_follow_their_formula_and_their_annealing(form: Any) -> None:
    z, targets = rand(3, 4), [1, 0, 3]
    operation = Evidential(form=form, annealing=10, divergence=0.5)
    operation.steps = 4
    psi = lambda value: float(torch.tensor(value, dtype=torch.float64).digamma())  # noqa: E731
    want = 0.0
    for i, t in enumerate(targets):
        alpha = [math.log1p(math.exp(v)) + 1 for v in z[i].tolist()]
        total = sum(alpha)
        if form == "mse":
            p = [a / total for a in alpha]
            want += sum(((k == t) - p[k]) ** 2 + p[k] * (1 - p[k]) / (total + 1) for k in range(4)) / 3
        else:
            want += (math.log(total / alpha[t]) if form == "log" else psi(total) - psi(alpha[t])) / 3
        tilde = [1.0 if k == t else alpha[k] for k in range(4)]
        one = torch.distributions.Dirichlet(torch.tensor(tilde))
        other = torch.distributions.Dirichlet(torch.ones(4))
        want += 0.5 * 0.4 * float(torch.distributions.kl_divergence(one, other)) / 3
    assert float(operation.measure(z, torch.tensor(targets))) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("form", ["mse", "log", "digamma"])
@pytest.mark.parametrize("evidence", ["softplus", "relu", "exp"])
def test_evidential_losses_and_gradients_are_finite_for_extreme_outputs(form: Any, evidence: Any) -> None:
    z = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 0.0], [-50.0, -50.0, -50.0]], requires_grad=True)
    loss = Evidential(form=form, evidence=evidence, annealing=0).measure(z, torch.tensor([0, 1, 2]))
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert grad.isfinite().all()
    kept = torch.ones(1, 3, dtype=torch.bool)
    assert float(divergence_from_uniform(torch.tensor([[5.0, 1.0, 1.0]]), kept)) > 0


def test_a_loss_of_its_own_is_taken_for_replay_and_evaluation_too(toy: Any) -> None:
    stream = toy.stream()
    trainer = toy.train(Method(OneHotError()), toy.model(stream), stream)
    z, y = rand(3, 6), torch.tensor([0, 1, 2])
    assert torch.equal(trainer.learner.criterion(z, y), OneHotError().measure(z, y))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_class_mean_ranks_by_distance_to_the_mean(metric: Any) -> None:
    x, y = rand(20, 4), torch.arange(20) % 3
    operation = NearestClassMean(metric=metric)
    operation.absorb(x[:9], y[:9], 3)
    operation.absorb(x[9:], y[9:], 3)
    scores, known = operation.scores(x)  # type: ignore[misc]
    assert known.all()
    for row, found in zip(x, scores, strict=True):
        for k in range(3):
            m = x[y == k].mean(0)
            want = -float(((row - m) ** 2).sum()) if metric == "euclidean" else float(row @ m / row.norm() / m.norm())
            assert float(found[k]) == pytest.approx(want, abs=1e-4)


def test_the_ridge_chosen_from_sums_is_the_one_with_the_least_held_out_error() -> None:
    h, y = rand(30, 8).double(), rand(30, 2, seed=1).double()
    v, w = rand(12, 8, seed=2).double(), rand(12, 2, seed=3).double()
    errors = []
    for ridge in RIDGES:
        solved = torch.linalg.solve(h.T @ h + ridge * torch.eye(8, dtype=torch.float64), h.T @ y)
        errors.append(float(((v @ solved - w) ** 2).sum()))
    assert best_ridge(h.T @ h, h.T @ y, v.T @ v, v.T @ w) == RIDGES[errors.index(min(errors))]


def test_ridge_regression_over_experiences_equals_the_one_over_all_data_at_once() -> None:
    x, y = rand(40, 4), torch.arange(40) % 4
    learner = Learner(nn.Linear(4, 4))
    one, many = RandomProjection(width=12, ridge=0.5), RandomProjection(width=12, ridge=0.5)
    for operation, parts in ((one, [range(4)]), (many, [(0, 1), (2, 3)])):
        operation._generator = G().manual_seed(7)
        for labels in parts:
            rows = torch.tensor([i for i in range(40) if int(y[i]) in labels])
            operation.absorb(x[rows], y[rows], max(labels) + 1)
            operation.solve(learner)
    h = (x @ one.projection).relu().double()  # type: ignore[operator]
    want = torch.linalg.solve(h.T @ h + 0.5 * torch.eye(12), h.T @ nn.functional.one_hot(y, 4).double())
    assert torch.allclose(one.weight, want, atol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(many.weight, one.weight, atol=1e-4)  # type: ignore[arg-type]


def test_an_experience_that_is_not_trained_on_changes_nothing(toy: Any) -> None:
    stream = toy.stream()
    net = toy.model(stream)
    trainer = toy.train(Method(TrainOnly(experiences=0)), net, stream)
    assert toy.equal(net, toy.model(stream))
    assert trainer.engine.index == 0


def test_what_compares_classes_of_all_tasks_is_refused_with_a_head_per_task(toy: Any) -> None:
    stream = toy.stream("task")
    for operation in (WeightAlign(), BiasCorrection(), BalancedFinetune()):
        with pytest.raises(ConfigError, match="Drop it"):
            toy.train(Method(operation, Distillation()), toy.model(stream, "task"), stream)
