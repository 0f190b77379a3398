"""Fully connected models: the perceptron of the MNIST experiments, a linear one, some with few values to learn."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.ranges import BelowOne, Count, ranged
from holdfast.models.build import Activation, Classifier, HeadName, check_sizes, make_activation, make_head, seeded


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
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
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
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a size below 1, or an unknown head.

    Example:
        >>> from holdfast.models import parameter_count
        >>> parameter_count(linear(input_shape=(1, 28, 28), classes=10))
        7850
    """
    return mlp(input_shape=input_shape, classes=classes, hidden=(), head=head, seed=seed)


class LowRankLinear(nn.Module):
    r"""A linear layer of which only a change of low rank learns: `y = (W_0 + U V) x + b`, W_0 fixed.

    U starts at zero, so that the layer starts as `nn.Linear` would. Hu et al. 2022, "LoRA", equation 3.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        rank: columns of U.

    Example:
        >>> sum(p.numel() for p in LowRankLinear(10, 4, rank=1).parameters())  # 4 + 10, and a bias of 4
        18
    """

    start: Tensor

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("start", fixed(outputs, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.down = nn.Parameter(fixed(rank, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, values: Tensor) -> Tensor:
        """`[rows, outputs]` of `[rows, inputs]`."""
        return F.linear(values, self.start, self.bias) + F.linear(F.linear(values, self.down), self.up)


class MixedLinear(nn.Module):
    r"""A linear layer whose weight is a learned mixture of fixed random ones: `W = sum_k c_k W_k / sqrt(K)`.

    Li et al. 2018, "Measuring the intrinsic dimension of objective landscapes", equation 2, layer by layer and
    without an offset.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        count: K, of the mixed weights and so of the values to learn, beside the bias.
        rank_one: each W_k is a product of two vectors, which takes less memory.

    Example:
        >>> sum(p.numel() for p in MixedLinear(10, 4, count=8).parameters())  # 8, and a bias of 4
        12
    """

    left: Tensor
    right: Tensor
    bases: Tensor

    def __init__(self, inputs: int, outputs: int, count: int, rank_one: bool = False) -> None:
        super().__init__()
        self.rank_one = rank_one
        if rank_one:
            self.register_buffer("left", torch.randn(count, outputs))
            self.register_buffer("right", fixed(count, inputs))
        else:
            self.register_buffer("bases", fixed(count * outputs, inputs).view(count, outputs, inputs))
        self.coefficients = nn.Parameter(torch.randn(count))
        self.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> Tensor:
        """The mixture, `[outputs, inputs]`."""
        shares = self.coefficients / math.sqrt(len(self.coefficients))
        if self.rank_one:
            return (self.left * shares[:, None]).T @ self.right
        return torch.tensordot(shares, self.bases, 1)

    def forward(self, values: Tensor) -> Tensor:
        """`[rows, outputs]` of `[rows, inputs]`."""
        return F.linear(values, self.weight, self.bias)


def fixed(outputs: int, inputs: int) -> Tensor:
    """Values as `nn.Linear` draws its weights: uniform within `1 / sqrt(inputs)`."""
    bound = 1 / math.sqrt(inputs)
    return torch.empty(outputs, inputs).uniform_(-bound, bound)


@ranged
def low_rank_mlp(
    *,
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[Count] = (100, 100),
    rank: Count = 1,
    head: HeadName = "fixed",
    activation: Activation = "relu",
    batch_norm: bool = False,
    dropout: BelowOne = 0.0,
    seed: int | None = None,
) -> nn.Module:
    """Multi-layer perceptron of fixed random weights that learns a change of low rank in each layer, and its head.

    After "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2022); CLMixer's `mlp_lora`, whose weights
    are of rank one and nothing else.

    Args:
        input_shape: shape of one sample; anything but a vector is flattened.
        classes: number of classes of the whole stream.
        hidden: units of each hidden layer.
        rank: of the change of each layer's weight.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        activation: after each hidden layer.
        batch_norm: whether to normalise before each activation.
        dropout: probability of dropping a hidden unit in training.
        seed: of the fixed and the initial values; None draws them from torch's global generator.

    Raises:
        ConfigError: for a size or rank below 1, or a dropout outside [0, 1).

    Example:
        >>> from holdfast.models import parameter_count
        >>> parameter_count(low_rank_mlp(input_shape=(10,), classes=3, hidden=[4]))  # 18, and a head of 15
        33
    """
    layer = functools.partial(LowRankLinear, rank=rank)
    with seeded(seed):
        return perceptron(layer, input_shape, classes, hidden, head, activation, dropout, batch_norm, seed)


@ranged
def subspace_mlp(
    *,
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[Count] = (100, 100),
    dimension: Count = 80,
    rank_one: bool = False,
    head: HeadName = "fixed",
    activation: Activation = "relu",
    batch_norm: bool = False,
    dropout: BelowOne = 0.0,
    seed: int | None = None,
) -> nn.Module:
    """Multi-layer perceptron that learns, in each layer, only how to mix fixed random weights, and its head.

    After "Measuring the Intrinsic Dimension of Objective Landscapes" (Li et al., 2018), layer by layer; CLMixer's
    `mlp_subspace`, with `rank_one` its `mlp_subspace_lora`.

    Args:
        input_shape: shape of one sample; anything but a vector is flattened.
        classes: number of classes of the whole stream.
        hidden: units of each hidden layer.
        dimension: weights that are mixed in each layer, and so the values that a layer learns beside its bias.
        rank_one: each of them is a product of two vectors, which takes less memory.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        activation: after each hidden layer.
        batch_norm: whether to normalise before each activation.
        dropout: probability of dropping a hidden unit in training.
        seed: of the fixed and the initial values; None draws them from torch's global generator.

    Raises:
        ConfigError: for a size or dimension below 1, or a dropout outside [0, 1).

    Example:
        >>> from holdfast.models import parameter_count
        >>> parameter_count(subspace_mlp(input_shape=(10,), classes=3, hidden=[4], dimension=8))  # 12, and a head of 15
        27
    """
    layer = functools.partial(MixedLinear, count=dimension, rank_one=rank_one)
    with seeded(seed):
        return perceptron(layer, input_shape, classes, hidden, head, activation, dropout, batch_norm, seed)
