"""A convolutional variational autoencoder, for images in colour and of any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from holdfast.models.build import check_image, check_sizes, seeded
from holdfast.models.vae import VAE, Likelihood


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
        ConfigError: for a shape that is no image, a size below 1, or an unknown likelihood.

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
