"""A backbone that never learns, and a small network on its features that does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.models.build import Activation, HeadName, check_sizes, make_activation, make_head, seeded
from holdfast.models.classifier import Classifier
from holdfast.models.library import timm, torchvision


class FrozenBackbone(nn.Module):
    """Features of a network in eval mode, without gradients: its batch norm keeps its statistics too.

    Args:
        network: gives `[rows, features]`; its parameters no longer take gradients.

    Example:
        >>> frozen = FrozenBackbone(nn.BatchNorm1d(2)).train()
        >>> frozen.network.training, any(p.requires_grad for p in frozen.parameters())
        (False, False)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in eval mode, whatever is asked."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Features `[rows, features]`, without a graph."""
        with torch.no_grad():
            return self.network(inputs)  # type: ignore[no-any-return]


def frozen(
    *,
    input_shape: Sequence[int],
    classes: int,
    architecture: str,
    library: Literal["timm", "torchvision"] = "timm",
    weights: str | None = None,
    hidden: Sequence[int] = (),
    activation: Activation = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """A frozen backbone of timm or torchvision, then a perceptron that learns.

    Nothing is downloaded. Needs the extra `vision`.

    Args:
        input_shape: channels, height and width of one image.
        classes: number of classes of the whole stream.
        architecture: of the backbone, as the library calls it.
        library: "timm" or "torchvision".
        weights: path of a file with the saved state of that architecture; None leaves random weights.
        hidden: units of each layer between backbone and head.
        activation: after each of them.
        dropout: probability of dropping one of their units in training.
        batch_norm: whether to normalise before each activation.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task) or "cosine".
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for an unknown architecture, or a size below 1.
        DataError: if `weights` is no file that fits the architecture.
        ImportError: if the library is not installed.
    """
    check_sizes("hidden", hidden)
    make = timm if library == "timm" else torchvision
    whole = make(input_shape=input_shape, classes=classes, architecture=architecture, weights=weights, seed=seed)
    assert isinstance(whole.backbone, nn.Module)
    backbone = FrozenBackbone(whole.backbone)
    width = int(backbone(torch.zeros(1, *input_shape)).shape[1])
    with seeded(seed):
        layers: list[nn.Module] = [backbone]
        for units in hidden:
            layers += [nn.Linear(width, units), *([nn.BatchNorm1d(units)] if batch_norm else [])]
            layers += [make_activation(activation), *([nn.Dropout(dropout)] if dropout else [])]
            width = units
        return Classifier(nn.Sequential(*layers), make_head(head, width, classes, seed))
