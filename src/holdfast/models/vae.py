"""Variational autoencoders, which learn what data looks like and draw more of it: dense and convolutional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.decide import decide
from holdfast.core.errors import ConfigError
from holdfast.models.build import check_image, check_sizes, seeded

Likelihood = Literal["bernoulli", "gaussian"]


class VAE(nn.Module):
    r"""Fully connected encoder and decoder with ReLU around a normal latent variable.

    $$ \log p(x) \ge \mathbb{E}_{q(z \mid x)} [\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\Vert\, p(z)), \qquad
       p(z) = N(0, I), \;\; q(z \mid x) = N(\mu(x), \operatorname{diag} \sigma^2(x)) $$

    Args:
        input_shape: shape of one sample; anything but a vector is flattened inside.
        hidden: units of the encoder's hidden layers; the decoder has them in reverse.
        latent: size of z.
        likelihood: of an input given z: "bernoulli" for values from 0 to 1, "gaussian" (variance 1) for any others.
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a size below 1, or an unknown likelihood.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", eq. 3 and appendices B and C.

    Example:
        >>> vae = VAE(input_shape=(1, 4, 4), hidden=[8], latent=2, seed=0)
        >>> vae.sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 1, 4, 4])
    """

    chunk = 2**14
    """Decodings held at once while a likelihood is estimated."""

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: Sequence[int] = (400, 400),
        latent: int = 100,
        likelihood: Likelihood = "bernoulli",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes("input_shape", input_shape)
        check_sizes("hidden", hidden)
        check_sizes("latent", [latent])
        if likelihood not in ("bernoulli", "gaussian"):
            raise ConfigError(f"likelihood={likelihood!r} is unknown. Choose bernoulli or gaussian.")
        self.input_shape = tuple(input_shape)
        self.values = math.prod(input_shape)
        self.latent = latent
        self.likelihood = likelihood
        with seeded(seed):
            self.encoder = _layers([self.values, *hidden])
            self.posterior = nn.Linear(hidden[-1] if hidden else self.values, 2 * latent)
            self.decoder = _layers([latent, *reversed(hidden)])
            self.output = nn.Linear(hidden[0] if hidden else latent, self.values)

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z | x), `[rows, latent]` each."""
        mean, log_variance = self.posterior(self.encoder(inputs.flatten(1))).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """The parameter of p(x | z), `[..., values]`: logits (bernoulli) or means (gaussian)."""
        return self.output(self.decoder(z))

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """`rows` new inputs, the means of p(x | z) for z from the prior; without a graph."""
        with torch.no_grad():
            decoded = self.decode(self._noise(generator, rows, self.latent))
            means = decoded.sigmoid() if self.likelihood == "bernoulli" else decoded
        return means.view(rows, *self.input_shape)

    def forward(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The negative lower bound of log p(x) of each row, by one draw of z, `[rows]`."""
        mean, log_variance = self.encode(inputs)
        z = mean + (log_variance / 2).exp() * self._noise(generator, *mean.shape)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return divergence - self._log_given(inputs.flatten(1), self.decode(z))

    @torch.no_grad()
    def log_likelihood(
        self, inputs: Tensor, samples: int, generator: torch.Generator, gaussian: bool = False
    ) -> Tensor:
        r"""An estimate of log p(x) of each row by importance sampling, `[rows]`.

        $$ \log p(x) \approx \log \frac{1}{S} \sum_{s=1}^{S} \frac{p(x \mid z_s) \, p(z_s)}{q(z_s \mid x)}, \qquad
           z_s \sim q(z \mid x) $$

        Args:
            inputs: `[rows, ...]`.
            samples: S; the estimate is a lower bound on average, which rises with S.
            generator: CPU generator of the draws.
            gaussian: p(x | z) is a normal distribution of variance 1 around the decoded mean, whatever was trained.

        Source: Burda, Grosse and Salakhutdinov 2016, "Importance weighted autoencoders", eq. 8.
        """
        mean, log_variance = self.encode(inputs)
        flat, deviation = inputs.flatten(1), (log_variance / 2).exp()
        weights = []
        step = max(1, self.chunk // max(1, len(flat)))
        for start in range(0, samples, step):
            noise = self._noise(generator, min(step, samples - start), *mean.shape)
            z = mean + deviation * noise
            ratio = (noise.square() + log_variance - z.square()).sum(-1) / 2  # log p(z) - log q(z | x)
            decoded = self.decode(z)
            if gaussian:
                likelihood = _log_normal(flat, decoded.sigmoid() if self.likelihood == "bernoulli" else decoded)
            else:
                likelihood = self._log_given(flat, decoded)
            weights.append(likelihood + ratio)
        return torch.cat(weights).logsumexp(0) - math.log(samples)

    def _log_given(self, flat: Tensor, decoded: Tensor) -> Tensor:
        """Log p(x | z), summed over the values of each row."""
        if self.likelihood == "bernoulli":
            return (flat * decoded).sum(-1) - F.softplus(decoded).sum(-1)
        return _log_normal(flat, decoded)

    def _noise(self, generator: torch.Generator, *shape: int) -> Tensor:
        weight = self.output.weight
        return decide(lambda: torch.randn(*shape, generator=generator), weight.device).to(weight.dtype)


def _log_normal(flat: Tensor, mean: Tensor) -> Tensor:
    return -((flat - mean).square() + math.log(2 * math.pi)).sum(-1) / 2


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    pairs = pairwise(sizes)
    return nn.Sequential(*(layer for before, after in pairs for layer in (nn.Linear(before, after), nn.ReLU())))


class ConvVAE(VAE):
    r"""Strided convolutions in front of a normal latent variable, and the same way back.

    The encoder halves height and width with each 3x3 convolution, then has one hidden layer; the decoder has them in
    reverse, each image enlarged to the exact size of its level (nearest value) and convolved, so that images of odd
    sizes come back as large as they went in. All else is as in `VAE`.

    Args:
        input_shape: channels, height and width of one image.
        channels: of the convolutions of the encoder.
        units: of the hidden layer between the maps and the latent variable, on either side.
        latent: size of z.
        likelihood: of a pixel given z: "bernoulli" for values from 0 to 1, "gaussian" (variance 1) for any others.
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a shape that is not an image, a size below 1, or an unknown likelihood.

    Example:
        >>> vae = ConvVAE(input_shape=(3, 9, 7), channels=[4, 8], units=16, latent=5, seed=0)
        >>> vae.sample(2, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 9, 7])
    """

    chunk = 2**9

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        units: int = 400,
        latent: int = 100,
        likelihood: Likelihood = "bernoulli",
        seed: int | None = None,
    ) -> None:
        super().__init__(input_shape, (1,), latent, likelihood, seed=0)  # checks; its layers are replaced
        depth, height, width = check_image("conv_vae", input_shape)
        check_sizes("channels", channels)
        check_sizes("units", [units])
        sizes = [(height, width)]
        for _ in channels:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        every = [depth, *channels]
        top = every[-1] * sizes[-1][0] * sizes[-1][1]
        with seeded(seed):
            encoder: list[nn.Module] = []
            for before, after in pairwise(every):
                encoder += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
            self.encoder = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(top, units), nn.ReLU())
            self.posterior = nn.Linear(units, 2 * latent)
            decoder: list[nn.Module] = [nn.Linear(latent, units), nn.ReLU(), nn.Linear(units, top), nn.ReLU()]
            decoder.append(nn.Unflatten(1, (every[-1], *sizes[-1])))
            for level in range(len(channels) - 1, 0, -1):
                grown = nn.Upsample(size=sizes[level])
                decoder += [grown, nn.Conv2d(every[level + 1], every[level], 3, padding=1), nn.ReLU()]
            self.decoder = nn.Sequential(*decoder, nn.Upsample(size=sizes[0]))
            self.output = nn.Conv2d(every[1] if channels else depth, depth, 3, padding=1)  # type: ignore[assignment]

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z | x), `[rows, latent]` each."""
        images = inputs.view(-1, *self.input_shape)
        mean, log_variance = self.posterior(self.encoder(images)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """The parameter of p(x | z), `[..., values]`: logits (bernoulli) or means (gaussian)."""
        images = self.output(self.decoder(z.reshape(-1, z.shape[-1])))
        return images.reshape(*z.shape[:-1], self.values)


def suits(shape: Sequence[int] | torch.Size) -> bool:
    """Whether inputs of this shape are images that convolutions pay for: colours, and 8 pixels a side or more."""
    return len(shape) == 3 and shape[0] in (3, 4) and min(shape[1:]) >= 8
