"""Fully connected models: the perceptron of the MNIST experiments, and a linear model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

from torch import nn

from holdfast.core.ranges import BelowOne, Count, ranged
from holdfast.models.build import Activation, HeadName, check_sizes, make_activation, make_head, seeded
from holdfast.models.classifier import Classifier


@ranged
def mlp(
    *,
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[Count] = (100, 100),
    head: HeadName = "fixed",
    activation: Activation = "relu",
    dropout: BelowOne = 0.0,
    batch_norm: bool = False,
    init: Literal["default", "xavier"] = "default",
    seed: int | None = None,
) -> nn.Module:
    """Multi-layer perceptron: for each hidden layer linear, batch norm, activation, dropout; then the head.

    Two layers of 100 with ReLU are the MNIST network of "Gradient Episodic Memory for Continual Learning" (Lopez-Paz
    and Ranzato, 2017); with `init="xavier"` that of "Dark Experience for General Continual Learning" (Buzzega et
    al., 2020).

    Args:
        input_shape: shape of one sample; anything but a vector is flattened.
        classes: number of classes of the whole stream.
        hidden: units of each hidden layer.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt) or "cosine_task".
        activation: after each hidden layer.
        dropout: probability of dropping a hidden unit in training.
        batch_norm: whether to normalise before each activation.
        init: "default" is torch's; "xavier" is uniform with zero biases (growing heads keep torch's).
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a size below 1, a dropout outside [0, 1), or an unknown name.

    Example:
        >>> mlp(input_shape=(4,), classes=3, hidden=[8])
        Classifier(
          (backbone): Sequential(
            (0): Linear(in_features=4, out_features=8, bias=True)
            (1): ReLU()
          )
          (head): FixedHead(in_features=8, out_features=3, bias=True)
        )
    """
    with seeded(seed):
        model = perceptron(nn.Linear, input_shape, classes, hidden, head, activation, dropout, batch_norm, seed)
        if init == "xavier":
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
    return model


def perceptron(
    layer: Callable[[int, int], nn.Module],
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int],
    head: HeadName,
    activation: Activation,
    dropout: float,
    batch_norm: bool,
    seed: int | None,
) -> Classifier:
    """A perceptron of layers that `layer(inputs, units)` makes, with checked sizes; the rest as in `mlp`."""
    check_sizes("input_shape", input_shape)
    layers: list[nn.Module] = [nn.Flatten()] if len(input_shape) != 1 else []
    width = prod(input_shape)
    for units in hidden:
        layers.append(layer(width, units))
        layers += [nn.BatchNorm1d(units)] if batch_norm else []
        layers.append(make_activation(activation))
        layers += [nn.Dropout(dropout)] if dropout else []
        width = units
    return Classifier(nn.Sequential(*layers), make_head(head, width, classes, seed))


def linear(*, input_shape: Sequence[int], classes: int, head: HeadName = "fixed", seed: int | None = None) -> nn.Module:
    """A linear model: the head on the flattened inputs, nothing else.

    Args:
        input_shape: shape of one sample; anything but a vector is flattened.
        classes: number of classes of the whole stream.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt) or "cosine_task".
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a size below 1, or an unknown head.

    Example:
        >>> from holdfast.models import parameter_count
        >>> parameter_count(linear(input_shape=(1, 28, 28), classes=10))
        7850
    """
    return mlp(input_shape=input_shape, classes=classes, hidden=(), head=head, seed=seed)
