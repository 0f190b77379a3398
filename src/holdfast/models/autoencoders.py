"""Autoencoders: dense, and convolutional for images and volumes; their halves may live on different devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, ranged
from holdfast.models.build import Activation, check_sizes, make_activation, seeded


class Autoencoder(nn.Module):
    """`decode(encode(inputs))`, with a way back through the code: what a decoder makes of a code, encoded again.

    Args:
        encoder: from inputs `[rows, ...]` to codes `[rows, latent]`.
        decoder: from codes to what the head takes.
        head: the last layer, which gives the inputs back.
        latent: size of a code.
        devices: of the encoder, and of the decoder with the head; None leaves both wherever the model is moved.

    Attributes:
        devices: as given; a move of the model to another device leaves both halves there, one to another type does not.

    Example:
        >>> model = autoencoder(input_shape=(6,), classes=6, hidden=[8], latent=2, seed=0)
        >>> codes = model.encode(torch.zeros(3, 6))
        >>> codes.shape, model.decode(codes).shape, model.inverse(codes).shape
        (torch.Size([3, 2]), torch.Size([3, 6]), torch.Size([3, 2]))
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, latent: int, devices: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.latent = latent
        self.devices = None if devices is None else placed(devices)
        if self.devices is not None:
            for part, device in zip((encoder, decoder, head), (*self.devices, self.devices[1])):
                part.to(device)

    @property
    def stages(self) -> Mapping[str, nn.Module] | None:
        """The encoder, then the decoder: a memory can hold codes (`cut="encoder"`)."""
        return None if self.devices else {"encoder": self.encoder, "decoder": self.decoder}

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[rows, latent]`."""
        return self.encoder(self._at(inputs, 0))

    def decode(self, codes: Tensor) -> Tensor:
        """What codes `[rows, latent]` stand for, of the shape of the inputs."""
        return self.head(self.decoder(self._at(codes, 1)))

    def inverse(self, codes: Tensor) -> Tensor:
        """Codes of what codes stand for, `encode(decode(codes))`: what replays codes where inputs are not kept."""
        return self.encode(self.decode(codes))

    def forward(self, inputs: Tensor) -> Tensor:
        """The reconstruction, of the shape of the inputs, where they came from."""
        return self._back(self.decode(self.encode(inputs)), inputs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As for any module, but that halves with devices of their own stay there."""
        if self.devices is None:
            return super().to(*args, **kwargs)
        every = (*args, *kwargs.values())
        types = [getattr(one, "dtype", one) for one in every if isinstance(one, torch.dtype | Tensor)]
        return super().to(types[0]) if types else self

    def _at(self, values: Tensor, half: int) -> Tensor:
        return values if self.devices is None else values.to(self.devices[half])

    def _back(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Outputs where the inputs are, so that the loss finds both at one place; nothing comes back from `meta`."""
        return outputs if self.devices is None or outputs.is_meta else outputs.to(inputs.device)


def placed(devices: Sequence[str]) -> tuple[torch.device, torch.device]:
    """The devices of an encoder and a decoder.

    Raises:
        ConfigError: for another number of devices than two, or a name that torch does not know.
    """
    if isinstance(devices, str) or len(devices) != 2:
        raise ConfigError(f"devices is {devices!r}. Give two, of the encoder and of the decoder: ['cuda:0', 'cuda:1'].")
    try:
        first, second = (torch.device(device) for device in devices)
    except RuntimeError as error:
        raise ConfigError(
            f"devices is {list(devices)}: {str(error).splitlines()[0]} Write 'cpu' or 'cuda:0'."
        ) from None
    return first, second


def check_reconstruction(model: str, input_shape: Sequence[int], classes: int) -> None:
    """Refuse a stream whose targets are not its inputs.

    Raises:
        ConfigError: where outputs and inputs differ in number.
    """
    check_sizes("input_shape", input_shape)
    if classes != prod(input_shape):
        raise ConfigError(
            f"`{model}` gives back its inputs, {prod(input_shape)} values a sample, and the targets have {classes}."
            " Choose the stream `reconstruction` (with criterion=mse), or a source without targets."
        )


@ranged
def autoencoder(
    *,
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[Count] = (256, 64),
    latent: Count = 16,
    activation: Activation = "leaky_relu",
    xavier: bool = True,
    devices: list[str] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Fully connected autoencoder: hidden layers to a code, and the same layers in reverse.

    StreamedML's MLP. Difference: layers have biases, and neither code nor reconstruction goes through the activation,
    so that both can take any value.

    Args:
        input_shape: shape of one sample; anything but a vector is flattened inside.
        classes: numbers of a target, which must be as many as those of an input.
        hidden: units of the encoder's hidden layers; the decoder has them in reverse.
        latent: size of a code.
        activation: after each hidden layer.
        xavier: whether weights are drawn by Glorot and Bengio's uniform rule, and biases are zero.
        devices: of the encoder and of the decoder, for a model that is too large for one; null for none of their own.
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a stream whose targets are not its inputs, or a size below 1.

    Example:
        >>> model = autoencoder(input_shape=(1, 8, 8), classes=64, hidden=[32], latent=4)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """
    check_reconstruction("autoencoder", input_shape, classes)
    values = prod(input_shape)
    with seeded(seed):
        encoder: list[nn.Module] = [nn.Flatten()] if len(input_shape) != 1 else []
        for before, after in pairwise([values, *hidden]):
            encoder += [nn.Linear(before, after), make_activation(activation)]
        encoder.append(nn.Linear(hidden[-1] if hidden else values, latent))
        decoder: list[nn.Module] = []
        for before, after in pairwise([latent, *reversed(hidden)]):
            decoder += [nn.Linear(before, after), make_activation(activation)]
        last: nn.Module = nn.Linear(hidden[0] if hidden else latent, values)
        if len(input_shape) != 1:
            last = nn.Sequential(last, nn.Unflatten(1, tuple(input_shape)))
        model = Autoencoder(nn.Sequential(*encoder), nn.Sequential(*decoder), last, latent, devices)
        return _initialised(model) if xavier else model


class ConvAutoencoder(Autoencoder):
    """Convolutions and max-pools to a code; the way back enlarges by where the maxima were, or by interpolation.

    With `unpool`, each 2x2(x2) maximum goes back to where the encoder found it in this input, and the rest is zero.
    A code alone does not say where that was: `decode` of one, and so `inverse`, enlarge by (bi- or tri-)linear
    interpolation, through the same weights. Sizes that are odd come back as they were.

    Args:
        input_shape: channels and two or three sizes of one sample.
        channels: of each level; every one halves the sizes.
        convolutions: a level has.
        latent: size of a code.
        unpool: whether maxima go back to where they were; False interpolates there too.
        activation: after each convolution.
        devices: as in `Autoencoder`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        convolutions: int,
        latent: int,
        unpool: bool,
        activation: Activation,
        devices: Sequence[str] | None = None,
    ) -> None:
        depth, *sides = input_shape
        flat = len(sides) == 2
        conv: type[nn.Module] = nn.Conv2d if flat else nn.Conv3d
        back: type[nn.Module] = nn.ConvTranspose2d if flat else nn.ConvTranspose3d
        self.unpool = unpool
        self.sizes = [tuple(sides)]
        for _ in channels:
            self.sizes.append(tuple(side // 2 for side in self.sizes[-1]))
        every = [depth, *channels]
        top = every[-1] * prod(self.sizes[-1])

        def level(kind: type[nn.Module], before: int, after: int) -> nn.Module:
            widths = [before, *[after] * convolutions]
            layers = [(kind(a, b, 3, padding=1), make_activation(activation)) for a, b in pairwise(widths)]
            return nn.Sequential(*(layer for pair in layers for layer in pair))

        down = [level(conv, before, after) for before, after in pairwise(every)]
        up = [level(back, after, before) for before, after in reversed(list(pairwise(every)))]
        last = up[-1]
        assert isinstance(last, nn.Sequential)
        head = last[-2]  # gives the sample back, without an activation behind it
        up[-1] = nn.Sequential(*last[:-2])
        unflatten = nn.Sequential(nn.Linear(latent, top), nn.Unflatten(1, (every[-1], *self.sizes[-1])))
        down_side = levels(down, nn.Sequential(nn.Flatten(), nn.Linear(top, latent)))
        super().__init__(down_side, levels(up, unflatten), head, latent, devices)

    @property
    def stages(self) -> None:
        """None: where maxima were must come along with a code."""
        return None

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[rows, latent]`."""
        return self._down(inputs)[0]

    def decode(self, codes: Tensor) -> Tensor:
        """What codes `[rows, latent]` stand for, enlarged by interpolation."""
        return self._up(codes, [])

    def forward(self, inputs: Tensor) -> Tensor:
        """The reconstruction, of the shape of the inputs, where they came from."""
        codes, places = self._down(inputs)
        return self._back(self._up(codes, places if self.unpool else []), inputs)

    def _down(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Codes, and where the maxima of each level were."""
        maps, places = self._at(inputs, 0), []
        pool: Any = F.max_pool2d if len(self.sizes[0]) == 2 else F.max_pool3d
        for level in self.encoder["levels"]:  # type: ignore[index]
            maps, where = pool(level(maps), 2, return_indices=True)
            places.append(where)
        return self.encoder["dense"](maps), places  # type: ignore[index]

    def _up(self, codes: Tensor, places: Sequence[Tensor]) -> Tensor:
        maps = self.decoder["dense"](self._at(codes, 1))  # type: ignore[index]
        mode = "bilinear" if len(self.sizes[0]) == 2 else "trilinear"
        for number, level in enumerate(self.decoder["levels"]):  # type: ignore[index]
            size = self.sizes[-2 - number]
            if places:
                maps = unpooled(maps, self._at(places[-1 - number], 1), size)
            else:
                maps = F.interpolate(maps, size=size, mode=mode, align_corners=False)
            maps = level(maps)
        return self.head(maps)


