"""The Fisher diagonal in its kinds and ways, against a loop over samples and labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.learner import Learner
from holdfast.models import cnn
from holdfast.operations._parts.fisher import fisher_diagonal
from holdfast.streams.data import TensorData


def by_loop(
    learner: Learner, inputs: torch.Tensor, targets: torch.Tensor, kind: str, task: Any = None
) -> dict[str, torch.Tensor]:
    """One sample and one label at a time, in eval mode."""
    model = learner.model
    training = model.training
    model.eval()
    named = learner.named_parameters()
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for row in range(len(inputs)):
        outputs = learner(inputs[row : row + 1], task)
        log_p = F.log_softmax(outputs, 1)[0]
        chosen = {"empirical": int(targets[row]), "predicted": int(log_p.argmax())}
        for label in [chosen[kind]] if kind in chosen else range(len(log_p)):
            weight = 1.0 if kind in chosen else float(log_p[label].detach().exp())
            grads = torch.autograd.grad(log_p[label], list(named.values()), retain_graph=True, allow_unused=True)
            for (name, _), grad in zip(named.items(), grads, strict=True):
                if grad is not None:
                    total[name] += weight * grad.square() / len(inputs)
    model.train(training)
    return total


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-7, atol=1e-12, msg=name)


class InPlace(nn.Module):
    """A user's network: activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.ReLU(inplace=True))
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Tied(nn.Module):
    """Two layers of one weight, or one layer called twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        if twice:
            del self.b
        else:
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.a if self.twice else self.b)(self.a(x).tanh()).tanh())


class Sequence(nn.Module):
    """Linear layers on `[rows, time, features]`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x.view(-1, 2, 2)).tanh().mean(1))


