"""Gradients of single samples in models of every kind: equal to one backward a sample, by whichever way that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from holdfast.core.criteria import likelihood
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.inspect import eval_mode
from holdfast.core.learner import Learner
from holdfast.models import CosineTaskHead, TaskHead
from holdfast.operations._parts.fisher import fisher_diagonal
from holdfast.operations._parts.per_sample import PerSample
from holdfast.operations._parts.quadratic import sensitivity
from holdfast.operations._parts.rows import sum_of_rows
from holdfast.streams.data import TensorData

ROWS = 6


class Made(nn.Module):
    """A model of some layers, by name, and a forward that is given."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


class Scaled(nn.Linear):
    """A subclass that computes otherwise, and calls the plain forward too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 3


class Standardized(nn.Conv2d):
    """A subclass whose weight is standardised."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def _hooked(before: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    if before:
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    else:
        model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def _patched() -> nn.Module:
    """An instance whose forward was replaced, as libraries do that wrap models."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x).square()  # type: ignore[method-assign]
    return model


def _borrowed() -> nn.Module:
    """A weight that a plain function of the model uses too, out of any layer's sight."""
    first = nn.Linear(4, 4)
    return Made(lambda m, x: m.top(F.linear(m.first(x).tanh(), first.weight.t())), first=first, top=nn.Linear(4, 3))


def _routed() -> nn.Module:
    """Each row goes to one of two experts."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        chosen = x[:, 0] > 0
        hidden = torch.zeros(len(x), 5, dtype=x.dtype)
        hidden[chosen], hidden[~chosen] = m.one(x[chosen]), m.two(x[~chosen])
        return m.top(hidden.tanh())

    return Made(run, one=nn.Linear(4, 5), two=nn.Linear(4, 5), top=nn.Linear(5, 3))


def _steps(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 2, 2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Made(
        lambda m, x: m.top(m.rnn(_steps(x))[0][:, -1]), rnn=nn.LSTM(2, 3, batch_first=True), top=nn.Linear(3, 3)
    ),
    "gru, sequence first": lambda: Made(
        lambda m, x: m.top(m.rnn(_steps(x).transpose(0, 1))[1][-1]), rnn=nn.GRU(2, 3), top=nn.Linear(3, 3)
    ),
    "transformer": lambda: Made(
        lambda m, x: m.top(m.body(_steps(x)).mean(1)),
        body=nn.TransformerEncoderLayer(2, 1, 4, batch_first=True),
        top=nn.Linear(2, 3),
    ),
    "checkpointed": lambda: Made(
        lambda m, x: m.top(checkpoint(m.mid, m.low(x), use_reentrant=False)),
        low=nn.Linear(4, 4),
        mid=nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
        top=nn.Linear(4, 3),
    ),
    "reentrant checkpoint": lambda: Made(
        lambda m, x: m.top(checkpoint(m.mid, m.low(x), use_reentrant=True)),
        low=nn.Linear(4, 4),
        mid=nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
        top=nn.Linear(4, 3),
    ),
    "folded rows": lambda: Made(
        lambda m, x: m.top(m.token(x.reshape(-1, 2)).tanh().view(len(x), 2, -1).mean(1)),
        token=nn.Linear(2, 5),
        top=nn.Linear(5, 3),
    ),
    "positions as rows": lambda: Made(  # as many positions as samples are looked at
        lambda m, x: m.top(m.token(x.view(-1, 4, 1).transpose(0, 1)).tanh().mean(0)),
        token=nn.Linear(1, 5),
        top=nn.Linear(5, 3),
    ),
    "weight used twice": lambda: Made(
        lambda m, x: m.top(F.linear(m.enc(x).tanh(), m.enc.weight.t())), enc=nn.Linear(4, 5), top=nn.Linear(4, 3)
    ),
    "weight borrowed by a function": _borrowed,
    "old weight norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)
    ),
    "hook on the output": lambda: _hooked(before=False),
    "hook on the input": lambda: _hooked(before=True),
    "subclass of linear": lambda: nn.Sequential(Scaled(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "subclass of a convolution": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 2)), Standardized(1, 3, 2), nn.Flatten(), nn.Linear(3, 3))
    ),
    "patched instance": _patched,
    "experts": _routed,
    "named argument": lambda: Made(lambda m, x: m.top(input=m.low(x).tanh()), low=nn.Linear(4, 5), top=nn.Linear(5, 3)),
    "unused layer": lambda: Made(lambda m, x: m.top(x) + 0 * m.low(x).sum(), low=nn.Linear(4, 5), top=nn.Linear(4, 3)),
}
"""Of inputs `[rows, 4]` and three classes."""


def by_loop(
    learner: Learner,
    x: torch.Tensor,
    loss: Callable[[torch.Tensor, int], torch.Tensor],
    magnitude: Callable[[torch.Tensor], torch.Tensor],
    task: Any = None,
) -> dict[str, torch.Tensor]:
    """The mean magnitude of each sample's gradient, by a backward on the sample alone."""
    named = learner.named_parameters()
    total = {name: magnitude(torch.zeros_like(p)) for name, p in named.items()}
    with eval_mode(learner.model):
        for row in range(len(x)):
            learner.model.zero_grad()
            loss(learner(x[row : row + 1], task[row : row + 1] if task is not None else None), row).backward()
            for name, p in named.items():
                if p.grad is not None:
                    total[name] += magnitude(p.grad.to_dense()) / len(x)
    learner.model.zero_grad(set_to_none=True)
    return total


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-11, msg=name)