def levels(convolutions: Sequence[nn.Module], dense: nn.Module) -> nn.Module:
    """One side of a `ConvAutoencoder`: its convolutions, with pooling between them, and its linear layer."""
    return nn.ModuleDict({"levels": nn.ModuleList(convolutions), "dense": dense})


def unpooled(maps: Tensor, places: Tensor, size: Sequence[int]) -> Tensor:
    """Maxima put back to where they were, all else zero: torch's `max_unpool2d` and 3d, which `torch.func` lacks.

    Args:
        maps: `[rows, channels, ...]`.
        places: of each value within its larger map, flattened, as max-pools return them.
        size: of the larger maps.
    """
    zeros = maps.new_zeros(*maps.shape[:2], prod(size))
    return zeros.scatter(2, places.flatten(2), maps.flatten(2)).unflatten(2, tuple(size))


@declares(inputs="images")
@ranged
def conv_autoencoder(
    *,
    input_shape: Sequence[int],
    classes: int,
    channels: Sequence[Count] = (16, 32),
    convolutions: Count = 1,
    latent: Count = 32,
    unpool: bool = True,
    activation: Activation = "leaky_relu",
    xavier: bool = True,
    devices: list[str] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Convolutional autoencoder of images (channels, height, width) or volumes (channels, depth, height, width).

    Each level has 3x3(x3) convolutions and a max-pool that halves the sizes; a linear layer makes the code of the last.
    The decoder is its mirror image, with transposed convolutions. Maxima go back to where they were (`unpool`), but for
    a code without its input, which is enlarged by interpolation. StreamedML's AutoEncoder2D and AutoEncoder3D.

    Args:
        input_shape: channels and two or three sizes of one sample.
        classes: numbers of a target, which must be as many as those of an input.
        channels: of each level.
        convolutions: a level has.
        latent: size of a code.
        unpool: whether maxima go back to where they were; false interpolates.
        activation: after each convolution but the last.
        xavier: whether weights are drawn by Glorot and Bengio's uniform rule, and biases are zero.
        devices: of the encoder and of the decoder, for a model that is too large for one; null for none of their own.
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a stream whose targets are not its inputs, another number of sizes, or too small ones.

    Example:
        >>> model = conv_autoencoder(input_shape=(1, 8, 9, 10), classes=720, channels=[4], latent=5)
        >>> model(torch.zeros(2, 1, 8, 9, 10)).shape, model.inverse(torch.zeros(2, 5)).shape
        (torch.Size([2, 1, 8, 9, 10]), torch.Size([2, 5]))
    """
    if len(input_shape) not in (3, 4):
        raise ConfigError(
            f"`conv_autoencoder` takes images or volumes, not inputs of shape {tuple(input_shape)}. "
            "Use a stream of (channels, height, width) or (channels, depth, height, width), or `autoencoder`."
        )
    check_reconstruction("conv_autoencoder", input_shape, classes)
    if not channels or min(input_shape[1:]) >> len(channels) == 0:
        raise ConfigError(
            f"samples of {' x '.join(map(str, input_shape[1:]))} cannot be halved {len(channels)} times. Give"
            f" `channels` from 1 to {min(input_shape[1:]).bit_length() - 1} entries."
        )
    with seeded(seed):
        model = ConvAutoencoder(input_shape, channels, convolutions, latent, unpool, activation, devices)
        return _initialised(model) if xavier else model


def _initialised(model: nn.Module) -> nn.Module:
    """Weights by Glorot and Bengio 2010, equation 16, and biases zero."""
    for parameter in model.parameters():
        if parameter.is_meta:
            continue
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
    return model