class Gated(nn.Module):
    """A parameter outside every layer: there is no closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Parameter(torch.linspace(0.5, 1.5, 4)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * self.gate)


def _frozen(few: Any) -> nn.Module:
    model = few.net()
    model.backbone[0].weight.requires_grad_(False)
    return model


MODELS = {
    "mlp": lambda few: few.net(),
    "mlp with batch norm": lambda few: _used(few.net(batch_norm=True)),
    "cosine head": lambda few: _grown(few.net("cosine")),
    "in place": lambda few: InPlace().double(),
    "tied": lambda few: Tied(twice=False).double(),
    "called twice": lambda few: Tied(twice=True).double(),
    "sequence": lambda few: Sequence().double(),
    "gated": lambda few: Gated().double(),
    "partly frozen": _frozen,
    "without biases": lambda few: nn.Sequential(
        nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)
    ).double(),
}


def _used(model: nn.Module) -> nn.Module:
    """Batch statistics that are not those of a new model."""
    model.train()
    model(3 * torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + 1)
    return model


def _grown(model: nn.Module) -> nn.Module:
    model.head.grow(3)
    return model.double()


@pytest.mark.parametrize("kind", ["exact", "predicted", "empirical"])
@pytest.mark.parametrize("name", MODELS)
def test_the_pass_equals_a_loop_over_samples_and_labels(few: Any, name: str, kind: str) -> None:
    model = MODELS[name](few)
    learner = Learner(model)
    inputs, targets = few.points(7)
    expected = by_loop(learner, inputs, targets, kind)
    data = TensorData(inputs, targets)
    for closed_form in (None, False):
        for batch_size in (3, 100):
            found = fisher_diagonal(learner, data, kind, batch_size=batch_size, closed_form=closed_form)
            assert_same(found, expected)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_convolutions_equal_the_loop_too(kind: str, batch_norm: bool) -> None:
    shape = (2, 5, 4)
    model = cnn(input_shape=shape, classes=3, channels=[3], hidden=[4], batch_norm=batch_norm, seed=0).double()
    learner = Learner(model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(19, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (19,), generator=generator)
    if batch_norm:
        model(inputs * 2 + 1)
    found = fisher_diagonal(learner, TensorData(inputs, targets), kind, closed_form=True)
    assert_same(found, by_loop(learner, inputs, targets, kind))


@pytest.mark.parametrize("settings", [{"stride": 2}, {"padding": 1, "dilation": 2}, {"bias": False}, {"groups": 2}])
def test_convolutions_of_any_geometry_equal_the_loop(settings: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2, **settings), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    learner = Learner(model.double())
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 2, 6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (5,), generator=generator)
    found = fisher_diagonal(learner, TensorData(inputs, targets), "empirical")
    assert_same(found, by_loop(learner, inputs, targets, "empirical"))


@pytest.mark.parametrize("head", ["growing", "task"])
@pytest.mark.parametrize("closed_form", [None, False])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_every_chunk_of_a_grown_head_has_its_part(few: Any, head: str, closed_form: bool | None, kind: str) -> None:
    learner = Learner(few.net(head))
    task = head == "task"
    for index, classes in enumerate([(0, 1), (2, 3, 4)]):
        x, y = few.points(6, classes=len(classes), seed=index, first=classes[0])
        learner.enter(few.experience(x, y, index=index, task=index if task else None))
    learner.model.double()
    data = TensorData(x, y, task=1 if task else None)
    found = fisher_diagonal(learner, data, kind, closed_form=closed_form)
    assert_same(found, by_loop(learner, x, y, kind, 1 if task else None))
    untouched = (found["head.weights.0"] == 0).all()
    assert untouched == task


def test_without_a_task_on_the_data_the_current_one_is_used_by_vmap_as_by_the_closed_form(few: Any) -> None:
    learner = Learner(few.net("task"))
    for index, first in enumerate([0, 2]):
        x, y = few.points(6, classes=2, seed=index, first=first)
        learner.enter(few.experience(x, y, index=index, task=index))
    learner.model.double()
    learner.head.task = torch.zeros(4, dtype=torch.int64)  # what a replay forward left behind
    ways = [fisher_diagonal(learner, TensorData(x, y), "exact", closed_form=way) for way in (None, False)]
    assert_same(*ways)
    assert_same(ways[0], by_loop(learner, x, y, "exact", 1))


def test_a_label_drawn_from_the_model_gives_the_exact_diagonal_in_the_mean(few: Any) -> None:
    learner = Learner(few.net())
    inputs, targets = few.points(4)
    exact = by_loop(learner, inputs, targets, "exact")
    generator = torch.Generator().manual_seed(0)
    draws = 1500
    data = TensorData(inputs.repeat(draws, 1), targets.repeat(draws))
    found = fisher_diagonal(learner, data, "true", generator=generator, batch_size=1000)
    for name, value in exact.items():
        assert float((found[name] - value).norm() / value.norm()) < 0.05, name


def test_labels_are_drawn_from_the_given_generator_only(few: Any) -> None:
    learner = Learner(few.net())
    data = TensorData(*few.points(8))
    before = torch.get_rng_state()
    found = [
        fisher_diagonal(learner, data, "true", samples=5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(found[0], found[1])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_the_batch_kind_is_the_squared_gradient_of_the_mean_times_the_size(few: Any) -> None:
    learner = Learner(few.net())
    inputs, targets = few.points(7)
    found = fisher_diagonal(learner, TensorData(inputs, targets), "batch", batch_size=3)
    expected = {name: torch.zeros_like(p) for name, p in learner.named_parameters().items()}
    for start in (0, 3, 6):
        x, y = inputs[start : start + 3], targets[start : start + 3]
        grads = few.gradient_of(learner, lambda x=x, y=y: F.cross_entropy(learner.model(x), y))
        for name, grad in grads.items():
            expected[name] += len(x) * grad.square() / 7
    assert_same(found, expected)
    per_sample = by_loop(learner, inputs, targets, "empirical")
    assert any(not torch.allclose(found[name], per_sample[name], rtol=0.01) for name in found)


def test_batch_statistics_and_the_mode_stay_as_they_were(few: Any) -> None:
    model = _used(few.net(batch_norm=True, dropout=0.4))
    for training in (True, False):
        model.train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for kind in ("exact", "true", "predicted", "empirical", "batch"):
            fisher_diagonal(Learner(model), TensorData(*few.points(7)), kind, generator=torch.Generator())
        assert model.training is training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


def test_a_part_of_the_samples_is_drawn_without_replacement(few: Any) -> None:
    learner = Learner(few.net())
    inputs, targets = few.points(6)
    data = TensorData(inputs, targets)
    single = [by_loop(learner, inputs[i : i + 1], targets[i : i + 1], "empirical")["head.bias"] for i in range(6)]
    found = fisher_diagonal(learner, data, "empirical", samples=2, generator=torch.Generator().manual_seed(1))
    pairs = [(single[i] + single[j]) / 2 for i in range(6) for j in range(i)]
    assert sum(torch.allclose(found["head.bias"], pair) for pair in pairs) == 1


def test_raw_inputs_are_prepared_without_augmentation(few: Any) -> None:
    modes: list[bool] = []

    def prepare(inputs: torch.Tensor, training: bool, generator: Any) -> torch.Tensor:
        modes.append(training)
        return inputs.double() / 10

    inputs, targets = few.points(5)
    raw = (inputs * 10).float()
    model = few.net()
    for closed_form in (None, False):
        found = fisher_diagonal(
            Learner(model, prepare=prepare), TensorData(raw, targets), "exact", closed_form=closed_form
        )
        assert_same(found, by_loop(Learner(model), raw.double() / 10, targets, "exact"))
    assert not any(modes)


def test_an_unknown_kind_and_a_closed_form_that_does_not_exist_are_refused(few: Any) -> None:
    data = TensorData(*few.points(2))
    with pytest.raises(ConfigError, match="empirical"):
        fisher_diagonal(Learner(few.net()), data, "diagonal")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="closed form"):
        fisher_diagonal(Learner(Gated().double()), data, "exact", closed_form=True)
