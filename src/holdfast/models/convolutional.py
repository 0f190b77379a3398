"""A small convolutional network, for images on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from holdfast.core.errors import ConfigError
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, ranged
from holdfast.models.build import Activation, HeadName, check_image, make_activation, make_head, seeded
from holdfast.models.classifier import Classifier


@declares(inputs="images")
@ranged
def cnn(
    *,
    input_shape: Sequence[int],
    classes: int,
    channels: Sequence[Count] = (32, 64),
    hidden: Sequence[Count] = (128,),
    head: HeadName = "fixed",
    activation: Activation = "relu",
    batch_norm: bool = False,
    seed: int | None = None,
) -> nn.Module:
    """Small convolutional network: 3x3 convolutions, each followed by a 2x2 max-pool, then hidden layers and the head.

    Args:
        input_shape: channels, height and width of one image.
        classes: number of classes of the whole stream.
        channels: of each convolution; every one halves height and width.
        hidden: units of each fully connected layer before the head.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt) or "cosine_task".
        activation: after each convolution and hidden layer.
        batch_norm: whether to normalise after each convolution.
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a shape that is no image or too small to be halved that often, or an unknown name.

    Example:
        >>> import torch
        >>> model = cnn(input_shape=(1, 28, 28), classes=10)
        >>> model(torch.zeros(2, 1, 28, 28)).shape, model.head.features
        (torch.Size([2, 10]), 128)
    """
    depth, height, width = check_image("cnn", input_shape)
    if min(height, width) >> len(channels) == 0:
        raise ConfigError(
            f"images of {height} x {width} cannot be halved {len(channels)} times. "
            f"Give `channels` at most {min(height, width).bit_length() - 1} entries."
        )
    with seeded(seed):
        layers: list[nn.Module] = []
        for planes in channels:
            layers.append(nn.Conv2d(depth, planes, 3, padding=1))
            layers += [nn.BatchNorm2d(planes)] if batch_norm else []
            layers += [make_activation(activation), nn.MaxPool2d(2)]
            depth = planes
        layers.append(nn.Flatten())
        features = depth * (height >> len(channels)) * (width >> len(channels))
        for units in hidden:
            layers += [nn.Linear(features, units), make_activation(activation)]
            features = units
        return Classifier(nn.Sequential(*layers), make_head(head, features, classes, seed))