def _square(value: torch.Tensor) -> torch.Tensor:
    return value.abs().square()


def _points(width: int = 4, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64), torch.arange(rows) % 3


@pytest.fixture(params=MODELS)
def learner(request: Any) -> Learner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Learner(MODELS[request.param]().double())


def test_the_fisher_diagonal_is_that_of_one_backward_a_sample(learner: Learner) -> None:
    x, y = _points()
    expected = by_loop(learner, x, lambda out, i: F.cross_entropy(out, y[i : i + 1]), _square)
    for batch_size in (4, 100):
        assert_same(fisher_diagonal(learner, TensorData(x, y), "empirical", batch_size=batch_size), expected)
    assert all(p.grad is None for p in learner.parameters())


def test_the_sensitivity_is_that_of_one_backward_a_sample(learner: Learner) -> None:
    x, y = _points()
    expected = by_loop(learner, x, lambda out, i: out.square().sum(), torch.abs)
    assert_same(sensitivity(learner, TensorData(x, y)), expected)


def test_the_gradients_that_samples_are_compared_by_are_those_of_one_backward_a_sample(learner: Learner) -> None:
    x, y = _points()
    with eval_mode(learner.model):
        found = PerSample(learner).matrix(x, y, None, lambda o, t: sum_of_rows(learner.criterion, o, t))
        for row in range(ROWS):
            learner.model.zero_grad()
            F.cross_entropy(learner(x[row : row + 1]), y[row : row + 1]).backward()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()]
            torch.testing.assert_close(found[row], torch.cat([grad.flatten() for grad in grads]), rtol=1e-8, atol=1e-12)
    learner.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    "name",
    ["lstm", "folded rows", "positions as rows", "weight used twice", "weight borrowed by a function", "experts"],
)
def test_the_closed_form_is_refused_where_it_is_asked_for_and_would_be_wrong(name: str) -> None:
    with pytest.raises(ConfigError, match="closed form"):
        fisher_diagonal(Learner(MODELS[name]().double()), TensorData(*_points()), "empirical", closed_form=True)


@pytest.mark.parametrize("name", ["hook on the output", "hook on the input", "named argument"])
def test_the_closed_form_holds_under_hooks_of_others(name: str) -> None:
    learner, (x, y) = Learner(MODELS[name]().double()), _points()
    expected = by_loop(learner, x, lambda out, i: F.cross_entropy(out, y[i : i + 1]), _square)
    assert_same(fisher_diagonal(learner, TensorData(x, y), "empirical", closed_form=True), expected)


