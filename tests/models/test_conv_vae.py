"""The convolutional autoencoder: shapes, likelihoods, what it learns, and generative replay of colour images."""

import math

import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.methods import dgr, finetune, generative_classifier
from holdfast.models import cnn
from holdfast.models.vae import VAE, ConvVAE, suits
from holdfast.operations._parts.generative_model import GenerativeModel
from holdfast.streams import split
from holdfast.streams.datasets import arrays
from holdfast.training import Trainer


def squares(rows, classes=4, seed=0):
    """Images in colour: a bright square in the corner of its class, in the colour of its class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    images = torch.randint(40, (rows, 3, 8, 8), generator=generator, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        top, left = divmod(label, 2)
        images[row, label % 3, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 180
    return images, labels


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 7), (4, 5, 16), (3, 32, 32)])
@pytest.mark.parametrize("channels", [[4], [4, 6, 8]])
def test_images_of_any_size_come_back_as_large_as_they_went_in(shape, channels):
    vae = ConvVAE(shape, channels=channels, units=6, latent=3, seed=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, *shape)
    assert vae(images, generator).shape == (5,)
    assert vae.sample(2, generator).shape == (2, *shape)
    assert vae.decode(torch.zeros(2, 4, 3)).shape == (2, 4, math.prod(shape))
    assert [part.shape for part in vae.encode(images)] == [(5, 3), (5, 3)]


def test_rows_decoded_together_are_those_decoded_alone():
    vae = ConvVAE((3, 8, 8), channels=[4], units=6, latent=3, seed=0)
    z = torch.randn(2, 4, 3)
    together = vae.decode(z)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(together[i, j], vae.decode(z[i, j][None])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_loss_is_divergence_minus_log_likelihood_of_every_pixel(likelihood):
    vae = ConvVAE((3, 5, 5), channels=[4], units=6, latent=2, likelihood=likelihood, seed=0)
    images = torch.rand(2, 3, 5, 5)
    found = vae(images, torch.Generator().manual_seed(3))
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(3))
    mean, log_variance = vae.encode(images)
    for row in range(2):
        divergence, z = 0.0, []
        for k in range(2):
            m, v = float(mean[row, k]), float(log_variance[row, k])
            divergence += (m * m + math.exp(v) - 1 - v) / 2
            z.append(m + math.exp(v / 2) * float(noise[row, k]))
        decoded = vae.decode(torch.tensor([z]))[0].tolist()
        likely = 0.0
        for x, d in zip(images[row].flatten().tolist(), decoded):
            if likelihood == "bernoulli":
                p = 1 / (1 + math.exp(-d))
                likely += x * math.log(p) + (1 - x) * math.log(1 - p)
            else:
                likely -= ((x - d) ** 2 + math.log(2 * math.pi)) / 2
        assert float(found[row]) == pytest.approx(divergence - likely, rel=1e-4)


def test_reconstructions_become_better_with_training():
    images = squares(32)[0].float() / 255
    model = GenerativeModel([32], 8, "auto", 3e-3, "conv")
    generator = torch.Generator().manual_seed(0)

    def error():
        vae = model.vae
        with torch.no_grad():
            return float((vae.decode(vae.encode(images)[0]).sigmoid() - images.flatten(1)).square().mean())

    model.fit([(images, 1.0)], generator)
    before = error()
    for _ in range(80):
        model.fit([(images, 1.0)], generator)
    assert error() < 0.4 * before


def test_colour_images_get_convolutions_and_others_dense_layers():
    assert suits((3, 8, 8))
    assert not any(suits(shape) for shape in ((1, 28, 28), (3, 4, 8), (784,), (3, 8)))
    for shape, kind, expected in (
        ((3, 8, 8), "auto", ConvVAE),
        ((3, 8, 8), "dense", VAE),
        ((1, 8, 8), "auto", VAE),
        ((1, 8, 8), "conv", ConvVAE),
        ((64,), "auto", VAE),
    ):
        model = GenerativeModel([4, 4], 2, "auto", 1e-3, kind)
        model.fit([(torch.rand(3, *shape), 1.0)], torch.Generator())
        assert type(model.vae) is expected


def test_a_saved_model_goes_on_to_the_bit():
    images = squares(8)[0].float() / 255
    model = GenerativeModel([8], 2, "auto", 1e-2)
    model.fit([(images, 1.0)], torch.Generator().manual_seed(0))
    other = GenerativeModel([8], 2, "auto", 1e-2)
    other.load(model.state())
    for one in (model, other):
        one.fit([(images, 1.0)], torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(model.vae.parameters(), other.vae.parameters()))


def test_convolutions_of_what_is_no_image_are_refused():
    model = GenerativeModel([4], 2, "auto", 1e-3, "conv")
    with pytest.raises(ConfigError, match=r"no image|takes images"):
        model.fit([(torch.rand(3, 7), 1.0)], torch.Generator())
    with pytest.raises(ConfigError, match="kind='cnv'"):
        GenerativeModel([4], 2, "auto", 1e-3, "cnv")


def final(method, epochs=12):
    images, labels = squares(64)
    stream = split(arrays(images, labels, *squares(32, seed=1)), experiences=2)
    net: nn.Module = cnn(input_shape=(3, 8, 8), classes=4, channels=[8], hidden=[16], seed=0)
    trainer = Trainer(method, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), batch_size=8, epochs=epochs, seed=0)
    events = trainer.fit(net, stream)
    last = [e for e in events if e["event"] == "evaluate" and e["after"] == 1]
    return [e["correct"] / e["samples"] for e in last]


def test_replay_of_generated_colour_images_keeps_what_fine_tuning_forgets():
    assert final(finetune())[0] < 0.2
    kept = final(dgr(size=16, units=32, layers=1, latent=8, rate=3e-3))
    assert kept[0] > 0.6
    assert kept[1] > 0.6


def test_a_generative_classifier_tells_colour_images_apart():
    found = final(generative_classifier(units=16, layers=1, latent=4, rate=5e-3, samples=8), epochs=10)
    assert min(found) > 0.8
