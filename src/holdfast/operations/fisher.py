"""The diagonal of the Fisher information, from per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Data, Tree, tree_map
from holdfast.core.learner import Learner
from holdfast.models.heads import GrowingHead, TaskHead

Kind = Literal["exact", "true", "empirical", "batch"]
Diagonal = dict[str, Tensor]


def fisher_diagonal(
    learner: Learner,
    data: Data,
    kind: Kind = "true",
    *,
    samples: int | None = None,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    closed_form: bool | None = None,
) -> Diagonal:
    r"""Diagonal of the Fisher information of the model's outputs, by parameter name.

    $$ F_i = \frac{1}{N} \sum_{n=1}^{N} \mathbb{E}_y \Big[ \big( \partial_{\theta_i} \log p_\theta(y \mid x_n) \big)^2 \Big] $$

    Args:
        learner: model and criterion; the model is put into eval mode for the pass, so BatchNorm stays as it is.
        data: over which the mean is taken.
        kind: how y is chosen. `exact`: the expectation over all labels under the model (one backward per label);
            `true`: one label drawn from the model; `empirical`: the data's own label (any criterion);
            `batch`: the squared gradient of each batch's mean loss, times its size. The last is not the Fisher
            diagonal: it is what several libraries compute, smaller by about the batch size, and here for comparison.
        samples: use this many samples, drawn without replacement; default: all.
        batch_size: samples per forward. It changes the result of `batch` only.
        generator: for the choice of samples and of labels.
        closed_form: True, False, or None to use the closed form where the model allows it.

    Returns:
        One tensor per trainable parameter, shaped like it.

    Linear, convolution and BatchNorm layers have a closed form: with a layer's inputs a and output gradients d of
    each sample, the squared weight gradient of a linear layer summed over samples is the product (d^2)^T (a^2),
    one matrix product instead of one backward per sample. Other layers go through `vmap(grad)` in chunks of 32.

    Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", eq. 3; the kinds are
    told apart by Kunstner et al. 2019, "Limitations of the empirical Fisher approximation".
    """
    if kind not in ("exact", "true", "empirical", "batch"):
        raise ConfigError(f"Fisher kind {kind!r} is unknown. Choose one of exact, true, empirical, batch.")
    order = torch.arange(len(data))
    if samples is not None and samples < len(data):
        order = torch.randperm(len(data), generator=generator)[:samples]
    model = learner.model
    training, flags = model.training, learner.prepare
    model.eval()
    try:
        total = {name: torch.zeros_like(p) for name, p in learner.named_parameters().items()}
        layers = supported_layers(model) if closed_form is not False and kind != "batch" else None
        if closed_form and layers is None:
            raise ConfigError("the Fisher closed form was asked for, but the model has layers without one. Leave it out.")
        for batch in data.batches(order, batch_size):
            inputs = tree_map(lambda t: t.to(learner.device), batch.inputs)
            targets = batch.targets.to(learner.device)
            if kind == "batch":
                loss = learner.loss_on(inputs, targets, batch.task)
                grads: Iterator[Tensor] = iter(learner.grad(loss))
                part = {name: next(grads).square() * len(targets) for name in total}
            elif layers is not None:
                part = _closed_form(learner, layers, inputs, targets, batch.task, kind, generator)
            else:
                part = _vmapped(learner, inputs, targets, batch.task, kind, generator)
            for name, value in part.items():
                total[name] += value
    finally:
        model.train(training)
        learner.prepare = flags
    return {name: value / max(1, len(order)) for name, value in total.items()}


def _labels(logits: Tensor, targets: Tensor, kind: Kind, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The labels to differentiate by, with the factor of each sample's squared gradient."""
    if kind == "empirical":
        yield targets, None
        return
    probabilities = logits.detach().softmax(-1)
    if not torch.isfinite(probabilities).all():
        raise UsageError(
            "the model's outputs are not finite any more, so no Fisher diagonal can be measured. "
            "Training diverged: lower the learning rate, or the strength of the penalty (lr * strength * F must stay below 2)."
        )
    if kind == "true":
        yield torch.multinomial(probabilities.cpu(), 1, generator=generator).squeeze(1).to(logits.device), None
        return
    for label in range(logits.shape[1]):
        yield torch.full_like(targets, label), probabilities[:, label]