def test_a_check_draws_no_random_number_and_keeps_gradients_and_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3)).double()
    model(_points()[0]).sum().backward()
    kept = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    fisher_diagonal(Learner(model), TensorData(*_points()), "empirical")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), kept, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [6, 33, 65])
def test_a_model_that_takes_no_single_sample_is_measured_within_its_batches(rows: int) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3))
    learner = Learner(model.double())
    x, y = _points(rows=rows)
    found = fisher_diagonal(learner, TensorData(x, y), "empirical", batch_size=32)  # the last batch may have one row
    assert all(bool(value.isfinite().all()) and float(value.sum()) > 0 for value in found.values())
    if rows < 32:
        total = {name: torch.zeros_like(p) for name, p in learner.named_parameters().items()}
        for row in range(rows):
            model.zero_grad()
            F.cross_entropy(model(x)[row : row + 1], y[row : row + 1]).backward()
            for name, p in learner.named_parameters().items():
                total[name] += p.grad.square() / rows  # type: ignore[union-attr]
        assert_same(found, total)


def test_a_model_that_squeezes_its_outputs_is_measured() -> None:
    model = Made(
        lambda m, x: m.top(m.low(x).tanh()).unsqueeze(2).squeeze(), low=nn.LSTM(4, 5).double(), top=nn.Linear(5, 3)
    )
    model.run = lambda m, x: m.top(m.low(x.unsqueeze(0))[0].squeeze()).squeeze()
    learner = Learner(model.double())
    x, y = _points()
    expected = by_loop(learner, x, lambda out, i: F.cross_entropy(out.view(1, 3), y[i : i + 1]), _square)
    assert_same(fisher_diagonal(learner, TensorData(x, y), "empirical", batch_size=5), expected)


def test_outputs_that_are_no_rows_of_samples_are_refused_with_a_sentence() -> None:
    model = Made(
        lambda m, x: m.norm(m.low(x)).sum(0), low=nn.Linear(4, 3), norm=nn.BatchNorm1d(3, track_running_stats=False)
    )
    with pytest.raises(UsageError, match="row of outputs for each sample"):
        fisher_diagonal(Learner(model.double()), TensorData(*_points()), "empirical")


@pytest.mark.parametrize("head", [TaskHead, CosineTaskHead])
def test_masked_outputs_of_other_tasks_and_rows_of_several_tasks_are_measured(head: Any) -> None:
    model = Made(lambda m, x: m.head(m.low(x).tanh()), low=nn.Linear(4, 5), head=head(5, classes=4, seed=0))
    model.head.assign(0, [0, 1])
    model.head.assign(1, [2, 3])
    learner = Learner(model.double(), head="head")
    learner.see_classes(range(4))
    x, task = _points()[0], torch.arange(ROWS) % 2
    y = 2 * task
    data = TensorData(x, y, task=task)
    squares = by_loop(learner, x, lambda out, i: F.cross_entropy(out, y[i : i + 1]), _square, task)
    assert_same(fisher_diagonal(learner, data, "empirical"), squares)
    assert_same(fisher_diagonal(learner, data, "empirical", closed_form=False), squares)
    assert_same(sensitivity(learner, data), by_loop(learner, x, lambda out, i: out.square().sum(), torch.abs, task))


def test_sparse_and_complex_gradients_are_measured() -> None:
    x, y = torch.randint(9, (ROWS, 4), generator=torch.Generator().manual_seed(0)), torch.arange(ROWS) % 3
    sparse = Made(lambda m, x: m.top(m.emb(x).mean(1)), emb=nn.Embedding(9, 5, sparse=True), top=nn.Linear(5, 3))
    wave = Made(
        lambda m, x: m.top(m.low(x.to(torch.complex128)).abs()),
        low=nn.Linear(4, 5, dtype=torch.complex128),
        top=nn.Linear(5, 3),
    )
    for model, inputs in ((sparse.double(), x), (wave, _points()[0])):
        learner = Learner(model.to(torch.float64) if model is sparse else model)
        if model is wave:
            model.top.double()
        expected = by_loop(learner, inputs, lambda out, i: F.cross_entropy(out, y[i : i + 1]), _square)
        found = fisher_diagonal(learner, TensorData(inputs, y), "empirical")
        assert_same(found, expected)
        assert not any(value.is_complex() or value.is_sparse for value in found.values())


