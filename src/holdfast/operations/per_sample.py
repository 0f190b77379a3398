"""Gradients of single samples: what of each is summed, in closed form layer by layer or by `vmap` for any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.grad import conv2d_weight

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Tree, tree_map
from holdfast.core.services import Services
from holdfast.core.task import forward_task
from holdfast.models.heads import GrowingHead, TaskHead

Magnitude = Callable[[Tensor], Tensor]
"""`torch.square` or `torch.abs`: what is summed of each sample's gradient. It must turn products into products."""

Diagonal = dict[str, Tensor]
"""One tensor per trainable parameter, shaped like it, by name."""

Calls = dict[str, list[tuple[Tensor, Tensor]]]
"""Input and output of every call of a layer in one forward, by the layer's name."""


# Closed form ---------------------------------------------------------------------------------------------


def supported_layers(model: nn.Module) -> dict[str, nn.Module] | None:
    """Layers that hold all trainable parameters, by name, if each of them has a closed form; else None."""
    layers: dict[str, nn.Module] = {}
    owned: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        chunked = isinstance(module, GrowingHead | TaskHead)
        if chunked:
            own = [p for p in module.parameters() if p.requires_grad]
        if not own or (isinstance(module, nn.ParameterList) and all(id(p) in owned for p in own)):
            continue
        convolution = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        convolution = convolution and not isinstance(module.padding, str)
        norm = isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.track_running_stats
        if not (isinstance(module, nn.Linear) or convolution or norm or chunked):
            return None
        if any(id(p) in owned for p in own):  # two layers share their weights
            return None
        owned |= {id(p) for p in own}
        layers[name] = module
    return layers


@contextmanager
def recorded(layers: dict[str, nn.Module]) -> Iterator[Calls]:
    """Record inputs (without graph) and outputs (with graph) of `layers` in the forward inside."""
    seen: Calls = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen[name].append((args[0].detach(), output))
            return output.clone()  # an activation in place after the layer would change what was recorded

        return record

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def layer_outputs(seen: Calls) -> list[Tensor]:
    """The outputs of the recorded layers, to differentiate by.

    Raises:
        ConfigError: if a layer was called more or less than once.
    """
    if any(len(calls) != 1 for calls in seen.values()):
        raise ConfigError("the closed form needs each layer called once a forward. Pass closed_form=False.")
    return [calls[0][1] for calls in seen.values()]


def summed(layers: dict[str, nn.Module], seen: Calls, deltas: tuple[Tensor, ...], magnitude: Magnitude) -> Diagonal:
    """The magnitudes of per-sample gradients, summed over samples, by parameter name.

    Args:
        layers: by name.
        seen: their recorded calls.
        deltas: of each layer, the gradient of every sample's own loss by its outputs, `[rows, ...]`.
        magnitude: what is summed.
    """
    result: Diagonal = {}
    for (name, module), calls, delta in zip(layers.items(), seen.values(), deltas):
        for own, value in _layer(module, calls[0][0], delta, magnitude).items():
            result[f"{name}.{own}" if name else own] = value
    return result


def _layer(module: nn.Module, a: Tensor, delta: Tensor, magnitude: Magnitude) -> Diagonal:
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _norm(module, a, delta, magnitude)
    if isinstance(module, nn.Conv2d):
        parts = [_convolution(module, x, d, magnitude) for x, d in zip(a.split(16), delta.split(16))]
        found = {"weight": torch.stack(parts).sum(0), "bias": magnitude(delta.flatten(2).sum(2)).sum(0)}
    elif a.dim() == 2:
        found = {"weight": magnitude(delta).T @ magnitude(a), "bias": magnitude(delta).sum(0)}
    else:
        a, delta = a.flatten(1, -2), delta.flatten(1, -2)
        found = {
            "weight": magnitude(torch.einsum("nto,nti->noi", delta, a)).sum(0),
            "bias": magnitude(delta.sum(1)).sum(0),
        }
    if isinstance(module, GrowingHead | TaskHead):
        chunks = {}
        for index, part in enumerate(module.parts()):
            if part.weight.requires_grad:
                chunks[f"weights.{index}"] = found["weight"][part.start : part.stop]
            if part.bias is not None and part.bias.requires_grad:
                chunks[f"biases.{index}"] = found["bias"][part.start : part.stop]
        return chunks
    return {own: found[own] for own, p in module.named_parameters(recurse=False) if p.requires_grad}