def _per_sample(learner: Learner, kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    return learner.criterion if kind == "empirical" else F.cross_entropy


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
        if not own or all(id(p) in owned for p in own):
            continue
        convolution = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        convolution = convolution and not isinstance(module.padding, str)
        norm = isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.track_running_stats
        if not (isinstance(module, nn.Linear) or convolution or norm or chunked):
            return None
        if any(id(p) in owned for p in own):
            return None
        owned |= {id(p) for p in own}
        layers[name] = module
    return layers


def _closed_form(
    learner: Learner,
    layers: dict[str, nn.Module],
    inputs: Tree,
    targets: Tensor,
    task: int | Tensor | None,
    kind: Kind,
    generator: torch.Generator | None,
) -> Diagonal:
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, args, output: seen[name].append((args[0].detach(), output))

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.enable_grad():
            logits = learner(inputs, task)
            if any(len(calls) != 1 for calls in seen.values()):
                raise ConfigError("the Fisher closed form needs each layer called once a forward. Pass closed_form=False.")
            outputs = [calls[0][1] for calls in seen.values()]
            result: Diagonal = {}
            criterion = _per_sample(learner, kind)
            for labels, factor in _labels(logits, targets, kind, generator):
                loss = criterion(logits, labels) * len(targets)
                deltas = torch.autograd.grad(loss, outputs, retain_graph=True)
                for (name, module), calls, delta in zip(layers.items(), seen.values(), deltas):
                    if factor is not None:
                        delta = delta * factor.sqrt().view(-1, *[1] * (delta.dim() - 1))
                    for own, value in _squares(module, calls[0][0], delta).items():
                        key = f"{name}.{own}" if name else own
                        result[key] = result[key] + value if key in result else value
    finally:
        for handle in handles:
            handle.remove()
    return result


def _squares(module: nn.Module, a: Tensor, delta: Tensor) -> Diagonal:
    """Squared per-sample gradients of one layer's parameters, summed over samples."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _norm_squares(module, a, delta)
    if isinstance(module, nn.Conv2d):
        weight = sum(_convolution_squares(module, *pair) for pair in zip(a.split(16), delta.split(16)))
        return {"weight": weight, "bias": delta.flatten(2).sum(2).square().sum(0)} if module.bias is not None else {"weight": weight}
    if a.dim() == 2:
        weight, bias = delta.square().T @ a.square(), delta.square().sum(0)
    else:
        a, delta = a.flatten(1, -2), delta.flatten(1, -2)
        weight = torch.einsum("nto,nti->noi", delta, a).square().sum(0)
        bias = delta.sum(1).square().sum(0)
    if isinstance(module, GrowingHead | TaskHead):
        chunks = {}
        for index, part in enumerate(module.parts()):
            chunks[f"weights.{index}"] = weight[part.start : part.stop]
            chunks[f"biases.{index}"] = bias[part.start : part.stop]
        return chunks
    found = {"weight": weight, "bias": bias}
    return {own: found[own] for own, p in module.named_parameters(recurse=False) if p.requires_grad}


def _convolution_squares(module: nn.Conv2d, a: Tensor, delta: Tensor) -> Tensor:
    """Squared per-sample weight gradients of a convolution, as one convolution with a group per sample."""
    rows, shape = a.shape[0], (a.shape[0] * module.out_channels, *module.weight.shape[1:])
    grads = torch.nn.grad.conv2d_weight(
        a.reshape(1, -1, *a.shape[2:]),
        shape,
        delta.reshape(1, -1, *delta.shape[2:]),
        module.stride,
        module.padding,  # type: ignore[arg-type]
        module.dilation,
        groups=rows,
    )
    return grads.view(rows, *module.weight.shape).square().sum(0)


def _norm_squares(module: nn.BatchNorm1d | nn.BatchNorm2d, a: Tensor, delta: Tensor) -> Diagonal:
    shape = (1, -1, *[1] * (a.dim() - 2))
    mean, var = module.running_mean, module.running_var
    scaled = (a - mean.view(shape)) / (var.view(shape) + module.eps).sqrt()  # type: ignore[union-attr]
    return {
        "weight": (delta * scaled).flatten(2).sum(2).square().sum(0) if a.dim() > 2 else (delta * scaled).square().sum(0),
        "bias": delta.flatten(2).sum(2).square().sum(0) if a.dim() > 2 else delta.square().sum(0),
    }


# Any model -----------------------------------------------------------------------------------------------


def _vmapped(
    learner: Learner,
    inputs: Tree,
    targets: Tensor,
    task: int | Tensor | None,
    kind: Kind,
    generator: torch.Generator | None,
) -> Diagonal:
    model, criterion = learner.model, _per_sample(learner, kind)
    if learner.prepare is not None:
        inputs = learner.prepare(inputs, False, None)
    if isinstance(task, Tensor):
        raise ConfigError("per-sample Fisher with mixed tasks needs the closed form. Use layers that have one, or kind='batch'.")
    if task is not None and getattr(learner.head, "needs_task", False):
        learner.head.task = task  # type: ignore[union-attr, assignment]
    parameters = {name: p.detach() for name, p in learner.named_parameters().items()}
    rest = {name: t for name, t in model.state_dict(keep_vars=True).items() if name not in parameters}

    def call(weights: Diagonal, row: Tree) -> Tensor:
        one = tree_map(lambda t: t.unsqueeze(0), row)
        args, kwargs = ((one,), {}) if isinstance(one, Tensor) else ((), dict(one)) if isinstance(one, dict) else (one, {})
        return functional_call(model, (weights, rest), args, kwargs)

    def loss(weights: Diagonal, row: Tree, label: Tensor) -> Tensor:
        return criterion(call(weights, row), label.unsqueeze(0))

    with torch.no_grad():
        logits = vmap(lambda row: call(parameters, row).squeeze(0))(inputs)
    squared = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for labels, factor in _labels(logits, targets, kind, generator):
        grads = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=32)(parameters, inputs, labels)
        for name, value in grads.items():
            value = value.square()
            if factor is not None:
                value = value * factor.view(-1, *[1] * (value.dim() - 1))
            squared[name] += value.sum(0)
    return squared