CRITERIA: dict[str, Any] = {
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)),
    "a sum": nn.CrossEntropyLoss(reduction="sum"),
    "one's own": lambda o, t: F.multi_margin_loss(o, t) + 0.1,
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_a_sample_has_the_gradient_of_its_own_loss_whatever_the_criterion_makes_of_a_batch(name: str) -> None:
    criterion = CRITERIA[name]
    learner = Learner(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), criterion=criterion)
    x, y = _points()
    expected = by_loop(learner, x, lambda out, i: criterion(out, y[i : i + 1]), _square)
    for closed_form in (None, False):
        assert_same(fisher_diagonal(learner, TensorData(x, y), "empirical", closed_form=closed_form), expected)


@pytest.mark.parametrize("kind", ["true", "predicted", "empirical", "batch"])
def test_samples_whose_label_is_ignored_count_for_nothing(kind: Any) -> None:
    criterion = nn.CrossEntropyLoss(ignore_index=-1)
    learner = Learner(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), criterion=criterion)
    x, y = _points()
    marked = y.clone()
    marked[::2] = -1
    found, expected = (
        fisher_diagonal(learner, data, kind, generator=torch.Generator().manual_seed(0))
        for data in (TensorData(x, marked), TensorData(x[1::2], y[1::2]))
    )
    assert_same(found, expected)


POSITIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "classes last": (lambda: nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (4, 2), None),
    "as many classes as positions": (lambda: nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3)), (3, 2), None),
    "classes second": (lambda: nn.Sequential(nn.Conv1d(2, 5, 1), nn.Tanh(), nn.Conv1d(5, 3, 1)), (2, 4), 1),
    "joined rows": (lambda: Made(lambda m, x: m.top(x).flatten(0, 1), top=nn.Linear(2, 3)), (4, 2), 0),
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("kind", ["predicted", "empirical"])
def test_a_class_at_each_position_gives_the_mean_over_those_that_count(name: str, kind: Any) -> None:
    make, shape, dim = POSITIONS[name]
    generator = torch.Generator().manual_seed(0)

    def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if dim == 0:
            return F.cross_entropy(outputs, targets.flatten())
        return F.cross_entropy(outputs if dim == 1 else outputs.transpose(1, 2), targets)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = Learner(make().double(), criterion=criterion)
    x = torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64)
    count = shape[1] if dim == 1 else shape[0]
    y = torch.randint(3, (ROWS, count), generator=generator)
    y[0, 0], y[1] = -100, -100

    def loss(outputs: torch.Tensor, row: int) -> torch.Tensor:
        labels = y[row : row + 1]
        if kind == "predicted":
            drawn = outputs.argmax(1 if dim is not None else -1).view(labels.shape)
            labels = torch.where(labels == -100, -100, drawn)
        counted = int((labels != -100).sum())
        return criterion(outputs, labels) * counted**0.5 if counted else outputs.sum() * 0

    expected = {name: value * ROWS / (ROWS - 1) for name, value in by_loop(learner, x, loss, _square).items()}
    assert_same(fisher_diagonal(learner, TensorData(x, y), kind, batch_size=3), expected)


