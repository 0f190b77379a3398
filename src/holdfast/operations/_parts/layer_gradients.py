"""Gradients of single samples in closed form: layers that have one, what is recorded of them, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from holdfast.core.errors import ConfigError
from holdfast.models.heads import GrowingHead, TaskHead

Magnitude = Callable[[Tensor], Tensor]
"""`square` or `torch.abs`: what is summed of each sample's gradient. It must turn products into products."""

Diagonal = dict[str, Tensor]
"""One real tensor per trainable parameter, shaped like it, by name."""

Calls = dict[str, list[tuple[Tensor, Tensor]]]
"""Input and output of every call of a layer in one forward, by the layer's name."""

CHUNK = 16
"""Samples whose gradients exist at once, in layers where a gradient per sample has to be made."""


def square(value: Tensor) -> Tensor:
    """The squared magnitude of each entry, a real tensor.

    Example:
        >>> square(torch.tensor([3.0, -2.0])), square(torch.tensor([3 + 4j]))
        (tensor([9., 4.]), tensor([25.]))
    """
    return value.abs().square() if value.is_complex() else torch.square(value)


# Which layers have one -----------------------------------------------------------------------------------


def supported_layers(model: nn.Module) -> dict[str, nn.Module] | None:
    """Layers that hold all trainable parameters, by name, if each of them has a closed form; else None.

    What counts is what a layer computes: a subclass with a forward of its own, or a layer whose weight is made of other
    parameters (weight norm, parametrizations), has none. Whether a weight is used outside its layer too, and whether a
    layer's rows are samples, shows only when the model runs: `per_sample.PerSample` looks at that.
    """
    layers: dict[str, nn.Module] = {}
    owned: set[int] = set()
    for name, module in model.named_modules():
        chunked = _chunked(module)
        direct = dict(module.named_parameters(recurse=chunked))
        trained = [p for p in direct.values() if p.requires_grad]
        if not trained or (isinstance(module, nn.ParameterList) and all(id(p) in owned for p in trained)):
            continue
        if not chunked and not (_plain(module) and direct.keys() <= {"weight", "bias"}):
            return None
        if any(id(p) in owned for p in trained):  # two layers share their weights
            return None
        owned |= {id(p) for p in trained}
        layers[name] = module
    return layers


