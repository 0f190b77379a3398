"""Variational autoencoder of particle clouds: a PointNet encoder, whatever the order of points, and a grid decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.decide import decide
from holdfast.core.errors import ConfigError
from holdfast.core.ranges import Count, NonNegative, ranged
from holdfast.models.autoencoders import Autoencoder, check_reconstruction
from holdfast.models.build import seeded


class PointNet(nn.Module):
    """Features of a cloud `[rows, points, features]` that do not depend on the order of its points, `[rows, out]`.

    Each point goes through the same layers, and the largest value of each feature over all points is taken. A linear
    layer on the points stands for the paper's convolutions of kernel size 1, which it equals.

    Args:
        features: of a point.
        channels: of the layers that every point goes through.

    Source: Qi et al. 2017, "PointNet: deep learning on point sets for 3D classification and segmentation", section 4.2.
    """

    def __init__(self, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([features, *channels]):
            layers += [nn.Linear(before, after), nn.LeakyReLU()]
        self.points = nn.Sequential(*layers[:-1])

    def forward(self, clouds: Tensor) -> Tensor:
        """Features `[rows, out]`."""
        return self.points(clouds).amax(1)


class CloudVAE(Autoencoder):
    r"""Variational autoencoder of clouds of points.

    $$ L = \text{cloud loss}(x, \hat x) + \beta \, \mathrm{KL}(q(z \mid x) \,\Vert\, N(0, I)), \qquad
       q(z \mid x) = N(\mu(x), \operatorname{diag} \sigma^2(x)) $$

    The forward gives `[rows, points * features + 1]`: the decoded cloud of one draw of z, and beta times the divergence
    of the row, which the criteria `chamfer` and `sinkhorn` add (`models.losses`). What the model answers when it is
    asked is the decoded cloud of the mean, `[rows, points, features]`.

    Args:
        input_shape: points and features of a cloud.
        channels: of the encoder, see `PointNet`.
        latent: size of z.
        base: channels of the decoder's 4x4x4 grid, then of the 8x8x8 and 16x16x16 grids that it is enlarged to.
        beta: factor of the divergence.
        devices: as in `Autoencoder`.
        noise_seed: of the draws of z in training.

    Source: Kingma and Welling 2014; the layers are those of Willmann et al. 2025, "The Artificial Scientist".
    Differences: sizes are arguments; the decoder's grid is enlarged only so far as the points need it.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        latent: int,
        base: Sequence[int],
        beta: float,
        devices: Sequence[str] | None = None,
        noise_seed: int = 0,
    ) -> None:
        points, features = input_shape
        side = 4
        grid: list[nn.Module] = [nn.Linear(latent, base[0] * side**3), nn.Unflatten(1, (base[0], side, side, side))]
        for before, after in pairwise(base):
            grid += [nn.LeakyReLU(), nn.ConvTranspose3d(before, after, 2, stride=2)]
            side *= 2
        grid += [nn.LeakyReLU(), nn.Flatten()]
        net = PointNet(features, channels)
        posterior = nn.Sequential(net, nn.LeakyReLU(), nn.Linear(channels[-1], 2 * latent))
        head = nn.Sequential(nn.Linear(base[-1] * side**3, points * features), nn.Unflatten(1, (points, features)))
        super().__init__(posterior, nn.Sequential(*grid), head, latent, devices)
        self.points, self.features_of_a_point = points, features
        self.beta = beta
        self._noise = torch.Generator().manual_seed(noise_seed)

    @property
    def stages(self) -> None:
        """None: the forward draws between encoder and decoder, and gives the divergence beside."""
        return None

    def posterior(self, clouds: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), `[rows, latent]` each."""
        mean, raw = self.encoder(self._at(clouds, 0)).chunk(2, dim=1)
        return mean, F.softplus(raw) + 1e-6

    def encode(self, inputs: Tensor) -> Tensor:
        """The mean of q(z | x), `[rows, latent]`."""
        return self.posterior(inputs)[0]

    def answer(self, inputs: Tensor) -> Tensor:
        """The decoded cloud of the mean, `[rows, points, features]`."""
        return self._back(self.decode(self.encode(inputs)), inputs)

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Clouds of z from the prior, `[rows, points, features]`; without a graph."""
        weight = next(self.decoder.parameters())
        with torch.no_grad():
            return self.decode(torch.randn(rows, self.latent, generator=generator).to(weight))

    def forward(self, inputs: Tensor) -> Tensor:
        """The decoded cloud of one draw (of the mean in eval mode), and its row's term, `[rows, values + 1]`."""
        mean, deviation = self.posterior(inputs)
        z = mean
        if self.training:
            noise = decide(lambda: torch.randn(mean.shape, generator=self._noise), mean.device)
            z = mean + deviation * noise.to(mean)
        divergence = (mean.square() + deviation.square() - 1).sum(1) / 2 - deviation.log().sum(1)
        cloud = self.decode(z).flatten(1)
        packed = torch.cat([cloud, self.beta * divergence.to(cloud.device).unsqueeze(1)], dim=1)
        return self._back(packed, inputs)


@ranged
def cloud_vae(
    *,
    input_shape: Sequence[int],
    classes: int,
    channels: Sequence[Count] = (16, 32, 64, 128),
    latent: Count = 64,
    base: Sequence[Count] = (16, 8),
    beta: NonNegative = 0.001,
    devices: list[str] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Variational autoencoder of particle clouds, for the criteria `chamfer` and `sinkhorn`.

    The encoder is a PointNet: the same layers for every point, then the maximum over the points; the decoder enlarges a
    grid of 4x4x4 cells by transposed convolutions, and a linear layer makes of it the points.

    Args:
        input_shape: points and features of a cloud.
        classes: numbers of a target, which must be as many as those of an input.
        channels: of the layers that every point goes through.
        latent: size of z.
        base: channels of the decoder's grid, one entry for each size: 4x4x4, 8x8x8, ...
        beta: factor of the divergence from the prior.
        devices: of the encoder and of the decoder, for a model that is too large for one; null for none of their own.
        seed: of the initial weights and of the draws in training; None draws weights from torch's global generator.

    Raises:
        ConfigError: for inputs that are not clouds, or a stream whose targets are not its inputs.

    Example:
        >>> model = cloud_vae(input_shape=(100, 6), classes=600, channels=[8], latent=4, base=[2], seed=0)
        >>> model(torch.zeros(3, 100, 6)).shape, model.answer(torch.zeros(3, 100, 6)).shape
        (torch.Size([3, 601]), torch.Size([3, 100, 6]))
    """
    if len(input_shape) != 2:
        raise ConfigError(
            f"`cloud_vae` takes clouds (points, features), not inputs of shape {tuple(input_shape)}. Use the"
            " data set `khi`, or the source open_pmd with rows=iterations and points=1024."
        )
    check_reconstruction("cloud_vae", input_shape, classes)
    if not channels or not base:
        raise ConfigError("`cloud_vae` got no channels, or an empty base. Give at least one number for each.")
    with seeded(seed):
        return CloudVAE(input_shape, channels, latent, base, beta, devices, 0 if seed is None else seed)


cloud_vae.criteria = ("chamfer", "sinkhorn")  # type: ignore[attr-defined]