def test_drawn_positions_give_the_predicted_mean_and_exact_is_refused() -> None:
    learner = Learner(nn.Linear(2, 2).double(), criterion=lambda o, t: F.cross_entropy(o.transpose(1, 2), t))
    x, y = torch.zeros(1, 3, 2, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.int64)
    with torch.no_grad():
        learner.model.bias.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[operator, union-attr]
    draws = TensorData(x.repeat(2000, 1, 1), y.repeat(2000, 1))
    found = fisher_diagonal(learner, draws, "true", generator=torch.Generator().manual_seed(0))["bias"]
    p = torch.tensor([1.0, 0.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(found, p * (1 - p), rtol=0.1, atol=0)
    with pytest.raises(ConfigError, match="each position"):
        fisher_diagonal(learner, TensorData(x, y), "exact")


def test_many_samples_with_a_backward_each_are_said() -> None:
    model = MODELS["lstm"]().double()
    x, y = _points(rows=1001)
    with pytest.warns(UserWarning, match="1001 in all"):
        fisher_diagonal(Learner(model), TensorData(x, y), "empirical")


def test_a_model_of_transformers_is_measured_through_its_named_arguments() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_labels": 3,
    }
    config = transformers.DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_layers=1, n_heads=2, num_labels=3)
    bert = transformers.BertConfig(vocab_size=9, max_position_embeddings=8, **sizes)
    ids = torch.randint(9, (ROWS, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    y = torch.arange(ROWS) % 3
    for model in (
        transformers.DistilBertForSequenceClassification(config),
        transformers.BertForSequenceClassification(bert),
    ):
        learner = Learner(model.double())
        learner.output = lambda found: found.logits
        found = fisher_diagonal(learner, TensorData({"input_ids": ids, "attention_mask": mask}, y), "empirical")
        total = {name: torch.zeros_like(p) for name, p in learner.named_parameters().items()}
        model.eval()
        for row in range(ROWS):
            model.zero_grad()
            one = slice(row, row + 1)
            F.cross_entropy(model(input_ids=ids[one], attention_mask=mask[one]).logits, y[one]).backward()
            for name, p in learner.named_parameters().items():
                total[name] += 0 if p.grad is None else p.grad.square() / ROWS
        assert_same(found, total)


def test_the_likelihoods_are_means_over_rows() -> None:
    """What `sum_of_rows` takes at its word is true of every criterion that has a likelihood."""
    outputs, labels = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3
    numbers = torch.rand(5, 3, dtype=torch.float64)
    for criterion in (F.cross_entropy, nn.CrossEntropyLoss(), F.mse_loss, nn.BCEWithLogitsLoss()):
        assert likelihood(criterion) is not None
        targets = labels if likelihood(criterion) == "softmax" else numbers
        by_row = sum(criterion(outputs[i : i + 1], targets[i : i + 1]) for i in range(5))
        torch.testing.assert_close(sum_of_rows(criterion, outputs, targets), by_row)


def test_a_module_under_two_names_keeps_its_parameters() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widen = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
            self.whole = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), self.widen, nn.Linear(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.whole(x.unsqueeze(1)).squeeze(1)

    torch.manual_seed(0)
    model = Named()
    before = dict(model.named_parameters())
    data = TensorData(torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0]))
    measured = fisher_diagonal(Learner(model).services, data, "empirical")
    assert all(p is before[name] for name, p in model.named_parameters())
    truth = {name: torch.zeros_like(p) for name, p in before.items()}
    for x, y in zip(data.gather(torch.arange(5)).inputs, data.targets):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(before.values()))
        for value, gradient in zip(truth.values(), gradients):
            value += gradient**2 / 5
    assert all(torch.allclose(measured[name], value, rtol=1e-4, atol=1e-7) for name, value in truth.items())


def test_masked_outputs_of_other_tasks_weigh_nothing_in_the_sensitivity() -> None:
    """What fills the places of other tasks' outputs once counted as an output of thousands."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), TaskHead(6, seed=0))
    model[2].grow(4)
    model[2].assign(0, [0, 1])
    model[2].assign(1, [2, 3])
    learner = Learner(model)
    learner.task = 1
    x = torch.randn(5, 4)
    measured = sensitivity(learner.services, TensorData(x, torch.tensor([2, 3, 2, 3, 2])))
    truth = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in x:
        outputs = learner(row[None], 1)[:, 2:4]
        gradients = torch.autograd.grad((outputs**2).sum(), list(model.parameters()), allow_unused=True)
        for value, gradient in zip(truth.values(), gradients):
            value += 0 if gradient is None else gradient.abs() / 5
    for name, value in truth.items():
        assert torch.allclose(measured[name], value, rtol=1e-4, atol=1e-6), name
