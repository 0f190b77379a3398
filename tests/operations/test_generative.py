"""Generative replay and classification: the bound and the likelihood in closed form, the losses written out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast.core.errors import ConfigError, DataError
from holdfast.models.vae import VAE
from holdfast.operations import GenerativeClassifier, GenerativeReplay
from holdfast.operations._parts.generative_model import GenerativeModel, unit

SMALL = {"units": 8, "layers": 1, "latent": 2}


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_loss_of_a_row_is_its_divergence_minus_its_log_likelihood(likelihood: Any) -> None:
    vae = VAE((2, 3), hidden=[5], latent=2, likelihood=likelihood, seed=0)
    inputs = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(1))
    found = vae(inputs, torch.Generator().manual_seed(7))
    mean, log_variance = vae.encode(inputs)
    decoded = vae.decode(mean + (log_variance / 2).exp() * _noise(7, 4, 2))
    for row in range(4):
        expected = 0.0
        for k in range(2):
            variance = math.exp(float(log_variance[row, k].detach()))
            expected += (variance + float(mean[row, k].detach()) ** 2 - 1 - math.log(variance)) / 2
        for x, z in zip(inputs[row].flatten().tolist(), decoded[row].tolist(), strict=True):
            p = 1 / (1 + math.exp(-z))
            if likelihood == "bernoulli":
                expected -= x * math.log(p) + (1 - x) * math.log(1 - p)
            else:
                expected += ((x - z) ** 2 + math.log(2 * math.pi)) / 2
        assert float(found[row].detach()) == pytest.approx(expected, rel=1e-4)


def test_a_linear_gaussian_models_likelihood_is_the_exact_one() -> None:
    vae = VAE((3,), hidden=[], latent=2, likelihood="gaussian", seed=0)
    inputs = _noise(1, 5, 3)
    weight, bias = vae.output.weight.detach(), vae.output.bias.detach()
    exact = torch.distributions.MultivariateNormal(bias, weight @ weight.T + torch.eye(3)).log_prob(inputs)
    with torch.no_grad():
        vae.posterior.weight.zero_()
        vae.posterior.bias.zero_()  # draws from the prior: few samples are needed for any input
    found = vae.log_likelihood(inputs, 50_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0)
    one = vae.log_likelihood(inputs, 1, torch.Generator().manual_seed(0))
    assert not torch.allclose(one, exact, atol=0.03, rtol=0)


def test_a_likelihood_with_a_normal_around_the_decoded_mean_can_be_asked_of_any_model() -> None:
    inputs = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed
    vae = VAE((3,), hidden=[], latent=2, seed=0)
    noise = _noise(3, 1, 5, 2)
    mean, log_variance = (part.detach() for part in vae.encode(inputs))
    found = vae.log_likelihood(inputs, 1, generator(3), gaussian=True)
    for row in range(5):
        z = mean[row] + (log_variance[row] / 2).exp() * noise[0, row]
        centre = vae.decode(z).detach().sigmoid()
        expected = torch.distributions.Normal(centre, 1.0).log_prob(inputs[row]).sum()
        expected += torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
        expected -= torch.distributions.Normal(mean[row], (log_variance[row] / 2).exp()).log_prob(z).sum()
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
    normal = VAE((3,), hidden=[], latent=2, likelihood="gaussian", seed=0)
    asked, plain = (normal.log_likelihood(inputs, 4, generator(3), gaussian=g) for g in (True, False))
    assert torch.equal(asked, plain)


def test_samples_come_from_the_generator_alone_and_have_the_shape_of_the_inputs() -> None:
    vae = VAE((1, 4, 4), hidden=[6], latent=3, seed=0)
    before = torch.get_rng_state()
    draws = [vae.sample(5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].shape == (5, 1, 4, 4)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert ((draws[0] > 0) & (draws[0] < 1)).all()
    assert torch.equal(before, torch.get_rng_state())


def test_trained_on_two_clusters_it_draws_from_both() -> None:
    generator = torch.Generator().manual_seed(0)
    model = GenerativeModel([16], 2, "auto", 1e-2)
    centres = torch.tensor([[0.1, 0.9, 0.1, 0.9], [0.9, 0.1, 0.9, 0.1]])
    for _ in range(300):
        model.fit([(centres[torch.randint(2, (32,), generator=generator)], 1.0)], generator)
    drawn = model.vae.sample(400, generator)
    near = torch.cdist(drawn, centres).min(1)
    assert (near.values < 0.3).float().mean() > 0.6
    assert 0.25 < near.indices.float().mean() < 0.75


def _taught(few: Any, head: str = "fixed", **arguments: Any) -> Any:
    """After one experience of classes 0 and 1, at the beginning of one of classes 2 and 3."""
    engine = few.bind(GenerativeReplay(size=6, **SMALL, **arguments), model=few.net(head=head, classes=4))
    first, second = few.points(8, classes=2), few.points(5, classes=2, seed=1, first=2)
    task = 0 if head == "task" else None
    opened, _ = engine.begin(few.experience(*first, 0, task=task))
    for _ in range(3):
        few.step(engine, *first, lr=0.3, task=task)
    engine.end(opened)
    engine.begin(few.experience(*second, 1, task=None if task is None else 1))
    return engine, second


@pytest.mark.parametrize("head", ["fixed", "growing", "task"])
def test_generated_samples_are_replayed_with_the_old_models_labels_among_old_classes(few: Any, head: str) -> None:
    engine, new = _taught(few, head)
    learner, operation = engine.learner, engine.method.operations[0]
    generator = torch.Generator()
    generator.set_state(learner.rng("draw/generative_replay").get_state())
    generated = operation.previous.vae.sample(6, generator)
    solver = copy.deepcopy(learner.model)  # nothing was learnt since the snapshot was taken
    if head == "task":
        solver.head.task = "all"
    with torch.no_grad():
        labels = [int(solver(x[None])[0, :2].argmax()) for x in generated]

    def by_hand() -> torch.Tensor:
        model = learner.model
        if head == "task":
            model.head.task = 1
            current = [F.cross_entropy(model(x[None]), y[None]) for x, y in zip(*new, strict=True)]
            model.head.task = 0
        else:
            current = [F.cross_entropy(model(x[None]), y[None]) for x, y in zip(*new, strict=True)]
        old = [F.cross_entropy(model(x[None]), torch.tensor([y])) for x, y in zip(generated, labels, strict=True)]
        return 0.5 * sum(current) / 5 + 0.5 * sum(old) / 6

    expected = few.gradient_of(learner, by_hand)
    few.step(engine, *new, task=1 if head == "task" else None)
    few.assert_gradient(learner, expected, tolerance=1e-7)


def test_the_generator_learns_from_current_and_generated_inputs_in_the_same_shares(few: Any) -> None:
    engine, new = _taught(few, average="rows")
    learner, operation = engine.learner, engine.method.operations[0]
    before = copy.deepcopy(operation.current.vae)
    draws, noise = torch.Generator(), torch.Generator()
    draws.set_state(learner.rng("draw/generative_replay").get_state())
    noise.set_state(learner.rng("noise/generative_replay").get_state())
    generated = operation.previous.vae.sample(6, draws)
    seen: list[list[torch.Tensor]] = []
    adam = operation.current._optimizer
    adam.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in operation.current.vae.parameters()]))
    few.step(engine, *new)
    loss = 5 / 11 * before(new[0], noise).sum() / 5 / 4 + 6 / 11 * before(generated, noise).sum() / 6 / 4
    loss.backward()
    for grad, p in zip(seen[0], before.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad)
    assert torch.equal(operation.previous.vae.output.weight, before.output.weight)  # it stays as it was


def test_in_the_first_experience_nothing_is_replayed(few: Any) -> None:
    engine = few.bind(GenerativeReplay(**SMALL))
    inputs, targets = few.points(5)
    engine.begin(few.experience(inputs, targets))
    engine.method.operations[0].observe = lambda *_: None
    made = few.step(engine, inputs, targets)
    assert made.weight == 1.0


def test_images_are_learnt_between_zero_and_one_whatever_the_model_is_given(toy: Any) -> None:
    from holdfast.core.learner import Learner
    from holdfast.streams.dataset import Prepare

    learner = Learner(toy.model(toy.stream()), prepare=Prepare(mean=0.5, std=0.1))
    raw = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    torch.testing.assert_close(unit(raw, learner), torch.tensor([[0.0, 0.2, 1.0]]))
    again = learner.prepare(unit(raw, learner), False, None)
    torch.testing.assert_close(again, learner.prepare(raw, False, None))
    with pytest.raises(ConfigError, match="inputs are a tuple"):
        unit((raw, raw), learner)


def test_the_likeliest_class_wins_and_one_without_a_model_never_does(few: Any) -> None:
    engine = few.bind(GenerativeClassifier(**SMALL, rate=1e-2, samples=20), model=few.net(classes=4).float())
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 4, generator=generator)
    for _ in range(100):
        targets = torch.randint(3, (24,), generator=generator)
        few.step(engine, centres[targets] + 0.3 * torch.randn(24, 4, generator=generator), targets)
    targets = torch.arange(3).repeat(20)
    inputs = centres[targets] + 0.3 * torch.randn(60, 4, generator=generator)
    with engine.evaluating(), torch.no_grad():
        outputs = engine.predict(inputs)
        assert torch.equal(outputs, engine.predict(inputs))
    assert (outputs.argmax(1) == targets).float().mean() > 0.95
    torch.testing.assert_close(outputs[:, :3].exp().sum(1), torch.ones(60))
    assert (outputs[:, 3] < -1000).all()
    models = engine.method.operations[0].models
    likelihood = torch.stack(
        [models.of(c).vae.log_likelihood(inputs, 4000, torch.Generator().manual_seed(c)) for c in range(3)], dim=1
    )
    assert (likelihood.argmax(1) == outputs.argmax(1)).float().mean() > 0.95


def test_learning_a_class_leaves_the_models_of_all_others_bit_for_bit(few: Any) -> None:
    engine = few.bind(GenerativeClassifier(**SMALL), model=few.net(classes=4).float())
    inputs, _ = few.points(8)
    few.step(engine, inputs.float(), torch.zeros(8, dtype=torch.int64))
    models = engine.method.operations[0].models
    before = models.of(0).state()["vae"]
    few.step(engine, inputs.float(), torch.ones(8, dtype=torch.int64))
    assert all(torch.equal(value, models.of(0).state()["vae"][name]) for name, value in before.items())
    assert sorted(models.models) == [0, 1]


def test_inputs_outside_zero_to_one_and_senseless_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="likelihood='gaussian'"):
        GenerativeModel([4], 2, "bernoulli", 1e-3).fit([(torch.randn(3, 4) - 5, 1.0)], torch.Generator())
    for wrong in ({"latent": 0}, {"layers": 0}, {"units": -1}, {"rate": 0.0}):
        for kind in (GenerativeReplay, GenerativeClassifier):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                kind(**wrong)
    with pytest.raises(ConfigError, match="likelihood='poisson'"):
        GenerativeReplay(likelihood="poisson")
    with pytest.raises(ConfigError, match="below 1"):
        VAE((4,), hidden=[0])