def _convolution(module: nn.Conv2d, a: Tensor, delta: Tensor, magnitude: Magnitude) -> Tensor:
    """Weight gradients of a convolution for every sample, as one convolution with a group per sample."""
    rows, shape = a.shape[0], (a.shape[0] * module.out_channels, *module.weight.shape[1:])
    grads = conv2d_weight(
        a.reshape(1, -1, *a.shape[2:]),
        shape,
        delta.reshape(1, -1, *delta.shape[2:]),
        module.stride,
        module.padding,  # type: ignore[arg-type]
        module.dilation,
        groups=rows,
    )
    return magnitude(grads.view(rows, *module.weight.shape)).sum(0)


def _norm(module: nn.BatchNorm1d | nn.BatchNorm2d, a: Tensor, delta: Tensor, magnitude: Magnitude) -> Diagonal:
    shape = (1, -1, *[1] * (a.dim() - 2))
    mean, var = module.running_mean, module.running_var
    scaled = (a - mean.view(shape)) / (var.view(shape) + module.eps).sqrt()  # type: ignore[union-attr]
    found = {"weight": delta * scaled, "bias": delta}
    totals = {own: value.flatten(2).sum(2) if a.dim() > 2 else value for own, value in found.items()}
    return {own: magnitude(value).sum(0) for own, value in totals.items()}


# Any model -----------------------------------------------------------------------------------------------


class OneByOne:
    """The model as a function of its parameters and one sample, for gradients of single samples by `vmap(grad)`.

    Args:
        learner: whose model it is; in eval mode already.
        inputs: raw inputs `[rows, ...]`, prepared here.
        task: the task label of all rows.

    Raises:
        ConfigError: if rows have different tasks.
    """

    def __init__(self, learner: Services, inputs: Tree, task: int | Tensor | None) -> None:
        if isinstance(task, Tensor):
            raise ConfigError("per-sample gradients with mixed tasks need the closed form. Use layers that have one.")
        self.task = learner.task if task is None else task
        self.model, self.output = learner.model, learner.forward.output
        self.inputs = inputs if learner.prepare is None else learner.prepare(inputs, False, None)
        self.parameters = {name: p.detach() for name, p in learner.named_parameters().items()}
        state = self.model.state_dict(keep_vars=True)
        tied = {id(p) for p in learner.parameters()}  # also under a second name
        self.rest = {name: value for name, value in state.items() if id(value) not in tied}
        first = {id(p): name for name, p in learner.named_parameters().items()}
        places = [
            (f"{path}.{key}".lstrip("."), p)
            for path, module in self.model.named_modules()
            for key, p in module._parameters.items()
        ]
        self.aliases = {name: first[id(p)] for name, p in places if first.get(id(p), name) != name}

    def call(self, weights: Diagonal, row: Tree) -> Tensor:
        """Outputs `[1, width]` of one sample under `weights`."""
        one = tree_map(lambda leaf: leaf.unsqueeze(0), row)
        args: tuple[Tensor, ...] = (one,) if isinstance(one, Tensor) else one if isinstance(one, tuple) else ()
        named = dict(one) if isinstance(one, Mapping) else {}
        # Tied by hand: torch exchanges a module that has two names twice, and puts the wrong values back.
        every = {**weights, **{name: weights[own] for name, own in self.aliases.items()}}
        with forward_task(self.task):
            outputs = functional_call(self.model, (every, self.rest), args, named, tie_weights=False)
        return outputs if self.output is None else self.output(outputs)

    def outputs(self) -> Tensor:
        """Outputs `[rows, width]` of all samples, without graph."""
        with torch.no_grad():
            return vmap(lambda row: self.call(self.parameters, row).squeeze(0))(self.inputs)

    def summed(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        labels: Tensor,
        magnitude: Magnitude,
        factor: Tensor | None = None,
    ) -> Diagonal:
        """The magnitudes of per-sample gradients of `loss(outputs, label)`, summed over samples.

        Args:
            loss: a scalar, of outputs `[1, width]` and labels `[1, ...]`.
            labels: `[rows, ...]`.
            magnitude: what is summed.
            factor: `[rows]` of each sample's magnitude; None for 1.
        """

        def one(weights: Diagonal, row: Tree, label: Tensor) -> Tensor:
            return loss(self.call(weights, row), label.unsqueeze(0))

        grads = vmap(grad(one), in_dims=(None, 0, 0), chunk_size=32)(self.parameters, self.inputs, labels)
        if factor is None:
            return {name: magnitude(value).sum(0) for name, value in grads.items()}
        return {name: torch.tensordot(factor, magnitude(value), 1) for name, value in grads.items()}
