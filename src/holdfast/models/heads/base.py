"""What every head offers, and the plain one that has all its outputs from the start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError


class Part(NamedTuple):
    """Outputs `start` to `stop` (exclusive) of a head, and the parameters that are theirs alone.

    Attributes:
        start: first output.
        stop: one past the last output.
        weight: `[stop - start, features]`.
        bias: `[stop - start]`, or None.
    """

    start: int
    stop: int
    weight: nn.Parameter
    bias: nn.Parameter | None


class Head(nn.Module, ABC):
    """The last layer of a classifier: features `[rows, features]` to outputs `[rows, width]`.

    Attributes:
        features: number of features that come in.
        width: number of outputs today.
        needs_task: whether `forward` needs to be told the task of the samples.
    """

    features: int
    needs_task: bool = False

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of outputs today."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Outputs `[rows, width]` of features `[rows, features]`."""

    @abstractmethod
    def grow(self, width: int, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """Add outputs up to `width`; those that exist keep their values, their names and their `Parameter` objects.

        Args:
            width: outputs wanted; a width that is already there changes nothing.
            generator: source of the initial values of the new outputs.

        Returns:
            The new parameters, for the optimiser; an empty list where nothing was added.
        """

    @abstractmethod
    def parts(self) -> list[Part]:
        """The outputs in order, in runs that share parameters: for what edits the rows of single classes."""


class FixedHead(nn.Linear, Head):
    """One linear layer with an output for every class from the start; it cannot grow.

    Args:
        features: number of features that come in.
        classes: number of outputs.

    Raises:
        ConfigError: if either is below 1.

    Example:
        >>> head = FixedHead(64, classes=10)
        >>> head(torch.zeros(3, 64)).shape, head.grow(10)
        (torch.Size([3, 10]), [])
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, features: int, classes: int) -> None:
        if features < 1 or classes < 1:
            raise ConfigError(
                f"a fixed head cannot have {features} features and {classes} classes. "
                "Give the number of classes of the whole stream, or take the growing head, which starts with none."
            )
        super().__init__(features, classes)
        self.features = features
        self.classes = classes

    @property
    def width(self) -> int:
        """Number of outputs, always `classes`."""
        return self.out_features

    def grow(self, width: int, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """Nothing up to `classes`, and an error beyond.

        Args:
            width: outputs wanted.
            generator: not used, as nothing is ever created.

        Raises:
            UsageError: if `width` is beyond `classes`.
        """
        if width > self.out_features:
            raise UsageError(
                f"a fixed head of {self.out_features} outputs cannot grow to {width}. "
                'Write head="growing", or give the model all classes of the stream at the start.'
            )
        return []

    def parts(self) -> list[Part]:
        """All outputs as one part."""
        return [Part(0, self.out_features, self.weight, self.bias)]
