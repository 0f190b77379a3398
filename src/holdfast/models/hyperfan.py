"""Initial values of generators: so that the weights they make have the variance that a network's own should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, unknown

if TYPE_CHECKING:
    from holdfast.models.chunks import ChunksGenerator
    from holdfast.models.generators import HeadsGenerator, Target

Init = Literal["default", "xavier", "hyperfan_in", "hyperfan_out"]
INITS = ("default", "xavier", "hyperfan_in", "hyperfan_out")

SAMPLES = 4096
"""Embeddings that the second moment of a hidden layer is measured on."""

LEAST_SHARE = 0.5
"""Second moment that the chunk embedding of the least varied chunk brings, as a multiple of the task embedding's."""


def initialise_heads(generator: HeadsGenerator, init: Init) -> None:
    r"""Set the initial values of a generator with one head for each tensor.

    Hyperfan: a head's weights are normal with the variance

    $$ \operatorname{Var}(M) = \frac{\operatorname{Var}(W)}{H \, \mathbb{E}[h^2] + e \, \mathbb{E}[r^2]} $$

    where Var(W) is what the layer's own weights should have (He et al. 2015, by fan in or fan out), h the H hidden
    units and r the e values of a row's embedding. "Principled weight initialization for hypernetworks" (Chang, Flokas
    and Lipson, ICLR 2020), table 1. Differences: E[h^2] is measured, so that it holds for any activation; weights do
    not share their variance with biases, which start at (or near) zero here.

    Args:
        generator: its linear maps are set; embeddings and vectors stay.
        init: "default" changes nothing; "xavier" is uniform (Glorot and Bengio 2010) with zero biases.

    Raises:
        ConfigError: for an unknown name.
    """
    if not _prepared(generator, init):
        return
    fan: Literal["in", "out"] = "in" if init == "hyperfan_in" else "out"
    with torch.no_grad():
        embeddings = torch.randn(SAMPLES, generator.embedding) * generator.embedding_std
        hidden = generator.trunk(embeddings)
        moment = float(hidden.square().mean()) * hidden.shape[1]
        for name, target in generator.targets.items():
            if name in generator.kept:
                continue
            head = generator.head(name)
            rows = getattr(head, "rows", None)
            linear = head if isinstance(head, nn.Linear) else head.map  # type: ignore[union-attr]
            assert isinstance(linear, nn.Linear)
            incoming = moment if rows is None else moment + float(rows.square().mean()) * rows.shape[1]
            linear.weight.normal_(std=(target.variance(fan) / incoming) ** 0.5)


def initialise_chunks(generator: ChunksGenerator, init: Init) -> None:
    r"""Set the initial values of a generator of chunks.

    Hyperfan: all chunks leave the same map, so what tells their variances apart is the variance of their embeddings.
    With E values of variance s^2 in a task's embedding, C in a chunk's, and a map that makes values of variance
    K (E s^2 + C Var(c)) / (E + C), each chunk gets the Var(c) that makes this the mean of what its values should have.
    The idea is hypnettorch's (`apply_chunked_hyperfan_init`, after Meyerson and Miikkulainen 2019). Difference: there K
    is 1, so that a chunk that should vary less than s^2 E / (E + C) cannot; here K is as small as the least varied
    chunk asks for. Exact for ReLU, leaky ReLU and no hidden layer, an approximation for other activations.

    Args:
        generator: its linear maps are set, and the standard deviations that its chunk embeddings are drawn with.
        init: as in `initialise_heads`.

    Raises:
        ConfigError: for an unknown name.
    """
    if not _prepared(generator, init):
        return
    fan: Literal["in", "out"] = "in" if init == "hyperfan_in" else "out"
    wanted_C = chunk_variances(list(generator.targets.values()), generator.chunk, fan)
    task, width = generator.embedding, generator.embedding + generator.chunk_embedding
    brought = task * generator.embedding_std**2  # summed second moment of a task's embedding
    factor = float(wanted_C.min()) * width / ((1 + LEAST_SHARE) * brought)
    generator.chunk_stds = ((wanted_C * width / factor - brought) / generator.chunk_embedding).sqrt()
    with torch.no_grad():
        last = generator.layers[-1]
        assert isinstance(last, nn.Linear)
        moment = 1.0
        if len(generator.layers) > 1:
            values = torch.randn(SAMPLES, width)
            for layer in generator.layers[:-1]:
                values = generator.activation(layer(values))
            moment = float(values.square().mean())
        last.weight.normal_(std=(factor / (last.in_features * moment)) ** 0.5)


def chunk_variances(targets: Sequence[Target], chunk: int, fan: Literal["in", "out"]) -> Tensor:
    """The mean variance that the values of each chunk should have, `[C]`; the last chunk's over what is used of it.

    Args:
        targets: in the order in which they follow each other.
        chunk: values of a chunk.
        fan: see `Target.variance`.

    Example:
        >>> from holdfast.models.generators import Target
        >>> targets = [Target((2, 4), 4, 2, rectified=False), Target((2,), 4, 2)]
        >>> [round(value, 3) for value in chunk_variances(targets, 6, "in").tolist()]
        [0.25, 0.167]
    """
    flat = torch.cat([torch.full((target.size,), target.variance(fan), dtype=torch.float64) for target in targets])
    return torch.stack([part.mean() for part in flat.split(chunk)]).float()


def _prepared(generator: HeadsGenerator | ChunksGenerator, init: Init) -> bool:
    """Set every linear map as `init` says; whether heads are to be scaled after that."""
    if init not in INITS:
        raise ConfigError(unknown("init", init, INITS))
    if init == "default":
        return False
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            if init == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return init != "xavier"