def _computes_as(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether `module` has the forward of `base`, and not one of a subclass or one that was set on the instance."""
    return isinstance(module, base) and getattr(module.forward, "__func__", None) is base.forward


def _chunked(module: nn.Module) -> bool:
    """Whether `module` is a linear head whose outputs come in chunks of parameters."""
    if isinstance(module, TaskHead) and type(module).all_outputs is not TaskHead.all_outputs:
        return False
    return _computes_as(module, TaskHead) or _computes_as(module, GrowingHead)


def _plain(module: nn.Module) -> bool:
    """Whether `module` is a linear layer, a convolution, or a batch norm with statistics, that computes as torch's."""
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and _computes_as(module, nn.Conv2d)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        plain = _computes_as(module, nn.BatchNorm1d) or _computes_as(module, nn.BatchNorm2d)
        return plain and module.track_running_stats and module.running_mean is not None
    return _computes_as(module, nn.Linear)


# What is recorded of a forward ---------------------------------------------------------------------------


@contextmanager
def recorded(layers: dict[str, nn.Module]) -> Iterator[Calls]:
    """Record inputs (without graph) and outputs (with graph) of `layers` in the forward inside."""
    seen: Calls = {name: [] for name in layers}

    def keep(name: str) -> Callable[..., Tensor]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            entered: Tensor = args[0] if args else next(iter(kwargs.values()))
            # A task head masks what it computes, and what is masked has no gradient.
            left = module.unmasked if isinstance(module, TaskHead) and module.unmasked is not None else output
            seen[name].append((entered.detach(), left))
            return output.clone()  # an activation in place after the layer would change what was recorded

        return record

    # Ours comes first: another hook on the layer may change its output, which is then no longer the layer's own.
    handles = [
        module.register_forward_hook(keep(name), prepend=True, with_kwargs=True) for name, module in layers.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def one_call_a_row(seen: Calls, rows: int) -> bool:
    """Whether each recorded layer was called once, with one row for each of `rows` samples."""
    return all(
        len(calls) == 1 and all(value.dim() > 1 and value.shape[0] == rows for value in calls[0])
        for calls in seen.values()
    )


def layer_outputs(seen: Calls) -> list[Tensor]:
    """The outputs of the recorded layers, to differentiate by.

    Raises:
        ConfigError: if a layer was called more or less than once.
    """
    if any(len(calls) != 1 for calls in seen.values()):
        raise ConfigError("the closed form needs each layer called once a forward. Pass closed_form=False.")
    return [calls[0][1] for calls in seen.values()]


# Sums of magnitudes --------------------------------------------------------------------------------------


def summed(layers: dict[str, nn.Module], seen: Calls, deltas: tuple[Tensor, ...], magnitude: Magnitude) -> Diagonal:
    """The magnitudes of per-sample gradients, summed over samples, by parameter name.

    With a linear layer's inputs a and output gradients d of each sample, it is `magnitude(d)^T magnitude(a)`: one
    matrix product instead of one backward per sample.

    Args:
        layers: by name.
        seen: their recorded calls.
        deltas: of each layer, the gradient of every sample's own loss by its outputs, `[rows, ...]`.
        magnitude: what is summed.
    """
    result: Diagonal = {}
    for (name, module), calls, delta in zip(layers.items(), seen.values(), deltas):
        for key, value in _layer(module, calls[0][0], delta, magnitude).items():
            result[f"{name}.{key}" if name else key] = value
    return result


def _layer(module: nn.Module, a: Tensor, delta: Tensor, magnitude: Magnitude) -> Diagonal:
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return {key: magnitude(value).sum(0) for key, value in _norm(module, a, delta).items()}
    if isinstance(module, nn.Conv2d):
        parts = [magnitude(_convolution(module, x, d)).sum(0) for x, d in zip(a.split(CHUNK), delta.split(CHUNK))]
        totals = {"weight": torch.stack(parts).sum(0), "bias": magnitude(delta.flatten(2).sum(2)).sum(0)}
    elif a.dim() == 2:
        totals = {"weight": magnitude(delta).T @ magnitude(a), "bias": magnitude(delta).sum(0)}
    else:
        a, delta = a.flatten(1, -2), delta.flatten(1, -2)
        totals = {
            "weight": magnitude(torch.einsum("nto,nti->noi", delta, a)).sum(0),
            "bias": magnitude(delta.sum(1)).sum(0),
        }
    if isinstance(module, GrowingHead | TaskHead):
        chunks = {}
        for index, part in enumerate(module.parts()):
            if part.weight.requires_grad:
                chunks[f"weights.{index}"] = totals["weight"][part.start : part.stop]
            if part.bias is not None and part.bias.requires_grad:
                chunks[f"biases.{index}"] = totals["bias"][part.start : part.stop]
        return chunks
    return {key: totals[key] for key, p in module.named_parameters(recurse=False) if p.requires_grad}


def _convolution(module: nn.Conv2d, a: Tensor, delta: Tensor) -> Tensor:
    """Weight gradients of a convolution for every sample, as one convolution with a group per sample."""
    rows, shape = a.shape[0], (a.shape[0] * module.out_channels, *module.weight.shape[1:])
    return conv2d_weight(
        a.reshape(1, -1, *a.shape[2:]),
        shape,
        delta.reshape(1, -1, *delta.shape[2:]),
        module.stride,
        module.padding,  # type: ignore[arg-type]
        module.dilation,
        groups=rows,
    ).view(rows, *module.weight.shape)


def _norm(module: nn.BatchNorm1d | nn.BatchNorm2d, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Gradients of a batch norm's weight and bias for every sample, `[rows, channels]` each."""
    shape = (1, -1, *[1] * (a.dim() - 2))
    mean, var = module.running_mean, module.running_var
    scaled = (a - mean.view(shape)) / (var.view(shape) + module.eps).sqrt()  # type: ignore[union-attr]
    parts = {"weight": delta * scaled, "bias": delta}
    return {key: value.flatten(2).sum(2) if a.dim() > 2 else value for key, value in parts.items()}


# Inner products ------------------------------------------------------------------------------------------


def inner_products(
    layers: dict[str, nn.Module], seen: Calls, deltas: tuple[Tensor, ...], count: int
) -> tuple[Tensor, Tensor]:
    r"""Inner products of the gradients of the first `count` samples with those of the others, and squared norms.

    A linear layer with inputs a and output gradients d has for its weight and bias

    $$ \langle g_i, g_j \rangle = (d_i^\top d_j) (a_i^\top a_j + 1), $$

    two small matrix products and no gradient. Other layers' gradients are made for a few samples at a time.

    Args:
        layers: by name, as `supported_layers` gives them, all of whose parameters are trained.
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
        start = 0
        for part in _gradients(module, inputs[:count], delta[:count]):
            cross[start : start + len(part)] += part @ others.T
            norms[start : start + len(part)] += part.square().sum(1)
            start += len(part)
    return cross, norms


def _gradients(module: nn.Module, inputs: Tensor, deltas: Tensor) -> Iterator[Tensor]:
    """The gradients of a layer's parameters for each sample, `[chunk, values]`, a chunk at a time."""
    for a, delta in zip(inputs.split(CHUNK), deltas.split(CHUNK)):
        yield torch.cat([part.flatten(1) for part in _rows(module, a, delta)], dim=1)


def _rows(module: nn.Module, a: Tensor, delta: Tensor) -> list[Tensor]:
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return list(_norm(module, a, delta).values())
    if isinstance(module, nn.Conv2d):
        weight, bias = _convolution(module, a, delta), delta.flatten(2).sum(2)
    else:
        a, delta = a.flatten(1, -2), delta.flatten(1, -2)
        weight, bias = torch.einsum("nto,nti->noi", delta, a), delta.sum(1)
    return [weight, bias] if any(p.dim() == 1 for p in module.parameters()) else [weight]
