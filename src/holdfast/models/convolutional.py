"""Convolutional networks: a small one for images on a CPU, and the reduced ResNet-18 of the literature."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, ranged
from holdfast.models.build import Activation, Classifier, HeadName, check_image, make_activation, make_head, seeded


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
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        activation: after each convolution and hidden layer.
        batch_norm: whether to normalise after each convolution.
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a shape that is not an image or too small to be halved that often, or an unknown name.

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


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut: `relu(f(x) + s(x))`.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps `[rows, outputs, height / stride, width / stride]`."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        skipped = inputs if self.shortcut is None else self.shortcut(inputs)
        return F.relu(self.bn2(self.conv2(hidden)) + skipped)


@declares(inputs="images")
@ranged
def resnet18(
    *, input_shape: Sequence[int], classes: int, width: Count = 20, head: HeadName = "fixed", seed: int | None = None
) -> nn.Module:
    """Reduced ResNet-18: a 3x3 stem of stride 1 without max-pool, then stages of w, 2w, 4w and 8w channels.

    The network of "Gradient Episodic Memory for Continual Learning" (Lopez-Paz and Ranzato, 2017), for images of 32
    to 84 pixels: 2 blocks a stage, strides 1, 2, 2, 2, no biases but the head's. `width=64` has the channels of
    the full ResNet-18. The backbone's children are `stem`, `layer1` to `layer4`, `pool` and `flatten`, so that it
    can be cut by name. Difference from the paper: the mean is over the whole last map, whatever the size of the images.

    Args:
        input_shape: channels, height and width of one image.
        classes: number of classes of the whole stream.
        width: channels of the stem and the first stage.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a shape that is not an image, a size below 1, or an unknown head.

    Example:
        >>> from holdfast.models import parameter_count
        >>> parameter_count(resnet18(input_shape=(3, 32, 32), classes=100))
        1109240
    """
    channels, _, _ = check_image("resnet18", input_shape)
    with seeded(seed):
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["stem"] = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        planes = width
        for index, stride in enumerate((1, 2, 2, 2)):
            outputs = width * 2**index
            stages[f"layer{index + 1}"] = nn.Sequential(
                BasicBlock(planes, outputs, stride), BasicBlock(outputs, outputs)
            )
            planes = outputs
        stages["pool"] = nn.AdaptiveAvgPool2d(1)
        stages["flatten"] = nn.Flatten()
        model = Classifier(nn.Sequential(stages), make_head(head, planes, classes, seed))
        model.cuts = ("layer1", "layer2", "layer3", "layer4")  # Hemati et al. 2023: the stem goes with the first stage
        return model
