"""Inner products of single samples' gradients, without a gradient of any sample where a layer is linear."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from holdfast.operations.per_sample import Calls

CHUNK = 16
"""Samples whose gradients are held at once in layers without a closed form."""


def inner_products(
    layers: dict[str, nn.Module], seen: Calls, deltas: tuple[Tensor, ...], count: int
) -> tuple[Tensor, Tensor]:
    r"""Inner products of the gradients of the first `count` samples with those of the others, and squared norms.

    A linear layer with inputs a and output gradients d has for its weight and bias

    $$ \langle g_i, g_j \rangle = (d_i^\top d_j) (a_i^\top a_j + 1), $$

    two small matrix products and no gradient. Other layers' gradients are made for a few samples at a time.

    Args:
        layers: by name, as `per_sample.supported_layers` finds them, all of whose parameters are trained.
        seen: their recorded calls, one each.
        deltas: of each layer, the gradient of every sample's own loss by its outputs, `[rows, ...]`.
        count: how many samples stand on the one side.

    Returns:
        `[count, rows - count]` inner products, `[rows]` squared norms.
    """
    rows = deltas[0].shape[0]
    cross = deltas[0].new_zeros((count, rows - count), dtype=torch.float32)
    norms = deltas[0].new_zeros(rows, dtype=torch.float32)
    if deltas[0].dtype == torch.float64:
        cross, norms = cross.double(), norms.double()
    for module, calls, delta in zip(layers.values(), seen.values(), deltas):
        inputs, delta = calls[0][0].to(cross.dtype), delta.to(cross.dtype)
        if delta.dim() == 2 and not isinstance(module, nn.BatchNorm1d):
            bias = float(any(p.dim() == 1 for p in module.parameters()))
            cross += (delta[:count] @ delta[count:].T) * (inputs[:count] @ inputs[count:].T + bias)
            norms += delta.square().sum(1) * (inputs.square().sum(1) + bias)
            continue
        others = torch.cat(list(_gradients(module, inputs[count:], delta[count:])))
        norms[count:] += others.square().sum(1)
        place = 0
        for part in _gradients(module, inputs[:count], delta[:count]):
            cross[place : place + len(part)] += part @ others.T
            norms[place : place + len(part)] += part.square().sum(1)
            place += len(part)
    return cross, norms


def _gradients(module: nn.Module, inputs: Tensor, deltas: Tensor) -> Iterator[Tensor]:
    """The gradients of a layer's parameters for each sample, `[chunk, values]`, a chunk at a time."""
    for a, delta in zip(inputs.split(CHUNK), deltas.split(CHUNK)):
        yield torch.cat([part.flatten(1) for part in _of_layer(module, a, delta)], dim=1)


def _of_layer(module: nn.Module, a: Tensor, delta: Tensor) -> list[Tensor]:
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        shape = (1, -1, *[1] * (a.dim() - 2))
        mean, var = module.running_mean, module.running_var
        scaled = (a - mean.view(shape)) / (var.view(shape) + module.eps).sqrt()  # type: ignore[union-attr]
        found = [delta * scaled, delta]
        return [part.flatten(2).sum(2) for part in found] if a.dim() > 2 else found
    if isinstance(module, nn.Conv2d):
        rows = a.shape[0]
        weight = conv2d_weight(
            a.reshape(1, -1, *a.shape[2:]),
            (rows * module.out_channels, *module.weight.shape[1:]),
            delta.reshape(1, -1, *delta.shape[2:]),
            module.stride,
            module.padding,  # type: ignore[arg-type]
            module.dilation,
            groups=rows,
        ).view(rows, -1)
        bias = delta.flatten(2).sum(2)
    else:
        a, delta = a.flatten(1, -2), delta.flatten(1, -2)
        weight, bias = torch.einsum("nto,nti->noi", delta, a), delta.sum(1)
    return [weight, bias] if any(p.dim() == 1 for p in module.parameters()) else [weight]
